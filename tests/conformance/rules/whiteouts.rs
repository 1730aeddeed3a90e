//! W: whiteouts and opaque directories. O: overlayfs.

use crate::catalogue::*;

pub fn whiteouts() -> Vec<Rule> {
    vec![
        rule("W1", "A whiteout hides that name of the lower layers with everything below it, and is not seen itself.")
            .same(Source, ALL),
        rule(
            "W2",
            "An entry stays although a whiteout of its name comes later in the same layer; as a directory it is opaque.",
        )
        .ruled(24)
        .differ(Measured, LAYERED, "error: file exists")
        .same(Source, &[Umoci]),
        rule("W3", "An entry stays when a whiteout of its name comes earlier in the same layer: order does not matter.")
            .ruled(24)
            .same(Measured, ALL),
        rule("W4", "A directory after its own whiteout is opaque: nothing that was deleted comes back.")
            .differ(Measured, LAYERED, "deleted files reappear")
            .same(Source, &[Umoci]),
        rule(
            "W5",
            "A whiteout of `d` and an entry `d/x` without `d/` give a new directory, 0755 0:0, holding only `x`.",
        )
        .ruled(24)
        .differ(Measured, LAYERED, "error: not a directory")
        .says(Source, &[Umoci], "same since 0.5"),
        rule("W6", "A whiteout below a directory that is whited out itself does nothing.")
            .differ(Measured, &[Containerd, Docker], "error")
            .same(Source, &[Podman, Umoci]),
        rule("W7", "An opaque marker hides what lower layers have in the directory; the layer's own entries stay.")
            .same(Measured, ALL),
        rule("W8", "An opaque marker at the root hides every lower layer: the mount leaves those layers out.")
            .differ(Measured, LAYERED, "old files stay")
            .same(Source, &[Umoci]),
        rule("W9", "A whiteout inside an opaque directory leaves no name behind in its listing.")
            .differ(Measured, LAYERED, "phantom name in listings")
            .says(Source, &[Umoci], "same since 0.5"),
        rule("W10", "A whiteout of nothing makes nothing: no phantom name, no directory that exists only to hold it.")
            .ruled(4)
            .ruled(25)
            .differ(Measured, LAYERED, "makes `x/y/` with a phantom `z`")
            .same(Source, &[Umoci]),
        rule("W11", "The names `.wh.`, `.wh..` and `.wh...` refuse the layer before anything is touched.")
            .same(Source, &[Containerd])
            .says(Measured, &[Docker, Podman], "fails, by accident")
            .differ(Measured, &[Umoci], "`.wh...` deletes the parent on the host"),
        rule("W12", "Only the exact bytes `.wh..wh..opq` are an opaque marker.").same(Measured, ALL),
        rule("W13", "AUFS's names at the root make nothing; a hard link into `.wh..wh.plnk` gets the file kept there.")
            .ruled(32)
            .differ(Measured, ALL, "extracts `.wh..wh.plnk/`"),
        rule("W14", "A whiteout counts by its name, whatever its type and data; other than an empty file: a warning.")
            .same(Measured, ALL),
        rule("W15", "An entry below a `.wh.` name is skipped with a warning; `--strict` refuses it.")
            .ruled(15)
            .differ(Measured, ALL, "makes a directory `.wh.a/`"),
        rule("W16", "The 255 bytes of a name are counted without `.wh.`: every name that can exist can be deleted.")
            .same(Measured, ALL),
        rule("W17", "A whiteout below a symlink of a lower layer deletes at the place where the symlink leads.")
            .ruled(3)
            .differ(Measured, LAYERED, "phantom; the file stays")
            .same(Source, &[Umoci]),
        rule("W18", "A whiteout deletes the symlink itself, never its target, and never anything outside the root.")
            .same(Measured, ALL),
        rule("W19", "A whiteout below a lower file hides nothing; the file stays.")
            .ruled(25)
            .differ(Measured, LAYERED, "the file becomes a directory")
            .same(Source, &[Umoci]),
        rule("W20", "What one layer deleted and a later one made again is new, in content and metadata.")
            .same(Measured, ALL),
        rule("W21", "A character device 0:0 is skipped with a warning and deletes nothing; `--strict` refuses it.")
            .ruled(14)
            .differ(Measured, LAYERED, "acts as a whiteout")
            .differ(Measured, &[Umoci], "makes the device"),
        rule("W22", "Owner, mode and times of a whiteout mean nothing; all whiteouts of a layer share one inode.")
            .says(Source, LAYERED, "sets the entry's owner on each"),
        rule("W23", "Whiteouts of the only layer are not seen either.").differ(
            Source,
            &[Containerd],
            "its bind mount shows them",
        ),
        rule("W24", "Layers unpacked in any order and by any number of threads give the same directories.").says(
            Source,
            &[Containerd],
            "deleted files shown (#13030, mended)",
        ),
    ]
}

pub fn overlay() -> Vec<Rule> {
    vec![
        rule("O1", "`trusted.overlay.*` of an archive is dropped with a warning: it would steer overlayfs.")
            .ruled(9)
            .says(Measured, &[Containerd], "drops every `trusted.*`")
            .differ(Measured, &[Docker, Podman], "applied: hides, aliases, breaks files")
            .differ(Source, &[Umoci], "kept, escaped (Linux 6.7)"),
        rule("O2", "`user.overlay.*` is ordinary data, but dropped with a warning where the mount would read it.")
            .ruled(10)
            .differ(Measured, ALL, "always applied, live under `userxattr`"),
        rule("O3", "Redirects and metacopy marks are not followed: mounts state `redirect_dir=nofollow,metacopy=off`."),
        rule("O4", "An opaque marker below a file that this layer made replaces the file by a directory.")
            .differ(Measured, &[Docker, Podman], "the file stays")
            .same(Source, &[Umoci]),
        rule("O5", "Any type replaces any other over any number of layers, and only the topmost is seen.")
            .same(Measured, LAYERED),
        rule("O6", "Where mknod is refused, whiteouts are xattrs, with the marks that keep their names out of listings."),
        rule("O7", "A store on overlayfs writes whiteouts as xattrs; an upper there is refused with the reason."),
        rule("O8", "The last layer is the topmost lower directory.").same(Source, ALL),
        rule("O9", "Hard links keep their group and link count in the mounted view."),
        rule("O10", "Writable mounts state `index=off`: writing through one name of a lower hard link parts it from the others.")
            .same(Source, &[Containerd, Docker]),
    ]
}

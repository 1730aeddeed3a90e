//! L: hard links. S: symlinks and names. D: directories, the root, duplicates.

use crate::catalogue::*;

pub fn links() -> Vec<Rule> {
    vec![
        rule("L1", "A hard link to an earlier entry of the layer is another name of its inode.").same(Source, ALL),
        rule("L2", "A hard link to a file of a lower layer joins that file's group, whatever names it already has.")
            .ruled(22)
            .differ(Measured, LAYERED, "error: no such file")
            .same(Source, &[Umoci]),
        rule("L3", "Targets are cleaned like names: `/f`, `./f`, `../f` and `//f` are `f`; `--strict` refuses a clamped one.")
            .ruled(5)
            .same(Measured, ALL),
        rule("L4", "A hard link to a symlink is another name of the symlink; nothing is applied through it.")
            .ruled(23)
            .same(Measured, ALL),
        rule("L5", "A symlink on the way to a hard link's target is resolved inside the root.").same(Measured, ALL),
        rule("L6", "A target that comes later is found at the end of the layer; a link to itself changes metadata only.")
            .differ(Measured, &[Containerd, Umoci], "error, after deleting the file")
            .differ(Measured, &[Docker, Podman], "error"),
        rule("L7", "A name that is replaced later leaves earlier hard links with the old inode.")
            .ruled(6)
            .same(Measured, &[Containerd, Umoci])
            .differ(Measured, &[Docker, Podman], "refuses duplicate paths"),
        rule("L8", "A replaced file is a new inode: nothing is ever written into an old one.").says(
            Source,
            &[Podman],
            "opens without O_TRUNC or O_EXCL",
        ),
        rule("L9", "Mode, owner and times of a link header go to the shared inode, its xattrs are added; not through a symlink.")
            .ruled(7)
            .ruled(23)
            .says(Measured, LAYERED, "same, but a symlink takes the owner")
            .differ(Measured, &[Umoci], "ignored"),
        rule("L10", "A size in a link's header means no data; a PAX size other than 0 on a link is refused.")
            .same(Measured, ALL),
        rule("L11", "A hard link to a directory is refused.").same(Measured, ALL),
        rule("L12", "Chains of links are one inode; where the file system allows no more, the file is copied with a warning."),
        rule("L13", "Devices and pipes can be linked; a target that this layer deletes is missing, and refuses the layer.")
            .differ(Measured, LAYERED, "links to the whiteout: the name is hidden"),
        rule("L14", "A link's target that turns into a symlink leading outside is never followed: there is no second pass by path."),
    ]
}

pub fn symlinks() -> Vec<Rule> {
    vec![
        rule("S1", "A symlink's target is kept byte for byte; an empty one or one over 4,095 bytes refuses the layer.")
            .same(Measured, ALL),
        rule("S2", "An entry below a symlink of its own layer lands where the symlink leads.").same(Measured, ALL),
        rule("S3", "An absolute target starts at the root of the image: `var/run -> /run` works.")
            .same(Measured, &[Containerd, Umoci])
            .says(Source, &[Docker], "same [m]; 29.7.0 broke it")
            .says(Source, &[Podman], "same [m]; 5.8.7 broke it"),
        rule("S4", "A target above the root is clamped at the root, and what is missing on the way is made.")
            .says(Measured, &[Containerd, Umoci], "same, but makes nothing before a `..`")
            .differ(Measured, &[Docker, Podman], "error: no such file"),
        rule("S5", "A directory entry replaces a symlink of its name; late metadata never follows a symlink.")
            .differ(Measured, &[Containerd], "the late time goes through the symlink")
            .same(Measured, &[Umoci])
            .differ(Measured, &[Docker, Podman], "refuses duplicate paths"),
        rule("S6", "`lib/x` over a lower symlink `lib -> usr/lib` is `usr/lib/x`, and the symlink stays.")
            .ruled(3)
            .differ(Measured, LAYERED, "a directory hides the symlink")
            .same(Measured, &[Umoci]),
        rule("S7", "A directory entry `lib/` over a lower symlink `lib` replaces it.").same(Measured, ALL),
        rule("S8", "`..` in a name stops at the root with a warning; `--strict` refuses it.")
            .ruled(5)
            .same(Measured, ALL),
        rule("S9", "`/a`, `//a`, `./a` and `b/../a` are `a`.").same(Measured, ALL),
        rule("S10", "An entry below a file replaces the file by a directory: the last entry wins.")
            .differ(Measured, LAYERED, "error: not a directory")
            .says(Source, &[Umoci], "error [m]; same since 0.5"),
        rule(
            "S11",
            "A component over 255 bytes is refused; a path may have 64 KiB and 1,024 components, beyond PATH_MAX.",
        )
        .differ(Measured, ALL, "error over 4,095 bytes"),
        rule("S12", "Loops and walks over more than 40 symlinks refuse the layer."),
        rule(
            "S13",
            "A directory replaced by a symlink between two entries is noticed: no resolved path is remembered.",
        ),
        rule("S14", "No magic link of /proc is followed and no mount is crossed."),
    ]
}

pub fn directories() -> Vec<Rule> {
    vec![
        rule("D1", "A directory that no entry describes keeps the metadata it has below; a new one is 0755 0:0, dated by its entry.")
            .ruled(19)
            .says(Measured, &[Containerd], "same, but new ones are dated now")
            .differ(Measured, &[Docker, Podman], "reset to 0755 0:0")
            .differ(Measured, &[Umoci], "0777 through the umask, dated now"),
        rule("D2", "Missing parents of a directory entry get their metadata as in D1.").says(
            Source,
            &[Docker],
            "29.7 broke it (moby#53257)",
        ),
        rule("D3", "A root entry is recorded, not applied: `/` is 0755 0:0. `--root-entry apply` applies the topmost.")
            .ruled(2)
            .says(Measured, &[Containerd, Docker], "same, but dated now")
            .differ(Measured, &[Podman], "`/` is 0555")
            .differ(Measured, &[Umoci], "applies it"),
        rule("D4", "A root entry of any other type refuses the layer; a hard link of the root to itself is skipped.")
            .ruled(2)
            .differ(Measured, &[Containerd], "skipped")
            .differ(Measured, &[Docker, Podman], "skipped, or error: busy")
            .says(Measured, &[Umoci], "same, but refuses that link too"),
        rule("D5", "A directory over a directory keeps the content and takes all metadata, xattrs replaced.")
            .differ(Measured, &[Containerd], "old xattrs stay, flat or of a duplicate")
            .same(Measured, &[Umoci]),
        rule("D6", "Of duplicate entries the last one wins, with a warning; `--strict` refuses them.")
            .ruled(6)
            .says(Measured, &[Containerd], "same, but a lower directory may come back")
            .same(Measured, &[Umoci])
            .differ(Measured, &[Docker, Podman], "refuses duplicate paths"),
        rule("D7", "A directory's mtime is the archive's, whatever was put into it afterwards.").same(Measured, ALL),
        rule("D8", "A directory gets its mode after its children: one without permissions is no obstacle.")
            .same(Measured, ALL),
        rule("D9", "A setgid bit gives nothing to children, neither of an image's directory nor of the place of the store.")
            .ruled(27),
        rule("D10", "The umask changes nothing, and is not changed.")
            .ruled(27)
            .same(Source, &[Containerd])
            .says(Source, &[Docker], "sets it for the whole process"),
        rule("D11", "A default ACL of the place where a store or root file system is made does not reach into it.").ruled(27),
    ]
}

//! N: mounts. B: limits. X: what follows from several rules.

use crate::catalogue::*;

pub fn mounts() -> Vec<Rule> {
    vec![
        rule("N1", "Options that would not fit the kernel's page are never cut: the mount API has no page.")
            .says(Source, &[Containerd], "relative paths after fchdir")
            .says(Source, &[Docker], "short links `l/…`")
            .says(Source, &[Podman], "short links, `/proc/self/fd`"),
        rule("N2", "999 layers mount: above 500 the bottom ones are an overlay of their own. More are refused with the way out, one directory.")
            .says(Source, &[Docker], "128")
            .says(Source, &[Podman], "500"),
        rule("N3", "Layer paths may have any length: layers are handed over as descriptors."),
        rule("N4", "Layer paths may hold `:`, `,`, `\\`, spaces and line breaks."),
        rule("N5", "A layer that comes twice is mounted once, where it is topmost; the tree is the same."),
        rule("N6", "A single layer is mounted as an overlay, never as a bind: no mark of a layer directory is seen.")
            .differ(Source, &[Containerd], "read-only bind")
            .same(Source, &[Podman]),
        rule("N7", "A read-only view has no upper; writing answers EROFS.").same(Source, &[Containerd]),
        rule("N8", "Upper and work directory are on one file system and used by one mount at a time."),
        rule("N9", "`volatile` is asked for; its mark is removed knowingly, never silently.").differ(
            Source,
            &[Podman],
            "removes the mark before mounting",
        ),
        rule(
            "N10",
            "Every option that a host could preset is stated: index, redirect_dir, metacopy, nfs_export, xino.",
        )
        .says(Source, &[Containerd], "`index=off` only"),
        rule("N11", "A new upper's root has the metadata of the root below it.").says(
            Source,
            &[Containerd],
            "the owner",
        ),
        rule("N12", "Layers are not idmapped.")
            .says(Source, &[Containerd, Podman], "offered")
            .untested("Not offered: a store keeps the owners of one id mapping"),
        rule("N13", "What overlayfs can do is found out by a mount of a small tree, not by version.").says(
            Source,
            &[Containerd],
            "probes for `userxattr`",
        ),
        rule("N14", "Whether listings tell types (`d_type`) is found out by trying; a place where they do not is refused.").same(Source, &[Containerd]),
        rule("N15", "Mounts carry no SELinux `context=`.")
            .says(Source, &[Podman], "offered")
            .untested("Not offered, and the machines that test have no SELinux"),
        rule("N16", "Unmounting names who keeps a mount busy; it is lazy only when asked."),
        rule("N17", "Mounts appear in the caller's namespace; working directory and umask of the process stay.")
            .says(Source, &[Containerd], "forks to change directory")
            .says(Source, &[Docker], "umask of the process"),
    ]
}

pub fn limits() -> Vec<Rule> {
    vec![
        rule(
            "B1",
            "Over 2,000 bytes out for each byte in, once 256 MiB were produced, refuse the layer; a byte limit can be set.",
        )
        .says(Source, &[Docker], "CVE-2017-14992"),
        rule("B2", "A layer has at most 10,000,000 entries."),
        rule("B3", "Metadata of one entry takes at most 1 MiB, refused before it is read.").same(Source, ALL),
        rule("B4", "At most 16 extension headers stand before one entry."),
        rule("B5", "A path has at most 64 KiB and 1,024 components."),
        rule("B6", "A sparse file has at most 262,144 regions."),
        rule("B7", "A zstd window over 128 MiB is refused before memory is taken."),
        rule("B8", "Documents and the member tables of archives are bounded.").says(
            Source,
            &[Containerd],
            "documents: 20 MiB",
        ),
        rule("B9", "Nothing is allocated for a size that a header claims, in memory or on disk."),
        rule("B10", "Work can be cancelled at any point, and leaves nothing."),
        rule("B11", "Memory holds the directories of a layer, not its files; entries are bounded (B2).").says(
            Source,
            &[Umoci],
            "holds all paths in memory",
        ),
    ]
}

pub fn further() -> Vec<Rule> {
    vec![
        rule("X1", "The parent of a whiteout or opaque marker keeps the metadata it has below."),
        rule("X2", "A layer directory serves every chain: what depends on lower layers stands in a fix-up beside it."),
        rule("X3", "Metadata of a directory that no entry describes comes from the lower layer that shows it, not from a hidden one.")
            .differ(Measured, &[Containerd], "looks below opaque directories"),
        rule("X4", "The xattrs of such a directory come along.").says(Source, &[Containerd], "all but `trusted.*`"),
        rule("X5", "What is gone is gone from listings, lookup and open, and its parent can be removed through a mount."),
        rule("X6", "Usage counts a whiteout as no bytes, and all whiteouts of a layer as one inode."),
        rule("X7", "Layers are not exported.").untested("Not offered: unply unpacks images and writes none"),
        rule("X8", "An opaque marker counts by its name, also as a directory or with a trailing slash."),
        rule("X9", "`./a` and `a` are one path, for duplicates too."),
        rule("X10", "An entry below the layer's own new symlink lands at its target; the lower directory of that name is hidden."),
        rule("X11", "A hard link to something that its own layer hides is missing, wherever the whiteout stands.").says(
            Source,
            &[Containerd],
            "flat: depends on the order",
        ),
        rule("X12", "Trees are compared by type, mode, owner, size, content, target, device, mtime, xattrs and link groups."),
        rule("X13", "A directory that is deleted and becomes a symlink layers later: the symlink's target keeps its mode."),
    ]
}

//! M: metadata.

use crate::catalogue::*;

pub fn metadata() -> Vec<Rule> {
    vec![
        rule("M1", "Owner first, then xattrs, mode, times: set-id bits and capabilities survive.").same(Measured, ALL),
        rule("M2", "Set-uid, set-gid and sticky bits are kept on files and directories.").same(Measured, ALL),
        rule("M3", "Type bits in the mode field are dropped.").same(Measured, ALL),
        rule("M4", "Owners up to 4294967294 are kept, from octal, base-256 or PAX.").same(Measured, ALL),
        rule("M5", "An owner of 4294967295, beyond 32 bits or below 0 refuses the layer.").ruled(18).differ(
            Measured,
            ALL,
            "becomes 0: root's",
        ),
        rule("M6", "A device number that Linux would cut refuses the layer.").ruled(18).differ(
            Measured,
            ALL,
            "cut to 0:0",
        ),
        rule("M7", "User and group names are ignored; numbers count."),
        rule("M8", "Nanoseconds of times are kept.").same(Measured, ALL),
        rule("M9", "Times before 1970 and fractions of them are kept; what the file system cannot hold is saturated, with a warning.")
            .ruled(8)
            .differ(Measured, LAYERED, "becomes 0")
            .says(Measured, &[Umoci], "kept; huge ones overflow"),
        rule("M10", "The access time is the archive's, else the modification time.").says(
            Source,
            &[Containerd, Docker],
            "the later of the two",
        ),
        rule("M11", "A symlink has its own owner and mtime; its target's stay.").same(Source, ALL),
        rule("M12", "Xattr values are bytes: NUL, newline, `=`, and nothing at all.")
            .ruled(26)
            .same(Measured, &[Containerd])
            .differ(Measured, &[Docker, Podman, Umoci], "empty ones are dropped"),
        rule("M13", "`LIBARCHIVE.xattr.*` is decoded where no `SCHILY.xattr.*` gives that name.")
            .ruled(17)
            .differ(Measured, ALL, "ignored"),
        rule("M14", "Textual ACLs, `SCHILY.fflags` and `RHT.*` are not applied, with a warning.").same(Measured, ALL),
        rule("M15", "`security.selinux` is dropped with a warning; `--selinux keep` keeps it.")
            .ruled(11)
            .differ(Measured, &[Containerd, Docker], "set as it is")
            .same(Measured, &[Podman, Umoci]),
        rule("M16", "`security.capability` is kept; of version 3 for another root than 0, or where a user namespace refuses it, dropped with a warning.")
            .says(Measured, ALL, "kept, for another root too"),
        rule("M17", "Other `security.*` is kept; where a user namespace refuses it, dropped with a warning.").says(
            Source,
            &[Podman],
            "was an error (c/s#2078)",
        ),
        rule("M18", "`user.*` on anything but files and directories is dropped with a warning.")
            .same(Measured, &[Containerd, Docker])
            .differ(Measured, &[Podman, Umoci], "error"),
        rule("M19", "An xattr of a namespace that the place lacks: one warning a layer; a place that cannot hold overlayfs's marks is refused.")
            .same(Source, ALL),
        rule("M20", "`system.nfs4_acl` is dropped with a warning.").same(Source, &[Umoci]),
        rule("M21", "An xattr too large for the file system is an error that says so; one too large for Linux refuses the layer."),
        rule("M22", "File flags such as immutable are never set."),
    ]
}

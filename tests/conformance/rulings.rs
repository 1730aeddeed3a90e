//! The rulings: what was decided where specification and tools disagree or are silent.

use crate::catalogue::Ruling;

fn ruling(number: u8, question: &'static str, says: &'static str) -> Ruling {
    Ruling { number, question, says, option: None, against: None }
}

impl Ruling {
    fn option(mut self, option: &'static str) -> Ruling {
        self.option = Some(option);
        self
    }

    fn against(mut self, whom: &'static str) -> Ruling {
        self.against = Some(whom);
        self
    }
}

pub fn rulings() -> Vec<Ruling> {
    vec![
        ruling(
            1,
            "Flat and layered results differ",
            "They are one tree, down to raw directory listings: flattened, mounted, rootless, and the model.",
        )
        .against("containerd, Docker and podman, whose flat and layered results differ"),
        ruling(2, "Root entry `./`", "Recorded, not applied: the root is 0755 0:0. Any other type there is refused.")
            .option("`--root-entry apply`")
            .against("the letter of the specification, whose example has `./`; umoci"),
        ruling(
            3,
            "A parent is a symlink of a lower layer",
            "Resolved inside the root, as tar and the specification have it; an event names the entry.",
        )
        .option("`--lower-symlinks shadow`")
        .against("what containerd, Docker and podman show: a directory in place of the symlink"),
        ruling(4, "Directories that exist only to hold a whiteout of nothing", "They do not appear.")
            .against("containerd, Docker, podman"),
        ruling(5, "`..` in names", "Clamped at the root, with a warning.")
            .option("`--strict` refuses")
            .against("go-archive 0.3 and later, which refuses"),
        ruling(6, "Duplicate entries", "The last one wins, with a warning; earlier hard links keep the old inode.")
            .option("`--strict` refuses")
            .against("Docker and podman, which refuse them"),
        ruling(7, "Metadata in a hard link's header", "Applied to the shared inode, except where it is a symlink.")
            .against("umoci, GNU tar"),
        ruling(
            8,
            "mtime negative, fractional, out of range",
            "Kept with nanoseconds, saturated where the file system ends.",
        )
        .against("containerd, Docker and podman, which set 0"),
        ruling(9, "`trusted.overlay.*` in an archive", "Dropped with a warning, always.")
            .against("Docker and podman (applied), umoci (escaped)"),
        ruling(
            10,
            "`user.overlay.*` in an archive",
            "Ordinary data; dropped with a warning where the mount would read it.",
        )
        .against("all four, which always apply it"),
        ruling(11, "`security.selinux`", "Dropped with a warning.")
            .option("`--selinux keep`")
            .against("containerd, Docker"),
        ruling(12, "Entry types", "Unknown ones are refused; `7` is a file, `V` skipped, `D` a directory, `X` is PAX.")
            .against("POSIX and GNU tar (unknown types are files); all four tools (they refuse `7`, `V`, `D`, `X`)"),
        ruling(13, "Global PAX headers", "Not applied, with a warning unless they hold only a comment.")
            .against("POSIX and GNU tar, which apply them; umoci, which refuses them"),
        ruling(14, "Character device 0:0", "Skipped with a warning: it is no whiteout.")
            .option("`--strict` refuses")
            .against("all four"),
        ruling(15, "Entries below a `.wh.` name", "Skipped with a warning; no such name reaches the disk.")
            .option("`--strict` refuses")
            .against("all four"),
        ruling(16, "PAX path with a GNU long name; two PAX headers", "Refused as ambiguous.")
            .against("GNU tar, bsdtar and Python, which choose differently"),
        ruling(17, "`LIBARCHIVE.xattr.*`", "Decoded where no `SCHILY.xattr.*` has that name.")
            .against("all four, which ignore it"),
        ruling(18, "Owners and device numbers out of range", "Refused.").against("all four, which wrap them around"),
        ruling(
            19,
            "mtime of a directory nobody describes",
            "That of the lower directory, else of the entry that implied it: two unpacks give one tree.",
        )
        .against("all four, which use the time of unpacking for new ones"),
        ruling(20, "Bytes after the gzip stream", "Zero bytes are accepted and counted, anything else is refused.")
            .against("podman and umoci (no padding), containerd (anything)"),
        ruling(21, "An image without layers", "An empty root."),
        ruling(22, "A hard link to one name of a lower group", "One group in every view.")
            .against("containerd, Docker and podman, which fail"),
        ruling(
            23,
            "A link header without xattrs",
            "The inode keeps its own; nothing at all is set through a link to a symlink.",
        ),
        ruling(
            24,
            "Order of whiteouts and entries",
            "Whiteouts and opaque markers act on lower layers first, wherever they stand in the archive.",
        )
        .against("containerd, Docker and podman, which go by archive order"),
        ruling(
            25,
            "Opaque marker below a file, or alone in a directory nobody describes",
            "Hides nothing, makes nothing.",
        ),
        ruling(
            26,
            "Empty xattr value",
            "An xattr with an empty value; an empty value of any other PAX key deletes the override.",
        ),
        ruling(
            27,
            "Default ACL, setgid bit, umask of the place",
            "Never reach the root file system, its root included.",
        ),
        ruling(
            28,
            "Verified layers of an image that is refused",
            "May stay in the store; the image, the bad layer, the target and the mount do not exist.",
        ),
        ruling(
            29,
            "Damage found while decoding",
            "The rest of the blob is hashed: digest wrong is exit 4, digest right exit 5; a limit stops at once.",
        ),
        ruling(30, "Zero bytes after the last zstd frame", "As after gzip."),
        ruling(31, "A user namespace of one id", "Owners are squashed to the caller with one counted warning.")
            .against("containerd, Docker and podman, which fail at the first owner"),
        ruling(
            32,
            "Hard link into AUFS's `.wh..wh.plnk`",
            "Gets the file kept there; the names themselves never appear.",
        )
        .against("containerd, Docker and podman, which extract `.wh..wh.plnk/`"),
    ]
}

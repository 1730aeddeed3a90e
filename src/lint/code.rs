//! What a finding can be: its code, how much it matters, its rules, what unply does and what others do.
//!
//! The facts about other tools are measurements and readings of their sources: containerd 1.6.20, Docker 20.10.24,
//! podman 4.3.1, umoci 0.4.7, and what `docs/spec-notes.md` cites.

use std::fmt;

use serde::Serialize;

/// How much a finding matters, mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; tools agree.
    Info,
    /// A conforming builder would not write it; tools agree on what it means.
    Nonconforming,
    /// Tools disagree on what it means, or some get it wrong or fail.
    Ambiguous,
    /// unply refuses it.
    Error,
}

impl Severity {
    /// Every severity, mildest first.
    pub const ALL: [Severity; 4] = [Severity::Info, Severity::Nonconforming, Severity::Ambiguous, Severity::Error];

    /// Returns the stable word.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Nonconforming => "nonconforming",
            Severity::Ambiguous => "ambiguous",
            Severity::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What is known of a code.
struct About {
    word: &'static str,
    severity: Severity,
    /// Separated by blanks, the one that says most first.
    rules: &'static str,
    here: &'static str,
    elsewhere: &'static str,
}

macro_rules! codes {
    ($($name:ident, $word:literal, $severity:ident, $rules:literal, $here:literal, $elsewhere:literal;)*) => {
        /// What a finding is; the words are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = concat!("`", $word, "` (", $rules, "). Here: ", $here, ". Elsewhere: ", $elsewhere, ".")] $name,)*
        }

        impl Code {
            /// Every code, in the order of the rule book's sections.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            fn about(self) -> About {
                match self {
                    $(Code::$name => About {
                        word: $word,
                        severity: Severity::$severity,
                        rules: $rules,
                        here: $here,
                        elsewhere: $elsewhere,
                    },)*
                }
            }
        }
    };
}

codes! {
    WhiteoutAfterEntry, "whiteout-after-entry", Ambiguous, "W2",
        "the entry stays, whatever the order",
        "containerd, Docker, podman: fail; unpacked flat, containerd and Docker delete the new file";
    WhiteoutThenDirectory, "whiteout-then-directory", Ambiguous, "W4",
        "the directory is new: nothing of the lower one is in it",
        "containerd, Docker, podman: deleted files reappear";
    WhiteoutWithEntriesBelow, "whiteout-with-entries-below", Ambiguous, "W5",
        "the lower directory goes, the entries below are in a new one",
        "containerd, Docker, podman: fail";
    WhiteoutBelowWhiteout, "whiteout-below-whiteout", Ambiguous, "W6",
        "the inner whiteout has nothing left to do",
        "containerd, Docker: fail";
    OpaqueRoot, "opaque-root", Ambiguous, "W8",
        "everything of the lower layers is hidden",
        "containerd, Docker, podman: deleted files stay";
    WhiteoutInOpaque, "whiteout-in-opaque", Ambiguous, "W9",
        "the whiteout has nothing left to do",
        "containerd, Docker, podman: list a name that cannot be opened";
    WhiteoutOfNothing, "whiteout-of-nothing", Nonconforming, "W10 W23",
        "nothing",
        "containerd, Docker, podman: a whiteout is kept that hides nothing";
    WhiteoutWithoutDirectory, "whiteout-without-directory", Ambiguous, "W10 W23 R-4",
        "nothing appears",
        "containerd, Docker, podman: make the directories and list a name that cannot be opened";
    OpaqueWithoutDirectory, "opaque-without-directory", Ambiguous, "W10 R-25",
        "nothing appears",
        "containerd, Docker, podman: make the directory";
    NestedWhiteout, "nested-whiteout", Nonconforming, "W12",
        "hides nothing, makes nothing",
        "containerd, Docker, podman: a whiteout of a name that no layer can have";
    AufsLeftover, "aufs-leftover", Ambiguous, "W13 R-32",
        "AUFS's own names never appear; a hard link to one becomes a file",
        "containerd, Docker, podman: extract some of them into the image";
    OddWhiteout, "odd-whiteout", Nonconforming, "W14",
        "taken by its name; data is skipped",
        "the same; the specification asks for an empty regular file";
    BelowWhiteout, "below-whiteout", Ambiguous, "W15 R-15",
        "skipped; --strict refuses",
        "containerd, Docker, podman, umoci: make a directory with a whiteout's name";
    WhiteoutThroughSymlink, "whiteout-through-symlink", Ambiguous, "W17 S6 R-3",
        "acts where the symlink leads",
        "containerd, Docker, podman: a directory hides the symlink, the file stays; unpacked flat: as here";
    MarkerBelowFile, "marker-below-file", Ambiguous, "W19 R-25",
        "the file stays",
        "containerd, Docker, podman: the file becomes a directory";
    DeviceZero, "device-zero", Ambiguous, "W21 R-14",
        "skipped; --strict refuses",
        "containerd, Docker, podman: acts as a whiteout where layers are mounted";
    OpaqueOverEntry, "opaque-over-entry", Ambiguous, "O4",
        "the marker's directory replaces the earlier entry",
        "umoci: as here; containerd, Docker, podman: fail";
    OverlayXattr, "overlay-xattr", Ambiguous, "O1 R-9",
        "dropped",
        "Docker, podman: apply it, so that the layer steers overlayfs; umoci escapes it";
    UserOverlayXattr, "user-overlay-xattr", Ambiguous, "O2 R-10",
        "kept as data; dropped for mounts that would read it",
        "containerd, Docker, podman, umoci: apply it, which steers rootless overlay mounts";
    LinkIntoLower, "link-into-lower", Ambiguous, "L2",
        "one inode under every name",
        "containerd, Docker, podman: fail where layers are stacked";
    LinkTargetSpelling, "link-target-spelling", Info, "L3",
        "cleaned like a name",
        "an absolute target was refused by Docker 29 for a while; `..` may still be";
    LinkTargetClamped, "link-target-clamped", Ambiguous, "L3 S8 R-5",
        "clamped at the root; --strict refuses",
        "Docker 29: refuses; containerd, podman, umoci: clamp";
    LinkToSymlink, "link-to-symlink", Info, "L4",
        "the symlink itself gets another name, nothing is set through it",
        "older Docker and podman look the target up outside the image";
    LinkForward, "link-forward", Ambiguous, "L6",
        "made at the end of the layer",
        "containerd, Docker, podman, umoci: fail";
    LinkToSelf, "link-to-self", Ambiguous, "L6",
        "nothing changes but metadata",
        "containerd, umoci: delete the file, then fail";
    LinkMetadata, "link-metadata", Ambiguous, "L9 R-7",
        "the link's header decides for the inode",
        "containerd, Docker, podman: as here; umoci and GNU tar ignore it";
    LinkSize, "link-size", Info, "L10",
        "ignored, no data follows",
        "the same; only a PAX size is read differently, and refused here";
    ManyLinks, "many-links", Info, "L12",
        "linked as far as the file system allows; then one copy takes the further names, with a warning",
        "ext4 holds 65,000 names of one inode; tools that only link fail there";
    SymlinkReplaced, "symlink-replaced", Ambiguous, "S5 D6 R-6",
        "the last entry wins, nothing follows the symlink; --strict refuses",
        "containerd, umoci: as here; Docker, podman refuse; CVE-2026-33056, CVE-2021-31566";
    ThroughLowerSymlink, "through-lower-symlink", Ambiguous, "S6 R-3",
        "lands where the symlink leads; --lower-symlinks shadow: in a new directory",
        "containerd, Docker, podman: a new directory hides the symlink, which often breaks the image; unpacked flat: as here";
    ThroughSymlink, "through-symlink", Info, "S2 S3",
        "lands where the symlink leads",
        "the same; Docker 29.7.0 and podman 5.8.7 fail on absolute symlinks";
    ThroughDanglingSymlink, "through-dangling-symlink", Ambiguous, "S4",
        "the place the symlink names is made, inside the root",
        "containerd, umoci: as here; Docker, podman: fail";
    LowerSymlinkReplaced, "lower-symlink-replaced", Info, "S7",
        "the directory replaces the symlink",
        "the same; umoci --keep-dirlinks keeps it";
    NameClamped, "name-clamped", Ambiguous, "S8 R-5",
        "clamped at the root; --strict refuses",
        "containerd, podman, umoci, older Docker: clamp; newer Docker refuses; others skip";
    DotDotName, "dot-dot-name", Nonconforming, "S8",
        "`..` removes the component before it",
        "the same; some extractors skip or refuse any `..`";
    AbsoluteName, "absolute-name", Info, "S9",
        "the leading slash is dropped",
        "the same";
    ParentReplaced, "parent-replaced", Ambiguous, "S10",
        "the last entry wins: a directory replaces what was there",
        "containerd, Docker, podman: fail";
    LongPath, "long-path", Ambiguous, "S11 B5",
        "made, one component at a time",
        "containerd, Docker, podman, umoci: fail, the path is longer than 4,095 bytes";
    OddName, "odd-name", Info, "T21 T24",
        "kept byte for byte",
        "the same; logs and scripts often get it wrong";
    ImpliedParent, "implied-parent", Ambiguous, "D1 D2",
        "keeps the lower directory's metadata",
        "containerd: as here; Docker, podman: become 0755 root:root";
    ImpliedDirectory, "implied-directory", Info, "D1",
        "0755 root:root, the mtime of the entry that implies it",
        "the same but for the mtime, which is the time of unpacking";
    RootEntry, "root-entry", Ambiguous, "D3 R-2",
        "recorded; --root-entry apply uses it",
        "containerd, Docker: ignored; umoci: applied; podman: 0555";
    RootLink, "root-link", Nonconforming, "D4",
        "a hard link of the root to itself is skipped",
        "containerd: skipped; Docker, podman: fail";
    Duplicate, "duplicate", Ambiguous, "D6 L7 R-6",
        "the last one wins; --strict refuses",
        "containerd, umoci: as here; Docker, podman: refuse";
    PlaceTaken, "place-taken", Ambiguous, "D6 S10 X10",
        "the last one wins",
        "containerd, umoci: as here, mostly; Docker, podman: may fail";
    OddTime, "odd-time", Ambiguous, "M9 R-8",
        "kept, or the nearest that the file system holds",
        "containerd, Docker, podman: 1970-01-01; umoci keeps negative times only";
    LibarchiveXattr, "libarchive-xattr", Ambiguous, "M13 R-17",
        "decoded and set",
        "containerd, Docker, podman, umoci: ignored";
    PaxKeyNotApplied, "pax-key-not-applied", Info, "M14",
        "ignored",
        "the same";
    SelinuxLabel, "selinux-label", Ambiguous, "M15 R-11",
        "dropped; --selinux keep sets it",
        "umoci, podman: dropped; containerd, Docker: set";
    ForeignCapability, "foreign-capability", Ambiguous, "M16",
        "dropped: it is of a user namespace of the machine that built the image",
        "containerd, Docker, podman, umoci: set, and the kernel ignores it elsewhere";
    SecurityXattr, "security-xattr", Info, "M17",
        "set where permitted",
        "podman without root: failed on such images";
    UserXattr, "user-xattr", Ambiguous, "M18",
        "dropped: the kernel keeps them on files and directories only",
        "containerd, Docker: dropped; umoci, podman: fail";
    Nfs4Acl, "nfs4-acl", Nonconforming, "M20",
        "dropped",
        "umoci: dropped; others set it where the file system takes it";
    LargeXattr, "large-xattr", Nonconforming, "M21",
        "set where the file system holds it; over 64 KiB the layer is refused",
        "the same; ext4 holds about 4 KiB a file, no file system more than 64 KiB a value";
    NoEndBlocks, "no-end-blocks", Info, "T1 T2",
        "accepted",
        "the same; GNU tar warns";
    DataAfterEnd, "data-after-end", Nonconforming, "T4 T5",
        "hashed, not read as entries",
        "the same; readers of concatenated archives go on";
    SlashDirectory, "slash-directory", Ambiguous, "T9",
        "a directory",
        "GNU tar: a directory; containerd, Docker, podman, umoci: a file";
    ContiguousFile, "contiguous-file", Ambiguous, "T10 R-12",
        "a regular file",
        "containerd, Docker, podman, umoci: fail";
    VolumeLabel, "volume-label", Ambiguous, "T12 R-12",
        "skipped",
        "containerd, Docker, podman, umoci: fail";
    Dumpdir, "dumpdir", Ambiguous, "T12 R-12",
        "a directory",
        "containerd, Docker, podman, umoci: fail";
    SolarisHeader, "solaris-header", Ambiguous, "T12 R-12",
        "read as a PAX header",
        "containerd, Docker, podman, umoci: fail";
    GlobalPaxHeader, "global-pax-header", Ambiguous, "T23 R-13",
        "not applied",
        "containerd, Docker, podman: ignored; umoci: fails; GNU tar applies it";
    SparseFile, "sparse-file", Nonconforming, "T25",
        "expanded, with holes",
        "the same; the specification says not to use it";
    GnuSparse, "gnu-sparse", Ambiguous, "T25",
        "expanded, with holes",
        "containerd, Docker, podman, umoci: fail";
    SizeIgnored, "size-ignored", Ambiguous, "T27",
        "the size is ignored, no data follows",
        "Python and GNU tar differ on whether data follows";
    EmptyName, "empty-name", Ambiguous, "T28",
        "taken for the root",
        "GNU tar: the root; bsdtar: skipped; umoci: refuses";
    SeveralMembers, "several-members", Info, "Z1 Z10",
        "all are read",
        "the same";
    Padding, "padding", Ambiguous, "Z2 R-20 R-30",
        "accepted, and part of the blob's digest",
        "containerd: accepted; podman, umoci: fail";
    EmptyLayer, "empty-layer", Info, "Z7 T31",
        "a layer without entries",
        "the same";
    MediaTypeMismatch, "media-type-mismatch", Ambiguous, "Z8 Z9",
        "the bytes decide",
        "containerd: fails for some; podman: the bytes decide; umoci: fails";
    SkippableFirst, "skippable-first", Ambiguous, "Z10",
        "skipped",
        "podman: fails; containerd: skipped";
    LazyPulling, "lazy-pulling", Info, "Z15",
        "unpacked like any layer; its index is a file of the image",
        "the same, unless a lazy-pulling snapshotter mounts it";
    ForeignLayer, "foreign-layer", Nonconforming, "I13",
        "read from the image, never fetched",
        "may be missing elsewhere: registries need not have it";
    UnusedMember, "unused-member", Nonconforming, "I14",
        "not needed, ignored",
        "the same";
    NoPlatform, "no-platform", Nonconforming, "I11 I3",
        "accepted",
        "most tools assume linux/amd64 or their own";
    HistoryMismatch, "history-mismatch", Nonconforming, "I10",
        "ignored",
        "Docker shows a wrong history and may refuse to push";
    NoLayers, "no-layers", Ambiguous, "I19 R-21",
        "an empty read-only root",
        "containerd: hands out an empty directory (CVE-2026-24054)";
    RepeatedLayer, "repeated-layer", Info, "N5 I18",
        "kept once, shown once",
        "a mount that lists a layer twice fails with ELOOP";
    ManyLayers, "many-layers", Ambiguous, "N1 N2",
        "up to 500 are mounted, more must be unpacked flat",
        "Docker: at most 128; mount options over a page are cut";
    UncommonDigest, "uncommon-digest", Info, "Z14",
        "verified",
        "some tools know SHA-256 only";
    NearLimit, "near-limit", Info, "B",
        "accepted; the limit is an option",
        "other tools may have lower limits, or none";
    Refused, "refused", Error, "",
        "refused",
        "others may accept it, each in its own way";
    OverLimit, "over-limit", Error, "B",
        "refused",
        "others may have no such limit";
    Integrity, "integrity", Error, "Z12 Z13",
        "refused: the content is not what was promised",
        "containerd, Docker, umoci: refused";
    Unusable, "unusable", Error, "",
        "cannot be read here",
        "others may support it";
}

impl Code {
    /// Returns the stable word, such as `whiteout-then-directory`.
    pub fn word(self) -> &'static str {
        self.about().word
    }

    /// Returns the code of that word.
    pub fn named(word: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.word() == word)
    }

    /// Returns how much it matters.
    pub fn severity(self) -> Severity {
        self.about().severity
    }

    /// Returns the numbers of its rules, the one that says most first; none where a finding brings its own.
    pub fn rules(self) -> impl Iterator<Item = &'static str> {
        self.about().rules.split(' ').filter(|rule| !rule.is_empty())
    }

    /// Returns what unply does, with default options.
    pub fn here(self) -> &'static str {
        self.about().here
    }

    /// Returns what other tools do.
    pub fn elsewhere(self) -> &'static str {
        self.about().elsewhere
    }

    /// Whether `--strict` refuses an image that has it.
    pub fn strict_refuses(self) -> bool {
        use Code::{BelowWhiteout, DeviceZero, Duplicate, LinkTargetClamped, NameClamped, SymlinkReplaced};
        matches!(self, BelowWhiteout | DeviceZero | Duplicate | LinkTargetClamped | NameClamped | SymlinkReplaced)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

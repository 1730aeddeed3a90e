//! T: tar syntax. All four tools read tar with Go's `archive/tar`, or a fork of it.

use crate::catalogue::*;

pub fn syntax() -> Vec<Rule> {
    vec![
        rule("T1", "One zero block at the end of the stream ends an archive.").same(Measured, ALL),
        rule("T2", "The end of the stream without zero blocks, or within the padding of the last entry, ends an archive.").same(Source, ALL),
        rule("T3", "A header, extension or file cut short refuses the layer.").says(Source, ALL, "error for cut data"),
        rule("T4", "What follows the end of the archive is not read as entries, but hashed; a warning tells.").same(Source, ALL),
        rule("T5", "A second archive behind the end is not read as entries, but hashed; a warning tells.").same(Source, ALL),
        rule("T6", "A single zero block with something behind it refuses the layer.").same(Source, ALL),
        rule("T7", "Checksums may be signed or unsigned, in any customary spelling.").same(Source, ALL),
        rule("T8", "A wrong checksum refuses the layer: no search for the next header.").same(Source, ALL),
        rule("T9", "A trailing `/` makes a directory of type NUL, and of type `0` without data.").says(
            Source,
            ALL,
            "type `0`: a file",
        ),
        rule("T10", "A contiguous file (`7`) is a regular file.").ruled(12).differ(Measured, ALL, "error"),
        rule("T11", "Unknown types refuse the layer.").ruled(12).same(Measured, ALL),
        rule("T12", "Volume labels are skipped, dump directories are directories, Solaris `X` is PAX; `M`, `N`, `A` are refused.")
            .ruled(12)
            .differ(Source, ALL, "error for each"),
        rule("T13", "Of several GNU long names the last wins; each ends at its first NUL."),
        rule("T14", "A PAX size belongs to the entry, not to an extension header in between.").differ(
            Measured,
            ALL,
            "error: invalid tar header",
        ),
        rule("T15", "A PAX size always overrides the header's (CVE-2025-62518, CVE-2026-33055)."),
        rule("T16", "A name given by PAX and by a GNU header refuses the layer: readers disagree.").ruled(16),
        rule("T17", "Two PAX headers for one entry refuse the layer: readers disagree.").ruled(16),
        rule("T18", "The last record of a key wins within one PAX header.").same(Source, ALL),
        rule("T19", "A malformed PAX record refuses the layer, with its offset.").same(Source, ALL),
        rule("T20", "NUL is refused in names and keys, and kept in xattr values.").same(Source, ALL),
        rule("T21", "A newline in a name is kept.").same(Source, ALL),
        rule("T22", "An empty PAX value deletes the override; an empty xattr is an xattr.").ruled(26).same(Source, ALL),
        rule("T23", "Global PAX headers are not applied and make nothing; a warning unless they hold only a comment.")
            .ruled(13)
            .same(Measured, LAYERED)
            .differ(Measured, &[Umoci], "error"),
        rule("T24", "Names are bytes; `hdrcharset` is ignored.").same(Source, ALL),
        rule("T25", "Sparse files of all four forms are read, old GNU `S` and PAX 0.0, 0.1, 1.0; holes stay holes.")
            .differ(Source, LAYERED, "PAX forms; error for `S`")
            .differ(Measured, &[Umoci], "PAX forms; error for `S`"),
        rule("T26", "Sparse regions that are unsorted, overlap, lead past the end or are too many refuse the layer.").says(
            Source,
            ALL,
            "Go: CVE-2025-58183, CVE-2026-32288",
        ),
        rule("T27", "Negative and impossible sizes are refused; a size on a type without data skips nothing, with a warning."),
        rule("T28", "An empty name means the root, and is treated as a root entry.").says(
            Source,
            &[Umoci],
            "refused as malicious",
        ),
        rule("T29", "Only POSIX headers have a name prefix; those that Go 1.7 and older wrote are understood.")
            .same(Source, &[Containerd, Docker]),
        rule("T30", "An extension header without an entry, or a sparse map on a wrong type, refuses the layer."),
        rule("T31", "No bytes at all, and any number of zero blocks, are an empty layer.").same(Measured, ALL),
        rule("T32", "Padding after the end of the archive counts in the diff_id."),
    ]
}

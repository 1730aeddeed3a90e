//! Parser differentials: archives that one reader takes for this and another for that, the family of TARmageddon
//! (CVE-2025-62518). Each is refused, or a rule of the rule book names the one reading.
//!
//! The table runs through our parser and, where they are installed, bsdtar, GNU tar and Python's tarfile. Rules asserted:
//! 1. our reading is the table's;
//! 2. where the others disagree among themselves, the table refuses or names a rule;
//! 3. where the others agree and we accept, we agree with them, unless the table says why not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use testkit::tar::field::{CHECKSUM, LINKNAME, MAGIC, NAME, PREFIX, SIZE, TYPEFLAG};
use testkit::tar::{BLOCK, Header, MAGIC_GNU, MAGIC_V7, TarBuilder, pax_records};
use unply::policy::Limits;
use unply::tar::{EntryKind, Parser, Step};

/// Names and, for regular files, sizes.
type Listing = Vec<(String, u64)>;

/// What an archive must give.
enum Ours {
    /// Refused: the reason names the rule.
    Refused,
    /// Read so, because of this rule.
    Read(&'static [(&'static str, u64)], &'static str),
    /// As [`Ours::Read`], though the others agree on something else, and why.
    Alone(&'static [(&'static str, u64)], &'static str),
}
use Ours::{Alone, Read, Refused};

fn regular(name: &str) -> Header {
    Header::new(b'0', name)
}

/// A whole archive that must stay data: one header block of a file nobody may see.
fn hidden() -> [u8; BLOCK] {
    regular("HIDDEN").block()
}

fn tar() -> TarBuilder {
    TarBuilder::new()
}

fn after(tar: TarBuilder) -> Vec<u8> {
    tar.header(&regular("after")).finish()
}

/// A header, then a block that is data to some and a header to others.
fn with_hidden(tar: TarBuilder, header: Header) -> Vec<u8> {
    after(tar.header(&header).raw(hidden()))
}

fn sized(typeflag: u8) -> Header {
    Header::new(typeflag, "a").raw(LINKNAME, "t")
}

#[rustfmt::skip] // a table
fn table() -> Vec<(&'static str, Vec<u8>, Ours)> {
    let both = &[("a", 512), ("after", 0)];
    let mut table = vec![
        ("plain", after(tar().member(regular("a"), "12345")), Read(&[("a", 5), ("after", 0)], "")),
        // Sizes from PAX.
        ("cve_2025_62518_t15_pax_size_over_header_size_0", with_hidden(tar().pax(&[("size", "512")]), regular("a")), Read(both, "T15")),
        ("t15_pax_size_over_a_larger_header_size", with_hidden(tar().pax(&[("size", "512")]), regular("a").size(2048)), Read(both, "T15")),
        ("cve_2026_33055_t15_pax_size_0_over_a_header_size", after(tar().pax(&[("size", "0")]).header(&regular("a").size(512))), Read(&[("a", 0), ("after", 0)], "T15")),
        ("t18_the_last_pax_size_counts", with_hidden(tar().pax(&[("size", "0"), ("size", "512")]), regular("a")), Read(both, "T18")),
        ("ghsa_3cv2_h65g_fgmm_t14_pax_size_before_a_gnu_name", with_hidden(tar().pax(&[("size", "512")]).gnu_long_name("a"), regular("x")), Read(both, "T14")),
        ("t14_pax_size_before_a_gnu_link", with_hidden(tar().pax(&[("size", "512")]).gnu_long_link("t"), regular("a")), Read(both, "T14")),
        ("t14_pax_size_before_a_global_header", with_hidden(tar().pax(&[("size", "512")]).pax_global(&[("comment", "c")]), regular("a")), Read(both, "T14")),
        ("t17_two_pax_headers", after(tar().pax(&[("size", "512")]).pax(&[("path", "b")]).header(&regular("a")).raw(hidden())), Refused),
        ("t17_two_pax_headers_of_two_types", after(tar().pax(&[("path", "b")]).pax_of_type(b'X', pax_records(&[("path", "c")])).header(&regular("a"))), Refused),
        ("t23_a_global_size", after(tar().pax_global(&[("size", "512")]).header(&regular("a")).raw(hidden())), Read(&[("a", 0), ("HIDDEN", 0), ("after", 0)], "R-13")),
        ("t23_a_global_path", after(tar().pax_global(&[("path", "b")]).header(&regular("a"))), Read(&[("a", 0), ("after", 0)], "R-13")),
        ("pax_size_with_a_sign", with_hidden(tar().pax(&[("size", "+512")]), regular("a")), Refused),
        ("pax_size_with_a_blank", with_hidden(tar().pax(&[("size", " 512")]), regular("a")), Refused),
        ("pax_size_with_a_tail", with_hidden(tar().pax(&[("size", "512x")]), regular("a")), Refused),
        ("pax_size_in_hexadecimal", with_hidden(tar().pax(&[("size", "0x200")]), regular("a")), Refused),
        ("pax_size_with_leading_zeros", with_hidden(tar().pax(&[("size", "0000512")]), regular("a")), Read(both, "POSIX: decimal digits")),
        ("pax_size_with_a_fraction", with_hidden(tar().pax(&[("size", "512.0")]), regular("a")), Refused),
        ("t27_pax_size_negative", with_hidden(tar().pax(&[("size", "-512")]), regular("a")), Refused),
        ("t27_pax_size_that_wraps_to_512", with_hidden(tar().pax(&[("size", "18446744073709552128")]), regular("a")), Refused),
        ("r26_pax_size_empty", after(tar().pax(&[("size", "")]).header(&regular("a").size(512)).raw(hidden())), Read(both, "R-26")),
        ("l10_pax_size_on_a_hard_link", with_hidden(tar().pax(&[("size", "512")]), sized(b'1')), Refused),
        ("l10_header_size_on_a_hard_link", after(tar().header(&sized(b'1').size(512))), Read(&[("a", 0), ("after", 0)], "L10")),
        ("schily_realsize_is_no_size", after(tar().pax(&[("SCHILY.realsize", "512")]).header(&regular("a")).raw(hidden())), Read(&[("a", 0), ("HIDDEN", 0), ("after", 0)], "T25: not a sparse form of the rule book")),
        // Sizes of the header.
        ("t27_negative_size", with_hidden(tar(), regular("a").base256(SIZE, -512)), Refused),
        ("cve_2025_8194_negative_size_with_a_minus", with_hidden(tar(), regular("a").raw(SIZE, "-0000001000")), Refused),
        ("t27_base_256_size", with_hidden(tar(), regular("a").base256(SIZE, 512)), Read(both, "")),
        ("t27_base_256_size_that_wraps_to_512", with_hidden(tar(), regular("a").base256(SIZE, (1 << 64) + 512)), Refused),
        ("t27_base_256_size_of_2_to_63", with_hidden(tar(), regular("a").base256(SIZE, 1 << 63)), Refused),
        ("octal_size_with_leading_blanks", with_hidden(tar(), regular("a").raw(SIZE, "       1000")), Read(both, "")),
        ("octal_size_of_twelve_digits", with_hidden(tar(), regular("a").raw(SIZE, "000000001000")), Read(both, "")),
        ("octal_size_with_a_tail", with_hidden(tar(), regular("a").raw(SIZE, "00001000x")), Refused),
        ("octal_size_with_a_digit_8", with_hidden(tar(), regular("a").raw(SIZE, "00000001008")), Refused),
        ("octal_size_of_two_numbers", with_hidden(tar(), regular("a").raw(SIZE, "1000 1000")), Refused),
        ("octal_size_behind_nul", with_hidden(tar(), regular("a").raw(SIZE, "00001000\x00777")), Read(both, "cut at NUL, as names are")),
        ("octal_size_of_nothing", after(tar().header(&regular("a").raw(SIZE, ""))), Read(&[("a", 0), ("after", 0)], "an empty field is 0")),
        ("octal_size_that_begins_with_nul", with_hidden(tar(), regular("a").raw(SIZE, "\x0000001000")), Refused),
        // Names.
        ("t16_gnu_name_then_pax_path", after(tar().gnu_long_name("b").pax(&[("path", "c")]).header(&regular("a"))), Refused),
        ("t16_pax_path_then_gnu_name", after(tar().pax(&[("path", "c")]).gnu_long_name("b").header(&regular("a"))), Refused),
        ("t16_pax_linkpath_and_gnu_link", after(tar().pax(&[("linkpath", "c")]).gnu_long_link("b").header(&sized(b'2'))), Refused),
        ("t13_two_gnu_names", after(tar().gnu_long_name("b").gnu_long_name("c").header(&regular("a"))), Read(&[("c", 0), ("after", 0)], "T13")),
        ("t13_a_gnu_name_with_nul", after(tar().gnu_long_name("b\0c").header(&regular("a"))), Read(&[("b", 0), ("after", 0)], "T13")),
        ("t20_nul_in_a_pax_path", after(tar().pax(&[("path", "b\0c")]).header(&regular("a"))), Refused),
        ("t20_nul_in_a_pax_linkpath", after(tar().pax(&[("linkpath", "b\0c")]).header(&sized(b'2'))), Refused),
        ("t22_an_empty_pax_path", after(tar().pax(&[("path", "")]).header(&regular("a"))), Read(&[("a", 0), ("after", 0)], "R-26")),
        ("t18_two_pax_paths", after(tar().pax(&[("path", "b"), ("path", "c")]).header(&regular("a"))), Read(&[("c", 0), ("after", 0)], "T18")),
        ("t25_a_sparse_name_on_a_file_that_is_not_sparse", after(tar().pax(&[("GNU.sparse.name", "b")]).header(&regular("a"))), Refused),
        ("a_name_that_fills_its_field", after(tar().header(&regular(&"n".repeat(100)))), Alone(&[], "checked below by its length")),
        ("nul_inside_a_name", after(tar().header(&regular("").raw(NAME, "a\0b"))), Read(&[("a", 0), ("after", 0)], "cut at NUL")),
        // Prefixes.
        ("t29_prefix", after(tar().header(&regular("a").raw(PREFIX, "p"))), Read(&[("p/a", 0), ("after", 0)], "T29")),
        ("t29_prefix_with_an_empty_version", after(tar().header(&regular("a").raw(PREFIX, "p").raw(MAGIC, "ustar\0"))), Read(&[("p/a", 0), ("after", 0)], "T29: the magic alone counts")),
        ("t29_prefix_with_version_99", after(tar().header(&regular("a").raw(PREFIX, "p").raw(MAGIC, "ustar\x0099"))), Read(&[("p/a", 0), ("after", 0)], "T29: the magic alone counts")),
        ("t29_prefix_with_a_magic_that_is_half_gnus", after(tar().header(&regular("a").raw(PREFIX, "p").raw(MAGIC, "ustar 00"))), Refused),
        ("t29_prefix_with_a_magic_of_five_letters", after(tar().header(&regular("a").raw(PREFIX, "p").raw(MAGIC, "ustarX00"))), Refused),
        ("t29_prefix_with_gnus_magic", after(tar().header(&regular("a").raw(PREFIX, "p").raw(MAGIC, MAGIC_GNU))), Read(&[("p/a", 0), ("after", 0)], "T29: Go 1.7 wrote such headers")),
        ("t29_times_of_a_gnu_header_are_no_prefix", after(tar().header(&regular("a").raw(PREFIX, "00000000115\x0000000000116\0").raw(MAGIC, MAGIC_GNU))), Read(&[("a", 0), ("after", 0)], "T29")),
        ("t29_prefix_without_a_magic", after(tar().header(&regular("a").raw(PREFIX, "p").raw(MAGIC, MAGIC_V7))), Read(&[("a", 0), ("after", 0)], "T29")),
        // Records and their carriers.
        ("t19_a_record_that_is_too_long", after(tar().pax_of_type(b'x', "99 path=b\n").header(&regular("a"))), Refused),
        ("t19_a_record_that_is_too_short", after(tar().pax_of_type(b'x', "5 path=b\n").header(&regular("a"))), Refused),
        ("t19_a_record_without_newline", after(tar().pax_of_type(b'x', "9 path=bc").header(&regular("a"))), Refused),
        ("t19_a_record_without_equals", after(tar().pax_of_type(b'x', "8 pathb\n").header(&regular("a"))), Refused),
        ("t19_a_newline_in_a_value_hides_a_record", after(tar().pax(&[("comment", "x\n10 path=b\n")]).header(&regular("a"))), Read(&[("a", 0), ("after", 0)], "T19: lengths, not newlines")),
        ("t30_a_pax_header_at_the_end", tar().header(&regular("a")).pax(&[("path", "b")]).finish(), Refused),
        ("t30_a_gnu_name_at_the_end", tar().header(&regular("a")).gnu_long_name("b").finish(), Refused),
        ("t06_a_zero_block_in_the_middle", after(tar().header(&regular("a")).zeros(BLOCK)), Refused),
        ("t05_an_archive_behind_the_end", after(tar().header(&regular("a")).zeros(2 * BLOCK)), Read(&[("a", 0)], "T5")),
        // Checksums.
        ("t07_a_signed_checksum", { let h = regular("a\u{e9}"); let sum = h.sum(true); after(tar().header(&h.checksum(format!("{sum:06o}\0 ")))) }, Read(&[("a\u{e9}", 0), ("after", 0)], "T7")),
        ("t07_a_checksum_of_seven_digits", { let h = regular("a"); let sum = h.sum(false); after(tar().header(&h.checksum(format!("{sum:07o}\0")))) }, Read(&[("a", 0), ("after", 0)], "T7")),
        ("t07_a_checksum_with_blanks", { let h = regular("a"); let sum = h.sum(false); after(tar().header(&h.checksum(format!("{sum:>6o}\0 ")))) }, Read(&[("a", 0), ("after", 0)], "T7")),
        ("t08_a_wrong_checksum", after(tar().header(&regular("b")).header(&regular("a").checksum("000001\0 "))), Refused),
        ("t08_a_blank_checksum", after(tar().header(&regular("b")).header(&regular("a").checksum("        "))), Refused),
        // Types.
        ("t10_a_contiguous_file", with_hidden(tar(), sized(b'7').size(512)), Read(both, "T10")),
        ("t11_an_unknown_type_with_data", with_hidden(tar(), sized(b'Z').size(512)), Refused),
        ("t09_a_slash_on_a_file_with_data", with_hidden(tar(), Header::new(b'0', "a/").size(512)), Read(&[("a/", 512), ("after", 0)], "T9")),
        ("t09_a_slash_on_a_v7_file_with_data", with_hidden(tar(), Header::new(0, "a/").size(512).raw(MAGIC, MAGIC_V7)), Read(&[("a/", 0), ("HIDDEN", 0), ("after", 0)], "T9: a directory, as Go and libarchive have it")),
        ("t09_a_slash_on_a_v7_file", after(tar().header(&Header::new(0, "a/").raw(MAGIC, MAGIC_V7))), Read(&[("a/", 0), ("after", 0)], "T9")),
        ("t12_a_volume_label_with_data", with_hidden(tar(), sized(b'V').size(512)), Read(&[("after", 0)], "T12")),
        ("a_type_nul_in_a_ustar_header", with_hidden(tar(), regular("a").raw(TYPEFLAG, [0]).size(512)), Read(both, "")),
        ("nested_archive_in_data", after(tar().member(regular("a"), tar().header(&regular("HIDDEN")).finish())), Read(&[("a", 1536), ("after", 0)], "")),
    ];
    let none: &[(&str, u64)] = &[("a", 0), ("HIDDEN", 0), ("after", 0)];
    for (name, kind) in [("symlink", b'2'), ("character_device", b'3'), ("block_device", b'4'), ("directory", b'5'), ("fifo", b'6')] {
        let leak = |s: String| -> &'static str { Box::leak(s.into_boxed_str()) };
        table.push((leak(format!("t27_header_size_on_a_{name}")), with_hidden(tar(), sized(kind).size(512)), Read(none, "T27")));
        table.push((leak(format!("t27_pax_size_on_a_{name}")), with_hidden(tar().pax(&[("size", "512")]), sized(kind)), Refused));
    }
    table
}

fn ours(archive: &[u8]) -> Result<Listing, String> {
    let mut parser = Parser::new(&Limits::default());
    let mut out = Listing::new();
    let mut at = 0usize;
    while let Some(block) = archive.get(at..at + BLOCK) {
        at += BLOCK;
        let skip = match parser.block(block.try_into().unwrap()).map_err(|e| e.to_string())? {
            Step::More => 0,
            Step::End => return Ok(out),
            Step::Skip(n) => n,
            Step::Entry(entry) => {
                let size = if let EntryKind::File { size, .. } = &entry.kind { *size } else { 0 };
                out.push((String::from_utf8_lossy(&entry.path).into_owned(), size));
                entry.stored.checked_next_multiple_of(BLOCK as u64).ok_or("the data has no end")?
            }
        };
        at = usize::try_from(skip).ok().and_then(|n| at.checked_add(n)).ok_or("the data has no end")?;
    }
    parser.finish().map_err(|e| e.to_string())?;
    if at > archive.len() { Err("data cut off".into()) } else { Ok(out) }
}

/// Lists all archives of a directory, since one interpreter takes longer to start than all of them to read.
const PYTHON: &str = "
import os, sys, tarfile
out = sys.stdout.buffer
for f in sys.argv[2:]:
    out.write(b'= %s\\n' % f.encode())
    try:
        with tarfile.open(os.path.join(sys.argv[1], f), 'r:', errorlevel=2, encoding='utf-8', errors='surrogateescape') as t:
            for m in t:
                out.write(b'%d %s\\n' % (m.size if m.isreg() else 0, m.name.encode('utf-8', 'surrogateescape')))
    except Exception as e:
        out.write(b'! %s\\n' % repr(e).encode())
";

type Answer = Result<Listing, String>;

fn python(dir: &Path, names: &[&str]) -> Option<BTreeMap<String, Answer>> {
    let output = Command::new("python3").args(["-c", PYTHON]).arg(dir).args(names).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut out: BTreeMap<String, Answer> = BTreeMap::new();
    let mut at = String::new();
    for line in text.lines() {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("=", name) => {
                at = name.to_owned();
                out.insert(at.clone(), Ok(Listing::new()));
            }
            ("!", why) => _ = out.insert(at.clone(), Err(why.to_owned())),
            (size, name) => {
                if let Some(Ok(listing)) = out.get_mut(&at) {
                    listing.push((name.to_owned(), size.parse().unwrap_or(0)));
                }
            }
        }
    }
    Some(out)
}

/// What `bsdtar` or `tar` lists, or that it refuses; `None` where it is not installed.
fn listed(reader: &str, path: &Path) -> Option<Answer> {
    let mut command = Command::new(reader);
    command.arg("--numeric-owner");
    if reader == "tar" {
        command.args(["--full-time", "--quoting-style=literal"]);
    }
    let output = command.arg("-tvf").arg(path).env("LC_ALL", "C.UTF-8").env("TZ", "UTC").output().ok()?;
    if !output.status.success() {
        return Some(Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()));
    }
    let mut out = Listing::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // -rw-r--r--  0 0      0         512 Jan  1  1970 a
        // -rw-r--r-- 0/0             512 1970-01-01 00:00:00 a
        let (time, column) = if reader == "tar" { (" 1970-01-01 00:00:00 ", 2) } else { (" Jan  1  1970 ", 4) };
        let (front, name) = line.split_once(time).unwrap_or_else(|| panic!("{reader} lists {line:?}"));
        // Labels are no entries.
        if line.starts_with('V') {
            continue;
        }
        let size = front.split_whitespace().nth(column).and_then(|size| size.parse().ok());
        let name = name.split_once(" link to ").or(name.split_once(" -> ")).map_or(name, |(name, _)| name);
        out.push((name.to_owned(), size.filter(|_| line.starts_with('-')).unwrap_or(0)));
    }
    Some(Ok(out))
}

/// A trailing slash is how some readers show a directory.
fn plain(listing: &Listing) -> Listing {
    listing.iter().map(|(name, size)| (name.trim_end_matches('/').to_owned(), *size)).collect()
}

#[test]
fn what_readers_disagree_about_is_refused_or_ruled() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wrong, mut seen, mut disagreed) = (Vec::new(), 0, 0);
    let mut missing = BTreeSet::new();
    let table = table();
    for (name, archive, _) in &table {
        std::fs::write(dir.path().join(name), archive).unwrap();
    }
    let names: Vec<&str> = table.iter().map(|(name, ..)| *name).collect();
    let python = python(dir.path(), &names);
    for (name, archive, expect) in table {
        let path = dir.path().join(name);
        let ours = ours(&archive);
        let mut others = Vec::new();
        for reader in ["bsdtar", "tar", "python3"] {
            let answer = match reader {
                "python3" => python.as_ref().and_then(|all| all.get(name).cloned()),
                _ => listed(reader, &path),
            };
            match answer {
                Some(listing) => others.push((reader, listing.map(|l| plain(&l)))),
                None => _ = missing.insert(reader),
            }
        }
        seen += others.len();
        let readings: BTreeSet<Option<&Listing>> = others.iter().map(|(_, l)| l.as_ref().ok()).collect();
        disagreed += usize::from(readings.len() > 1);
        if std::env::var_os("UNPLY_SHOW").is_some() {
            println!("{name}: ours {ours:?}");
            for (reader, listing) in &others {
                println!("    {reader:8} {listing:?}");
            }
        }
        let (want, rule, alone) = match &expect {
            Refused => {
                if let Ok(listing) = &ours {
                    wrong.push(format!("{name}: accepted as {listing:?}, must be refused"));
                }
                continue;
            }
            Read(want, rule) => (want, rule, false),
            Alone(want, rule) => (want, rule, true),
        };
        let listing = match &ours {
            Ok(listing) => listing,
            Err(e) => {
                wrong.push(format!("{name}: refused: {e}"));
                continue;
            }
        };
        let want: Listing = want.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        if !alone && *listing != want {
            wrong.push(format!("{name}: read as {listing:?}, must be {want:?}"));
        }
        if readings.len() > 1 && rule.is_empty() {
            wrong.push(format!("{name}: the others disagree and no rule names the reading: {others:?}"));
        }
        if let [Some(same)] = readings.iter().copied().collect::<Vec<_>>()[..]
            && !alone
            && *same != plain(listing)
        {
            wrong.push(format!("{name}: the others agree on {same:?}, we read {listing:?}"));
        }
    }
    for reader in missing {
        println!("SKIP: {reader} is not installed");
        assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{reader} is needed in CI");
    }
    println!("{seen} listings of other readers; they disagree about {disagreed} archives");
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

/// The comparison itself must be able to fail.
#[test]
fn a_name_of_100_bytes_needs_no_nul() {
    let listing = ours(&after(tar().header(&regular(&"n".repeat(100))))).unwrap();
    assert_eq!(listing[0].0.len(), 100);
    assert!(
        ours(&tar().header(&regular("a").raw(CHECKSUM, "1")).unfinished()).is_ok(),
        "the builder writes the sum last"
    );
}

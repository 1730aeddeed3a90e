//! What our parser takes without a remark, the `tar` crate reads in the same way, entry by entry.
//!
//! Where the two may differ:
//! * What we refuse is not compared: refusing what readers disagree about is the point (T6, T16, T17, L10).
//! * What we accept with a remark (an oddity) is not compared: the remark says that readers differ.
//! * Sparse files: the crate reads no PAX sparse forms. The archive is compared up to the first one.
//! * Numbers in base-256: the crate keeps the low 8 of 12 bytes; we refuse what that would lose, so equal where accepted.
//! * `D`, `V`, `S` and `X` headers, `SCHILY.dev*` and `GNU.*` keys: the crate gives them out raw; archives with such types are not compared.
//! * Numbers whose digits do not begin the field: the crate refuses NULs before them and fields of NULs alone; we read
//!   them as Go does, the reader of every container engine.
//! * `ustar` with another version than `00`: the crate takes the header for v7 and its extension headers for files. GNU
//!   tar and libarchive look at the magic alone, as we do.
//! * Extension headers without a magic: for the crate they are files, for us and Go the type alone counts.
//! * Global PAX headers are entries of their own in the crate; a GNU long name may hold NULs there, for us the first ends it.
//! * GNU headers with something where the times or, from Go before 1.8, a prefix stand: the crate looks at neither.
//! * An empty PAX value: the crate's path is empty; for us it takes back the override.
//! * Device numbers of v7 headers: the crate has none to compare; GNU tar and bsdtar read the fields all the same.
//! * A size in the header of a type without data: the crate skips that much, we skip nothing, as Go does (T27).
//! * PAX values with a newline in them: the crate cuts records at newlines, not by their lengths.
//! * Two GNU long names for one entry: the crate refuses them; GNU tar, libarchive and Go take the last, as we do.
//! * Times from PAX are compared only where the header says them: the crate's `mtime()` reads the header alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unply::policy::Limits;
use unply::tar::EntryKind;
use unply_fuzz::{BLOCK, parse, repair_checksums};

fuzz_target!(|data: &[u8]| {
    let mut archive = data.to_vec();
    repair_checksums(&mut archive);
    let ours = parse(&archive, &Limits::default());
    if ours.error.is_some() || ours.odd {
        return;
    }
    let only_common_types = ours.entries.iter().all(|e| {
        let header = usize::try_from(e.offset).ok().and_then(|at| archive.get(at..at + BLOCK));
        let Some(header) = header else { return false };
        let sized = header[124..136].iter().any(|b| !matches!(b, b'0' | b' ' | 0));
        matches!(header[156], 0 | b'0'..=b'7') && (!sized || matches!(e.kind, EntryKind::File { .. }))
    });
    if !only_common_types {
        return;
    }
    let lines = |bytes: &[u8]| bytes.contains(&b'\n');
    let multi_line = ours.entries.iter().any(|e| {
        let target = match &e.kind {
            EntryKind::HardLink { target } | EntryKind::Symlink { target } => &target[..],
            _ => b"",
        };
        lines(&e.path) || lines(target) || e.xattrs.iter().any(|(name, value)| lines(name) || lines(value))
    });
    if multi_line {
        return;
    }
    // Data that looks so costs a comparison, nothing more.
    let differs = |block: &[u8]| match &block[257..265] {
        b"ustar\x0000" => false,
        b"ustar  \0" => block[345..357].iter().any(|b| *b != 0),
        magic => magic.starts_with(b"ustar"),
    };
    if archive.chunks_exact(BLOCK).any(differs) {
        return;
    }
    let mut theirs = tar::Archive::new(&archive[..]);
    let Ok(mut their_entries) = theirs.entries() else { panic!("the tar crate cannot begin") };
    for our in &ours.entries {
        let what = unply::error::escape(&our.path);
        if matches!(&our.kind, EntryKind::File { sparse: Some(_), .. }) {
            return;
        }
        let is_global = |e: &std::io::Result<tar::Entry<'_, &[u8]>>| {
            e.as_ref().is_ok_and(|e| e.header().entry_type().is_pax_global_extensions())
        };
        let their = match their_entries.by_ref().find(|e| !is_global(e)) {
            Some(Ok(their)) => their,
            Some(Err(e)) if e.to_string().contains("numeric field was not a number") => return,
            Some(Err(e)) if e.to_string().starts_with("two long ") => return,
            Some(Err(e)) => panic!("{what}: we take it, the tar crate says: {e}"),
            None => panic!("{what}: the tar crate sees the end before it"),
        };
        let kind = their.header().entry_type();
        // It takes Solaris's extension headers for entries.
        if kind.as_byte() == b'X' || kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink()
        {
            return;
        }
        assert_eq!(their.raw_header_position(), our.offset, "{what}: offset");
        let their_path = their.path_bytes();
        let their_path = their_path.split(|b| *b == 0).next().unwrap_or_default();
        if !their_path.is_empty() {
            assert_eq!(their_path, &our.path[..], "{what}: path");
        }
        let link = their.link_name_bytes().unwrap_or_default();
        let link = link.split(|b| *b == 0).next().unwrap_or_default();
        match &our.kind {
            EntryKind::File { size, .. } => assert_eq!(their.size(), *size, "{what}: size"),
            EntryKind::HardLink { target } | EntryKind::Symlink { target } => assert_eq!(link, &target[..], "{what}"),
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                let header = their.header();
                let numbers = (header.device_major().ok().flatten(), header.device_minor().ok().flatten());
                if let (Some(a), Some(b)) = numbers {
                    assert_eq!((a, b), (*major, *minor), "{what}: device");
                }
            }
            // A v7 file whose name ends in a slash is a directory for us, as for every container engine.
            EntryKind::Directory | EntryKind::Fifo => {}
        }
    }
    // The crate must not see more than we did, unless we stopped at an end mark that it reads past.
    if ours.ended
        && archive.len().is_multiple_of(BLOCK)
        && let Some(Ok(more)) =
            their_entries.find(|e| e.as_ref().is_ok_and(|e| !e.header().entry_type().is_pax_global_extensions()))
    {
        panic!("the tar crate sees one more entry: {}", unply::error::escape(&more.path_bytes()));
    }
});

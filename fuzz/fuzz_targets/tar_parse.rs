//! The parser over arbitrary blocks: it ends, never panics, and what it hands out keeps the promises of its types.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unply::policy::Limits;
use unply::tar::{EntryKind, Error};
use unply_fuzz::{Parsed, parse, repair_checksums};

/// Parses, and checks whatever comes out.
fn check(archive: &[u8], limits: &Limits) -> Parsed {
    let parsed = parse(archive, limits);
    for entry in &parsed.entries {
        assert!(!entry.path.contains(&0), "a NUL in {:?}", entry.path);
        assert!(entry.mode <= 0o7777);
        assert!(entry.uid != u32::MAX && entry.gid != u32::MAX, "an owner that means \"unchanged\"");
        for time in [Some(entry.mtime), entry.atime].into_iter().flatten() {
            assert!(time.nanos < 1_000_000_000);
        }
        let xattr_bytes: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(xattr_bytes <= limits.max_xattr_bytes);
        for (n, (name, _)) in entry.xattrs.iter().enumerate() {
            assert!(!name.contains(&0) && entry.xattrs[..n].iter().all(|(other, _)| other != name));
        }
        match &entry.kind {
            EntryKind::File { size, sparse: None } => assert_eq!(*size, entry.stored),
            EntryKind::File { size, sparse: Some(regions) } => {
                assert!(regions.len() <= limits.max_sparse_regions);
                let mut end = 0u64;
                let mut sum = 0u64;
                for region in regions {
                    assert!(region.offset >= end, "regions overlap or are not sorted");
                    end = region.offset.checked_add(region.length).expect("a region wraps around");
                    sum += region.length;
                }
                assert!(end <= *size);
                assert_eq!(sum, entry.stored);
            }
            kind => {
                assert_eq!(entry.stored, 0, "{kind:?} has data");
                match kind {
                    EntryKind::Symlink { target } => {
                        assert!((1..=4095).contains(&target.len()) && !target.contains(&0));
                    }
                    EntryKind::HardLink { target } => assert!(!target.contains(&0)),
                    EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                        assert!(*major <= 4095 && *minor <= 1_048_575);
                    }
                    _ => {}
                }
            }
        }
    }
    parsed
}

fuzz_target!(|data: &[u8]| {
    let mut archive = data.to_vec();
    repair_checksums(&mut archive);
    let wide = Limits { max_metadata_bytes: 64 << 10, max_sparse_regions: 1000, ..Limits::default() };
    let narrow = Limits {
        max_entries: 4,
        max_metadata_bytes: 3000,
        max_extension_headers: 3,
        max_path_bytes: 150,
        max_depth: 5,
        max_sparse_regions: 5,
        max_xattr_bytes: 100,
        ..Limits::default()
    };
    let parsed = check(&archive, &wide);
    let less = check(&archive, &narrow);
    // A limit ends an archive early and changes nothing else.
    assert!(parsed.entries.starts_with(&less.entries));
    if parsed.error != less.error {
        assert!(matches!(less.error, Some(Error::Limit { .. })), "{:?}\n{:?}", parsed.error, less.error);
    }
});

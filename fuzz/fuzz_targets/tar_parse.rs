//! The parser over arbitrary blocks: it ends, never panics, and what it hands out keeps the promises of its types.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unply::policy::Limits;
use unply::tar::EntryKind;
use unply_fuzz::{parse, repair_checksums};

fuzz_target!(|data: &[u8]| {
    let mut archive = data.to_vec();
    repair_checksums(&mut archive);
    let limits = Limits { max_metadata_bytes: 64 << 10, max_sparse_regions: 1000, ..Limits::default() };
    for entry in parse(&archive, &limits).entries {
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
});

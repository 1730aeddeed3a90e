//! Archives whose bytes the builder of entries would not write: names from PAX, GNU and sparse headers.

use testkit::tar::field::{LINKNAME, PREFIX};
use testkit::tar::{Header, TarBuilder};
use testkit::{EntrySpec, file, hardlink, symlink};

use crate::{At, Attempt as Case, escape};

fn regular(name: &str) -> Header {
    Header::new(b'0', name)
}

fn tar() -> TarBuilder {
    TarBuilder::new()
}

/// One layer that means these entries; a bare header has no time.
fn means(tar: TarBuilder, entries: Vec<EntrySpec>) -> Case {
    (vec![tar.finish()], Some(vec![entries.into_iter().map(|entry| entry.mtime(0)).collect()]))
}

macro_rules! raw {
    ($($name:ident: |$at:pat_param| $case:expr;)*) => {
        $(#[test]
        fn $name() {
            escape(stringify!($name), &|$at: &At| -> Case { $case });
        })*
        pub const NAMES: &[&str] = &[$(concat!(module_path!(), "::", stringify!($name))),*];
    };
}

raw! {
    pax_path_out: |at| {
        let path = format!("{}/file", at.climb);
        means(tar().pax(&[("path", &path)]).member(regular("innocent"), "x"), vec![file(path, "x")])
    };
    pax_path_absolute: |at| means(tar().pax(&[("path", at.v("/file"))]).member(regular("innocent"), "x"), vec![file(at.v("/file"), "x")]);
    prefix_out: |_| means(tar().member(regular("evil").raw(PREFIX, "../../.."), "x"), vec![file("../../../evil", "x")]);
    gnu_long_name_out: |at| {
        let path = format!("{}/{}", at.climb, "file");
        means(tar().gnu_long_name(&path).member(regular("innocent"), "x"), vec![file(path, "x")])
    };
    // The header names something harmless, the extension what is meant.
    pax_linkpath_out_on_a_symlink: |at| means(
        tar().pax(&[("linkpath", &at.victim)]).header(&Header::new(b'2', "l").raw(LINKNAME, "harmless").octal(testkit::tar::field::MODE, 0o777))
            .member(regular("l/file"), "x"),
        vec![symlink("l", &at.victim), file("l/file", "x")],
    );
    pax_linkpath_out_on_a_hard_link: |at| means(
        tar().member(regular("harmless"), "x").pax(&[("linkpath", at.v("/file"))]).header(&Header::new(b'1', "h").raw(LINKNAME, "harmless")),
        vec![file("harmless", "x"), hardlink("h", at.v("/file"))],
    );
    gnu_long_link_out_on_a_symlink: |at| means(
        tar().gnu_long_link(&at.climb).header(&Header::new(b'2', "l").raw(LINKNAME, "harmless").octal(testkit::tar::field::MODE, 0o777))
            .member(regular("l/file"), "x"),
        vec![symlink("l", &at.climb), file("l/file", "x")],
    );
    gnu_long_link_out_on_a_hard_link: |at| means(
        tar().member(regular("harmless"), "x").gnu_long_link(at.v("/file")).header(&Header::new(b'1', "h").raw(LINKNAME, "harmless")),
        vec![file("harmless", "x"), hardlink("h", at.v("/file"))],
    );
    sparse_name_out: |at| {
        let path = format!("{}/file", at.climb);
        let records = [("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1"), ("GNU.sparse.name", &path), ("GNU.sparse.size", "3"), ("GNU.sparse.map", "0,3")];
        means(tar().pax(&records).member(regular("innocent"), "abc"), vec![file(path, "abc")])
    };
    sparse_name_through_a_symlink_out: |at| {
        let records = [("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1"), ("GNU.sparse.name", "l/file"), ("GNU.sparse.size", "3"), ("GNU.sparse.map", "0,3")];
        means(
            tar().entry(&symlink("l", &at.victim).mtime(0)).pax(&records).member(regular("innocent"), "abc"),
            vec![symlink("l", &at.victim), file("l/file", "abc")],
        )
    };
    t16_a_harmless_and_a_hostile_name_for_one_entry: |at| (vec![tar().pax(&[("path", "harmless")]).gnu_long_name(at.v("/file")).member(regular("x"), "x").finish()], None);
    t20_nul_in_a_name_hides_the_rest: |at| (vec![tar().pax(&[("path", format!("harmless\0{}", at.victim))]).member(regular("x"), "x").finish()], None);
    t23_a_global_path_names_nothing: |at| means(tar().pax_global(&[("path", at.v("/file"))]).member(regular("x"), "x"), vec![file("x", "x")]);
    cve_2024_40635_owner_that_wraps_to_root: |_| (vec![tar().pax(&[("uid", "4294967296")]).member(regular("x"), "x").finish()], None);
    cve_2024_40635_owner_that_means_unchanged: |_| (vec![tar().pax(&[("gid", "4294967295")]).member(regular("x"), "x").finish()], None);
    m06_device_number_that_wraps_to_a_whiteout: |_| (vec![
        tar().header(&Header::new(b'3', "a").base256(testkit::tar::field::DEVMAJOR, 1 << 32).base256(testkit::tar::field::DEVMINOR, 1 << 32)).finish(),
    ], None);
    cve_2025_58183_sparse_map_that_is_not_there: |_| {
        let records = [("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1"), ("GNU.sparse.size", "9223372036854775807"), ("GNU.sparse.numblocks", "9223372036854775807"), ("GNU.sparse.map", "0,3")];
        (vec![tar().pax(&records).member(regular("x"), "abc").finish()], None)
    };
    cve_2026_32288_old_gnu_sparse_beyond_its_file: |_| (vec![
        tar().header(&Header::new(b'S', "x").raw(testkit::tar::field::MAGIC, testkit::tar::MAGIC_GNU).raw((386, 12), "77777777777").raw((398, 12), "77777777777")).finish(),
    ], None);
}

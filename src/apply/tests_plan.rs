//! The plan of one entry: bounds, warnings and xattrs, which no tree shows or which only an odd image reaches.

use testkit::{EntrySpec, chr, dir, fifo, file, hardlink, symlink};

use super::{Action, LiteralPath, PlanOptions, check_depth, check_implied, plan};
use crate::error::{Error, ErrorKind};
use crate::policy::{Limits, Selinux, TreeOptions, XattrFlavour};
use crate::tar::{Parser, Step};

fn options() -> PlanOptions {
    PlanOptions { tree: TreeOptions::default(), flavour: XattrFlavour::Trusted, limits: Limits::default() }
}

/// Plans the only entry of an archive; returns the codes of its warnings too.
fn planned_with(spec: &EntrySpec, options: &PlanOptions) -> (Result<Action, Error>, Vec<&'static str>) {
    let tar = testkit::layer([spec]);
    let mut parser = Parser::new(&Limits::default());
    let entry = tar.chunks_exact(512).find_map(|block| match parser.block(block.try_into().unwrap()) {
        Ok(Step::Entry(entry)) => Some(*entry),
        _ => None,
    });
    let mut warnings = Vec::new();
    let action = plan(entry.unwrap(), options, &mut |warning| warnings.push(warning.kind));
    (action, warnings)
}

fn planned(spec: &EntrySpec) -> Result<Action, Error> {
    planned_with(spec, &options()).0
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The xattrs of what is made, and the codes of the warnings.
fn made(spec: &EntrySpec, options: &PlanOptions) -> (Xattrs, Vec<&'static str>) {
    match planned_with(spec, options) {
        (Ok(Action::Make { meta, .. }), warnings) => (meta.xattrs, warnings),
        other => panic!("{other:?}"),
    }
}

fn path(text: &str) -> LiteralPath {
    LiteralPath::clean(text.as_bytes()).0
}

#[test]
fn a_path_is_within_itself_and_what_is_above_it() {
    for (inner, outer) in [("a", "a"), ("a/b", "a"), ("a/b/c", "a/b"), ("a", ""), ("", "")] {
        assert!(path(inner).is_within(&path(outer)), "{inner} {outer}");
    }
    for (inner, outer) in [("ab", "a"), ("a", "a/b"), ("b/a", "a"), ("", "a"), ("a-b/c", "a")] {
        assert!(!path(inner).is_within(&path(outer)), "{inner} {outer}");
    }
}

/// A name is as deep as it has components, and as long as it is spelled; the last that is allowed, and one more.
#[test]
fn s11_names_have_a_bound_in_depth_and_length() {
    let with = |max_depth, max_path_bytes| PlanOptions {
        limits: Limits { max_depth, max_path_bytes, ..Limits::default() },
        ..options()
    };
    let kind = |spec: &EntrySpec, options: &PlanOptions| planned_with(spec, options).0.err().map(|e| e.kind());
    for (spec, depth) in [(file("a/b/c", ""), 3), (dir("a/"), 1), (file("./a//b/../c/.wh.x", ""), 3)] {
        assert_eq!(kind(&spec, &with(depth, 100)), None, "{spec:?}");
        assert_eq!(kind(&spec, &with(depth - 1, 100)), Some(ErrorKind::Limit), "{spec:?}");
    }
    for (spec, length) in [(file("a/b/c", ""), 5), (file("././a", ""), 5), (hardlink("a", "b/././c"), 7)] {
        assert_eq!(kind(&spec, &with(10, length)), None, "{spec:?}");
        assert_eq!(kind(&spec, &with(10, length - 1)), Some(ErrorKind::Limit), "{spec:?}");
    }
    // What symlinks lead to is measured before something is made in it.
    assert!(check_depth(2, 3).is_ok());
    for depth in [3, 4] {
        assert_eq!(check_depth(depth, 3).unwrap_err().kind(), ErrorKind::Limit);
    }
}

/// Found by `whiteout_plan`: a name is too long whatever the names before it mean, and whatever the entry is.
#[test]
fn s11_a_long_name_is_refused_in_an_entry_that_is_skipped() {
    let long = "n".repeat(256);
    for spec in [
        file(format!(".wh.a/{long}"), ""),
        file(format!(".wh..wh.orph/{long}"), ""),
        hardlink(".wh.a", format!("b/{long}")),
        hardlink(format!("a/.wh.{long}"), "b"),
    ] {
        let error = planned(&spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
        assert!(error.to_string().contains("S11"), "{error}");
    }
    // As long as it may be, with the prefix and without.
    assert!(planned(&file(format!(".wh.{}", &long[1..]), "")).is_ok());
    assert!(planned(&file(&long[1..], "")).is_ok());
    assert!(check_implied(&long.as_bytes()[1..]).is_ok());
    assert_eq!(check_implied(long.as_bytes()).unwrap_err().kind(), ErrorKind::Malformed);
}

#[test]
fn r15_a_symlink_makes_no_directory_with_a_whiteout_name() {
    assert_eq!(check_implied(b".wh.a").unwrap_err().kind(), ErrorKind::Malformed);
    assert!(check_implied(b"wh.a").is_ok());
}

#[test]
fn w13_only_files_below_plnk_are_kept_aside() {
    assert_eq!(planned(&file(".wh..wh.plnk/x", "data")).unwrap(), Action::AufsStash(b"x".to_vec()));
    for spec in [
        dir(".wh..wh.plnk/"),
        dir(".wh..wh.plnk/d/"),
        symlink(".wh..wh.plnk/l", "x"),
        file(".wh..wh.plnk/d/x", ""),
        file(".wh..wh.orph/x", ""),
        file(".wh..wh.aufs", ""),
    ] {
        assert_eq!(planned(&spec).unwrap(), Action::Skip, "{spec:?}");
    }
}

/// A whiteout acts whatever its entry is, but a builder writes an empty regular file.
#[test]
fn w14_whiteouts_that_are_no_empty_files_are_said() {
    for (spec, warnings) in [
        (file(".wh.a", ""), vec![]),
        (file(".wh.a", "x"), vec!["odd-whiteout"]),
        (dir(".wh.a/"), vec!["odd-whiteout"]),
        (symlink(".wh.a", "b"), vec!["odd-whiteout"]),
        (fifo(".wh.a"), vec!["odd-whiteout"]),
    ] {
        let (action, said) = planned_with(&spec, &options());
        assert_eq!(action.unwrap(), Action::Whiteout { parent: path(""), name: b"a".to_vec() }, "{spec:?}");
        assert_eq!(said, warnings, "{spec:?}");
    }
}

#[test]
fn m18_xattrs_are_kept_or_dropped_with_their_reason() {
    let user = PlanOptions { flavour: XattrFlavour::User, ..options() };
    let labels = PlanOptions { tree: TreeOptions { selinux: Selinux::Keep, ..TreeOptions::default() }, ..options() };
    let default = options();
    for (name, spec, options, dropped) in [
        ("user.k", file("f", ""), &default, &[][..]),
        ("user.k", dir("d/"), &default, &[][..]),
        ("user.k", hardlink("h", "f"), &default, &[][..]),
        ("user.k", symlink("s", "f"), &default, &["user-xattr"]),
        ("user.k", fifo("p"), &default, &["user-xattr"]),
        ("user.k", chr("c", 1, 3), &default, &["user-xattr"]),
        ("trusted.k", symlink("s", "f"), &default, &[][..]),
        ("trusted.overlay.opaque", dir("d/"), &default, &["overlay-xattr"]),
        ("trusted.overlay.opaque", dir("d/"), &user, &["overlay-xattr"]),
        ("user.overlay.opaque", dir("d/"), &default, &[][..]),
        ("user.overlay.opaque", dir("d/"), &user, &["overlay-xattr"]),
        ("user.k", file("f", ""), &user, &[][..]),
        ("security.selinux", file("f", ""), &default, &["selinux-label"]),
        ("security.selinux", file("f", ""), &labels, &[][..]),
        ("security.ima", file("f", ""), &labels, &[][..]),
        ("security.ima", file("f", ""), &default, &[][..]),
        ("system.nfs4_acl", file("f", ""), &default, &["nfs4-acl"]),
        ("system.posix_acl_access", file("f", ""), &default, &[][..]),
    ] {
        let (xattrs, warnings) = made(&spec.xattr(name, "v"), options);
        assert_eq!(warnings, dropped, "{name}");
        assert_eq!(xattrs.len(), usize::from(dropped.is_empty()), "{name}");
    }
}

#[test]
fn m16_capabilities_are_of_a_known_form_and_hold_everywhere() {
    let capability = |version: u8, root: &[u8]| {
        let mut value = [7; 20];
        value[3] = version;
        [&value[..], root].concat()
    };
    let with = |value: &[u8]| file("f", "").xattr("security.capability", value);
    let second = capability(2, b"");
    for value in [second.clone(), capability(3, &[0; 4])] {
        let (xattrs, warnings) = made(&with(&value), &options());
        assert_eq!(xattrs, [(b"security.capability".to_vec(), second.clone())]);
        assert!(warnings.is_empty());
    }
    let (xattrs, warnings) = made(&with(&capability(3, &[0, 0, 1, 0])), &options());
    assert!(xattrs.is_empty());
    assert_eq!(warnings, ["foreign-capability"]);
    for value in [capability(2, &[0; 4]), capability(3, b""), capability(1, b""), capability(4, &[0; 4]), Vec::new()] {
        assert_eq!(planned(&with(&value)).unwrap_err().kind(), ErrorKind::Malformed, "{value:?}");
    }
}

#[test]
fn m03_the_type_bits_of_a_mode_are_not_kept() {
    match planned(&file("f", "").mode(0o104_755)).unwrap() {
        Action::Make { meta, .. } => assert_eq!(meta.meta.mode, 0o4755),
        other => panic!("{other:?}"),
    }
}

#[test]
fn d04_the_root_is_a_directory_and_a_link_to_itself_means_nothing() {
    let kinds = |spec: &EntrySpec| planned(spec).map_err(|e| e.kind());
    assert!(matches!(kinds(&dir("./")), Ok(Action::Root(_))));
    assert_eq!(planned_with(&hardlink("./", "/"), &options()).1, ["root-link"]);
    assert_eq!(kinds(&hardlink("./", "/")), Ok(Action::Skip));
    for spec in [hardlink("./", "a"), symlink("./", "a"), chr("./", 1, 3)] {
        assert_eq!(kinds(&spec), Err(ErrorKind::Malformed), "{spec:?}");
    }
}

use super::*;
use crate::entry::*;
use crate::random::random_image;

fn codes(options: Options, layers: &[Vec<EntrySpec>]) -> Vec<&'static str> {
    let model = Model::of_image(options, layers).unwrap();
    model.warnings().iter().map(|warning| warning.code).collect()
}

fn reason(options: Options, layers: &[Vec<EntrySpec>]) -> Reason {
    Model::of_image(options, layers).unwrap_err().reason
}

#[test]
fn warnings_have_codes() {
    let layer = vec![
        file("../a", ""),
        file(".wh.x/b", ""),
        chr("c", 0, 0),
        hardlink("/", "."),
        symlink("l", "a").xattr("user.k", "v"),
        file("a", ""),
    ];
    let expected =
        ["name-clamped", "below-whiteout", "device-zero", "root-link-to-itself", "duplicate-entry", "xattr-dropped"];
    assert_eq!(codes(Options::default(), &[layer]), expected);
}

#[test]
fn refusals_name_the_rule_and_the_entry() {
    let strict = Options { strict: true, ..Options::default() };
    let default = Options::default();
    let loops = || vec![symlink("a", "b"), symlink("b", "a")];
    let with = |mut layer: Vec<EntrySpec>, entry| {
        layer.push(entry);
        vec![layer]
    };
    assert_eq!(reason(default, &[vec![file("d/.wh..", "")]]), Reason::BareWhiteout);
    assert_eq!(reason(default, &[vec![file("n".repeat(256), "")]]), Reason::NameTooLong);
    assert_eq!(reason(default, &[vec![symlink("/", "x")]]), Reason::RootRetyped);
    assert_eq!(reason(default, &with(loops(), file("a/x", ""))), Reason::TooManySymlinks);
    assert_eq!(reason(default, &[vec![hardlink("h", "f")]]), Reason::LinkTargetMissing);
    assert_eq!(reason(default, &[vec![dir("d"), hardlink("h", "d")]]), Reason::LinkTargetDirectory);
    assert_eq!(reason(default, &[vec![file("d/f", ""), hardlink("d", "d/f")]]), Reason::LinkRemovesTarget);
    assert_eq!(reason(default, &[vec![symlink("l", ".wh.a"), file("l/x", "")]]), Reason::WhiteoutMade);
    assert_eq!(reason(default, &[vec![symlink("l", "")]]), Reason::SymlinkTarget);
    assert_eq!(reason(default, &[vec![file("f", "").owner(1 << 32, 0)]]), Reason::Number);
    assert_eq!(reason(strict, &[vec![file("../a", "")]]), Reason::NameClamped);
    assert_eq!(reason(strict, &[vec![file(".wh.x/b", "")]]), Reason::BelowWhiteout);
    assert_eq!(reason(strict, &[vec![chr("c", 0, 0)]]), Reason::DeviceZero);
    assert_eq!(reason(strict, &[vec![file("a", ""), file("a", "")]]), Reason::Duplicate);
    let refusal = Model::of_image(default, &[vec![file("k", ""), file("d/.wh.", "")]]).unwrap_err();
    assert_eq!(refusal.to_string(), "BareWhiteout: d/.wh.");
}

#[test]
fn plnk_joins_only_an_inode_that_still_has_a_name() {
    let layer = vec![
        file(".wh..wh.plnk/1", "data"),
        hardlink("f", ".wh..wh.plnk/1").owner(5, 6),
        file("f", "other"),
        hardlink("g", ".wh..wh.plnk/1"),
    ];
    let tree = Model::of_image(Options::default(), &[layer]).unwrap().tree();
    assert_eq!((tree.get("g").unwrap().uid, tree.get("g").unwrap().link.clone()), (0, None));
}

#[test]
fn selinux_labels_are_kept_when_asked() {
    let layer = vec![file("f", "").xattr("security.selinux", "x")];
    let keep = Options { selinux_keep: true, ..Options::default() };
    assert_eq!(Model::of_image(keep, &[layer]).unwrap().tree().get("f").unwrap().xattrs.len(), 1);
}

#[test]
fn r15_random_images_give_trees_without_whiteout_names() {
    for seed in 0..200 {
        let image = random_image(seed);
        let Ok(model) = Model::of_image(Options::default(), &image) else { continue };
        let tree = model.tree();
        assert!(tree.0.keys().all(|path| !path.split(|b| *b == b'/').any(|name| name.starts_with(b".wh."))));
        // A tree is a tree: every name's parent is a directory.
        for path in tree.0.keys().filter(|path| !path.is_empty()) {
            let parent = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &path[..at]);
            assert_eq!(tree.get(parent).unwrap().kind, crate::tree::Kind::Dir, "seed {seed}");
        }
    }
}

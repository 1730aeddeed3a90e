use super::*;

fn node(kind: Kind) -> Node {
    Node::new(kind)
}

fn tree(nodes: Vec<(&str, Node)>) -> Tree {
    Tree(nodes.into_iter().map(|(path, node)| (path.as_bytes().to_vec(), node)).collect())
}

#[test]
fn every_field_is_compared() {
    let base = || node(Kind::file(b"1"));
    let mut changed: Vec<(&str, Node)> = vec![("kind", node(Kind::file(b"2"))), ("kind", node(Kind::Dir))];
    changed.push(("mode", Node { mode: 0o700, ..base() }));
    changed.push(("owner", Node { uid: 1, ..base() }));
    changed.push(("owner", Node { gid: 1, ..base() }));
    changed.push(("mtime", Node { mtime: (0, 1), ..base() }));
    changed.push(("xattr user.k", Node { xattrs: [(b"user.k".to_vec(), Vec::new())].into(), ..base() }));
    changed.push(("links", Node { link: Some(b"a".to_vec()), ..base() }));
    for (field, other) in changed {
        let differences = compare(&tree(vec![("a", base())]), &tree(vec![("a", other)]));
        assert_eq!(differences.len(), 1, "{field}: {differences:?}");
        assert_eq!(differences[0].field, field);
    }
    assert!(compare(&tree(vec![("a", base())]), &tree(vec![("a", base())])).is_empty());
}

#[test]
fn missing_extra_and_phantom_names_are_seen() {
    let expected = tree(vec![("a", node(Kind::Dir))]);
    let found = tree(vec![("b", node(Kind::Phantom))]);
    let lines: Vec<String> = compare(&expected, &found).iter().map(Difference::to_string).collect();
    assert_eq!(lines[0], "/a: presence: expected directory, found nothing");
    assert_eq!(lines[1], "/b: presence: expected nothing, found phantom (listed, but lstat fails)");
}

#[test]
fn kept_content_and_symlink_modes_do_not_count() {
    let Kind::File { len, sha256, .. } = Kind::file(b"1") else { unreachable!() };
    let a = tree(vec![("a", node(Kind::file(b"1"))), ("l", node(Kind::Symlink(b"t".to_vec())))]);
    let bare = Kind::File { len, sha256, content: None };
    let link = Node { mode: 0o777, ..node(Kind::Symlink(b"t".to_vec())) };
    assert_same("content", &a, &tree(vec![("a", node(bare)), ("l", link)]));
}

#[test]
#[should_panic(expected = "and 10 more")]
fn a_long_list_is_cut() {
    let many: Vec<String> = (0..40).map(|i| format!("{i:02}")).collect();
    assert_same("many", &tree(many.iter().map(|n| (&n[..], node(Kind::Dir))).collect()), &Tree::default());
}

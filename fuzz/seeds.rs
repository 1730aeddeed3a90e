//! Writes seed inputs for every target into `corpus/TARGET/`, from testkit's catalogue of cases and from real documents.
//!
//! `cargo run --example seeds` in this directory; nothing it writes is committed.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use testkit::tar::{Header, TarBuilder};
use testkit::{EntrySpec, file};

struct Out {
    root: PathBuf,
    counts: HashMap<&'static str, usize>,
}

impl Out {
    fn add(&mut self, target: &'static str, name: &str, bytes: &[u8]) {
        let dir = self.root.join(target);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), bytes).unwrap();
        *self.counts.entry(target).or_default() += 1;
    }

    fn archive(&mut self, name: &str, bytes: &[u8]) {
        self.add("tar_parse", name, bytes);
        self.add("tar_differential", name, bytes);
    }
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut out = Out { root, counts: HashMap::new() };
    cases(&mut out);
    dialects(&mut out);
    documents(&mut out);
    metadata(&mut out);
    real(&mut out);
    let mut counts: Vec<_> = out.counts.into_iter().collect();
    counts.sort_unstable();
    for (target, n) in counts {
        println!("{target}: {n} seeds");
    }
}

/// Every case of the rule book: as text for `apply_tree`, its layers as archives.
fn cases(out: &mut Out) {
    for (n, case) in testkit::cases::all().into_iter().enumerate() {
        let choice = u8::from(case.options.strict)
            | u8::from(case.options.lower_symlinks == testkit::model::LowerSymlinks::Shadow) << 1
            | u8::from(case.options.root_entry == testkit::model::RootEntry::Apply) << 2;
        if let Some(text) = unply_fuzz::text_from_layers(&case.layers) {
            // Flat and mounted.
            out.add("apply_tree", case.name, &[&[choice | 8], &text[..]].concat());
            out.add("whiteout_plan", case.name, &[&[choice & 3, 0, 7], &text[..]].concat());
            // The other namespace, kept labels, whiteouts as xattrs, no devices, tolerated xattrs; squashed owners, few
            // entries, no end mark, a label in front, cut off, another archive behind it.
            let (others, befalls) = ([4, 8, 16, 20, 32, 96], [0, 1, 2, 4, 8, 128, 200, 252]);
            let bytes = [others[n % others.len()] | choice & 3, befalls[n % befalls.len()], n as u8];
            out.add("whiteout_plan", &format!("{}-odd", case.name), &[&bytes, &text[..]].concat());
        }
        for (n, layer) in case.layers.iter().enumerate() {
            out.archive(&format!("{}-{n}", case.name), &testkit::layer(layer));
        }
    }
    for seed in 0..100 {
        if let Some(text) = unply_fuzz::text_from_layers(&testkit::random::random_image(seed)) {
            out.add("apply_tree", &format!("random-{seed}"), &[&[0], &text[..]].concat());
        }
    }
}

/// Small archives that real tools wrote or stumbled over, where the corpus stands beside the checkout.
fn real(out: &mut Out) {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let corpus = std::env::var_os("UNPLY_CORPUS").map_or_else(beside, PathBuf::from);
    for dir in fs::read_dir(corpus.join("tars")).into_iter().flatten().flatten() {
        for entry in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name.ends_with(".tar") && entry.metadata().unwrap().len() <= 64 << 10 {
                out.archive(&format!("real-{}-{name}", dir.file_name().display()), &fs::read(entry.path()).unwrap());
            }
        }
    }
}

/// What the catalogue does not write: extension headers of every dialect.
fn dialects(out: &mut Out) {
    let body = || Header::new(b'0', "name").size(3);
    let builder = TarBuilder::new;
    let records: &[(&str, &[(&str, &str)])] = &[
        ("path", &[("path", "a/long/name")]),
        ("size", &[("size", "3")]),
        ("times", &[("mtime", "-1.5"), ("atime", "12.000000001")]),
        ("ids", &[("uid", "70000"), ("gid", "70001")]),
        ("link", &[("linkpath", "else/where")]),
        ("xattr", &[("SCHILY.xattr.user.a", "b"), ("LIBARCHIVE.xattr.user.c", "ZA==")]),
        ("sparse-01", &[("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", "0,3")]),
        (
            "sparse-10",
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.realsize", "9"),
                ("GNU.sparse.name", "n"),
            ],
        ),
        ("empty", &[("path", "")]),
        ("ranks", &[("SCHILY.xattr.user.a", "b"), ("LIBARCHIVE.xattr.user.%61", "ZA==")]),
        ("known", &[("RHT.security.selinux", "x"), ("SCHILY.acl.access", "y"), ("GNU.sparse.other", "z")]),
        ("xattr-nul", &[("LIBARCHIVE.xattr.user.%00", "ZA==")]),
        ("xattr-base64", &[("LIBARCHIVE.xattr.user.a", "Z")]),
        ("xattr-name", &[("SCHILY.xattr.", "a")]),
        ("key", &[("", "a")]),
        ("offsets", &[("GNU.sparse.size", "9"), ("GNU.sparse.offset", "0"), ("GNU.sparse.offset", "0")]),
        ("lengths", &[("GNU.sparse.size", "9"), ("GNU.sparse.numbytes", "0")]),
        ("open", &[("GNU.sparse.size", "9"), ("GNU.sparse.offset", "0")]),
        ("mixed", &[("GNU.sparse.offset", "0"), ("GNU.sparse.map", "0,3")]),
        ("two-maps", &[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.map", "0,3")]),
        ("version", &[("GNU.sparse.major", "2"), ("GNU.sparse.size", "3")]),
    ];
    for (name, pairs) in records {
        out.archive(&format!("pax-{name}"), &builder().pax(pairs).member(body(), "abc").finish());
    }
    let map = "1\n0\n3\n";
    let sparse = [map.as_bytes(), &vec![0; 512 - map.len()], b"abc"].concat();
    let keys =
        [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9"), ("GNU.sparse.name", "n")];
    out.archive("pax-sparse-map", &builder().pax(&keys).member(Header::new(b'0', "s").size(515), sparse).finish());
    out.archive("pax-global", &builder().pax_global(&[("comment", "x")]).member(body(), "abc").finish());
    out.archive(
        "gnu-names",
        &builder().gnu_long_name("n".repeat(150)).gnu_long_link("l".repeat(120)).member(body(), "abc").finish(),
    );
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'D', b'V', b'S', 0] {
        out.archive(&format!("type-{kind}"), &builder().member(Header::new(kind, "t"), "").finish());
    }
    let long = || builder().gnu_long_name("n").pax(&[("path", "m")]);
    out.archive("two-names", &long().member(body(), "abc").finish());
    let directory = || Header::new(b'D', "d/").raw(testkit::tar::field::MAGIC, testkit::tar::MAGIC_GNU);
    out.archive("dump", &builder().member(directory(), "Yf\0").finish());
    out.archive("dump-cut", &builder().header(&directory().size(600)).unfinished());
    out.archive("map-cut", &builder().pax(&keys).header(&Header::new(b'0', "s").size(1500)).unfinished());
    out.archive("many-headers", &(0..20).fold(builder(), |tar, _| tar.pax_global(&[("comment", "x")])).finish());
    out.archive("deep", &builder().member(Header::new(b'5', "a/b/c/d/e/f/"), "").finish());
    out.archive("unfinished", &builder().member(body(), "abc").unfinished());
}

/// Documents as real tools write them, with the placeholders of `image_json`.
fn documents(out: &mut Out) {
    let media = "application/vnd.oci.image";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media}.manifest.v1+json","config":{{"mediaType":"{media}.config.v1+json","digest":"@C","size":@c}},"layers":[{{"mediaType":"{media}.layer.v1.tar","digest":"@L","size":@l}}]}}"#
    );
    let config = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":["@L"]},"history":[{"created_by":"x"}]}"#;
    let descriptor = format!(r#"{{"mediaType":"{media}.manifest.v1+json","digest":"@M","size":@m"#);
    let docker = r#"[{"Config":"config.json","RepoTags":["a/b:c"],"Layers":["layer.tar"]}]"#;
    let indexes = [
        format!(
            r#"{{"schemaVersion":2,"manifests":[{descriptor},"annotations":{{"org.opencontainers.image.ref.name":"t"}}}}]}}"#
        ),
        format!(
            r#"{{"schemaVersion":2,"manifests":[{descriptor},"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},{descriptor}}}]}}"#
        ),
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{media}.index.v1+json","manifests":[{descriptor},"data":"e30=","artifactType":"x/y"}}]}}"#
        ),
        r#"{"schemaVersion":1,"fsLayers":[]}"#.to_string(),
    ];
    for (n, index) in indexes.iter().enumerate() {
        let parts = [index.as_bytes(), manifest.as_bytes(), config.as_bytes(), docker.as_bytes()];
        out.add("image_json", &format!("layout-{n}"), &parts.join(&0xff));
    }
}

/// A journal and records as the store writes them.
fn metadata(out: &mut Out) {
    use unply::apply::journal::{RecordRef, Writer};
    use unply::apply::{LiteralPath, Node};
    use unply::root::NodeMeta;
    let path = |p: &str| LiteralPath::clean(p.as_bytes()).0;
    let meta = NodeMeta { xattrs: vec![(b"user.a".to_vec(), b"1".to_vec())], ..NodeMeta::default() };
    let mut writer = Writer::new(vec![b'j']).unwrap();
    let (here, there) = (path("a/b"), path("c"));
    for node in [
        Node::Directory,
        Node::Fifo,
        Node::File { size: 7, sparse: None },
        Node::Symlink(b"t".to_vec()),
        Node::CharDevice(1, 3),
        Node::HardLink(there.clone()),
    ] {
        writer
            .push(RecordRef::Make {
                path: &here,
                placed: Some(&there),
                source: None,
                node: &node,
                meta: &meta,
                sum: None,
            })
            .unwrap();
    }
    writer.push(RecordRef::Whiteout { parent: &here, name: b"gone" }).unwrap();
    writer.push(RecordRef::Stashed { placed: &here, number: 3 }).unwrap();
    // The writer puts its magic behind the byte that chooses the journal.
    out.add("store_meta", "journal", &writer.finish().unwrap());

    // Records of a store that just pulled an image.
    let dir = tempfile::tempdir().unwrap();
    let layers: [Vec<EntrySpec>; 2] = [vec![file("a", "1")], vec![file("d/b", "2"), testkit::whiteout("", "a")]];
    let image = testkit::image::ImageSpec::new(layers.iter().map(testkit::layer)).tag("t");
    testkit::image::OciLayout::new(dir.path().join("image")).unwrap().add(&image).unwrap();
    let reference = format!("oci:{}:t", dir.path().join("image").display()).parse().unwrap();
    let Ok(store) = unply::unpack::open_store(&dir.path().join("store"), false) else { return };
    let options = unply::unpack::Options::default();
    match unply::unpack::pull(&reference, &store, &options, &|_| {}) {
        Ok(pulled) => drop(pulled.chain.snapshot("key")),
        Err(e) => panic!("{e}"),
    }
    let kinds = [("layers", 1u8), ("fixups", 2), ("images", 3), ("snapshots", 4)];
    let root = store.root().to_path_buf();
    out.add("store_meta", "store", &[&[0], &fs::read(root.join("store.json")).unwrap()[..]].concat());
    for (kind, which) in kinds {
        for (n, entry) in fs::read_dir(root.join(kind)).unwrap().enumerate() {
            let path = entry.unwrap().path();
            let record = if path.is_dir() { path.join("record.json") } else { path };
            out.add("store_meta", &format!("{kind}-{n}"), &[&[which], &fs::read(record).unwrap()[..]].concat());
        }
    }
}

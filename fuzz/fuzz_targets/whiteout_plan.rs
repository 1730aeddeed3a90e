//! What names mean: the plan of each entry is what the reference model reads in it, and the place of a whiteout in its
//! layer means nothing.
//!
//! Inputs are text as in `apply_tree`; the first two bytes choose options and what befalls the archive, the third how the
//! last layer is shuffled. The layers before the last one are the model's lower tree. Needs root, since owners and
//! devices are set.
#![no_main]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use testkit::model::{self, Meaning, Model};
use testkit::tar::{Header, TarBuilder};
use testkit::tree::Kind;
use testkit::{DescribeOptions, EntrySpec, Tree, compare, describe};
use unply::apply::inventory::Inventory;
use unply::apply::journal::{Reader, Record};
use unply::apply::{Action, ApplyOptions, LayerFacts, PlanOptions, Target, Writers, apply_layer, plan};
use unply::error::ErrorKind;
use unply::policy::{Limits, LowerSymlinks, Ownership, Selinux, TreeOptions, WhiteoutForm, XattrFlavour};
use unply::root::Dir;
use unply::trace::LayerTrace;

static SCRATCH: LazyLock<PathBuf> = LazyLock::new(unply_fuzz::scratch);

/// One entry alone: our plan is the model's meaning.
fn check_meaning(spec: &EntrySpec, options: &PlanOptions, model_options: &model::Options) {
    let wanted = Model::meanings(model_options, std::slice::from_ref(spec));
    let parsed = unply_fuzz::parse(&testkit::layer([spec]), &options.limits);
    let found = match parsed.entries.into_iter().next() {
        Some(entry) => plan(entry, options, &mut |_| {}).map_err(|e| e.to_string()),
        None => Err(parsed.error.map_or_else(String::new, |e| e.to_string())),
    };
    let joined = |path: &[Vec<u8>]| path.join(&b'/');
    let same = match (&wanted, &found) {
        (Err(_), Err(_)) => true,
        (Ok(meanings), Ok(action)) => match (&meanings[0], action) {
            (Meaning::Root, Action::Root(_)) | (Meaning::Skipped, Action::Skip) => true,
            (Meaning::Opaque(path), Action::Opaque { dir }) => joined(path) == dir.as_bytes(),
            (Meaning::Whiteout(path), Action::Whiteout { parent, name }) => {
                joined(path) == parent.join(name).as_bytes()
            }
            // What it names can nowhere exist.
            (Meaning::Whiteout(path), Action::Skip) => path.last().is_some_and(|name| name.starts_with(b".wh.")),
            (Meaning::Stash(name), Action::AufsStash(ours)) => name == ours,
            (Meaning::Ordinary(path), Action::Make { path: ours, .. }) => {
                assert!(path.iter().all(|name| !name.starts_with(b".wh.")), "{ours:?} reaches the disk");
                joined(path) == ours.as_bytes()
            }
            _ => false,
        },
        _ => false,
    };
    assert!(same, "the model's on the left:\n{wanted:?}\n{found:?}");
}

/// A layer laid down alone.
struct Laid {
    tree: Tree,
    facts: LayerFacts,
    deletions: Vec<String>,
}

/// The archive of a layer, and what may befall it.
fn archive(layer: &[EntrySpec], damage: u8) -> Vec<u8> {
    let tar = layer.iter().fold(TarBuilder::new(), |tar, entry| tar.entry(entry));
    match damage {
        0 => tar.finish(),
        1 => tar.unfinished(),
        // Something that is skipped.
        2 => TarBuilder::new().member(Header::new(b'V', "label"), "text").raw(tar.finish()).unfinished(),
        // Another archive behind the end, which nobody reads.
        63 => TarBuilder::new().raw(tar.finish()).raw(testkit::layer(layer)).unfinished(),
        // Cut off somewhere.
        n => {
            let mut bytes = tar.finish();
            bytes.truncate(bytes.len() * usize::from(n) / 64);
            bytes
        }
    }
}

fn lay(place: &Path, layer: &[EntrySpec], damage: u8, options: &ApplyOptions) -> Result<Laid, ErrorKind> {
    for name in ["tree", "stash"] {
        std::fs::create_dir_all(place.join(name)).unwrap();
    }
    let open = |name: &str| Dir::open(&place.join(name)).unwrap();
    let journal = File::options().read(true).write(true).create(true).truncate(true).open(place.join("journal"));
    let target = Target { tree: open("tree"), stash: open("stash"), journal: journal.unwrap() };
    let tar = archive(layer, damage);
    let applied = apply_layer(&mut &tar[..], target, options, &mut |_| {}, &|| Ok(())).map_err(|e| e.kind())?;
    let everything = DescribeOptions { ignore_xattr: Box::new(|_| false), ..DescribeOptions::default() };
    let mut tree = describe(&place.join("tree"), &everything).unwrap();
    for node in tree.0.values_mut() {
        // Nobody sees the times of a whiteout, and nobody sets them.
        if node.kind == Kind::Char(0, 0) || node.xattrs.keys().any(|name| name.ends_with(b".overlay.whiteout")) {
            node.mtime = (0, 0);
        }
    }
    let mut reader = Reader::new(std::io::BufReader::new(File::open(place.join("journal")).unwrap())).unwrap();
    let mut deletions = Vec::new();
    while let Some(record) = reader.read().unwrap() {
        if matches!(record, Record::Whiteout { .. } | Record::Opaque { .. }) {
            deletions.push(format!("{record:?}"));
        }
    }
    deletions.sort();
    let reader = Reader::new(std::io::BufReader::new(File::open(place.join("journal")).unwrap())).unwrap();
    Inventory::read(reader).expect("what was laid down adds up");
    Ok(Laid { tree, facts: applied.facts, deletions })
}

/// Moves every plain whiteout to a place that `seed` chooses; everything else keeps its order.
fn shuffled(layer: &[EntrySpec], meanings: &[Meaning], seed: u8) -> Vec<EntrySpec> {
    let is_whiteout = |meaning: &Meaning| matches!(meaning, Meaning::Whiteout(_));
    let with = layer.iter().zip(meanings);
    let (markers, others): (Vec<_>, Vec<_>) = with.partition(|(_, meaning)| is_whiteout(meaning));
    let mut out: Vec<EntrySpec> = others.into_iter().map(|(spec, _)| spec.clone()).collect();
    let mut state = u32::from(seed).wrapping_mul(2_654_435_761) | 1;
    for (spec, _) in markers {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.insert((state >> 16) as usize % (out.len() + 1), spec.clone());
    }
    out
}

fuzz_target!(|data: &[u8]| {
    let [choice, more, seed, text @ ..] = data else { return };
    let damage = more >> 2;
    let (strict, shadow, user, keep) = (choice & 1 != 0, choice & 2 != 0, choice & 4 != 0, choice & 8 != 0);
    let mut layers = unply_fuzz::layers_from_text(text);
    let layer = layers.pop().unwrap_or_default();
    let model_options = model::Options {
        strict,
        lower_symlinks: if shadow { model::LowerSymlinks::Shadow } else { model::LowerSymlinks::Resolve },
        userxattr: user,
        selinux_keep: keep,
        ..model::Options::default()
    };
    let options = PlanOptions {
        tree: TreeOptions {
            strict,
            lower_symlinks: if shadow { LowerSymlinks::Shadow } else { LowerSymlinks::Resolve },
            selinux: if keep { Selinux::Keep } else { Selinux::Drop },
            ..TreeOptions::default()
        },
        flavour: if user { XattrFlavour::User } else { XattrFlavour::Trusted },
        limits: Limits::default(),
    };
    for spec in layers.iter().flatten().chain(&layer) {
        check_meaning(spec, &options, &model_options);
    }

    let Ok(meanings) = Model::meanings(&model_options, &layer) else { return };
    let other = shuffled(&layer, &meanings, *seed);
    if let Ok(lower) = Model::of_image(model_options, &layers) {
        let over = |layer: &[EntrySpec]| {
            let mut model = lower.clone();
            model.apply(layer).map(|()| model.tree()).map_err(|refusal| refusal.reason)
        };
        assert_eq!(over(&layer), over(&other), "the place of a whiteout matters to the model");
    }

    let max_entries = if more & 2 != 0 { 5 } else { u64::MAX };
    let options = ApplyOptions {
        sums: true,
        plan: PlanOptions { limits: Limits { max_entries, ..Limits::default() }, ..options },
        whiteouts: if choice & 16 != 0 { WhiteoutForm::Xattr } else { WhiteoutForm::CharDevice },
        ownership: if more & 1 != 0 { Ownership::Squash } else { Ownership::Keep },
        skip_devices: choice & 32 != 0,
        tolerate_xattrs: choice & 64 != 0,
        writers: Writers::exactly(0, 1),
        trace: LayerTrace::default(),
    };
    // The other one by several threads, which changes nothing either.
    let shared = ApplyOptions {
        writers: Writers::exactly(1 + usize::from(seed % 2), 1 + usize::from(seed % 3)),
        ..options.clone()
    };
    let (one, two) = (SCRATCH.join("one"), SCRATCH.join("two"));
    let other = if damage > 2 { layer.clone() } else { other };
    let laid = [lay(&one, &layer, damage, &options), lay(&two, &other, damage, &shared)];
    for place in [one, two] {
        std::fs::remove_dir_all(place).unwrap();
    }
    match laid {
        [Ok(a), Ok(b)] => {
            let differences = compare(&a.tree, &b.tree);
            assert!(differences.is_empty(), "the place of a whiteout matters:\n{differences:#?}");
            assert_eq!(a.facts, b.facts);
            assert_eq!(a.deletions, b.deletions);
            let reaches = |path: &[u8]| path.split(|b| *b == b'/').any(|name| name.starts_with(b".wh."));
            assert!(!a.tree.0.keys().any(|path| reaches(path)), "a whiteout's name is on the disk");
        }
        [Err(a), Err(b)] => {
            assert_eq!(a, b);
            assert!(matches!(a, ErrorKind::Malformed | ErrorKind::Limit), "refused in an odd way: {a:?}");
        }
        [a, b] => panic!("one order is refused, the other is not: {:?} {:?}", a.err(), b.err()),
    }
});

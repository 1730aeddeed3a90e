//! Layers laid down by several threads: the tree, the journal, the facts and the verdict are those of one thread.

use std::fs::File;
use std::path::Path;

use testkit::random::{Rng, random_image};
use testkit::tree::Kind;
use testkit::{EntrySpec, Tree, dir, fifo, file, hardlink, opaque, symlink, whiteout};

use super::journal::Reader;
use super::tests::raw;
use super::writers::PANIC_UID;
use super::{ApplyOptions, LayerFacts, PlanOptions, Target, Warning, Writers, apply_layer};
use crate::error::{Error, ErrorKind};
use crate::policy::{Limits, Ownership, TreeOptions, WhiteoutForm, XattrFlavour};
use crate::root::Dir;
use crate::trace::{LayerTrace, Stage, Trace};

#[derive(Debug, PartialEq)]
struct Laid {
    tree: Tree,
    journal: Vec<u8>,
    facts: LayerFacts,
    warnings: Vec<(&'static str, Vec<u8>, String)>,
}

fn options(writers: Writers) -> ApplyOptions {
    let root = rustix::process::geteuid().is_root();
    ApplyOptions {
        plan: PlanOptions { tree: TreeOptions::default(), flavour: XattrFlavour::User, limits: Limits::default() },
        whiteouts: WhiteoutForm::Xattr,
        ownership: if root { Ownership::Keep } else { Ownership::Squash },
        skip_devices: true,
        sums: true,
        writers,
        trace: LayerTrace::default(),
        tolerate_xattrs: true,
    }
}

fn lay_in(
    place: &Path,
    tar: &[u8],
    options: &ApplyOptions,
    check: &dyn Fn() -> Result<(), Error>,
) -> Result<Laid, Error> {
    let open = |name: &str| {
        std::fs::create_dir(place.join(name)).unwrap();
        Dir::open(&place.join(name)).unwrap()
    };
    let journal = place.join("journal");
    let target = Target {
        tree: open("tree"),
        stash: open("stash"),
        journal: File::options().read(true).write(true).create_new(true).open(&journal).unwrap(),
    };
    let mut warnings = Vec::new();
    let mut warn = |w: Warning| warnings.push((w.kind, w.path, w.detail));
    let applied = apply_layer(&mut &tar[..], target, options, &mut warn, check)?;
    // An oddity of a file under way is told when it is met.
    warnings.sort();
    let mut tree = raw(&place.join("tree"));
    for node in tree.0.values_mut() {
        // Nobody sees the times of a whiteout, and nobody sets them.
        if node.xattrs.keys().any(|name| name.ends_with(b".overlay.whiteout")) || node.kind == Kind::Char(0, 0) {
            node.mtime = (0, 0);
        }
    }
    Ok(Laid { tree, journal: std::fs::read(journal).unwrap(), facts: applied.facts, warnings })
}

fn lay(tar: &[u8], writers: &Writers) -> Result<Laid, Error> {
    lay_in(tempfile::tempdir().unwrap().path(), tar, &options(writers.clone()), &|| Ok(()))
}

/// Lays a layer down by one thread and by several, and checks that nobody could tell.
fn same(tar: &[u8], threads: usize, files: usize) -> Result<Laid, Error> {
    let one = lay(tar, &Writers::exactly(0, 1));
    let writers = Writers::exactly(threads, files);
    let several = lay(tar, &writers);
    assert_eq!(writers.free(), threads, "a thread was not given back");
    match (one, several) {
        (Ok(one), Ok(several)) => {
            assert_eq!(one.tree, several.tree, "{threads} {files}");
            let records = |laid: &Laid| {
                let mut reader = Reader::new(&laid.journal[..]).unwrap();
                std::iter::from_fn(|| reader.read().unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(records(&one), records(&several), "{threads} {files}");
            assert!(one.journal == several.journal, "{threads} {files}");
            assert_eq!((&one.facts, &one.warnings), (&several.facts, &several.warnings), "{threads} {files}");
            Ok(several)
        }
        (Err(one), Err(several)) => {
            assert_eq!((one.kind(), one.to_string()), (several.kind(), several.to_string()), "{threads} {files}");
            Err(several)
        }
        (one, several) => panic!("by one thread {:?}, by {threads} {:?}", one.err(), several.err()),
    }
}

/// Entries of few names in few directories, mostly files: names are taken again, replaced by other kinds, linked to and
/// walked through while they are under way.
fn busy(seed: u64, entries: usize) -> Vec<EntrySpec> {
    let mut rng = Rng::new(seed);
    let dirs = ["", "a/", "b/", "a/c/", "b/d/", "l/", "a/x/", "new/e/"];
    let names = ["f", "g", "h", "x", "c", "d", "l", "e"];
    let mut out: Vec<EntrySpec> = Vec::new();
    for n in 0..entries {
        // Mostly one after another, so that many are under way before something else comes.
        let fresh = rng.percent(70);
        let parent = *rng.pick(&dirs);
        let path = if fresh { format!("{parent}n{n}") } else { format!("{parent}{}", rng.pick(&names)) };
        let other = format!("{}{}", rng.pick(&dirs), rng.pick(&names));
        let entry = match rng.below(if fresh { 60 } else { 20 }) {
            0 => dir(format!("{path}/")),
            1 => symlink(&path, *rng.pick(&["a", "b/d", "/b", "../a", "nowhere"])),
            2 => hardlink(&path, &other),
            3 => fifo(&path),
            4 => whiteout(parent.trim_end_matches('/'), rng.pick(&names)),
            5 if rng.percent(20) => opaque(parent.trim_end_matches('/')),
            6 => file(&path, "x".repeat(rng.below(80_000))),
            7 => file(&path, "with xattr").xattr("user.a", "b"),
            8 => file(&path, "long ago").mtime(-3_000_000_000),
            _ => file(&path, format!("{n} {}", "y".repeat(rng.below(3000)))),
        };
        let mode = *rng.pick(&[0o644, 0o755, 0o600, 0o4755, 0o000]);
        let entry = entry.mode(mode).mtime(n as i64);
        out.push(if rng.percent(20) { entry.owner(7, 8) } else { entry });
    }
    out
}

#[test]
fn several_threads_make_the_tree_and_the_journal_of_one() {
    let mut refused = 0;
    for seed in 0..60 {
        let layer = busy(seed, 50 + (seed as usize % 7) * 60);
        let (threads, files) = (1 + seed as usize % 3, [1, 2, 3, 8, 32][seed as usize % 5]);
        refused += u64::from(same(&testkit::layer(&layer), threads, files).is_err());
    }
    assert!(refused < 30, "{refused} of 60 refused: not much was tested");
}

#[test]
fn random_layers_and_the_cases_of_the_rule_book_are_the_same_by_several_threads() {
    let cases = testkit::cases::all().into_iter().flat_map(|case| case.layers);
    let random = (0..200).flat_map(random_image);
    for (n, layer) in cases.chain(random).enumerate() {
        let _ = same(&testkit::layer(&layer), 1 + n % 3, 1 + n % 4);
    }
}

#[test]
fn a_name_that_is_taken_comes_out_as_the_last_entry_says() {
    let mut layer = vec![dir("d/")];
    for round in 0..40 {
        layer.extend((0..20).map(|n| file(format!("d/{n}"), format!("{round} {n}")).mtime(round)));
    }
    let laid = same(&testkit::layer(&layer), 2, 3).unwrap();
    assert_eq!(laid.warnings.len(), 39 * 20, "each but the first of a name is told");
    for n in 0..20 {
        let made = laid.tree.get(format!("d/{n}")).unwrap();
        assert_eq!(made.kind, Kind::file(format!("39 {n}").as_bytes()));
    }
}

#[test]
fn what_follows_a_file_under_way_sees_it() {
    let many = |prefix: &str| -> Vec<EntrySpec> { (0..50).map(|n| file(format!("{prefix}{n}"), "x")).collect() };
    let layers = [
        // A link to it, whose header changes the shared inode.
        [many("d/"), vec![hardlink("d/link", "d/49").mode(0o600).owner(3, 4)]].concat(),
        // A symlink that it replaces was walked through before and is not after.
        [
            vec![dir("a/"), symlink("s", "a"), file("s/in", "1")],
            many(""),
            vec![file("s", "no link"), file("s/in", "2")],
        ]
        .concat(),
        // It becomes a directory, by name and by what is below it.
        [many("e/"), vec![dir("e/48/"), file("e/49/below", "y")]].concat(),
        // It is where a directory is, with things under way below.
        [vec![dir("t/")], many("t/"), vec![file("t", "gone")], many("t/u")].concat(),
        // An opaque mark over it.
        [many("o/"), vec![opaque("o/49"), file("o/49/new", "z")]].concat(),
    ];
    for (n, layer) in layers.iter().enumerate() {
        for (threads, files) in [(1, 1), (2, 3), (3, 32)] {
            assert!(same(&testkit::layer(layer), threads, files).is_ok(), "{n}");
        }
    }
}

/// What is used again is used again: a batch for each time that everything is waited for would be memory without bound.
#[test]
fn waiting_for_everything_again_and_again_changes_nothing() {
    let each = |n: usize| {
        let file = |k: usize| file(format!("d{}/{n}-{k}", (n + k) % 5), "x".repeat(n % 700));
        [file(0), file(1), file(2), file(3), hardlink(format!("link{n}"), format!("d{}/{n}-0", n % 5))]
    };
    let layer: Vec<EntrySpec> = (0..120).flat_map(each).collect();
    for files in [1, 2, 32] {
        same(&testkit::layer(&layer), 3, files).unwrap();
    }
}

#[test]
fn an_archive_cut_off_anywhere_gives_the_same_error() {
    let tar = testkit::layer(&busy(3, 120));
    for cut in (0..tar.len()).step_by(tar.len() / 60) {
        let _ = same(&tar[..cut], 2, 4);
    }
}

#[test]
fn threads_come_with_the_first_full_batch_and_are_given_back() {
    let few: Vec<EntrySpec> = (0..3).map(|n| file(n.to_string(), "x")).collect();
    let many: Vec<EntrySpec> = (0..500).map(|n| file(format!("{}/{n}", n % 7), "x")).collect();
    let busy = |layer: &[EntrySpec], files: usize| {
        let writers = Writers::exactly(2, files);
        let seen = std::cell::Cell::new(2);
        let check = || {
            seen.set(seen.get().min(writers.free()));
            Ok(())
        };
        let place = tempfile::tempdir().unwrap();
        lay_in(place.path(), &testkit::layer(layer), &options(writers.clone()), &check).unwrap();
        assert_eq!(writers.free(), 2);
        2 - seen.get()
    };
    let trace = Trace::begin();
    let options = ApplyOptions { trace: trace.layer(0), ..options(Writers::exactly(2, 4)) };
    lay_in(tempfile::tempdir().unwrap().path(), &testkit::layer(&many), &options, &|| Ok(())).unwrap();
    assert!(trace.spans().iter().any(|span| span.stage == Stage::Write), "{:?}", trace.spans());
    assert_eq!(busy(&few, 32), 0, "three files are nobody else's business");
    assert!(busy(&many, 4) >= 1);
    assert_eq!((Writers::new(1).free(), Writers::new(2).free(), Writers::new(4).free()), (0, 0, 2));
}

#[test]
fn a_panic_of_a_thread_is_an_error_and_not_a_hang() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "root is needed to have files of another owner");
        return println!("SKIP: root is needed to have files of another owner");
    }
    let layer: Vec<EntrySpec> = (0..200)
        .map(|n| file(format!("{}/{n}", n % 3), "x").owner(if n >= 20 { PANIC_UID.into() } else { 1 }, 1))
        .collect();
    let writers = Writers::exactly(2, 2);
    let error = lay(&testkit::layer(&layer), &writers).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Other, "{error}");
    assert!(error.to_string().contains("panicked"), "{error}");
    assert_eq!(writers.free(), 2);
}

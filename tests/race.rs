//! A racing attacker: somebody who can write into the staging swaps directories for symlinks that lead out, over and over,
//! while an image is unpacked there. Whatever happens, nothing outside changes and the answer is a tree or a typed error.
//!
//! What the attacker swaps are names of the image itself, put back after each swap, so that a run that it did not
//! disturb gives the model's tree. While layers are extracted this is asserted; later, while they are folded or
//! published, only that nothing escapes, since who may write there may also write something else.

mod common;

use std::io::BufRead as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::*;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};
use testkit::image::{Compression, ImageSpec, OciLayout};
use testkit::model::Model;
use testkit::{EntrySpec, Tree, compare, dir, file, hardlink, opaque, symlink, whiteout};
use unply::error::{Error, ErrorKind};
use unply::image::Reference;
use unply::root::Resolver;
use unply::unpack::{self, Event, Options};

/// Swaps of each kind of run that have to be seen before the test is over.
const SWAPS: u64 = 10_000;
/// Runs of each kind, at least.
const ROUNDS: u64 = 12;
const PAIRS: usize = 12;

/// Two layers of some thousand entries: directories `a/d…`, each beside a symlink `a/l…` that leads to `victim`.
fn image(victim: &str) -> Vec<Vec<EntrySpec>> {
    let mut lower = vec![dir("a/")];
    let mut upper = vec![dir("a/")];
    for n in 0..PAIRS {
        lower.push(dir(format!("a/d{n}/")).mode(0o750));
        lower.push(symlink(format!("a/l{n}"), victim));
        upper.push(dir(format!("a/d{n}/")).mode(0o700));
        upper.push(symlink(format!("a/l{n}"), victim));
    }
    for k in 0..60 {
        for n in 0..PAIRS {
            lower.push(dir(format!("a/d{n}/sub{k}/")));
            lower.push(file(format!("a/d{n}/sub{k}/file"), format!("{n} {k}")).owner(7, 7).mode(0o640));
            // Through the symlink: lands inside the root.
            lower.push(file(format!("a/l{n}/through{k}"), "x"));
            upper.push(file(format!("a/d{n}/sub{k}/file"), "upper").mode(0o4711));
        }
    }
    for n in 0..PAIRS {
        // No entry describes sub0 here, a link's target is below, and names go: all of it takes a fix-up.
        upper.push(hardlink(format!("a/d{n}/link"), format!("a/d{n}/sub1/file")));
        upper.push(whiteout(format!("a/d{n}"), "sub2"));
        upper.push(opaque(format!("a/d{n}/sub3")));
        upper.push(file(format!("a/d{n}/sub4"), "a file now"));
        upper.push(hardlink(format!("a/d{n}/below"), "a/d0/sub5/file"));
    }
    vec![lower, upper]
}

/// What image and attacker would like to reach: names that they use exist here too.
fn plant(victim: &Path) {
    for name in ["sub0", "tree", "stash", "meta", "rootfs", "d0/sub0", "a/d0/sub0"] {
        std::fs::create_dir_all(victim.join(name)).unwrap();
    }
    for k in 0..60 {
        std::fs::create_dir_all(victim.join(format!("sub{k}"))).unwrap();
        std::fs::write(victim.join(format!("sub{k}/file")), "precious").unwrap();
    }
    for name in ["through0", "file", "sub0/file", "entries", "record.json", "lock", "d0/sub0/file"] {
        std::fs::write(victim.join(name), name).unwrap();
    }
}

/// How far an attack goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Until the layers are extracted.
    Extraction,
    /// Until the call returns.
    Everything,
}

/// One attacker at work.
struct Attack<'a> {
    victim: &'a Path,
    running: AtomicBool,
    stop: AtomicBool,
    resting: AtomicBool,
    swaps: AtomicU64,
    /// How long symlinks stand.
    hold: Duration,
    /// How long everything is in order after it.
    rest: Duration,
}

impl Attack<'_> {
    /// Swaps wherever `places` finds something, until told to stop; every swap is undone.
    fn run(&self, places: &dyn Fn() -> Vec<PathBuf>) {
        let pairs: Vec<(String, String)> = (0..PAIRS).map(|n| (format!("d{n}"), format!("l{n}"))).collect();
        while !self.stop.load(Ordering::Relaxed) {
            if !self.running.load(Ordering::Relaxed) {
                std::hint::spin_loop();
                continue;
            }
            for place in places() {
                let Ok(at) = open(&place.join("a")) else { continue };
                self.swap(&at, &pairs);
            }
            // The staging's own directories, for a symlink of the attacker's.
            for place in places() {
                let Some(above) = place.parent().and_then(|above| open(above).ok()) else { continue };
                let _ = rustix::fs::symlinkat(self.victim, &above, "evil");
                for name in ["tree", "meta", "stash", "rootfs"] {
                    self.swap(&above, &[(name.to_owned(), "evil".to_owned())]);
                }
            }
        }
        self.resting.store(true, Ordering::Release);
    }

    /// Swaps all pairs, lets the symlinks stand for a moment, and puts everything back.
    fn swap(&self, at: &OwnedFd, pairs: &[(String, String)]) {
        if self.stop.load(Ordering::Relaxed) {
            return;
        }
        let exchange = |(a, b): &&(String, String)| {
            let done = renameat_with(at, a.as_str(), at, b.as_str(), RenameFlags::EXCHANGE).is_ok();
            self.swaps.fetch_add(u64::from(done), Ordering::Relaxed);
            done
        };
        let swapped: Vec<&(String, String)> = pairs.iter().filter(exchange).collect();
        if !swapped.is_empty() {
            spin(self.hold);
            swapped.iter().filter(|pair| exchange(pair)).count();
            spin(self.rest);
        }
    }

    fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
        while !self.resting.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }
}

fn spin(time: Duration) {
    let start = std::time::Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// Trees of layers under construction: below flat stagings in `work`, and below those of the store.
fn trees(work: &Path, store: &Path) -> Vec<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).map(|names| names.flatten().map(|e| e.path()).collect()).unwrap_or_default()
    };
    let mut out: Vec<PathBuf> = list(&store.join("staging")).iter().map(|staging| staging.join("tree")).collect();
    for staging in list(work) {
        if staging.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".unply-")) {
            out.extend(["0/tree", "1/tree", "0/fix", "1/fix", "rootfs"].map(|part| staging.join(part)));
        }
    }
    out
}

/// Leaves out the times that the attacker's own renames change.
fn without_attacked_times(mut tree: Tree) -> Tree {
    if let Some(node) = tree.0.get_mut(&b"a"[..]) {
        node.mtime = (0, 0);
    }
    tree
}

#[derive(Default, Debug)]
struct Tally {
    swaps: u64,
    rounds: u64,
    whole: u64,
    refused: std::collections::BTreeMap<&'static str, u64>,
}

type Run<'a> = &'a dyn Fn(&Lab, &Reference, &Path, &Options, &(dyn Fn(Event) + Sync)) -> Result<Tree, Error>;

fn race(lab: &Lab, phase: Phase, run: Run<'_>) -> Tally {
    let outside = lab.path().join("outside");
    let victim = outside.join("VICTIM");
    plant(&victim);
    let look = || lab.describe(&outside).without_root_meta();
    let before = look();
    let layers = image(victim.to_str().unwrap());
    let model = Model::of_image(Default::default(), &layers).unwrap().tree();
    let model = without_attacked_times(lab.comparable(model));
    let layout = lab.path().join("image");
    let tars: Vec<Vec<u8>> = layers.iter().map(testkit::layer).collect();
    let spec = ImageSpec::new(tars).tag("t").compression(Compression::None);
    OciLayout::new(&layout).unwrap().add(&spec).unwrap();
    let reference: Reference = format!("oci:{}:t", layout.display()).parse().unwrap();

    let mut tally = Tally::default();
    while tally.swaps < SWAPS || tally.whole == 0 || tally.rounds < ROUNDS {
        tally.rounds += 1;
        assert!(tally.rounds < 2_000, "{SWAPS} swaps and one undisturbed tree were not seen: {tally:?}");
        let work = tempfile::tempdir_in(lab.path()).unwrap();
        let store = work.path().join("store");
        let attack = Attack {
            victim: &victim,
            running: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            swaps: AtomicU64::new(0),
            // From half of the time to now and then.
            hold: Duration::from_micros([0, 20, 100][usize::try_from(tally.rounds % 3).unwrap()]),
            rest: Duration::from_micros([0, 100, 1_000, 10_000][usize::try_from(tally.rounds % 4).unwrap()]),
        };
        let options = Options { durable: false, jobs: 2, resolver: lab.resolver, ..Options::default() };
        let result = std::thread::scope(|scope| {
            scope.spawn(|| attack.run(&|| trees(work.path(), &store)));
            let events = |event: Event| match event {
                Event::LayerStarted { .. } => attack.running.store(true, Ordering::Relaxed),
                Event::LayerDone { .. } if phase == Phase::Extraction => attack.end(),
                _ => {}
            };
            let result = run(lab, &reference, work.path(), &options, &events);
            attack.end();
            result
        });
        tally.swaps += attack.swaps.into_inner();
        match result {
            Ok(tree) if phase == Phase::Extraction => {
                let wrong = compare(&model, &without_attacked_times(lab.comparable(tree)));
                assert!(
                    wrong.is_empty(),
                    "neither the model's tree nor an error: {:#?}",
                    &wrong[..wrong.len().min(20)]
                );
                tally.whole += 1;
            }
            Ok(_) => tally.whole += 1,
            Err(e) => {
                assert_ne!(e.kind(), ErrorKind::Integrity, "the blob is whole: {e}");
                *tally.refused.entry(e.kind().code()).or_default() += 1;
            }
        }
        let escaped = compare(&before, &look());
        assert!(escaped.is_empty(), "ESCAPED in round {}: {escaped:?}", tally.rounds);
        // What a round leaves, its own removal must not follow out either.
        unply::root::remove_path(&work.keep(), &|| false).unwrap();
        let escaped = compare(&before, &look());
        assert!(escaped.is_empty(), "ESCAPED while cleaning up: {escaped:?}");
    }
    std::fs::remove_dir_all(&layout).unwrap();
    tally
}

fn flat(
    lab: &Lab,
    reference: &Reference,
    work: &Path,
    options: &Options,
    events: &(dyn Fn(Event) + Sync),
) -> Result<Tree, Error> {
    let target = work.join("rootfs");
    unpack::unpack(reference, &target, None, options, events)?;
    Ok(lab.describe(&target))
}

fn pull(
    lab: &Lab,
    reference: &Reference,
    work: &Path,
    options: &Options,
    events: &(dyn Fn(Event) + Sync),
) -> Result<Tree, Error> {
    let store = unpack::open_store(&work.join("store"), false)?;
    let pulled = unpack::pull(reference, &store, options, events)?;
    let merged = work.join("merged");
    std::fs::create_dir(&merged).unwrap();
    let view = pulled.chain.view().attach(&merged)?;
    let tree = lab.describe(&merged);
    view.detach()?;
    Ok(tree)
}

/// Ends the process where a run hangs: no test harness would.
struct Watchdog<'a>(&'a Mutex<bool>);

impl Drop for Watchdog<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = true;
    }
}

fn with_watchdog(work: impl FnOnce()) {
    let done = Mutex::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..6_000 {
                std::thread::sleep(Duration::from_millis(50));
                if *done.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
                    return;
                }
            }
            eprintln!("HANG: a run did not end within 300 s");
            std::process::abort();
        });
        let _done = Watchdog(&done);
        work();
    });
}

fn every_race(test: &str, phase: Phase, way: Run<'_>) {
    if !root_or_skip(test) {
        return;
    }
    with_watchdog(|| {
        let mut lab = Lab::new();
        for resolver in [Resolver::Openat2, Resolver::Steps] {
            lab.resolver = Some(resolver);
            let tally = race(&lab, phase, way);
            println!("{test}, {resolver:?}: {tally:?}");
        }
    });
}

#[test]
fn flat_while_layers_are_extracted() {
    every_race("flat_while_layers_are_extracted", Phase::Extraction, &flat);
}

#[test]
fn flat_to_the_end() {
    every_race("flat_to_the_end", Phase::Everything, &flat);
}

#[test]
fn pull_while_layers_are_extracted() {
    every_race("pull_while_layers_are_extracted", Phase::Extraction, &pull);
}

#[test]
fn pull_to_the_end() {
    every_race("pull_to_the_end", Phase::Everything, &pull);
}

#[test]
fn the_same_inside_a_user_namespace() {
    in_user_namespace(&["flat_while_layers_are_extracted", "pull_while_layers_are_extracted"]);
}

/// An archive during which something happens, right before the block at `when` is read.
struct Interrupted<'a> {
    bytes: &'a [u8],
    at: usize,
    when: usize,
    happens: Option<&'a dyn Fn()>,
}

impl std::io::Read for Interrupted<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.fill_buf()?.len().min(out.len());
        out[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

impl std::io::BufRead for Interrupted<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.at == self.when
            && let Some(happens) = self.happens.take()
        {
            happens();
        }
        let end = if self.at < self.when { self.when } else { self.bytes.len() };
        Ok(&self.bytes[self.at..end])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

/// The same swap at a chosen moment: what stands at a name is no longer what was put there, and has to go.
#[test]
fn a_directory_that_nobody_made_there_is_not_removed() {
    use unply::apply::{ApplyOptions, PlanOptions, Target, Writers, apply_layer};
    use unply::policy::{Limits, Ownership, TreeOptions, WhiteoutForm, XattrFlavour};
    use unply::root::Dir;
    use unply::trace::LayerTrace;

    let before = testkit::layer(&[dir("d/"), file("d/precious", "x"), symlink("l", "d2")]);
    let when = before.len() - 1024;
    for (what, last) in [
        ("through it", file("l/through", "x")),
        ("over it", file("l", "x")),
        ("a link over it", hardlink("l", "d/precious")),
    ] {
        let archive = [&before[..when], &testkit::layer(&[last])[..]].concat();
        for resolver in [Resolver::Openat2, Resolver::Steps] {
            let work = tempfile::tempdir().unwrap();
            let place = Dir::open(work.path()).unwrap().with_resolver(resolver);
            let (tree, stash) = (place.new_dir(b"tree", 0o755).unwrap(), place.new_dir(b"stash", 0o700).unwrap());
            let target = Target { tree, stash, journal: place.new_file(b"journal").unwrap().into() };
            let options = ApplyOptions {
                sums: false,
                writers: Writers::default(),
                trace: LayerTrace::default(),
                plan: PlanOptions {
                    tree: TreeOptions::default(),
                    flavour: XattrFlavour::User,
                    limits: Limits::default(),
                },
                whiteouts: WhiteoutForm::CharDevice,
                ownership: Ownership::Squash,
                skip_devices: true,
                tolerate_xattrs: true,
            };
            let at = open(&work.path().join("tree")).unwrap();
            let swap = || renameat_with(&at, "d", &at, "l", RenameFlags::EXCHANGE).unwrap();
            let mut archive = Interrupted { bytes: &archive, at: 0, when, happens: Some(&swap) };
            let error = apply_layer(&mut archive, target, &options, &mut |_| {}, &|| Ok(())).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Busy, "{what}, {resolver:?}: {error}");
            let left = ["tree/l", "tree/d", "stash/1"].map(|place| work.path().join(place).join("precious"));
            assert!(left.iter().any(|path| path.exists()), "{what}, {resolver:?}: removed");
        }
    }
}

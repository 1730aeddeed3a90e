//! The ways around what a kernel, a filter or a file system refuses: one body, run in a child process for each refusal.
//!
//! A child installs a real seccomp filter on its test thread, from which every thread of the engine inherits it; shows
//! that each call is refused indeed and that the library noticed; then brings the same images in every way and compares
//! the trees with the model.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Lab, corpus, every_way_of, root_or_skip, tree_options};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use testkit::cases::{self, Expect};
use testkit::image::{ImageSpec, OciLayout};
use testkit::model::Model;
use testkit::{EntryKind, EntrySpec, compare};
use unply::error::ErrorKind;
use unply::image::Reference;
use unply::mount::Backend;
use unply::policy::WhiteoutForm;
use unply::root::Resolver;
use unply::sys;
use unply::unpack::{self, Options};

/// Calls that libc has no names for; one number on every architecture.
const FCHMODAT2: i64 = 452;
const XATTRATS: [i64; 4] = [463, 464, 465, 466];
/// `FSCONFIG_SET_FD`.
const SET_FD: u64 = 5;
/// `_IOW(0x94, 9, int)`.
const FICLONE: u64 = 0x4004_9409;

/// One call, or one use of a call, that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    Openat2,
    Fsopen,
    Fsconfig,
    FsconfigFd,
    Fchmodat2,
    Xattrat,
    MknodDevice,
    Renameat2,
    CopyFileRange,
    Ficlone,
    Statx,
}

use Refused::*;

/// What a child is told to refuse, by name.
const SCENES: &[(&str, i32, &[Refused])] = &[
    ("openat2-enosys", libc::ENOSYS, &[Openat2]),
    ("openat2-eperm", libc::EPERM, &[Openat2]),
    ("fsopen-enosys", libc::ENOSYS, &[Fsopen]),
    ("fsopen-eperm", libc::EPERM, &[Fsopen]),
    ("fsconfig-enosys", libc::ENOSYS, &[Fsconfig]),
    ("layers-as-descriptors-einval", libc::EINVAL, &[FsconfigFd]),
    ("fchmodat2-enosys", libc::ENOSYS, &[Fchmodat2]),
    ("fchmodat2-eperm", libc::EPERM, &[Fchmodat2]),
    ("xattrat-enosys", libc::ENOSYS, &[Xattrat]),
    ("xattrat-eperm", libc::EPERM, &[Xattrat]),
    ("mknod-eperm", libc::EPERM, &[MknodDevice]),
    ("renameat2-enosys", libc::ENOSYS, &[Renameat2]),
    ("renameat2-einval", libc::EINVAL, &[Renameat2]),
    ("copies-refused", libc::EOPNOTSUPP, &[CopyFileRange, Ficlone]),
    ("copies-enosys", libc::ENOSYS, &[CopyFileRange, Ficlone]),
    ("statx-enosys", libc::ENOSYS, &[Statx]),
    ("all-enosys", libc::ENOSYS, ALL),
    ("all-eperm", libc::EPERM, ALL_BUT_STATX),
    ("all-but-mknod-enosys", libc::ENOSYS, ALL_BUT_MKNOD),
];
const ALL: &[Refused] = &[Openat2, Fsopen, Fchmodat2, Xattrat, MknodDevice, Renameat2, CopyFileRange, Ficlone, Statx];
/// std asks only at its first call whether EPERM means that there is no `statx`, and that was before the filter.
const ALL_BUT_STATX: &[Refused] =
    &[Openat2, Fsopen, Fchmodat2, Xattrat, MknodDevice, Renameat2, CopyFileRange, Ficlone];
const ALL_BUT_MKNOD: &[Refused] = &[Openat2, Fsopen, Fchmodat2, Xattrat, Renameat2, CopyFileRange, Ficlone, Statx];

impl Refused {
    fn rules(self) -> Vec<(i64, Option<SeccompCondition>)> {
        let masked = |arg, mask, value| {
            SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value).unwrap()
        };
        let all = |numbers: &[i64]| numbers.iter().map(|n| (*n, None)).collect();
        match self {
            Openat2 => all(&[libc::SYS_openat2]),
            Fsopen => all(&[libc::SYS_fsopen]),
            Fsconfig => all(&[libc::SYS_fsconfig]),
            FsconfigFd => vec![(libc::SYS_fsconfig, Some(masked(1, u32::MAX.into(), SET_FD)))],
            Fchmodat2 => all(&[FCHMODAT2]),
            Xattrat => all(&XATTRATS),
            MknodDevice => [libc::S_IFCHR, libc::S_IFBLK]
                .map(|kind| (libc::SYS_mknodat, Some(masked(2, libc::S_IFMT.into(), kind.into()))))
                .to_vec(),
            Renameat2 => all(&[libc::SYS_renameat2]),
            CopyFileRange => all(&[libc::SYS_copy_file_range]),
            Ficlone => vec![(libc::SYS_ioctl, Some(masked(1, u32::MAX.into(), FICLONE)))],
            Statx => all(&[libc::SYS_statx]),
        }
    }

    /// Shows that the call is refused with `errno`.
    fn assert_refused(self, errno: i32, lab: &Path) {
        let want = Errno::from_raw_os_error(errno);
        let found = match self {
            Openat2 => rustix::fs::openat2(CWD, "/", OFlags::PATH, Mode::empty(), ResolveFlags::empty()).err(),
            Fsopen => rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::empty()).err(),
            Fsconfig => {
                let context = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
                rustix::mount::fsconfig_set_string(&context, "source", "x").err()
            }
            FsconfigFd => {
                let context = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
                rustix::mount::fsconfig_set_fd(&context, "lowerdir+", std::fs::File::open("/").unwrap()).err()
            }
            // No library that is safe has these: the product says what it sees.
            Fchmodat2 => (!sys::kernel_calls().fchmodat2).then_some(want),
            Xattrat => (!sys::kernel_calls().xattrat).then_some(want),
            MknodDevice => {
                let name = lab.join("device");
                rustix::fs::mknodat(CWD, &name, FileType::CharacterDevice, Mode::empty(), 0).err()
            }
            Renameat2 => {
                let flags = rustix::fs::RenameFlags::NOREPLACE;
                rustix::fs::renameat_with(CWD, "/none", CWD, "/none-either", flags).err()
            }
            CopyFileRange | Ficlone => {
                let (from, to) = (tempfile::tempfile_in(lab).unwrap(), tempfile::tempfile_in(lab).unwrap());
                from.set_len(1).unwrap();
                match self {
                    CopyFileRange => rustix::fs::copy_file_range(&from, None, &to, None, 1).err(),
                    _ => rustix::fs::ioctl_ficlone(&to, &from).err(),
                }
            }
            Statx => {
                let (at, mask) = (rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::BASIC_STATS);
                // The library turns a filter's EPERM into ENOSYS.
                rustix::fs::statx(CWD, "/", at, mask).err().map(|_| want)
            }
        };
        assert_eq!(found, Some(want), "{self:?} is not refused");
    }

    /// Shows that the library went the other way.
    fn assert_gone_around(self, lab: &Path, used: Backend, store: &unply::store::Store) {
        match self {
            Openat2 => {
                assert_eq!(unply::root::Dir::open(lab).unwrap().resolver(), Resolver::Steps);
                assert!(!sys::kernel_calls().openat2);
            }
            Fsopen | Fsconfig => assert_eq!(used, Backend::Classic),
            FsconfigFd => assert_eq!(used, Backend::MountApiPath),
            MknodDevice => assert_eq!(store.flavour().whiteouts, WhiteoutForm::Xattr),
            CopyFileRange => {
                let (from, to) = (tempfile::tempfile_in(lab).unwrap(), tempfile::tempfile_in(lab).unwrap());
                std::os::unix::fs::FileExt::write_all_at(&from, b"x", 0).unwrap();
                assert_eq!(sys::reflink_or_copy(&from, &to).unwrap(), sys::CopyMethod::ReadWrite);
            }
            // The images below could not be right otherwise: each has modes, xattrs and publications.
            Fchmodat2 | Xattrat | Renameat2 | Ficlone => {}
            Statx => assert!(!sys::kernel_calls().statx),
        }
    }
}

fn install(errno: i32, refused: &[Refused]) {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (number, condition) in refused.iter().flat_map(|r| r.rules()) {
        let rules = rules.entry(number).or_default();
        rules.extend(condition.map(|c| SeccompRule::new(vec![c]).unwrap()));
    }
    let arch: TargetArch = std::env::consts::ARCH.try_into().unwrap();
    let answer = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// The same images for every scene: one case in six, a few random ones.
fn images(devices: bool) -> Vec<(String, Vec<Vec<EntrySpec>>, testkit::model::Options)> {
    let fits = |layers: &[Vec<EntrySpec>]| {
        let device = |e: &EntrySpec| matches!(e.kind, EntryKind::Char(..) | EntryKind::Block(..));
        devices || !layers.iter().flatten().any(device)
    };
    let cases = cases::all().into_iter().filter(|c| matches!(c.expect, Expect::Tree(_)) && fits(&c.layers));
    let mut out: Vec<_> = cases.step_by(6).map(|c| (c.name.to_string(), c.layers, c.options)).collect();
    let random = (1..40).map(|seed| (format!("seed {seed}"), testkit::random::random_image(seed), Default::default()));
    out.extend(random.filter(|(_, layers, _)| fits(layers)).take(6));
    assert!(out.len() > 15, "only {} images", out.len());
    out
}

/// The body: every image in every way, against the model.
fn same_trees_everywhere(lab: &Lab, home: &Path, devices: bool) {
    let mut wrong = Vec::new();
    let store = home.join("store");
    for (name, layers, options) in images(devices) {
        if !lab.can_hold(&layers) {
            continue;
        }
        let work = tempfile::tempdir_in(home).unwrap();
        let layout = work.path().join("image");
        OciLayout::new(&layout).unwrap().add(&ImageSpec::new(layers.iter().map(testkit::layer)).tag("t")).unwrap();
        let reference: Reference = format!("oci:{}:t", layout.display()).parse().unwrap();
        let expected = lab.comparable(Model::of_image(lab.options(options), &layers).unwrap().tree());
        let options = Options { tree: tree_options(options), durable: false, jobs: 2, ..Options::default() };
        match every_way_of(work.path(), &store, &reference, &options, &|p| lab.describe(p)) {
            Err(e) => wrong.push(format!("{name}: {e}")),
            Ok(trees) => {
                for (way, tree) in trees {
                    let differences = compare(&expected, &lab.comparable(tree));
                    wrong.extend(differences.iter().take(6).map(|d| format!("{name} {way}: {d}")));
                }
            }
        }
    }
    // A real one, of which no model is known: its ways agree.
    let reference = Reference::Path(corpus().join("images/ggcr-mutate/whiteout_image.tar"));
    let work = tempfile::tempdir_in(home).unwrap();
    let options = Options { durable: false, ..Options::default() };
    match every_way_of(work.path(), &store, &reference, &options, &|p| lab.describe(p)) {
        Err(e) => wrong.push(format!("the real image: {e}")),
        Ok(trees) => {
            for (way, tree) in &trees[1..] {
                wrong.extend(compare(&trees[0].1, tree).iter().take(6).map(|d| format!("the real image {way}: {d}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

/// Runs in a child: does nothing unless told which calls to refuse.
#[test]
fn child() {
    let Ok(scene) = std::env::var("UNPLY_REFUSE") else { return };
    let (_, errno, refused) = *SCENES.iter().find(|(name, ..)| *name == scene).unwrap();
    let lab = Lab::new();
    install(errno, refused);
    for call in refused {
        call.assert_refused(errno, lab.path());
    }
    let devices = !refused.contains(&MknodDevice);
    same_trees_everywhere(&lab, lab.path(), devices);
    let store = unpack::open_store(&lab.path().join("store"), false).unwrap();
    let used = Backend::detect().unwrap();
    for call in refused {
        call.assert_gone_around(lab.path(), used, &store);
    }
    assert_eq!(store.check().unwrap(), []);
    println!("scene {scene} was played");
}

fn play(scene: &str, mut command: Command) {
    let me = std::env::current_exe().unwrap();
    let output = command
        .arg(me)
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env("UNPLY_REFUSE", scene)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains(&format!("scene {scene} was played")), "{scene}:\n{text}");
}

#[test]
fn each_refused_call_has_a_way_around_that_gives_the_same_trees() {
    if !root_or_skip("each_refused_call_has_a_way_around_that_gives_the_same_trees") {
        return;
    }
    for (scene, ..) in SCENES {
        play(scene, Command::new("env"));
    }
}

#[test]
fn all_of_them_inside_a_user_namespace() {
    for scene in ["all-enosys", "all-eperm", "all-but-mknod-enosys", "layers-as-descriptors-einval"] {
        let mut command = Command::new("unshare");
        command.arg("-Urm").env("UNPLY_IN_USERNS", "1");
        play(scene, command);
    }
}

/// O7: a store on overlayfs has xattr whiteouts; flat and read-only views are right; an upper cannot be there, and the error says so.
#[test]
fn o07_a_store_on_overlayfs() {
    if !root_or_skip("o07_a_store_on_overlayfs") {
        return;
    }
    let lab = Lab::new();
    let home = overlay_on(&lab);
    let store = unpack::open_store(&home.join("store"), false).unwrap();
    assert!(sys::is_overlayfs(std::fs::File::open(&home).unwrap()).unwrap());
    assert_eq!(store.flavour().whiteouts, WhiteoutForm::Xattr);
    let mut wrong = Vec::new();
    for (name, layers, options) in images(true) {
        if !lab.can_hold(&layers) {
            continue;
        }
        let work = tempfile::tempdir_in(&home).unwrap();
        OciLayout::new(work.path().join("i"))
            .unwrap()
            .add(&ImageSpec::new(layers.iter().map(testkit::layer)).tag("t"))
            .unwrap();
        let reference: Reference = format!("oci:{}:t", work.path().join("i").display()).parse().unwrap();
        let expected = Model::of_image(options, &layers).unwrap().tree();
        let options = Options { tree: tree_options(options), durable: false, jobs: 2, ..Options::default() };
        let flat = work.path().join("flat");
        unpack::unpack(&reference, &flat, None, &options, &|_| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
        let pulled = unpack::pull(&reference, &store, &options, &|_| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
        let merged = lab.path().join("merged");
        std::fs::create_dir_all(&merged).unwrap();
        let view = pulled.chain.view().attach(&merged).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (way, path) in [("flat", &flat), ("read-only", &merged)] {
            let differences = compare(&expected, &lab.describe(path));
            wrong.extend(differences.iter().take(6).map(|d| format!("{name} {way}: {d}")));
        }
        view.detach().unwrap();
    }
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
    let (_, layers, _) = images(false).swap_remove(0);
    let layout = home.join("i");
    OciLayout::new(&layout).unwrap().add(&ImageSpec::new(layers.iter().map(testkit::layer)).tag("t")).unwrap();
    let reference: Reference = format!("oci:{}:t", layout.display()).parse().unwrap();
    let pulled = unpack::pull(&reference, &store, &Options::default(), &|_| {}).unwrap();
    let snapshot = pulled.chain.snapshot("writable").unwrap();
    let e = snapshot.mount(&lab.path().join("merged")).unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.to_string().contains("overlayfs"), "{:?} {e}", e.kind());
}

fn overlay_on(lab: &Lab) -> PathBuf {
    let at = |name: &str| {
        let path = lab.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper, work, home) = (at("lower"), at("upper"), at("work"), at("home"));
    let data = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let data = std::ffi::CString::new(data).unwrap();
    rustix::mount::mount("test", &home, "overlay", rustix::mount::MountFlags::empty(), data.as_c_str()).unwrap();
    home
}

/// A file system that stores no xattrs can hold neither a store nor, because layers are staged there, a target.
#[test]
fn m19_a_file_system_without_xattrs_is_refused_with_advice() {
    if !root_or_skip("m19_a_file_system_without_xattrs_is_refused_with_advice") {
        return;
    }
    let lab = Lab::new();
    let place = lab.path().join("ram");
    std::fs::create_dir(&place).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if let Err(e) = rustix::mount::mount("test", &place, "ramfs", flags, None) {
        println!("SKIP: m19_a_file_system_without_xattrs_is_refused_with_advice: no ramfs: {e}");
        assert!(std::env::var_os("CI").is_none_or(|v| v != "true"));
        return;
    }
    let e = unpack::open_store(&place.join("store"), false).unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.hint().is_some(), "{e}");
}

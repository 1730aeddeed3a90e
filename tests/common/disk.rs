//! A disk that remembers what a loss of power would leave, and that can be told to fail.
//!
//! The kernel writes to a loop device; its backing file is served by this process over FUSE, so every write and every
//! flush passes through here. A *cut* is what a disk with a volatile cache may hold at some moment: everything up to
//! the last flush that was answered, and any part of what was written after it, in 4 KiB pieces.

#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};

pub const PAGE: usize = 4096;
const FIRST_INODE: u64 = 2;
const FOREVER: Duration = Duration::from_secs(3600);

/// 4 KiB of a disk; `None` is zeros.
type Page = Option<Arc<[u8]>>;

/// Whether the write of this number made it.
type Keep = Box<dyn Fn(u64, &mut Random) -> bool>;

/// What a disk holds, or would hold after a cut.
#[derive(Clone)]
pub struct Image(Vec<Page>);

impl Image {
    /// Returns `bytes` of zeros.
    pub fn empty(bytes: usize) -> Image {
        Image(vec![None; bytes / PAGE])
    }

    fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let end = (offset + length).min(self.0.len() * PAGE);
        let mut out = Vec::with_capacity(length);
        while offset + out.len() < end {
            let at = offset + out.len();
            let (page, skip) = (&self.0[at / PAGE], at % PAGE);
            let take = (PAGE - skip).min(end - at);
            match page {
                Some(page) => out.extend_from_slice(&page[skip..skip + take]),
                None => out.resize(out.len() + take, 0),
            }
        }
        out
    }

    /// Writes, and returns the pages that changed.
    fn write(&mut self, offset: usize, data: &[u8]) -> Vec<(usize, Page)> {
        let mut out = Vec::new();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done;
            let (number, skip) = (at / PAGE, at % PAGE);
            let take = (PAGE - skip).min(data.len() - done);
            let mut page = self.0[number].as_ref().map_or_else(|| vec![0; PAGE], |page| page.to_vec());
            page[skip..skip + take].copy_from_slice(&data[done..done + take]);
            let page: Page = page.iter().any(|b| *b != 0).then(|| page.into());
            self.0[number] = page.clone();
            out.push((number, page));
            done += take;
        }
        out
    }
}

/// What a disk holds for sure, and what it may hold too.
#[derive(Clone)]
pub struct Cut {
    settled: Image,
    since: Vec<(usize, Page)>,
    /// How many requests the disk had served.
    pub at: u64,
}

impl Cut {
    /// Returns how many pieces were written since the last flush.
    pub fn unsettled(&self) -> usize {
        self.since.len()
    }

    /// Returns what is left if nothing of that made it.
    pub fn bare(&self) -> Image {
        self.settled.clone()
    }

    /// Returns one of the disks that a loss of power may leave.
    pub fn image(&self, random: &mut Random) -> Image {
        let mut image = self.settled.clone();
        let length = self.since.len() as u64;
        let keep: Keep = match random.below(4) {
            0 => Box::new(|_, _| false),
            1 => Box::new(|_, _| true),
            // The cache was written out in order up to some point.
            2 => {
                let end = random.below(length + 1);
                Box::new(move |at, _| at < end)
            }
            // In no order at all.
            _ => {
                let per_mille = random.below(1000);
                Box::new(move |_, random| random.below(1000) < per_mille)
            }
        };
        for (at, (number, page)) in self.since.iter().enumerate() {
            if keep(at as u64, random) {
                image.0[*number] = page.clone();
            }
        }
        image
    }
}

/// What a disk refuses to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// Every write fails with EIO.
    Writes,
    /// Every read fails with EIO.
    Reads,
}

struct State {
    now: Image,
    settled: Image,
    since: Vec<(usize, Page)>,
    requests: u64,
    flushes: u64,
    wanted: Vec<u64>,
    cuts: Vec<Cut>,
    fault: Fault,
}

impl State {
    fn cut(&self) -> Cut {
        Cut { settled: self.settled.clone(), since: self.since.clone(), at: self.requests }
    }

    /// Counts a write or flush, before it is done.
    fn count(&mut self) {
        if self.wanted.contains(&self.requests) {
            self.cuts.push(self.cut());
        }
        self.requests += 1;
    }
}

#[derive(Clone, Default)]
struct Disks(Arc<Mutex<BTreeMap<u64, State>>>);

impl Disks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let number = u64::from(ino);
        let size = match number {
            1 => 0,
            _ => (self.lock().get(&number)?.now.0.len() * PAGE) as u64,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if number == 1 { FileType::Directory } else { FileType::RegularFile },
            perm: if number == 1 { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        })
    }
}

impl Filesystem for Disks {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse().ok());
        match number.and_then(|number| self.attr(INodeNo(number))) {
            Some(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // No second cache in front of this one.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    #[rustfmt::skip]
    fn read(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, size: u32, _: OpenFlags, _: Option<LockOwner>, reply: ReplyData) {
        match self.lock().get(&u64::from(ino)) {
            None => reply.error(Errno::ENOENT),
            Some(disk) if disk.fault == Fault::Reads => reply.error(Errno::EIO),
            Some(disk) => reply.data(&disk.now.read(offset as usize, size as usize)),
        }
    }

    #[rustfmt::skip]
    fn write(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, data: &[u8], _: WriteFlags, _: OpenFlags, _: Option<LockOwner>, reply: ReplyWrite) {
        match self.lock().get_mut(&u64::from(ino)) {
            None => reply.error(Errno::ENOENT),
            Some(disk) if disk.fault == Fault::Writes => reply.error(Errno::EIO),
            Some(disk) => {
                disk.count();
                let changed = disk.now.write(offset as usize, data);
                disk.since.extend(changed);
                reply.written(data.len() as u32);
            }
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.lock().get_mut(&u64::from(ino)) {
            None => reply.error(Errno::ENOENT),
            Some(disk) if disk.fault == Fault::Writes => reply.error(Errno::EIO),
            Some(disk) => {
                disk.count();
                disk.flushes += 1;
                for (number, page) in std::mem::take(&mut disk.since) {
                    disk.settled.0[number] = page;
                }
                reply.ok();
            }
        }
    }
}

/// Serves disks. The caller has mounts of its own ([`super::common::private_mounts`]).
pub struct Rig {
    dir: tempfile::TempDir,
    disks: Disks,
    _session: BackgroundSession,
}

impl Rig {
    pub fn new(dir: &Path) -> Rig {
        let dir = tempfile::Builder::new().prefix("disks-").tempdir_in(dir).unwrap();
        let disks = Disks::default();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("unply-disks".into())];
        let session = fuser::spawn_mount(disks.clone(), dir.path(), &config).expect("mount FUSE");
        Rig { dir, disks, _session: session }
    }

    /// Plugs in a disk that holds `image`.
    pub fn disk(&self, image: Image) -> Disk {
        // Never a number twice, in no rig of this process: `mount -o loop` takes a loop device that still has a file of
        // the same number for the same disk, and the kernel lets go of one only a while after its unmount.
        static NEXT: AtomicU64 = AtomicU64::new(FIRST_INODE);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.disks.lock().insert(
            number,
            State {
                now: image.clone(),
                settled: image,
                since: Vec::new(),
                requests: 0,
                flushes: 0,
                wanted: Vec::new(),
                cuts: Vec::new(),
                fault: Fault::None,
            },
        );
        Disk { path: self.dir.path().join(number.to_string()), disks: self.disks.clone(), number }
    }

    /// Returns a disk with an empty file system.
    pub fn formatted(&self, mebibytes: usize, program: &str, options: &[&str]) -> Image {
        let disk = self.disk(Image::empty(mebibytes << 20));
        let made = Command::new(program).args(options).arg(&disk.path).output().unwrap();
        assert!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr));
        disk.now()
    }

    /// Returns a disk with an empty ext4 that writes nothing by itself.
    pub fn ext4(&self, mebibytes: usize) -> Image {
        let lazily = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
        self.formatted(mebibytes, "mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", lazily])
    }
}

/// One disk; unplugged when dropped.
pub struct Disk {
    path: PathBuf,
    disks: Disks,
    number: u64,
}

impl Disk {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(self.disks.lock().get_mut(&self.number).expect("the disk is plugged in"))
    }

    /// Mounts the file system on it at `place`, an existing directory.
    pub fn mount(&self, place: &Path, options: &str) -> Mounted {
        self.try_mount(place, options).unwrap_or_else(|e| panic!("{e}"))
    }

    /// As [`Disk::mount`]; says what `mount` said where it cannot be.
    pub fn try_mount(&self, place: &Path, options: &str) -> Result<Mounted, String> {
        let options = format!("loop,noatime{}{options}", if options.is_empty() { "" } else { "," });
        let output = Command::new("mount").args(["-o", &options]).arg(&self.path).arg(place).output().unwrap();
        match output.status.success() {
            true => Ok(Mounted(place.to_path_buf())),
            false => Err(format!("mount -o {options}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Returns what it holds, as far as the kernel told it.
    pub fn now(&self) -> Image {
        self.with(|disk| disk.now.clone())
    }

    /// Returns what a loss of power now would leave.
    pub fn cut(&self) -> Cut {
        self.with(|disk| disk.cut())
    }

    /// Returns how many writes and flushes it has served.
    pub fn requests(&self) -> u64 {
        self.with(|disk| disk.requests)
    }

    /// Returns how many flushes it has served.
    pub fn flushes(&self) -> u64 {
        self.with(|disk| disk.flushes)
    }

    /// Has a cut taken just before each of these requests.
    pub fn cut_before(&self, requests: impl IntoIterator<Item = u64>) {
        self.with(|disk| disk.wanted = requests.into_iter().collect());
    }

    /// Takes the cuts that were made.
    pub fn cuts(&self) -> Vec<Cut> {
        self.with(|disk| std::mem::take(&mut disk.cuts))
    }

    pub fn set_fault(&self, fault: Fault) {
        self.with(|disk| disk.fault = fault);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.disks.lock().remove(&self.number);
    }
}

/// A mount that ends with its owner.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Takes care of what is mounted at `place`.
    pub fn at(place: &Path) -> Mounted {
        Mounted(place.to_path_buf())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        use rustix::mount::{UnmountFlags, unmount};
        if unmount(&self.0, UnmountFlags::empty()).is_err() {
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }
}

/// Numbers that look random and are the same in every run of one seed (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Returns a number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut out: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        out.truncate(length);
        out
    }
}

/// Returns how many rounds to run: what the environment says, else `default`.
pub fn rounds(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().unwrap_or_else(|e| panic!("{variable}={n}: {e}")))
}

/// Whether disks of our own can be plugged in: by root of the machine, with FUSE and loop devices. Panics under `CI=true`.
pub fn disks_or_skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root() && !unply::sys::in_user_namespace();
    if root && Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists() {
        return true;
    }
    println!("SKIP: {test}: needs root, /dev/fuse and loop devices");
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{test} must not be skipped in CI");
    false
}

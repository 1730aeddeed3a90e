//! Other tools beside ours, in turns, on fresh file systems, and whether they made the same tree.
//!
//! Owns: which command a tool is run by, what it leaves out, the order of runs, pairs. Refuses to know: how a run is
//! shown. Ours is run as a program too, measured like the others.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::containerd::Containerd;
use super::ground::{Ground, Room, missing, program};
use super::layout::{Exported, TAG};
use super::process::{Used, pipeline};
use super::tree::{Comparison, Form, Listing, list};
use super::{BenchOptions, Spread};
use crate::error::{Error, ErrorKind, Result};
use crate::root::Dir;
use crate::stream::Codec;
use crate::sys::sync_fs;
use crate::unpack::{Options, open_store, pull};

/// A tool to compare with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tool {
    /// `igzip -dc | tar -x`, a directory for each layer, layers side by side; `zstd -dc` for zstd layers.
    IgzipTar,
    /// `bsdtar -x`, one layer after another.
    Bsdtar,
    /// `umoci raw unpack`.
    Umoci,
    /// `skopeo copy` to a directory: no tree, a control.
    Skopeo,
    /// A private containerd, unpacking into its overlayfs snapshotter.
    Containerd,
    /// The driver of `benches/compare`, found in the search path or here.
    OciImage(Option<PathBuf>),
}

const DRIVER: &str = "unply-compare-oci-image";

impl Tool {
    /// The names that [`Tool::from_str`](std::str::FromStr) takes.
    pub const NAMES: [&str; 6] = ["igzip-tar", "bsdtar", "umoci", "skopeo", "containerd", "oci-image"];

    /// Returns its name in arguments and output.
    pub fn name(&self) -> &'static str {
        let at = match self {
            Tool::IgzipTar => 0,
            Tool::Bsdtar => 1,
            Tool::Umoci => 2,
            Tool::Skopeo => 3,
            Tool::Containerd => 4,
            Tool::OciImage(_) => 5,
        };
        Tool::NAMES.get(at).copied().unwrap_or_default()
    }

    /// Returns what it leaves out of what ours does.
    pub fn leaves_out(&self) -> &'static str {
        match self {
            Tool::IgzipTar => "verifies no digest; whiteouts stay files called .wh.*; drops xattrs",
            Tool::Bsdtar => "verifies no digest; whiteouts stay files called .wh.*",
            Tool::Umoci => "nothing: verifies both digests",
            Tool::Skopeo => "makes no tree and does not decompress: copies blobs and verifies their digests",
            Tool::Containerd => "blobs are verified at import, which is not timed; verifies diff_ids",
            Tool::OciImage(_) => {
                "does not verify layer digests; drops xattrs; makes devices and pipes empty files; verifies diff_ids"
            }
        }
    }

    /// What ours is run with against it.
    fn ours(&self) -> Ours {
        match self {
            Tool::Umoci => Ours::Unpack,
            _ => Ours::Pull,
        }
    }

    /// How its result is compared: the form of its directories, one per layer or one for all.
    fn form(&self) -> Option<Form> {
        match self {
            Tool::IgzipTar | Tool::Bsdtar => Some(Form::Tar),
            Tool::OciImage(_) => Some(Form::Overlay),
            Tool::Umoci | Tool::Containerd => Some(Form::Flat),
            Tool::Skopeo => None,
        }
    }

    /// Checks that it is installed.
    ///
    /// # Errors
    /// `NotFound`, naming the package.
    pub fn find(&self) -> Result<()> {
        let needed: &[(&str, &str)] = match self {
            Tool::IgzipTar => &[("igzip", "isal"), ("tar", "tar")],
            Tool::Bsdtar => &[("bsdtar", "libarchive-tools")],
            Tool::Umoci => &[("umoci", "umoci")],
            Tool::Skopeo => &[("skopeo", "skopeo")],
            Tool::Containerd => &[("containerd", "containerd"), ("ctr", "containerd")],
            Tool::OciImage(path) => {
                let found = path.clone().map_or_else(|| program(DRIVER), |path| path.is_file().then_some(path));
                return found.map(drop).ok_or_else(|| {
                    let text = format!("the driver of the crate oci-image is not there: {DRIVER}");
                    Error::new(ErrorKind::NotFound, text).with_hint(
                        "build it in benches/compare, then --vs oci-image=PATH or put it into the search path",
                    )
                });
            }
        };
        needed.iter().try_for_each(|(name, package)| program(name).map(drop).ok_or_else(|| missing(name, package)))
    }
}

impl std::str::FromStr for Tool {
    type Err = String;

    fn from_str(text: &str) -> Result<Tool, String> {
        Ok(match text.split_once('=').map_or((text, None), |(name, path)| (name, Some(path))) {
            ("igzip-tar", None) => Tool::IgzipTar,
            ("bsdtar", None) => Tool::Bsdtar,
            ("umoci", None) => Tool::Umoci,
            ("skopeo", None) => Tool::Skopeo,
            ("containerd", None) => Tool::Containerd,
            ("oci-image", path) => Tool::OciImage(path.map(PathBuf::from)),
            _ => return Err(format!("one of {}, or oci-image=PATH", Tool::NAMES.join(", "))),
        })
    }
}

/// How ours is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ours {
    /// `pull`: a directory for each layer.
    Pull,
    /// `unpack`: one directory.
    Unpack,
}

impl Ours {
    /// Returns the command's name.
    pub fn name(self) -> &'static str {
        match self {
            Ours::Pull => "pull",
            Ours::Unpack => "unpack",
        }
    }
}

/// What to compare with, and how ours is started.
#[derive(Debug, Clone)]
pub struct Versus {
    /// Our program.
    pub program: PathBuf,
    /// Options that every run of it gets.
    pub options: Vec<OsString>,
    /// The others.
    pub tools: Vec<Tool>,
}

/// One tool beside ours.
#[derive(Debug, Clone)]
pub struct Rival {
    /// Which.
    pub tool: Tool,
    /// How ours was run.
    pub ours: Ours,
    /// The command that was timed, with short names for places.
    pub command: String,
    /// Ours and theirs, run one after the other.
    pub pairs: Vec<(Used, Used)>,
    /// Their tree and ours; `None` where it makes none, or could not unpack the image.
    pub comparison: Option<Comparison>,
    /// What it said where it could not unpack the image.
    pub failed: Option<String>,
}

impl Rival {
    /// Returns how many times our wall time theirs is, pair by pair.
    pub fn ratios(&self) -> Spread {
        Spread::of(self.pairs.iter().map(|(ours, theirs)| theirs.wall_seconds / ours.wall_seconds.max(1e-9)))
    }
}

/// Runs every tool against ours, in turns.
pub(super) fn measure(
    exported: &Exported,
    room: Room,
    versus: &Versus,
    options: &BenchOptions,
    note: &dyn Fn(&str),
) -> Result<Vec<Rival>> {
    let course = Course { exported, room, versus, options };
    let mut known = Known::default();
    let mut rivals = Vec::new();
    for tool in &versus.tools {
        note(&format!("beside {}", tool.name()));
        rivals.push(course.against(tool, &mut known)?);
    }
    Ok(rivals)
}

/// What our trees look like, once somebody asked.
#[derive(Default)]
struct Known {
    layers: Option<Vec<Listing>>,
    flat: Option<Listing>,
}

struct Course<'a> {
    exported: &'a Exported,
    room: Room,
    versus: &'a Versus,
    options: &'a BenchOptions,
}

impl Course<'_> {
    fn against(&self, tool: &Tool, known: &mut Known) -> Result<Rival> {
        let ours = tool.ours();
        let mut rival = Rival {
            tool: tool.clone(),
            ours,
            command: self.command_text(tool),
            pairs: Vec::new(),
            comparison: None,
            failed: None,
        };
        for run in 0..self.options.runs.max(1) {
            let mut mine = None;
            // The order changes from pair to pair, so that neither has the better half of a busy machine.
            if run % 2 == 0 {
                mine = Some(self.ours(ours)?);
            }
            match self.theirs(tool, run == 0, known, &mut rival.comparison) {
                Ok(theirs) => {
                    let mine = match mine {
                        Some(mine) => mine,
                        None => self.ours(ours)?,
                    };
                    rival.pairs.push((mine, theirs));
                }
                Err(e) if e.kind() == ErrorKind::Other => {
                    (rival.failed, rival.comparison) = (Some(e.message()), None);
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(rival)
    }

    fn ground(&self) -> Result<Ground> {
        self.options.unpack.cancel.check()?;
        Ground::new(self.options.place, self.room)
    }

    fn reference(&self) -> String {
        format!("oci:{}:{TAG}", self.exported.dir().display())
    }

    /// Runs ours once.
    fn ours(&self, ours: Ours) -> Result<Used> {
        let ground = self.ground()?;
        let mut command = Command::new(&self.versus.program);
        command.args(&self.versus.options).args(["--progress", "none"]);
        if !self.options.unpack.durable {
            command.arg("--no-durable");
        }
        command.arg("--root").arg(ground.path().join("store"));
        command.arg(ours.name()).arg(self.reference());
        if ours == Ours::Unpack {
            command.arg(ground.path().join("rootfs"));
        }
        let used = self.timed(vec![command])?;
        ground.remove()?;
        Ok(used)
    }

    fn timed(&self, commands: Vec<Command>) -> Result<Used> {
        let began = Instant::now();
        let used = pipeline(commands, &self.options.unpack.cancel)?;
        Ok(Used { wall_seconds: began.elapsed().as_secs_f64(), ..used })
    }

    /// Runs a tool once, and compares what it made where asked to.
    fn theirs(
        &self,
        tool: &Tool,
        compare: bool,
        known: &mut Known,
        comparison: &mut Option<Comparison>,
    ) -> Result<Used> {
        let ground = self.ground()?;
        let at = |name: &str| ground.path().join(name);
        let image = self.exported.dir();
        // Opened before the first write, so that no error of writing back is missed.
        let disk = Dir::open(ground.path())?;
        let synced = |used: Used| -> Result<Used> {
            if !self.options.unpack.durable {
                return Ok(used);
            }
            let began = Instant::now();
            sync_fs(&disk)?;
            Ok(Used { wall_seconds: used.wall_seconds + began.elapsed().as_secs_f64(), ..used })
        };
        let (used, trees) = match tool {
            Tool::IgzipTar | Tool::Bsdtar => {
                let dirs = self.layer_dirs(&at("layers"))?;
                (synced(self.by_layer(tool, &dirs)?)?, dirs)
            }
            Tool::Umoci => {
                let mut command = Command::new("umoci");
                let source = format!("{}:{TAG}", image.display());
                command.args(["raw", "unpack", "--image", &source]).arg(at("rootfs"));
                (synced(self.timed(vec![command])?)?, vec![at("rootfs")])
            }
            Tool::Skopeo => {
                let mut command = Command::new("skopeo");
                command.args(["--insecure-policy", "copy", "--quiet", &self.reference()]);
                let mut target = OsString::from("dir:");
                target.push(at("copy"));
                command.arg(target);
                (synced(self.timed(vec![command])?)?, Vec::new())
            }
            Tool::Containerd => {
                let containerd = Containerd::start(ground.path(), &self.options.unpack.cancel)?;
                containerd.import(&self.exported.archive()?)?;
                let before = containerd.used()?;
                let ctr = synced(self.timed(vec![containerd.unpack(&self.exported.manifest)])?)?;
                let after = containerd.used()?;
                let used = Used { cpu_seconds: ctr.cpu_seconds - before.cpu_seconds, ..ctr }.and(after);
                if compare {
                    let mounted = containerd.mount(&at("mounted"))?;
                    self.compare(tool, &[at("mounted")], known, comparison)?;
                    drop(mounted);
                }
                (used, Vec::new())
            }
            Tool::OciImage(path) => {
                let driver = path.clone().or_else(|| program(DRIVER)).unwrap_or_else(|| DRIVER.into());
                let mut command = Command::new(driver);
                command.arg(at("store")).arg(self.options.unpack.jobs.to_string());
                let order = self.exported.biggest_first();
                for layer in order.iter().filter_map(|index| self.exported.layers.get(*index)) {
                    command.arg(&layer.path).arg(layer.digest.to_string()).arg(layer.diff_id.to_string());
                }
                let dir = |hex: String| at("store").join("layers").join(hex);
                let dirs = self.exported.layers.iter().map(|layer| dir(layer.diff_id.hex())).collect();
                (synced(self.timed(vec![command])?)?, dirs)
            }
        };
        if compare && !trees.is_empty() {
            self.compare(tool, &trees, known, comparison)?;
        }
        drop(disk);
        ground.remove()?;
        Ok(used)
    }

    fn layer_dirs(&self, parent: &Path) -> Result<Vec<PathBuf>> {
        let dirs: Vec<PathBuf> = (0..self.exported.layers.len()).map(|n| parent.join(n.to_string())).collect();
        for dir in &dirs {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(format!("create {}", dir.display()), e))?;
        }
        Ok(dirs)
    }

    /// Extracts every layer into its directory; `bsdtar` one after another, `igzip | tar` side by side, biggest first.
    fn by_layer(&self, tool: &Tool, dirs: &[PathBuf]) -> Result<Used> {
        let (order, workers) = match tool {
            Tool::IgzipTar => (self.exported.biggest_first(), self.options.unpack.jobs.clamp(1, dirs.len().max(1))),
            _ => ((0..dirs.len()).collect(), 1),
        };
        let next = AtomicUsize::new(0);
        let total = Mutex::new(Ok(Used::default()));
        let total_now = || total.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (Some(layer), Some(dir)) = (self.exported.layers.get(*index), dirs.get(*index)) else { break };
                let commands = extraction(tool, layer.codec, &layer.path, dir);
                let used = pipeline(commands, &self.options.unpack.cancel);
                let mut total = total_now();
                match (&mut *total, used) {
                    (Ok(sum), Ok(used)) => *sum = sum.and(used),
                    (Ok(_), Err(e)) => *total = Err(e),
                    (Err(_), _) => {}
                }
                if total.is_err() {
                    break;
                }
            }
        };
        let began = Instant::now();
        // Threads of this thread, so that they see its mounts.
        std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
        let wall_seconds = began.elapsed().as_secs_f64();
        let total = total.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        Ok(Used { wall_seconds, ..total })
    }

    fn compare(
        &self,
        tool: &Tool,
        trees: &[PathBuf],
        known: &mut Known,
        comparison: &mut Option<Comparison>,
    ) -> Result<()> {
        let Some(form) = tool.form() else { return Ok(()) };
        let cancel = &self.options.unpack.cancel;
        self.learn(form == Form::Flat, known)?;
        let mut found = Comparison::default();
        match (form, &known.flat, &known.layers) {
            (Form::Flat, Some(ours), _) => {
                for tree in trees {
                    found.add(None, ours, &list(tree, form, cancel)?);
                }
            }
            (_, _, Some(layers)) => {
                for (index, (ours, tree)) in layers.iter().zip(trees).enumerate() {
                    found.add(Some(index), ours, &list(tree, form, cancel)?);
                }
            }
            _ => {}
        }
        *comparison = Some(found);
        Ok(())
    }

    /// Makes our trees once more and describes them.
    fn learn(&self, flat: bool, known: &mut Known) -> Result<()> {
        let is_known = if flat { known.flat.is_some() } else { known.layers.is_some() };
        if is_known {
            return Ok(());
        }
        let ground = self.ground()?;
        let reference = self.reference().parse()?;
        let cancel = &self.options.unpack.cancel;
        let unpack = Options { durable: false, ..self.options.unpack.clone() };
        if flat {
            let dir = ground.path().join("rootfs");
            crate::unpack::unpack(&reference, &dir, None, &unpack, &|_| {})?;
            known.flat = Some(list(&dir, Form::Flat, cancel)?);
        } else {
            let store = open_store(&ground.path().join("store"), false)?;
            let pulled = pull(&reference, &store, &unpack, &|_| {})?;
            let listings = pulled.chain.layers().iter().map(|layer| list(layer.tree_path(), Form::Overlay, cancel));
            known.layers = Some(listings.collect::<Result<_>>()?);
        }
        ground.remove()
    }

    /// The command as a reader would write it.
    fn command_text(&self, tool: &Tool) -> String {
        match tool {
            Tool::IgzipTar => format!(
                "igzip -dc BLOB | tar -x --numeric-owner -p -C DIR (zstd -dc where it is zstd), {} layers at once, biggest first",
                self.options.unpack.jobs.clamp(1, self.exported.layers.len().max(1))
            ),
            Tool::Bsdtar => "bsdtar -xp --numeric-owner -f BLOB -C DIR, layer after layer".into(),
            Tool::Umoci => format!("umoci raw unpack --image LAYOUT:{TAG} DIR"),
            Tool::Skopeo => format!("skopeo --insecure-policy copy --quiet oci:LAYOUT:{TAG} dir:DIR"),
            Tool::Containerd => {
                "ctr snapshots unpack --snapshotter overlayfs DIGEST, after ctr images import --no-unpack; \
                processor time is ctr's and containerd's"
                    .into()
            }
            Tool::OciImage(_) => format!("{DRIVER} STORE {} BLOB…", self.options.unpack.jobs),
        }
    }
}

fn extraction(tool: &Tool, codec: Codec, blob: &Path, dir: &Path) -> Vec<Command> {
    if *tool == Tool::Bsdtar {
        let mut bsdtar = Command::new("bsdtar");
        bsdtar.args(["-xp", "--numeric-owner", "-f"]).arg(blob).arg("-C").arg(dir);
        return vec![bsdtar];
    }
    let mut tar = Command::new("tar");
    tar.args(["-x", "--numeric-owner", "-p", "-C"]).arg(dir);
    let mut decoder = match codec {
        Codec::Plain => {
            tar.arg("-f").arg(blob);
            return vec![tar];
        }
        Codec::Gzip => Command::new("igzip"),
        Codec::Zstd => Command::new("zstd"),
    };
    decoder.arg("-dc").arg(blob);
    tar.args(["-f", "-"]);
    vec![decoder, tar]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_read_by_name() {
        for name in Tool::NAMES {
            assert_eq!(name.parse::<Tool>().unwrap().name(), name);
        }
        assert_eq!("oci-image=/x/y".parse(), Ok(Tool::OciImage(Some("/x/y".into()))));
        for bad in ["", "tar", "bsdtar=/x", "Umoci"] {
            assert!(bad.parse::<Tool>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_driver_that_is_not_there_is_said() {
        let e = Tool::OciImage(Some("/nonexistent/driver".into())).find().unwrap_err();
        assert!(e.kind() == ErrorKind::NotFound && e.hint().is_some_and(|hint| hint.contains("benches/compare")));
    }
}

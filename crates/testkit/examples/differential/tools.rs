//! Runs the tools: everything of theirs stands below one directory, daemons listen on sockets in it and die with us.
//!
//! The caller has given this process mounts of its own, so that whatever a tool mounts goes when we go.

use crate::imitate::Tool;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testkit::image::{DockerOptions, ImageSpec, OciLayout, docker_archive, oci_archive};
use testkit::{DescribeOptions, EntrySpec, Tree, describe};

/// An image to be shown.
pub struct Image {
    /// How messages call it.
    pub name: String,
    /// Layers, bottom first.
    pub layers: Vec<Vec<EntrySpec>>,
    /// The tool is expected to take it: such images may go to it by the dozen.
    pub taken: bool,
}

impl Image {
    fn spec(&self, tag: &str) -> ImageSpec {
        ImageSpec::new(self.layers.iter().map(testkit::layer)).tag(tag)
    }
}

/// What a tool shows of an image, or the words it refuses it with.
pub type Shown = Result<Tree, String>;

/// A process that ends with this value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // An orderly end, so that it unmounts what it has mounted; the process may be gone already.
        let _gone = Command::new("kill").arg(self.0.id().to_string()).status();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if self.0.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// The tools that run here, below a directory of ours.
pub struct Lab {
    base: PathBuf,
    unply: PathBuf,
    containerd: Option<Daemon>,
    docker: Option<Daemon>,
    /// Counts mount points.
    count: Cell<usize>,
}

impl Lab {
    pub fn new(base: &Path, unply: &Path) -> Lab {
        Lab {
            base: base.to_path_buf(),
            unply: unply.to_path_buf(),
            containerd: None,
            docker: None,
            count: Cell::new(0),
        }
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.base.join(name);
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("mkdir {}: {e}", dir.display()));
        dir
    }

    /// Makes a tool ready; the error says why it is left out.
    pub fn start(&mut self, tool: Tool) -> Result<(), String> {
        version(tool)?;
        match tool {
            Tool::Umoci | Tool::Podman => Ok(()),
            Tool::Containerd => self.start_containerd(),
            Tool::Docker => {
                if self.containerd.is_none() {
                    self.start_containerd()?;
                }
                self.start_docker()
            }
        }
    }

    fn start_containerd(&mut self) -> Result<(), String> {
        let dir = self.dir("containerd");
        let config = dir.join("config.toml");
        let text = format!(
            "version = 2\nroot = '{0}/root'\nstate = '{0}/state'\ndisabled_plugins = \
             ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt', 'io.containerd.snapshotter.v1.btrfs', \
             'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.devmapper', \
             'io.containerd.snapshotter.v1.aufs']\n[grpc]\naddress = '{0}/sock'\n",
            dir.display()
        );
        std::fs::write(&config, text).map_err(|e| e.to_string())?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config).args(["--log-level", "error"]);
        self.containerd = Some(spawn(command, &dir.join("log"))?);
        wait_for("containerd", &dir.join("log"), || {
            self.ctr().arg("version").output().is_ok_and(|o| o.status.success())
        })
    }

    fn start_docker(&mut self) -> Result<(), String> {
        let dir = self.dir("docker");
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(dir.join("root")).arg("--exec-root").arg(dir.join("exec"));
        command.arg("--pidfile").arg(dir.join("pid")).arg("--config-file").arg(dir.join("none.json"));
        command.arg("--host").arg(format!("unix://{}", dir.join("sock").display()));
        command.arg("--containerd").arg(self.base.join("containerd/sock"));
        command.args(["--storage-driver=overlay2", "--iptables=false", "--ip6tables=false", "--bridge=none"]);
        std::fs::write(dir.join("none.json"), "{}").map_err(|e| e.to_string())?;
        self.docker = Some(spawn(command, &dir.join("log"))?);
        wait_for("dockerd", &dir.join("log"), || {
            self.docker().arg("version").output().is_ok_and(|o| o.status.success())
        })
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.base.join("containerd/sock"));
        command
    }

    fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("HOME", &self.base).arg("--host");
        command.arg(format!("unix://{}", self.base.join("docker/sock").display()));
        command
    }

    fn podman(&self) -> Command {
        let mut command = Command::new("podman");
        let dir = self.base.join("podman");
        command.env("HOME", &self.base).env("TMPDIR", &dir);
        command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(dir.join("run")).arg("--tmpdir");
        command.arg(dir.join("tmp")).args(["--storage-driver=overlay", "--cgroup-manager=cgroupfs"]);
        command.arg("--log-level=error");
        command
    }

    /// Shows images through one tool, handing each result on as it comes.
    pub fn show(&self, tool: Tool, images: &[Image], each: &mut dyn FnMut(&Image, Shown)) {
        match tool {
            Tool::Containerd => images.chunks(100).for_each(|batch| self.through_containerd(batch, each)),
            Tool::Podman => images.chunks(24).for_each(|batch| self.through_podman(batch, each)),
            Tool::Docker => images.iter().for_each(|image| each(image, self.through_docker(image))),
            Tool::Umoci => images.iter().for_each(|image| each(image, self.through_umoci(image))),
        }
    }

    fn through_containerd(&self, batch: &[Image], each: &mut dyn FnMut(&Image, Shown)) {
        let specs: Vec<ImageSpec> = batch.iter().enumerate().map(|(n, image)| image.spec(&format!("t{n}"))).collect();
        let archive = self.base.join("batch.tar");
        std::fs::write(&archive, oci_archive(&specs)).expect("writing an archive");
        let import = ["images", "import", "--no-unpack", "--base-name", "differential.test/batch"];
        let imported = run(self.ctr().args(import).arg(&archive));
        std::fs::remove_file(&archive).expect("removing the archive");
        imported.unwrap_or_else(|e| panic!("ctr images import: {e}"));
        for (n, image) in batch.iter().enumerate() {
            let name = format!("differential.test/batch:t{n}");
            let mount = ["images", "mount", "--snapshotter", "overlayfs", &name];
            // The view is named after its target, which therefore must be new. All of it stays until we go: each
            // further call of ctr costs more than the unpacking.
            let target = self.dir(&format!("containerd/targets/{}", self.count.get()));
            self.count.set(self.count.get() + 1);
            let shown = run(self.ctr().args(mount).arg(&target)).and_then(|_| look(&target));
            each(image, shown);
        }
    }

    fn layout(&self, image: &Image) -> PathBuf {
        let dir = self.base.join("layout");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).expect("removing a layout");
        }
        OciLayout::new(&dir).and_then(|mut layout| layout.add(&image.spec("t"))).expect("writing a layout");
        dir
    }

    fn through_podman(&self, batch: &[Image], each: &mut dyn FnMut(&Image, Shown)) {
        self.dir("podman");
        let dir = self.base.join("layouts");
        let mut layout = OciLayout::new(&dir).expect("writing a layout");
        let source = |n: usize| format!("oci:{}:t{n}", dir.display());
        let add = |(n, image): (usize, &Image)| layout.add(&image.spec(&format!("t{n}"))).expect("writing a layout");
        let ids: Vec<String> = batch.iter().enumerate().map(add).map(|built| built.config).collect();
        // One process for all that should pass; whatever is missing then is pulled alone, to be told why.
        let expected: Vec<usize> = (0..batch.len()).filter(|n| batch[*n].taken).collect();
        let _some_may_fail = run(self.podman().args(["pull", "-q"]).args(expected.iter().map(|n| source(*n))));
        let mounted = run(self.podman().args(["image", "mount"]).args(expected.iter().map(|n| &ids[*n])));
        let mounted = mounted.unwrap_or_default();
        for (n, image) in batch.iter().enumerate() {
            let line = mounted.lines().find(|line| line.starts_with(&ids[n]));
            let path = match line.and_then(|line| line.split_whitespace().nth(1)) {
                Some(path) => Ok(path.to_string()),
                None => run(self.podman().args(["pull", "-q", &source(n)]))
                    .and_then(|_| run(self.podman().args(["image", "mount", &ids[n]]))),
            };
            each(image, path.and_then(|path| look(Path::new(path.trim()))));
        }
        std::fs::remove_dir_all(&dir).expect("removing the layout");
    }

    fn through_docker(&self, image: &Image) -> Shown {
        let archive = self.base.join("docker.tar");
        let bytes = docker_archive(&[image.spec("differential:t")], DockerOptions::default());
        std::fs::write(&archive, bytes).expect("writing an archive");
        run(self.docker().args(["load", "-q", "-i"]).arg(&archive))?;
        let format = "{{.GraphDriver.Data.UpperDir}}|{{.GraphDriver.Data.LowerDir}}";
        let dirs = run(self.docker().args(["image", "inspect", "-f", format, "differential:t"]))?;
        // Docker mounts a container's image below an upper directory and one of its own; both show nothing.
        let (empty, target) = (self.dir("docker/empty"), self.dir("docker/target"));
        let dirs: Vec<&str> = dirs.trim().split(['|', ':']).filter(|d| !d.is_empty() && *d != "<no value>").collect();
        let below = format!("{}:{}", empty.display(), self.dir("docker/init").display());
        let lower: Vec<&str> = dirs.into_iter().chain([&below[..]]).collect();
        let options = format!("ro,lowerdir={}", lower.join(":"));
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&target))?;
        let tree = look(&target);
        run(Command::new("umount").arg(&target)).unwrap_or_else(|e| panic!("umount: {e}"));
        run(self.docker().args(["rmi", "-f", "differential:t"])).unwrap_or_else(|e| panic!("docker rmi: {e}"));
        tree
    }

    fn through_umoci(&self, image: &Image) -> Shown {
        let layout = self.layout(image);
        // Deep enough that a whiteout of `..` finds only what is ours.
        let outer = self.dir("umoci/a/b/c");
        let target = outer.join("rootfs");
        let shown = run(Command::new("umoci")
            .args(["raw", "unpack", "--image"])
            .arg(format!("{}:t", layout.display()))
            .arg(&target))
        .and_then(|_| look(&target));
        std::fs::remove_dir_all(self.base.join("umoci")).expect("removing what umoci made");
        shown
    }

    /// Shows an image through unply's own command line; a refusal carries the exit code.
    pub fn unply(&self, image: &Image, flags: &[&str]) -> Result<Tree, i32> {
        let layout = self.layout(image);
        let target = self.base.join("unply");
        let mut command = Command::new(&self.unply);
        command.args(["--no-durable", "--progress", "none"]).args(flags).arg("unpack");
        command.arg(format!("oci:{}:t", layout.display())).arg(&target);
        let output = command.output().unwrap_or_else(|e| panic!("{}: {e}", self.unply.display()));
        if !output.status.success() {
            assert!(!target.exists(), "unply left its target behind");
            return Err(output.status.code().unwrap_or(-1));
        }
        let tree = look(&target).unwrap_or_else(|e| panic!("{e}"));
        std::fs::remove_dir_all(&target).expect("removing what unply made");
        Ok(tree)
    }
}

/// What a tool says of its version.
pub fn version(tool: Tool) -> Result<String, String> {
    let program = if tool == Tool::Docker { "dockerd" } else { tool.name() };
    let text = run(Command::new(program).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_string())
}

fn look(path: &Path) -> Shown {
    let options = DescribeOptions { ignore_xattr: Box::new(crate::imitate::is_mark), ..DescribeOptions::default() };
    describe(path, &options).map_err(|e| format!("describe: {e}"))
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_string())
}

fn spawn(mut command: Command, log: &Path) -> Result<Daemon, String> {
    let log = std::fs::File::create(log).map_err(|e| e.to_string())?;
    let err = log.try_clone().map_err(|e| e.to_string())?;
    command.stdin(Stdio::null()).stdout(log).stderr(err);
    command.spawn().map(Daemon).map_err(|e| e.to_string())
}

fn wait_for(name: &str, log: &Path, ready: impl Fn() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(40) {
        if ready() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let last: Vec<&str> = log.lines().rev().take(5).collect();
    Err(format!("{name} does not answer: {}", last.join(" / ")))
}

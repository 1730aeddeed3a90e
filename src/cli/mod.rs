//! The command line: arguments → work → output and an exit code.
//!
//! Owns: everything about the process that the library leaves alone — signals, limits, environment, standard streams —
//! and the forms that scripts rely on (`docs/json.md`). Refuses to know: how anything is done; it calls what any other
//! user of the library can call.

mod args;
mod bench;
mod images;
mod lint;
mod log;
mod mounts;
mod output;
mod report;
mod signals;
mod snapshots;
mod stored;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::args::{Cli, Command, Global};
use self::report::Reporter;
use self::signals::Signals;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Reference;
use crate::store::Store;
use crate::sys;
use crate::trace::Trace;
use crate::unpack::{Options, open_store};

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = match Cli::parse_from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(e) => return refuse(&e),
    };
    log::start(cli.global.verbose);
    let json = cli.global.json;
    let signals = match Signals::watch() {
        Ok(signals) => signals,
        Err(e) => {
            output::failure(&e, json);
            return ExitCode::from(e.kind().exit_code());
        }
    };
    let context = Context { global: cli.global, signals, soft_files: raise_open_files() };
    match run(&context, cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            let e = advise(e);
            output::failure(&e, json);
            match (e.kind(), context.signals.exit_code()) {
                (ErrorKind::Cancelled, Some(code)) => ExitCode::from(code),
                (kind, _) => ExitCode::from(kind.exit_code()),
            }
        }
    }
}

fn run(context: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Unpack { image, dir } => images::unpack(context, &image, &dir),
        Command::Pull { image } => images::pull(context, &image),
        Command::Inspect { image } => images::inspect(context, &image),
        Command::Mount(args) => return mounts::mount(context, &args),
        Command::Umount(args) => mounts::umount(context, &args),
        Command::Lint(args) => return lint::lint(context, &args),
        Command::Images => stored::images(context),
        Command::Layers => stored::layers(context),
        Command::Snapshots(args) => snapshots::list(context, &args),
        Command::Snapshot(command) => snapshots::run(context, command),
        Command::Rm { images } => stored::rm(context, &images),
        Command::Gc { dry_run } => stored::gc(context, dry_run),
        Command::Verify { image, all: _, deep } => return verify::verify(context, image.as_deref(), deep),
        Command::Repair { image, from } => verify::repair(context, &image, from.as_deref()),
        Command::Bench(args) => bench::bench(context, &args),
    }
    .map(|()| 0)
}

/// Says what is wrong with the arguments, or prints the help that was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    let arguments = || std::env::args_os().skip(1).take_while(|a| a != "--");
    if error.use_stderr() && arguments().any(|a| a == "--json") {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(first);
        output::failure(&Error::new(ErrorKind::Usage, message), true);
    } else {
        // A reader that went away is no failure.
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { ErrorKind::Usage.exit_code() } else { 0 })
}

/// Adds what to do where only the process, and not the library, knows.
fn advise(error: Error) -> Error {
    let root = nix::unistd::geteuid().is_root();
    match error.kind() {
        ErrorKind::NotPermitted if !root => {
            error.with_hint("run it as root, or in a user namespace: unshare -Urm unply …")
        }
        _ => error,
    }
}

/// Lifts the soft limit of open files to the hard one; returns what it was.
fn raise_open_files() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    // Without it large images of many layers at once may run out; whoever opens the one too many says so.
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
    Some(soft)
}

/// What every command has at hand.
struct Context {
    global: Global,
    signals: Signals,
    /// The soft limit of open files that the process was started with.
    soft_files: Option<u64>,
}

impl Context {
    fn options(&self) -> Options {
        let default = Options::default();
        Options {
            platform: self.global.platform.clone(),
            limits: self.global.limits.limits(),
            tree: self.global.tree(),
            resolver: None,
            jobs: self.global.jobs.unwrap_or(default.jobs),
            writers: None,
            durable: !self.global.no_durable,
            cancel: self.signals.token().clone(),
            trace: Trace::default(),
        }
    }

    fn reporter(&self) -> Reporter {
        Reporter::new(self.global.progress, self.global.verbose)
    }

    /// Returns where the store is.
    fn root(&self) -> Result<PathBuf> {
        if let Some(root) = &self.global.root {
            return Ok(root.clone());
        }
        // Root of a user namespace cannot write where the host's root does.
        if nix::unistd::geteuid().is_root() && !sys::in_user_namespace() {
            return Ok("/var/lib/unply".into());
        }
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        data.map(|data| data.join("unply")).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "there is no place for a store: neither XDG_DATA_HOME nor HOME is set")
                .with_hint("name one with --root or UNPLY_ROOT")
        })
    }

    /// Opens the store, making it where there is none.
    fn store(&self) -> Result<Store> {
        open_store(&self.root()?, !self.global.no_durable)
    }

    /// Opens the store that is there.
    fn existing_store(&self) -> Result<Store> {
        Store::open_existing(&self.root()?, !self.global.no_durable)
    }

    /// Opens the store if `reference` names an image in it.
    fn store_of(&self, reference: &Reference) -> Result<Option<Store>> {
        let Reference::Stored(name) = reference else { return Ok(None) };
        self.existing_store().map(Some).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                let message = format!("there is neither a file of this name nor a store ({})", e.message());
                Error::new(ErrorKind::NotFound, message)
                    .with_image(output::printable(name))
                    .with_hint("write a path, a transport such as oci:DIR, or pull the image first")
            }
            _ => e,
        })
    }
}

//! The grammar of the command line, as data.
//!
//! Owns: commands, options, defaults, the spelling of values. Refuses to know: what a command does.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::bench::Tool;
use crate::image::Platform;
use crate::lint::{Code, Severity};
use crate::policy::{Limit, Limits, LowerSymlinks, RootEntry, Selinux, TreeOptions, Unit};

const IMAGE: &str = "\
IMAGE is one of
  oci:DIR[:TAG]  oci:DIR@DIGEST     OCI image layout
  oci-archive:FILE[:TAG]            tar of such a layout, perhaps compressed
  docker-archive:FILE[:REPO:TAG]    what `docker save` or `podman save` writes
  layer:FILE  layer:-               one layer as an image of its own
  -  -:REPO:TAG                     an archive on standard input, read once
  id:HEX  NAME                      an image in the store
  PATH                              any of these files, told by looking

EXIT CODES
  0 done   1 other failure   2 usage   3 not found   4 integrity   5 malformed or over a limit
  6 not permitted or not supported   7 out of space   8 busy   130/143 cancelled by a signal";

const LINT: &str = "\
Every layer is read and verified, nothing is written. A finding has a stable code, the numbers of its rules, and a severity:
  error          unply refuses it: the exit code is that of unpacking
  ambiguous      tools disagree on what it means, or some get it wrong or fail
  nonconforming  a conforming builder would not write it
  info           worth knowing; tools agree
The first 100 findings of a code are listed, all are counted. With --strict what it refuses is an error.

--deny takes severities (each with all worse ones), codes and rule numbers:
  --deny                          anything but info
  --deny=ambiguous                what tools disagree on, and errors
  --deny=W4,through-lower-symlink these

IMAGE is as for the other commands, but not one of the store, which keeps no archives.

EXIT CODES
  0 read, with findings or without   3 not found   4 integrity   5 refused, or denied by --deny";

/// Turns container images into verified root file systems.
#[derive(Debug, Parser)]
#[command(name = "unply", version, about, after_help = IMAGE, max_term_width = 110)]
#[command(propagate_version = true, infer_long_args = false)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub global: Global,
}

/// What there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Flatten an image into a directory; prints the chain id.
    #[command(after_help = IMAGE)]
    Unpack {
        /// What to unpack.
        #[arg(value_parser = image)]
        image: String,
        /// Where to: absent or empty; it appears complete or not at all.
        dir: PathBuf,
    },
    /// Bring an image's layers into the store; prints the image id.
    #[command(after_help = IMAGE)]
    Pull {
        /// What to pull.
        #[arg(value_parser = image)]
        image: String,
    },
    /// Mount an image; prints the mount path.
    #[command(after_help = IMAGE)]
    Mount(MountArgs),
    /// Unmount what `mount` mounted.
    Umount(UmountArgs),
    /// Show every id an image has, without unpacking it.
    #[command(after_help = IMAGE)]
    Inspect {
        /// What to look at.
        #[arg(value_parser = image)]
        image: String,
    },
    /// Report what in an image is ambiguous, non-conforming or read differently by other tools; unpacks nothing.
    #[command(after_help = LINT)]
    Lint(LintArgs),
    /// List the images of the store.
    Images,
    /// List the layers of the store and what uses them.
    Layers,
    /// List the snapshots of the store.
    #[command(after_help = FILTERS)]
    Snapshots(ListArgs),
    /// Make, commit, label, remove and look at snapshots, as containerd's snapshotters do.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Drop images, by name or id; their layers stay until `gc`.
    Rm {
        /// Names, or ids of at least 12 digits.
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Delete what no image, snapshot or running command needs.
    Gc {
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
    },
    /// Compare published layers with what was recorded when they were unpacked; exit 4 if any is damaged.
    Verify {
        /// An image of the store, by name or id [default: every layer of the store]
        #[arg(conflicts_with = "all")]
        image: Option<String>,
        /// Every layer of the store.
        #[arg(long)]
        all: bool,
        /// Read every file's content, too: finds a byte that changed behind size and mtime.
        #[arg(long)]
        deep: bool,
    },
    /// Unpack again what is damaged of an image, from where it was pulled; running mounts are not disturbed.
    Repair {
        /// An image of the store, by name or id
        image: String,
        /// Another source that has the damaged layers
        #[arg(long, value_name = "IMAGE")]
        from: Option<String>,
    },
    /// Measure unpacking; without IMAGE on images made for it.
    #[command(after_help = IMAGE)]
    Bench(BenchArgs),
}

/// `unply mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Refuse writes.
    #[arg(long)]
    pub read_only: bool,
    /// Keep what is written under this key, or mount what was kept under it.
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    pub snapshot: Option<String>,
    /// What to mount; pulled first where needed. Not needed for a kept snapshot.
    #[arg(value_parser = image, required_unless_present = "snapshot")]
    pub image: Option<String>,
    /// An existing directory [default: one of the store].
    pub dir: Option<PathBuf>,
    /// Run this with the mount as its root, then unmount. Without --snapshot what it wrote is dropped.
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `unply snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Make a writable snapshot; prints its key.
    Prepare(NewSnapshotArgs),
    /// Make a read-only snapshot; prints its key.
    View(NewSnapshotArgs),
    /// Turn a writable snapshot that is not mounted into a committed one; prints its name.
    Commit {
        /// What it is called from now on.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// What it was made as.
        key: String,
        /// The committed snapshot that it stands on, where it was made on nothing
        #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        parent: Option<String>,
        /// Labels of the committed snapshot; those it had before go
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
    },
    /// Remove snapshots with what was written into them, in this order.
    Rm {
        /// Keys or names.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Show one snapshot.
    Stat {
        /// Its key or name.
        key: String,
    },
    /// Set and remove labels; prints all that it has then.
    Label {
        /// Its key or name.
        key: String,
        /// KEY=VALUE sets, KEY- removes.
        #[arg(required = true, value_name = "CHANGE", value_parser = label_change)]
        changes: Vec<LabelChange>,
    },
    /// Show what a snapshot itself takes on disk, without what it stands on.
    Usage {
        /// Its key or name.
        key: String,
    },
    /// Print the mount(8) command that mounts a snapshot; with --json the mount as containerd has it.
    Mounts {
        /// Its key.
        key: String,
        /// Where to mount it [default: its directory in the store]
        dir: Option<PathBuf>,
    },
    /// List snapshots.
    #[command(after_help = FILTERS)]
    List(ListArgs),
}

const FILTERS: &str = "\
A filter is FIELD==VALUE or FIELD!=VALUE, several with commas: all of them. Of several filters one has to fit.
FIELD is name, kind (active, view, committed), parent, image or labels.KEY; quote what holds more than letters and dots:
  --filter kind==active --filter 'kind==view,labels.\"containerd.io/gc.root\"==x'";

/// `unply snapshots`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those that fit; repeat it for more
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
}

/// `unply snapshot prepare`, `unply snapshot view`.
#[derive(Debug, Args)]
pub struct NewSnapshotArgs {
    /// What it is called.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub key: String,
    /// The committed snapshot that it stands on [default: nothing]
    pub parent: Option<String>,
    /// The image of the store that it stands on, by name or id
    #[arg(long, value_name = "IMAGE", conflicts_with = "parent")]
    pub image: Option<String>,
    /// Labels
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
}

/// One change of a label: to a value, or away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelChange {
    /// Which label.
    pub key: String,
    /// Its value; `None` removes it.
    pub value: Option<String>,
}

/// `unply umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Also drop the snapshot that was mounted, with what was written into it.
    #[arg(long)]
    pub rm: bool,
    /// Unmount everything of this store.
    #[arg(long)]
    pub all: bool,
    /// Where it is mounted.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub dir: Option<PathBuf>,
}

/// `unply lint`.
#[derive(Debug, Args)]
pub struct LintArgs {
    /// What to look at.
    #[arg(value_parser = image)]
    pub image: String,
    /// End with exit code 5 if there are findings of these kinds [default: nonconforming and worse]
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "nonconforming")]
    #[arg(value_delimiter = ',', value_parser = deny)]
    pub deny: Vec<Deny>,
}

/// One thing that `lint` shall not find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deny {
    /// Anything of this severity or worse.
    From(Severity),
    /// A finding of this code.
    Code(Code),
    /// A finding under this rule.
    Rule(String),
}

/// `unply bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to unpack.
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub images: Vec<String>,
    /// Runs of each image, and pairs beside each other tool; medians are reported.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Measure each stage alone, too: the floor, the efficiency, and what to do about it
    #[arg(long)]
    pub stages: bool,
    /// Run other tools in turns with ours and compare the trees: igzip-tar, bsdtar, umoci, skopeo, containerd,
    /// oci-image[=DRIVER]
    #[arg(long = "vs", value_name = "TOOL", value_delimiter = ',', value_parser = tool)]
    pub versus: Vec<Tool>,
    /// Count what makes it survive a loss of power: our syncs, and a `sync -f` behind every other tool
    #[arg(long)]
    pub durable: bool,
    /// Where each run writes: to a fresh tmpfs, a fresh ext4 with a journal in RAM, or a fresh directory of $TMPDIR
    /// [default: tmpfs where it can be mounted]
    #[arg(long, value_enum)]
    pub fs: Option<BenchFs>,
    /// Write a page with tables and a timeline, too; measures the stages
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}

/// Where a bench writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchFs {
    /// A fresh tmpfs.
    Tmpfs,
    /// A fresh ext4 with a journal, on a loop device whose file is in RAM.
    Ext4,
    /// A fresh directory below `$TMPDIR`.
    Here,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A bar on a terminal, nothing elsewhere.
    Auto,
    /// A bar, even where standard error is no terminal.
    Bar,
    /// A line per layer.
    Plain,
    /// A JSON document per line.
    Json,
    /// Nothing.
    None,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The store [default: /var/lib/unply as root, else $XDG_DATA_HOME/unply]
    #[arg(long, global = true, env = "UNPLY_ROOT", value_name = "DIR", hide_env_values = true)]
    pub root: Option<PathBuf>,
    /// The platform to choose from an image of several [default: this machine's]
    #[arg(long, global = true, value_name = "OS/ARCH[/VARIANT]", value_parser = platform)]
    pub platform: Option<Platform>,
    /// Layers at once [default: the CPUs that this process may use]
    #[arg(short, long, global = true, value_name = "N", value_parser = jobs)]
    pub jobs: Option<usize>,
    /// Print one JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// How to show progress on standard error
    #[arg(long, global = true, value_enum, value_name = "HOW", default_value = "auto", hide_possible_values = true)]
    #[arg(help = "How to show progress on standard error: auto, bar, plain, json, none")]
    pub progress: ProgressMode,
    /// Do not sync: what was written may be lost with power, and is noticed then
    #[arg(long, global = true)]
    pub no_durable: bool,
    /// Refuse what a conforming builder would not write
    #[arg(long, global = true)]
    pub strict: bool,
    /// What a root entry of a layer does: ignore, apply
    #[arg(long, global = true, value_name = "HOW", default_value = "ignore", value_parser = root_entry(), hide_possible_values = true)]
    pub root_entry: RootEntry,
    /// What a name below a symlink of a lower layer means: resolve, shadow
    #[arg(long, global = true, value_name = "HOW", default_value = "resolve", value_parser = lower_symlinks(), hide_possible_values = true)]
    pub lower_symlinks: LowerSymlinks,
    /// What happens to SELinux labels: drop, keep
    #[arg(long, global = true, value_name = "HOW", default_value = "drop", value_parser = selinux(), hide_possible_values = true)]
    pub selinux: Selinux,
    /// Say more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Bounds on what an image may ask for: a flag for each [`Limit`], made from its table so that the two cannot differ.
#[derive(Debug)]
pub struct LimitArgs(Limits);

impl LimitArgs {
    /// Returns the library's limits with what was asked for.
    pub fn limits(&self) -> Limits {
        self.0.clone()
    }
}

impl FromArgMatches for LimitArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut limits = LimitArgs(Limits::default());
        limits.update_from_arg_matches(matches)?;
        Ok(limits)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for limit in Limit::ALL {
            if let Some(value) = matches.get_one(limit.flag()) {
                self.0.set(limit, *value);
            }
        }
        Ok(())
    }
}

impl Args for LimitArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        Limit::ALL.into_iter().fold(command, |command, limit| {
            let arg = Arg::new(limit.flag()).long(limit.flag()).global(true).help(limit_help(limit));
            let arg = match limit.unit() {
                Unit::Bytes => arg.value_name("BYTES").value_parser(size),
                Unit::Window => arg.value_name("BYTES").value_parser(window),
                Unit::Count => arg.value_name("N").value_parser(clap::value_parser!(u64)),
            };
            command.arg(arg.help_heading("Limits (bytes take K, M, G, T)"))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn limit_help(limit: Limit) -> String {
    let bounds = limit.bounds();
    let (first, rest) = bounds.split_at(bounds.chars().next().map_or(0, char::len_utf8));
    let default = match (Limits::default().get(limit), limit.unit()) {
        (u64::MAX, _) => "none but the ratio".to_owned(),
        (n, Unit::Count) => n.to_string(),
        (n, _) => short_size(n),
    };
    format!("{}{rest} [default: {default}]", first.to_uppercase())
}

/// Writes a number of bytes as [`size`] reads it, with the largest unit that divides it.
fn short_size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let fits = units.into_iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    fits.map_or(bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

impl Global {
    /// Returns the choices that change the tree.
    pub fn tree(&self) -> TreeOptions {
        TreeOptions {
            strict: self.strict,
            root_entry: self.root_entry,
            lower_symlinks: self.lower_symlinks,
            selinux: self.selinux,
        }
    }
}

/// Stands before an argument that is an image although it begins like an option; no real argument can hold it.
const MARK: &str = "\0";

impl Cli {
    /// Parses arguments, the program's name first. `-:REPO:TAG` and `-@DIGEST` are images: clap would take them for
    /// options, or with `allow_hyphen_values` a misspelt option for an image.
    pub fn parse_from_args(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
        let mut literal = false;
        Cli::try_parse_from(args.into_iter().map(|arg| {
            literal |= arg == "--";
            let bytes = arg.as_encoded_bytes();
            match !literal && (bytes.starts_with(b"-:") || bytes.starts_with(b"-@")) {
                true => [OsStr::new(MARK), &arg].into_iter().collect(),
                false => arg,
            }
        }))
    }
}

fn image(text: &str) -> Result<String, String> {
    Ok(text.strip_prefix(MARK).unwrap_or(text).to_owned())
}

fn tool(text: &str) -> Result<Tool, String> {
    text.parse()
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE".to_owned()),
    }
}

fn label_change(text: &str) -> Result<LabelChange, String> {
    match (label(text), text.strip_suffix('-')) {
        (Ok((key, value)), _) => Ok(LabelChange { key, value: Some(value) }),
        (Err(_), Some(key)) if !key.is_empty() && !key.contains('=') => {
            Ok(LabelChange { key: key.to_owned(), value: None })
        }
        _ => Err("KEY=VALUE, or KEY- to remove it".to_owned()),
    }
}

fn platform(text: &str) -> Result<Platform, String> {
    text.parse().map_err(|e: crate::error::Error| e.to_string())
}

fn deny(text: &str) -> Result<Deny, String> {
    let severity = Severity::ALL.into_iter().find(|severity| severity.word() == text);
    let code = || Code::named(text).map(Deny::Code);
    let rule = || Code::ALL.iter().flat_map(|code| code.rules()).find(|rule| *rule == text);
    // A refusal brings its own rules.
    let shape = text.starts_with(|c: char| c.is_ascii_uppercase()) && text.ends_with(|c: char| c.is_ascii_digit());
    match severity.map(Deny::From).or_else(code) {
        Some(deny) => Ok(deny),
        None if rule().is_some() || shape => Ok(Deny::Rule(text.to_owned())),
        None => Err("a severity (error, ambiguous, nonconforming, info), a code, or a rule such as W4".to_owned()),
    }
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err("a number from 1 to 1024".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit.strip_suffix("iB").unwrap_or(unit) {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("a number of bytes, perhaps followed by K, M, G or T".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "a number of bytes, perhaps followed by K, M, G or T".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "more than 64 bits hold".to_owned())
}

fn window(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    let fits = bytes.is_power_of_two() && (1 << 10..=1 << 31).contains(&bytes);
    fits.then_some(bytes).ok_or_else(|| "a power of two from 1K to 2G".to_owned())
}

fn root_entry() -> impl TypedValueParser<Value = RootEntry> {
    PossibleValuesParser::new(["ignore", "apply"]).map(|s| match s.as_str() {
        "apply" => RootEntry::Apply,
        _ => RootEntry::Ignore,
    })
}

fn lower_symlinks() -> impl TypedValueParser<Value = LowerSymlinks> {
    PossibleValuesParser::new(["resolve", "shadow"]).map(|s| match s.as_str() {
        "shadow" => LowerSymlinks::Shadow,
        _ => LowerSymlinks::Resolve,
    })
}

fn selinux() -> impl TypedValueParser<Value = Selinux> {
    PossibleValuesParser::new(["drop", "keep"]).map(|s| match s.as_str() {
        "keep" => Selinux::Keep,
        _ => Selinux::Drop,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_powers_of_1024_and_checked() {
        assert_eq!(size("10"), Ok(10));
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        for bad in ["", "K", "1KB", "1.5M", "-1", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(window("128M"), Ok(128 << 20));
        for bad in ["3M", "512", "4G", "0"] {
            assert!(window(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn deny_takes_severities_codes_and_rules() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["unply", "lint"], args].concat());
        let deny = |args: &[&str]| match parse(args).unwrap().command {
            Command::Lint(lint) => lint.deny,
            _ => panic!(),
        };
        assert_eq!(deny(&["x"]), []);
        assert_eq!(deny(&["--deny", "x"]), [Deny::From(Severity::Nonconforming)]);
        assert_eq!(deny(&["x", "--deny=error"]), [Deny::From(Severity::Error)]);
        let both = [Deny::Rule("W4".into()), Deny::Code(Code::ThroughLowerSymlink), Deny::Rule("R-3".into())];
        assert_eq!(deny(&["--deny=W4,through-lower-symlink", "--deny=R-3", "x"]), both);
        for bad in ["--deny=", "--deny=W", "--deny=warning", "--deny=w4"] {
            assert!(parse(&[bad, "x"]).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_are_set_and_removed() {
        let set = |key: &str, value: &str| Ok(LabelChange { key: key.into(), value: Some(value.into()) });
        assert_eq!(label_change("a=b=c-"), set("a", "b=c-"));
        assert_eq!(label_change("a/b.c-"), Ok(LabelChange { key: "a/b.c".into(), value: None }));
        for bad in ["", "-", "=", "a", "a=", "=b", "=-"] {
            assert!(label_change(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn global_options_stand_before_and_after_the_command() {
        let before = Cli::try_parse_from(["unply", "--json", "--root", "/x", "-j2", "images"]).unwrap();
        let after = Cli::try_parse_from(["unply", "images", "-j2", "--root", "/x", "--json"]).unwrap();
        for cli in [before, after] {
            assert!(cli.global.json && cli.global.jobs == Some(2) && cli.global.root == Some("/x".into()));
        }
    }

    #[test]
    fn an_archive_on_standard_input_is_no_option_and_an_option_is_no_image() {
        let parse = |args: &[&str]| Cli::parse_from_args([&["unply"], args].concat().into_iter().map(OsString::from));
        for args in
            [&["pull", "-"][..], &["pull", "-:repo:1"], &["pull", "-@sha256:12", "--json"], &["pull", "-j1", "-:x"]]
        {
            let Command::Pull { image } = parse(args).unwrap().command else { panic!() };
            assert!(image.starts_with('-') && image != "-j1", "{image}");
        }
        for args in [&["pull", "--jsn", "x"][..], &["pull", "x", "--jsn"], &["pull", "-x"], &["pull", "--jsn"]] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn what_follows_the_double_dash_is_the_command() {
        let cli = Cli::try_parse_from(["unply", "mount", "img", "--", "ls", "--json"]).unwrap();
        let Command::Mount(mount) = cli.command else { panic!() };
        assert!(mount.dir.is_none() && mount.command == ["ls", "--json"] && !cli.global.json);
    }
}

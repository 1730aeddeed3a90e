//! Shows generated images through unply and through the tools that others use, and explains every difference.
//!
//! Started by `tests/differential/run`, which gives it mounts, process ids and a directory of its own. Each image goes
//! through `unply unpack`, the reference model and the tool; the tool's tree must be the one that its imitation in
//! [`imitate`] predicts, and each difference from the rules must be one that a noted rule can cause ([`explain`]).
//! Whatever is left is printed with the image's layers, and the exit code is 1.

mod disk;
mod explain;
mod imitate;
mod overlay;
mod report;
mod tools;

use explain::{Finding, judge, normal};
use imitate::Tool;
use report::Report;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use testkit::model::{LowerSymlinks, Model, Options, Refusal, RootEntry};
use testkit::tree::text;
use testkit::{Tree, cases, compare};
use tools::{Image, Lab};

const USAGE: &str = "usage: differential --work DIR --unply FILE [--images TOOL=N]... [--first SEED] [--case TEXT]
                    [--json FILE] [--markdown FILE] [TOOL...]
tools: containerd docker podman umoci (default: all of them)
--images TOOL=N   random images for that tool beside the cases (default 40)
--case TEXT       only cases whose name contains TEXT";

struct Arguments {
    work: PathBuf,
    unply: PathBuf,
    tools: Vec<Tool>,
    images: Vec<(Tool, u64)>,
    first: u64,
    case: Option<String>,
    json: Option<PathBuf>,
    markdown: Option<PathBuf>,
}

impl Arguments {
    /// The command that gives these images to these tools.
    fn command(&self) -> String {
        let mut out = "tests/differential/run".to_string();
        for (tool, n) in &self.images {
            out += &format!(" --images {}={n}", tool.name());
        }
        if self.first != 1 {
            out += &format!(" --first {}", self.first);
        }
        if let Some(case) = &self.case {
            out += &format!(" --case {case}");
        }
        if self.tools != Tool::ALL {
            self.tools.iter().for_each(|tool| out += &format!(" {}", tool.name()));
        }
        out
    }
}

fn usage(message: &str) -> ! {
    eprintln!("{message}\n{USAGE}");
    std::process::exit(2)
}

fn tool(name: &str) -> Tool {
    Tool::ALL.into_iter().find(|t| t.name() == name).unwrap_or_else(|| usage(&format!("{name} is no tool")))
}

fn arguments() -> Arguments {
    let mut out = Arguments {
        work: PathBuf::new(),
        unply: PathBuf::new(),
        tools: Vec::new(),
        images: Vec::new(),
        first: 1,
        case: None,
        json: None,
        markdown: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if !arg.starts_with("--") {
            out.tools.push(tool(&arg));
            continue;
        }
        let value = args.next().unwrap_or_else(|| usage(&format!("{arg} needs a value")));
        let number = |text: &str| text.parse().unwrap_or_else(|_| usage(&format!("{text} is no number")));
        match &arg[..] {
            "--work" => out.work = value.into(),
            "--unply" => out.unply = value.into(),
            "--first" => out.first = number(&value),
            "--case" => out.case = Some(value),
            "--json" => out.json = Some(value.into()),
            "--markdown" => out.markdown = Some(value.into()),
            "--images" => {
                let (name, n) = value.split_once('=').unwrap_or_else(|| usage("--images TOOL=N"));
                out.images.push((tool(name), number(n)));
            }
            _ => usage(&format!("{arg} is unknown")),
        }
    }
    if out.work.as_os_str().is_empty() || out.unply.as_os_str().is_empty() {
        usage("--work and --unply are needed");
    }
    if out.tools.is_empty() {
        out.tools = Tool::ALL.to_vec();
    }
    out
}

/// One image, and what it must be by the rules.
struct Sample {
    image: Image,
    options: Options,
    rules: Result<Tree, Refusal>,
    /// The rules that a case of the catalogue guards; nothing for a random image.
    case: Option<&'static [&'static str]>,
}

impl Sample {
    fn new(
        name: String,
        layers: Vec<Vec<testkit::EntrySpec>>,
        options: Options,
        case: Option<&'static [&'static str]>,
    ) -> Sample {
        let rules = Model::of_image(options, &layers).map(|model| model.tree());
        Sample { image: Image { name, layers, taken: true }, options, rules, case }
    }
}

fn flags(options: Options) -> Vec<&'static str> {
    let mut flags = Vec::new();
    if options.strict {
        flags.push("--strict");
    }
    if options.lower_symlinks == LowerSymlinks::Shadow {
        flags.extend(["--lower-symlinks", "shadow"]);
    }
    if options.root_entry == RootEntry::Apply {
        flags.extend(["--root-entry", "apply"]);
    }
    if options.selinux_keep {
        flags.extend(["--selinux", "keep"]);
    }
    flags
}

/// The images for one tool: all cases, then random ones as they are and without what the tool refuses.
fn samples(tool: Tool, arguments: &Arguments) -> Vec<Sample> {
    let wanted = |name: &str| arguments.case.as_ref().is_none_or(|part| name.contains(part));
    let mut out: Vec<Sample> = cases::all()
        .into_iter()
        // What a mount inside a user namespace reads is no business of these tools.
        .filter(|case| wanted(case.name) && !case.options.userxattr)
        .map(|case| {
            // It has no other way than to follow lower symlinks.
            let options = if tool == Tool::Umoci && case.options.lower_symlinks == LowerSymlinks::Shadow {
                Options { lower_symlinks: LowerSymlinks::Resolve, ..case.options }
            } else {
                case.options
            };
            Sample::new(case.name.to_string(), case.layers, options, Some(case.rules))
        })
        .collect();
    let count = arguments.images.iter().rfind(|(t, _)| *t == tool).map_or(40, |(_, n)| *n);
    for seed in arguments.first..arguments.first + count {
        let layers = testkit::random::random_image(seed);
        let tame = tool.without_refusals(&layers);
        if tame != layers {
            out.push(Sample::new(format!("seed {seed}, tamed"), tame, Options::default(), None));
        }
        out.push(Sample::new(format!("seed {seed}"), layers, Options::default(), None));
    }
    if tool == Tool::Umoci {
        // It would remove the parent of its own target.
        out.retain(|sample| !sample.image.layers.iter().flatten().any(bare_whiteout));
    }
    out
}

fn bare_whiteout(entry: &testkit::EntrySpec) -> bool {
    let cleaned = disk::clean(&entry.path);
    matches!(disk::split(&cleaned).1, b".wh." | b".wh.." | b".wh...")
}

fn main() {
    let arguments = arguments();
    let start = SystemTime::now();
    let mut report = Report::default();
    // The tools wait for their own processes most of the time, so all of them go at once.
    std::thread::scope(|scope| {
        let arguments = &arguments;
        let each = arguments.tools.iter().map(|&tool| scope.spawn(move || one_tool(tool, arguments, start)));
        for thread in each.collect::<Vec<_>>() {
            report.merge(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    report.command = arguments.command();
    print!("{}", report.text());
    let written = [(&arguments.json, report.json()), (&arguments.markdown, report.markdown())];
    for (path, content) in written {
        if let Some(path) = path {
            std::fs::write(path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
    std::process::exit(i32::from(report.unexplained > 0));
}

/// Starts one tool, with a directory of its own, and shows it every image.
fn one_tool(tool: Tool, arguments: &Arguments, start: SystemTime) -> Report {
    let mut report = Report::default();
    let mut lab = Lab::new(&arguments.work.join(tool.name()), &arguments.unply);
    if let Err(reason) = lab.start(tool) {
        println!("SKIP: {}: {reason}", tool.name());
        report.skipped.push((tool, reason));
        return report;
    }
    report.versions.push((tool, tools::version(tool).expect("it answered before")));
    through(tool, &lab, arguments, start, &mut report);
    report
}

fn through(tool: Tool, lab: &Lab, arguments: &Arguments, start: SystemTime, report: &mut Report) {
    let samples = samples(tool, arguments);
    let images: Vec<Image> = samples
        .iter()
        .map(|sample| Image {
            name: sample.image.name.clone(),
            layers: sample.image.layers.clone(),
            taken: tool.imitate(&sample.image.layers).outcome.is_ok(),
        })
        .collect();
    let (mut at, mut said) = (0, Instant::now());
    lab.show(tool, &images, &mut |image, shown| {
        let sample = &samples[at];
        assert_eq!(sample.image.name, image.name, "results come in the order of the images");
        at += 1;
        let shown = shown.map(|tree| normal(tree, start));
        let predicted = tool.imitate(&image.layers);
        let mut finding = judge(&sample.rules, &predicted, &shown);
        ours(lab, sample, &mut finding);
        if !finding.unexplained.is_empty() {
            let lines: String = finding.unexplained.iter().map(|line| format!("    {line}\n")).collect();
            print!("UNEXPLAINED: {} {}\n{lines}{}", tool.name(), image.name, layers_as_text(image));
        }
        if tool == Tool::Containerd
            && let (Ok(rules), Ok(shown)) = (&sample.rules, &shown)
            && sample.options == Options::default()
        {
            let shadow = Options { lower_symlinks: LowerSymlinks::Shadow, ..Options::default() };
            if let Ok(model) = Model::of_image(shadow, &image.layers) {
                let unply = lab.unply(image, &flags(shadow));
                if unply.is_ok_and(|tree| compare(&model.tree(), &tree).is_empty()) {
                    report.shadow.0 += 1;
                    report.shadow.1 += names(rules, shown);
                    report.shadow.2 += names(&model.tree(), shown);
                } else {
                    println!("UNEXPLAINED: {}: unply --lower-symlinks shadow is not the model's tree", image.name);
                    report.unexplained += 1;
                }
            }
        }
        if said.elapsed() > Duration::from_secs(20) {
            eprintln!("{}: {at} of {}", tool.name(), images.len());
            said = Instant::now();
        }
        report.add(tool, &image.name, sample.case, &sample.rules, &shown, finding);
    });
    assert_eq!(at, samples.len(), "{} did not answer for every image", tool.name());
}

/// unply itself must give what the rules say.
fn ours(lab: &Lab, sample: &Sample, finding: &mut Finding) {
    match (&sample.rules, lab.unply(&sample.image, &flags(sample.options))) {
        (Ok(rules), Ok(tree)) => {
            let differences = compare(rules, &tree);
            finding.unexplained.extend(differences.iter().map(|d| format!("unply is not the model: {d}")));
        }
        (Err(_), Err(5)) => {}
        (Ok(_), Err(code)) => finding.unexplained.push(format!("unply: exit {code}, but the model takes it")),
        (Err(refusal), Err(code)) => finding.unexplained.push(format!("unply: exit {code}, not 5, for {refusal}")),
        (Err(refusal), Ok(_)) => finding.unexplained.push(format!("unply takes what the model refuses: {refusal}")),
    }
}

/// Counts paths that are there in one tree only or of another kind.
fn names(a: &Tree, b: &Tree) -> usize {
    compare(a, b).iter().filter(|d| matches!(&d.field[..], "presence" | "kind")).count()
}

fn layers_as_text(image: &Image) -> String {
    let mut out = String::new();
    for (n, layer) in image.layers.iter().enumerate() {
        out += &format!("    layer {n}\n");
        for e in layer {
            let kind = match &e.kind {
                testkit::EntryKind::File(content) => format!("file {:?}", text(&content[..content.len().min(30)])),
                testkit::EntryKind::Symlink(to) => format!("symlink {:?}", text(&to[..to.len().min(60)])),
                testkit::EntryKind::HardLink(to) => format!("hard link {:?}", text(&to[..to.len().min(60)])),
                other => format!("{other:?}").to_lowercase(),
            };
            let path = text(&e.path[..e.path.len().min(80)]);
            let xattrs: Vec<String> = e.xattrs.iter().map(|(k, v)| format!(" {}={:?}", text(k), text(v))).collect();
            let (seconds, nanos) = e.mtime;
            let owner = format!("{}:{}", e.uid, e.gid);
            let line = format!("{path:<24} {kind} {:04o} {owner} {seconds}.{nanos:09}{}", e.mode, xattrs.concat());
            out += &format!("      {line}\n");
        }
    }
    out
}

//! What a run has shown: rule by rule and tool by tool, as text, Markdown and JSON.

use crate::explain::{Departure, Finding, How, RULES};
use crate::imitate::Tool;
use crate::tools::Shown;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use testkit::Tree;
use testkit::model::Refusal;

/// The start of the Markdown page; `COMMAND` is what was asked for.
const HEADER: &str = "\
# Other tools, measured against the rules

Written by `COMMAND --markdown docs/differential.md` (as root; every tool that is installed takes part). It sends testkit's \
cases and random images, the latter as they are and once more without the entries that the tool refuses, through other \
tools and through `unply unpack`. unply's tree must be the reference model's. The tool's tree must be exactly the one that \
an imitation of that tool predicts (`crates/testkit/examples/differential/`), and each of its differences from the rules' \
tree must have a rule that names it; the run fails otherwise.

\"differ\" counts images in which the tool shows something else than the rule asks for, \"differ elsewhere\" images in \
which that had consequences at other names, \"refused\" images that the tool refuses and the rules take, \"taken\" the \
reverse. Rule numbers are those of our rule book, as in [spec-notes.md](spec-notes.md).

";

/// What one tool did with the images of one rule.
#[derive(Debug, Default)]
struct Cell {
    differs: usize,
    follows: usize,
    refuses: usize,
    takes: usize,
    /// The first image that showed it, and what was seen: a case before a random image.
    example: Option<(bool, String, String)>,
}

/// What one tool did with all images.
#[derive(Debug, Default)]
struct Totals {
    cases: usize,
    random: usize,
    same: usize,
    explained: usize,
    unexplained: usize,
    refused: usize,
}

/// A run's result.
#[derive(Debug, Default)]
pub struct Report {
    /// The command that asked for this run, without the files to write.
    pub command: String,
    pub versions: Vec<(Tool, String)>,
    pub skipped: Vec<(Tool, String)>,
    pub unexplained: usize,
    /// Images shown by containerd, and in how many names its trees differ from ours: by default, under `shadow`.
    pub shadow: (usize, usize, usize),
    cells: BTreeMap<(&'static str, Tool), Cell>,
    totals: BTreeMap<Tool, Totals>,
    /// Of the cases that guard a rule, how many a tool shows as unply does, and how many there are.
    cases: BTreeMap<&'static str, BTreeMap<Tool, (usize, usize)>>,
}

impl Report {
    /// Takes up what was found about one image.
    pub fn add(
        &mut self,
        tool: Tool,
        name: &str,
        guards: Option<&'static [&'static str]>,
        rules: &Result<Tree, Refusal>,
        shown: &Shown,
        finding: Finding,
    ) {
        let case = guards.is_some();
        // The root's own metadata differs nearly everywhere, and has a row of its own.
        let same = finding.unexplained.is_empty() && finding.departures.iter().all(|d| d.rule == "D3");
        for rule in guards.unwrap_or_default() {
            let (number, of) = self.cases.entry(rule).or_default().entry(tool).or_default();
            *number += usize::from(same);
            *of += 1;
        }
        let totals = self.totals.entry(tool).or_default();
        *if case { &mut totals.cases } else { &mut totals.random } += 1;
        totals.refused += usize::from(rules.is_ok() && shown.is_err());
        let state = match () {
            () if !finding.unexplained.is_empty() => &mut totals.unexplained,
            () if finding.departures.is_empty() => &mut totals.same,
            () => &mut totals.explained,
        };
        *state += 1;
        self.unexplained += usize::from(!finding.unexplained.is_empty());
        let mut counted = BTreeSet::new();
        for Departure { rule, how, text } in finding.departures {
            let cell = self.cells.entry((rule, tool)).or_default();
            if counted.insert((rule, how as u8)) {
                *match how {
                    How::Differs => &mut cell.differs,
                    How::Follows => &mut cell.follows,
                    How::Refuses => &mut cell.refuses,
                    How::Takes => &mut cell.takes,
                } += 1;
            }
            let better = cell.example.as_ref().is_none_or(|(was_case, ..)| case && !was_case);
            if better && how != How::Follows {
                cell.example = Some((case, name.to_string(), text));
            }
        }
    }

    /// Takes in what another tool's run has shown.
    pub fn merge(&mut self, other: Report) {
        self.versions.extend(other.versions);
        self.skipped.extend(other.skipped);
        self.unexplained += other.unexplained;
        let (images, resolve, shadow) = other.shadow;
        self.shadow = (self.shadow.0 + images, self.shadow.1 + resolve, self.shadow.2 + shadow);
        self.cells.extend(other.cells);
        self.totals.extend(other.totals);
        for (rule, tools) in other.cases {
            self.cases.entry(rule).or_default().extend(tools);
        }
    }

    fn rows(&self) -> impl Iterator<Item = (&'static crate::explain::Rule, Tool, &Cell)> {
        let cells = move |rule: &'static crate::explain::Rule| {
            Tool::ALL.into_iter().filter_map(move |tool| Some((rule, tool, self.cells.get(&(rule.id, tool))?)))
        };
        let mut rules: Vec<_> = RULES.iter().collect();
        rules.sort_by_key(|rule| order(rule.id));
        rules.into_iter().flat_map(cells)
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        for (rule, tool, cell) in self.rows() {
            let example = cell.example.as_ref().map_or(String::new(), |(_, name, text)| format!("{name}: {text}"));
            let counts = counts(cell);
            writeln!(out, "{:<5} {:<10} {counts:<44} {example}", rule.id, tool.name()).expect("into memory");
        }
        for (tool, t) in &self.totals {
            writeln!(
                out,
                "{}: {} cases and {} random images: {} the same, {} explained ({} of them refused), {} unexplained",
                tool.name(),
                t.cases,
                t.random,
                t.same,
                t.explained,
                t.refused,
                t.unexplained
            )
            .expect("into memory");
        }
        let (images, resolve, shadow) = self.shadow;
        if images > 0 {
            writeln!(
                out,
                "containerd, {images} images: {resolve} names differ from unply's, {shadow} from unply's with \
                 --lower-symlinks shadow"
            )
            .expect("into memory");
        }
        out
    }

    pub fn markdown(&self) -> String {
        let mut out = HEADER.replace("COMMAND", &self.command);
        for (tool, version) in &self.versions {
            let t = &self.totals[tool];
            writeln!(
                out,
                "* {} (`{version}`): {} cases, {} random images; {} the same, {} explained, {} unexplained",
                tool.name(),
                t.cases,
                t.random,
                t.same,
                t.explained,
                t.unexplained
            )
            .expect("into memory");
        }
        for (tool, reason) in &self.skipped {
            writeln!(out, "* {}: left out: {reason}", tool.name()).expect("into memory");
        }
        out += "\n| rule | what it asks for | tool | images | what the tool showed, for example |\n|---|---|---|---|---|\n";
        for (rule, tool, cell) in self.rows() {
            let example = cell.example.as_ref().map_or(String::new(), |(_, name, text)| format!("`{name}`: {text}"));
            let example = example.replace('|', "\\|");
            let counts = counts(cell);
            writeln!(out, "| {} | {} | {} | {counts} | {example} |", rule.id, rule.says, tool.name())
                .expect("into memory");
        }
        out += "\n## Case by case\n\nOf the cases that guard a rule, how many each tool shows or refuses exactly as unply does, \
                the root's own metadata (D3) aside.\n\n| rule |";
        let tools: Vec<Tool> = self.versions.iter().map(|(tool, _)| *tool).collect();
        tools.iter().for_each(|tool| out += &format!(" {} |", tool.name()));
        out += "\n|---|";
        out += &"---|".repeat(tools.len());
        out += "\n";
        let mut rules: Vec<_> = self.cases.iter().collect();
        rules.sort_by_key(|(rule, _)| order(rule));
        for (rule, by_tool) in rules {
            out += &format!("| {rule} |");
            for tool in &tools {
                let cell = by_tool.get(tool).map_or("—".to_string(), |(same, of)| format!("{same} of {of}"));
                out += &format!(" {cell} |");
            }
            out += "\n";
        }
        let silent: Vec<&str> =
            RULES.iter().map(|r| r.id).filter(|id| !self.cells.keys().any(|(rule, _)| rule == id)).collect();
        if !silent.is_empty() {
            writeln!(out, "\nNo departure was seen from: {}.", silent.join(", ")).expect("into memory");
        }
        let (images, resolve, shadow) = self.shadow;
        if images > 0 {
            writeln!(
                out,
                "\nOver {images} images that both take, containerd's trees differ from unply's in {resolve} names by \
                 default and in {shadow} under `--lower-symlinks shadow`."
            )
            .expect("into memory");
        }
        out
    }

    pub fn json(&self) -> String {
        let versions: Vec<String> =
            self.versions.iter().map(|(t, v)| format!("{}:{}", quoted(t.name()), quoted(v))).collect();
        let skipped: Vec<String> =
            self.skipped.iter().map(|(t, v)| format!("{}:{}", quoted(t.name()), quoted(v))).collect();
        let totals = self.totals.iter().map(|(tool, t)| {
            format!(
                "{}:{{\"cases\":{},\"random\":{},\"same\":{},\"explained\":{},\"refused\":{},\"unexplained\":{}}}",
                quoted(tool.name()),
                t.cases,
                t.random,
                t.same,
                t.explained,
                t.refused,
                t.unexplained
            )
        });
        let totals: Vec<String> = totals.collect();
        let rows = self.rows().map(|(rule, tool, c)| {
            let (image, seen) = c.example.as_ref().map_or(("", ""), |(_, name, text)| (name, text));
            format!(
                "{{\"rule\":{},\"tool\":{},\"differs\":{},\"follows\":{},\"refuses\":{},\"takes\":{},\"image\":{},\
                 \"seen\":{}}}",
                quoted(rule.id),
                quoted(tool.name()),
                c.differs,
                c.follows,
                c.refuses,
                c.takes,
                quoted(image),
                quoted(seen)
            )
        });
        let rows: Vec<String> = rows.collect();
        let (images, resolve, shadow) = self.shadow;
        format!(
            "{{\"schema\":1,\"tools\":{{{}}},\"skipped\":{{{}}},\"totals\":{{{}}},\"unexplained\":{},\
             \"shadow\":{{\"images\":{images},\"names_resolve\":{resolve},\"names_shadow\":{shadow}}},\
             \"rules\":[\n{}\n]}}\n",
            versions.join(","),
            skipped.join(","),
            totals.join(","),
            self.unexplained,
            rows.join(",\n")
        )
    }
}

/// Sorts rules as the rule book does: by section, then by number.
fn order(rule: &str) -> (usize, u32) {
    let letters = rule.trim_end_matches(|c: char| c.is_ascii_digit());
    let sections = ["W", "O", "L", "S", "D", "M", "T", "I", "N", "X", "R-"];
    let section = sections.iter().position(|s| *s == letters).unwrap_or(sections.len());
    (section, rule[letters.len()..].parse().unwrap_or(0))
}

fn counts(cell: &Cell) -> String {
    let parts = [
        (cell.differs, "differ"),
        (cell.follows, "differ elsewhere"),
        (cell.refuses, "refused"),
        (cell.takes, "taken"),
    ];
    let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    parts.join(", ")
}

fn quoted(text: &str) -> String {
    let escape = |c: char| match c {
        '"' => "\\\"".to_string(),
        '\\' => "\\\\".to_string(),
        c if c.is_control() => format!("\\u{:04x}", c as u32),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

//! `docs/conformance.md`: the catalogue, the tests found and the results of a run as one page.

use std::fmt::Write as _;

use crate::catalogue::*;
use crate::found::{Found, Sort, Test};
use crate::rulings::rulings;
use crate::run::Run;

/// Names of tests shown for one rule.
const NAMES: usize = 3;

/// Renders the page; nothing in it depends on time, place or order of the run.
pub fn render(run: &Run, found: &Found) -> String {
    let rules = rules();
    let mut out = String::new();
    introduction(&mut out, run);
    summary(&mut out, &rules, run, found);
    for section in SECTIONS {
        let rules: Vec<&Rule> = rules.iter().filter(|r| r.id.letter == section.letter).collect();
        writeln!(out, "\n## {}: {}\n", section.letter, section.title).unwrap();
        table(&mut out, &rules, run, found);
        names(&mut out, rules.iter().map(|r| (r.id, found.of(r.id))));
    }
    decisions(&mut out, &rules, found);
    untested(&mut out, &rules);
    out
}

fn introduction(out: &mut String, run: &Run) {
    let tools: Vec<String> = ALL.iter().map(|t| format!("{} {}", t.name().0, t.name().1)).collect();
    let tools = tools.join(", ");
    let (images, refused, inside, inside_one) = (run.images(), run.refused(), run.fit_many_ids, run.fit_one_id);
    writeln!(
        out,
        "# Conformance: every rule, what unply does, what others do

<!-- Written by `UNPLY_BLESS=1 cargo test --test conformance`; the same test without UNPLY_BLESS fails where this page is stale. -->

A test run writes this page; do not edit it. The texts stand in `tests/conformance/`, tests are found by their names, and
the numbers come from the run. To renew it, as root:

    UNPLY_BLESS=1 cargo test --test conformance

**What was run.** {images} small images, each written by hand for a rule with the tree it must give; {refused} must be refused. Each is
flattened into a directory, mounted read-only (writing must answer EROFS) and mounted read-write (everything in it is then
removed, which trips over phantom names). The three trees are compared, down to raw directory entries, with the
expectation written by hand and with the reference model of `crates/testkit`, which shares no line with the product. One
difference anywhere, and this page cannot be written.

**In user namespaces.** The same test starts itself again under `unshare -Urm` (one id mapped) and in a namespace with 65,536
ids. {inside_one} of the images can exist in the first and {inside} in the second; the others hold devices, owners outside the map or
xattrs of `trusted.` and `security.`. The three ways and the model must agree there too.

**What else was run by hand**, at what size and with which command: random images, mutants of the rules, the tools beside each other: [evidence](evidence.md).

**What a cell says.** *Result* counts the images, the archives (layers as exact bytes, which `tests/archives.rs` brings the same ways and compares with the model), the test functions named after the rule, which `cargo test --workspace` runs too, the
entries of tables, and the cases of the snapshot suite, which `tests/snapshots.rs` runs on the library and on the command line. For the tools: `same` means unply's result; otherwise what they do instead; `—` that
nothing is recorded. `[m]` was measured with {tools}
on Linux 6.18. `[s]` is by source: code, tests, change logs or issues, partly of other versions. podman stands for
containers-storage, which CRI-O uses too. Nothing here is a judgement on current releases.

`R-n` after a sentence names the ruling that decides it, where specification or tools leave room: see [Rulings](#rulings),
which say whom unply deviates from. [spec-notes](spec-notes.md) has the rules as text that can be implemented twice."
    )
    .unwrap();
}

fn summary(out: &mut String, rules: &[Rule], run: &Run, found: &Found) {
    let tested = rules.iter().filter(|r| !found.of(r.id).is_empty()).count();
    let without = rules.iter().filter(|r| r.untested.is_some()).count();
    writeln!(
        out,
        "\n## Summary\n\n**{} rules: {tested} tested, {without} not offered or not testable here.** {} images, {} archives, {} test functions, {} escape attempts, {} cases of the snapshot suite carry a rule's number.\n",
        rules.len(),
        run.images(),
        found.count(Sort::Archive),
        found.count(Sort::Function),
        found.count(Sort::Attempt),
        found.count(Sort::Suite),
    )
    .unwrap();
    writeln!(out, "| tool | same result [m] | same [s] | another result [m] | another [s] | neither | not recorded |")
        .unwrap();
    writeln!(out, "|---|---|---|---|---|---|---|").unwrap();
    for tool in ALL {
        let count = |is: &dyn Fn(&Theirs) -> bool| rules.iter().filter(|r| is(&r.theirs[*tool as usize])).count();
        let (name, version) = tool.name();
        writeln!(
            out,
            "| {name} {version} | {} | {} | {} | {} | {} | {} |",
            count(&|t| *t == Theirs::Same(Measured)),
            count(&|t| *t == Theirs::Same(Source)),
            count(&|t| matches!(t, Theirs::Differs(Measured, _))),
            count(&|t| matches!(t, Theirs::Differs(Source, _))),
            count(&|t| matches!(t, Theirs::Says(..))),
            count(&|t| *t == Theirs::Unknown),
        )
        .unwrap();
    }
}

fn table(out: &mut String, rules: &[&Rule], run: &Run, found: &Found) {
    let tools: Vec<&str> = ALL.iter().map(|t| t.name().0).collect();
    writeln!(out, "| rule | what unply does | result | {} |", tools.join(" | ")).unwrap();
    writeln!(out, "|---|---|---|---|---|---|---|").unwrap();
    for rule in rules {
        let theirs: Vec<String> = rule.theirs.iter().map(cell).collect();
        let rulings: Vec<String> = rule.rulings.iter().map(|n| format!("R-{n}")).collect();
        let rulings = if rulings.is_empty() { String::new() } else { format!(" ({})", rulings.join(", ")) };
        let result = match rule.untested {
            Some(_) => "[not tested](#not-tested-here)".to_owned(),
            None => result(&found.of(rule.id), run),
        };
        writeln!(out, "| {} | {}{rulings} | {result} | {} |", rule.id, rule.says, theirs.join(" | ")).unwrap();
    }
}

fn cell(theirs: &Theirs) -> String {
    let mark = |evidence: &Evidence| match evidence {
        Measured => "[m]",
        Source => "[s]",
    };
    match theirs {
        Theirs::Unknown => "—".to_owned(),
        Theirs::Same(evidence) => format!("same {}", mark(evidence)),
        Theirs::Differs(evidence, what) | Theirs::Says(evidence, what) => format!("{what} {}", mark(evidence)),
    }
}

fn plural(n: usize, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}

fn result(tests: &[&Test], run: &Run) -> String {
    let of = |sort: Sort| tests.iter().filter(move |t| t.sort == sort);
    let images = of(Sort::Image).count();
    let refused = of(Sort::Image).filter(|t| run.is_refused(&t.name)).count();
    let mut parts = Vec::new();
    if images > 0 {
        let refused = if refused > 0 { format!(" ({refused} refused)") } else { String::new() };
        parts.push(format!("{}{refused}", plural(images, "image")));
    }
    for (sort, word) in
        [(Sort::Archive, "archive"), (Sort::Suite, "suite case"), (Sort::Function, "test"), (Sort::Attempt, "escape")]
    {
        match of(sort).count() {
            0 => {}
            n => parts.push(plural(n, word)),
        }
    }
    if parts.is_empty() { "**no test**".to_owned() } else { parts.join(", ") }
}

fn names<'a>(out: &mut String, tests: impl Iterator<Item = (Id, Vec<&'a Test>)>) {
    writeln!(out, "\nTests:").unwrap();
    for (id, tests) in tests.filter(|(_, tests)| !tests.is_empty()) {
        let shown: Vec<String> = tests.iter().take(NAMES).map(|t| format!("`{}`", t.name)).collect();
        let more = match tests.len().saturating_sub(NAMES) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        writeln!(out, "* {id}: {}{more}", shown.join(", ")).unwrap();
    }
}

fn decisions(out: &mut String, rules: &[Rule], found: &Found) {
    writeln!(
        out,
        "\n## Rulings

Where specification and tools disagree, or say nothing, unply does this. The last column says plainly from whom it deviates.

| ruling | question | what unply does | option | rules | deviates from |
|---|---|---|---|---|---|"
    )
    .unwrap();
    for ruling in rulings() {
        let by: Vec<String> =
            rules.iter().filter(|r| r.rulings.contains(&ruling.number)).map(|r| r.id.to_string()).collect();
        let by = if by.is_empty() { "—".to_owned() } else { by.join(", ") };
        let option = ruling.option.unwrap_or("—");
        let against = ruling.against.unwrap_or("—");
        writeln!(out, "| R-{} | {} | {} | {option} | {by} | {against} |", ruling.number, ruling.question, ruling.says)
            .unwrap();
    }
    let id = |number| Id { letter: RULING, number };
    names(out, rulings().iter().map(|r| (id(r.number), found.of(id(r.number)))));
}

fn untested(out: &mut String, rules: &[Rule]) {
    writeln!(out, "\n## Not tested here\n").unwrap();
    for rule in rules {
        if let Some(why) = rule.untested {
            writeln!(out, "* {}: {} {why}.", rule.id, rule.says).unwrap();
        }
    }
}

/// Shows where two pages part, a few lines of each.
pub fn difference(committed: &str, rendered: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (committed.lines().collect(), rendered.lines().collect());
    let gone = old.iter().filter(|l| !new.contains(l)).take(8).map(|l| format!("- {l}"));
    let come = new.iter().filter(|l| !old.contains(l)).take(8).map(|l| format!("+ {l}"));
    let lines: Vec<String> = gone.chain(come).collect();
    if lines.is_empty() { "the same lines in another order".to_owned() } else { lines.join("\n") }
}

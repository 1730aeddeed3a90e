//! The rule book run on the product: every case of testkit flattened, mounted read-only and read-write, against the
//! expectation and the reference model, and the same again inside user namespaces; and `docs/conformance.md`, which
//! says for every rule what came out, what other tools do, and which tests guard it.

mod catalogue;
#[path = "../common/mod.rs"]
mod common;
mod found;
mod page;
mod rules;
mod rulings;
mod run;

use std::path::Path;

use common::{in_user_namespace, root_or_skip};
use found::Found;
use run::Run;

#[test]
fn r01_every_case_gives_its_tree_flat_and_mounted() {
    if !root_or_skip("r01_every_case_gives_its_tree_flat_and_mounted") {
        return;
    }
    let wrong = &Run::get().wrong;
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_same_inside_a_user_namespace() {
    in_user_namespace(&["r01_every_case_gives_its_tree_flat_and_mounted"]);
}

#[test]
fn every_rule_has_a_test_or_a_reason() {
    let mut faults = catalogue::faults();
    let found = Found::look();
    faults.extend(found.faults.iter().cloned());
    let mut missing = Vec::new();
    for rule in catalogue::rules() {
        match (rule.untested, found.of(rule.id).first()) {
            (None, None) => missing.push(format!("{:4} {}", rule.id.to_string(), rule.says)),
            (Some(_), Some(test)) => faults.push(format!("{}: called untested, but there is {}", rule.id, test.name)),
            _ => {}
        }
    }
    for ruling in rulings::rulings() {
        let id = catalogue::Id { letter: catalogue::RULING, number: ruling.number };
        let decides = catalogue::rules().iter().any(|r| r.rulings.contains(&ruling.number));
        if !decides && found.of(id).is_empty() {
            missing.push(format!("{id:4} {}: {}", ruling.question, ruling.says));
        }
    }
    assert!(
        faults.is_empty() && missing.is_empty(),
        "{} rules without a test (a case that lists it, or a test function named after it, such as fn t04_…):\n{}\n{} faults:\n{}",
        missing.len(),
        missing.join("\n"),
        faults.len(),
        faults.join("\n")
    );
}

/// The finder itself must be able to fail: what runs nowhere, or is named otherwise, counts for nothing.
#[test]
fn tests_are_found_by_their_names_alone() {
    let mut found = Found::default();
    let line = |attributes: &str, name: &str| format!("    {attributes}\n    fn {name}() {{\n");
    found.functions(&line("#[test]", "t04_z11_both"));
    found.functions(&line("#[inline]", "t05_a_helper"));
    found.functions(&line("#[test]\n#[ignore]", "t06_runs_nowhere"));
    found.functions(&line("#[test]", "names_t7_one_digit_or_t99_no_rule"));
    found.functions(&line("#[test]", "t8_one_digit"));
    found.functions(&line("#[test]", "t99_no_rule"));
    let counts = ["T4", "Z11", "T5", "T6", "T7", "T8"].map(|id| found.of(catalogue::Id::parse(id).unwrap()).len());
    assert_eq!(counts, [1, 1, 0, 0, 0, 0]);
    assert_eq!(found.faults.len(), 2, "{:?}", found.faults);
    assert_ne!(page::difference("a\nb\n", "a\nc\n"), page::difference("a\n", "a\n"));
}

#[test]
fn the_page_says_what_this_run_gave() {
    let name = "the_page_says_what_this_run_gave";
    if Run::is_partial() || !root_or_skip(name) {
        return;
    }
    if unply::sys::in_user_namespace() {
        println!("SKIP: {name}: a user namespace cannot hold every image");
        return;
    }
    let run = Run::get();
    assert!(run.wrong.is_empty(), "no page of a run with {} findings", run.wrong.len());
    let rendered = page::render(run, &Found::look());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    if std::env::var_os("UNPLY_BLESS").is_some() {
        std::fs::write(&path, rendered).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == rendered,
        "docs/conformance.md is stale; renew it with UNPLY_BLESS=1 cargo test --test conformance\n{}",
        page::difference(&committed, &rendered)
    );
}

//! Which tests guard a rule: found in the sources by their names, never listed by hand.
//!
//! Five kinds: images and archives of testkit (by their `rules`, and by name), test functions (every word of the name that is a rule
//! in two digits, such as `fn z04_z11_…` or, in the escape catalogue, `s14_magic_link: |at| …`), and named entries of
//! tables in `tests/`, such as `"t08_a_wrong_checksum"` in `tests/parsers.rs`; and the cases of the snapshot suite.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use testkit::{cases, snapshotter};

use crate::catalogue::{Id, RULING, SECTIONS};

/// What a test is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// An image of testkit, run every way.
    Image,
    /// A layer of testkit as its exact bytes, run every way by `tests/archives.rs`.
    Archive,
    /// A `#[test]` function.
    Function,
    /// An entry of a table that a `#[test]` function goes through.
    Attempt,
    /// A case of testkit's snapshot suite, which `tests/snapshots.rs` runs on the library and on the command line.
    Suite,
}

/// A test and the rules that it guards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Test {
    pub sort: Sort,
    pub name: String,
    pub rules: BTreeSet<Id>,
}

/// What stands in the sources.
#[derive(Default)]
pub struct Found {
    pub tests: Vec<Test>,
    /// Names that break the convention.
    pub faults: Vec<String>,
}

impl Found {
    /// Looks through testkit and the sources.
    pub fn look() -> Found {
        let mut found = Found::default();
        for case in cases::all() {
            found.case(Sort::Image, case.name, case.rules);
        }
        for archive in cases::archives() {
            found.case(Sort::Archive, archive.name, archive.rules);
        }
        for case in snapshotter::suite::cases() {
            let rules = Id::parse(case.rule).filter(|id| exists(*id)).into_iter().collect();
            found.tests.push(Test { sort: Sort::Suite, name: case.name.to_owned(), rules });
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for place in ["src", "tests", "crates/testkit/src"] {
            for path in rust_files(&root.join(place)) {
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
                found.functions(&text);
                if place == "tests" && !path.starts_with(root.join("tests/conformance")) {
                    found.attempts(&text);
                }
            }
        }
        found.tests.sort();
        found.tests.dedup();
        found
    }

    /// The tests of one rule: those named after it first.
    pub fn of(&self, id: Id) -> Vec<&Test> {
        let mut tests: Vec<&Test> = self.tests.iter().filter(|t| t.rules.contains(&id)).collect();
        tests.sort_by_key(|t| !t.name.starts_with(&id.in_names()));
        tests
    }

    pub fn count(&self, sort: Sort) -> usize {
        self.tests.iter().filter(|t| t.sort == sort && !t.rules.is_empty()).count()
    }

    fn case(&mut self, sort: Sort, name: &str, listed: &[&str]) {
        let mut rules = BTreeSet::new();
        for text in listed {
            match Id::parse(text).filter(|id| exists(*id)) {
                Some(id) => drop(rules.insert(id)),
                None => self.faults.push(format!("case {name}: {text} is no rule")),
            }
        }
        let first = name.split('_').next().and_then(Id::parse);
        if first.is_none_or(|id| !rules.contains(&id) || !name.starts_with(&id.in_names())) {
            self.faults.push(format!("case {name}: begins with none of its rules {listed:?}"));
        }
        self.tests.push(Test { sort, name: name.to_owned(), rules });
    }

    /// Takes the test functions of a source file.
    pub fn functions(&mut self, text: &str) {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") {
                is_test = true;
            } else if let Some(name) = in_a_catalogue(line) {
                self.named(Sort::Function, name);
            } else if line.starts_with("#[ignore") {
                is_test = false;
            } else if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("pub fn "))
                && std::mem::take(&mut is_test)
            {
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                self.named(Sort::Function, &name);
            }
        }
    }

    fn attempts(&mut self, text: &str) {
        for literal in text.split('"').skip(1).step_by(2) {
            let plain = literal.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            let first = literal.split('_').next().filter(|word| word.len() == 3).and_then(Id::parse);
            let known = |t: &Test| t.name == literal;
            if plain && literal.len() > 4 && first.is_some_and(exists) && !self.tests.iter().any(known) {
                self.named(Sort::Attempt, literal);
            }
        }
    }

    fn named(&mut self, sort: Sort, name: &str) {
        let mut rules = BTreeSet::new();
        for (at, word) in name.split('_').enumerate() {
            let Some(id) = Id::parse(word) else { continue };
            if word.len() == 3 && exists(id) {
                rules.insert(id);
            } else if at == 0 {
                self.faults.push(format!("{name}: {word} is no rule in two digits"));
            }
        }
        if !rules.is_empty() {
            self.tests.push(Test { sort, name: name.to_owned(), rules });
        }
    }
}

/// An entry of a macro that makes a test function of each, as in `tests/escapes/`: `s14_magic_link: |at| …`.
fn in_a_catalogue(line: &str) -> Option<&str> {
    let (name, rest) = line.split_once(": |")?;
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    (plain && name.contains('_') && rest.contains("| ")).then_some(name)
}

fn exists(id: Id) -> bool {
    let last = if id.letter == RULING {
        crate::rulings::rulings().len() as u8
    } else {
        SECTIONS.iter().find(|s| s.letter == id.letter).map_or(0, |s| s.rules)
    };
    (1..=last).contains(&id.number)
}

/// Every `.rs` file below `dir`, sorted.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("list {}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
    out.sort();
    out
}

//! Guards the map of `ARCHITECTURE.md`: who may use whom, where `unsafe` may stand, how long a file may be.
//!
//! It reads the sources as text. A module may use modules of lower levels; inside a level there are no edges. What
//! stands in `EXCEPTIONS` is allowed with the reason written there, and fails once nobody needs it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules by level, lowest first. The number before the dot is the level of the map, the one after it an order inside
/// level 0: `error` is below everything, because everything fails with it.
const LEVELS: &[(&str, &[&str])] = &[
    ("0.0", &["error"]),
    ("0.1", &["policy", "cancel", "sys", "fail", "trace"]),
    ("0.2", &["digest"]),
    ("1", &["tar", "root", "mount"]),
    ("2", &["stream", "apply", "merge"]),
    ("3", &["image", "store", "fixup"]),
    ("4", &["unpack"]),
    ("5", &["bench", "lint"]),
    ("6", &["cli"]),
];

/// Edges inside a level that are allowed: from, to, the only thing that may be used, why.
const EXCEPTIONS: &[(&str, &str, &str, &str)] = &[(
    "root",
    "tar",
    "Timestamp",
    "a time to set is the time an entry has; a second type would only be converted to and fro",
)];

/// Lines that a file may have besides its tests.
const MAX_LINES: usize = 600;

fn manifest_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.rs` file below `dir`, sorted.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("read {}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    out.sort();
    out
}

/// A source file without comments, string contents and test code.
struct Source {
    /// Relative to `src`.
    path: PathBuf,
    code: String,
    /// Lines of the file outside test items, comments included.
    lines: usize,
}

impl Source {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The module's place: `store/gc.rs` is `["store", "gc"]`, `store/mod.rs` is `["store"]`.
    fn place(&self) -> Vec<String> {
        let mut place: Vec<String> = self.path.iter().map(|c| c.to_string_lossy().into_owned()).collect();
        let file = place.pop().unwrap_or_default();
        let stem = file.trim_end_matches(".rs");
        if stem != "mod" {
            place.push(stem.to_string());
        }
        place
    }
}

/// The product's sources: no `tests.rs`, no `tests_*.rs`, nothing below a `tests` directory.
fn sources() -> Vec<Source> {
    let src = manifest_dir().join("src");
    let is_test = |path: &Path| path.iter().any(|c| c.to_string_lossy().trim_end_matches(".rs").starts_with("tests"));
    rust_files(&src)
        .into_iter()
        .map(|path| (path.strip_prefix(&src).unwrap().to_path_buf(), fs::read_to_string(&path).unwrap()))
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| {
            let (code, test_lines) = without_tests(&blanked(&text));
            Source { path, code, lines: text.lines().count() - test_lines }
        })
        .collect()
}

/// Replaces comments and the contents of string and character literals by spaces; line ends stay.
fn blanked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let blank = |out: &mut String, from: usize, to: usize| {
        out.extend(chars[from..to.min(chars.len())].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
    };
    let mut i = 0;
    while i < chars.len() {
        let start = i;
        let word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            '"' => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            'r' if !word_before || at(i.wrapping_sub(1)) == 'b' => {
                let hashes = chars[i + 1..].iter().take_while(|&&c| c == '#').count();
                if at(i + 1 + hashes) != '"' {
                    out.push('r');
                    i += 1;
                    continue;
                }
                i += 2 + hashes;
                while i < chars.len() && !(at(i) == '"' && (1..=hashes).all(|n| at(i + n) == '#')) {
                    i += 1;
                }
                i += 1 + hashes;
            }
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            c => {
                out.push(c);
                i += 1;
                continue;
            }
        }
        blank(&mut out, start, i);
        i = i.min(chars.len());
    }
    out
}

/// Cuts every item under `#[cfg(test)]` out of blanked code; also returns how many lines that were.
fn without_tests(code: &str) -> (String, usize) {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut rest, mut lines) = (String::new(), code, 0);
    while let Some(start) = rest.find(MARK) {
        out.push_str(&rest[..start]);
        let item = &rest[start..];
        let mut depth = 0usize;
        let mut end = item.len();
        for (i, c) in item.char_indices().skip(MARK.len()) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(c, ';' | '}') {
                end = i + 1;
                break;
            }
        }
        lines += item[..end].lines().count();
        rest = &item[end..];
    }
    out.push_str(rest);
    (out, lines)
}

/// A piece of code that counts: a word, or one other character.
fn tokens(code: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = Vec::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let end = if is_word(c) { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) } else { c.len_utf8() };
        let (token, tail) = rest.split_at(end);
        if !c.is_whitespace() {
            out.push(token);
        }
        rest = tail;
    }
    out
}

/// Top-level modules that the code of a module at `place` names, and by which words the name goes on.
fn uses(code: &str, place: &[String]) -> BTreeSet<(String, String)> {
    let tokens = tokens(code);
    let at = |i: usize| tokens.get(i).copied().unwrap_or("");
    let colons = |i: usize| at(i) == ":" && at(i + 1) == ":";
    let mut out = BTreeSet::new();
    for i in 0..tokens.len() {
        let mut next = match at(i) {
            "crate" if colons(i + 1) => i + 3,
            "super" if colons(i + 1) && at(i.wrapping_sub(1)) != ":" => {
                let (mut j, mut ups) = (i + 3, 1);
                while at(j) == "super" && colons(j + 1) {
                    (j, ups) = (j + 3, ups + 1);
                }
                if ups < place.len() {
                    continue;
                }
                j
            }
            _ => continue,
        };
        if at(next) != "{" {
            out.insert((at(next).to_string(), at(next + 3).to_string()));
            continue;
        }
        // `use crate::{a, b::{c, d}};`: the first word of each element at depth 1.
        let (mut depth, mut first) = (0, true);
        loop {
            match at(next) {
                "{" => depth += 1,
                "}" => depth -= 1,
                "," if depth == 1 => first = true,
                word if depth == 1 && first => {
                    out.insert((word.to_string(), at(next + 3).to_string()));
                    first = false;
                }
                _ => {}
            }
            next += 1;
            if depth == 0 || next >= tokens.len() {
                break;
            }
        }
    }
    out
}

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|(_, modules)| modules.contains(&module))
}

#[test]
fn a_module_uses_lower_levels_only() {
    let mut wrong = Vec::new();
    let mut needed = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for source in sources() {
        let place = source.place();
        let module = place.first().cloned().unwrap_or_default();
        if matches!(&module[..], "lib" | "main") {
            continue;
        }
        let Some(own) = level(&module) else {
            wrong.push(format!("{}: \"{module}\" has no level in this test", source.name()));
            continue;
        };
        seen.insert(module.clone());
        for (used, word) in uses(&source.code, &place) {
            if used == module || used == "super" {
                continue;
            }
            match level(&used) {
                Some(other) if other < own => {}
                Some(_) if EXCEPTIONS.iter().any(|e| (e.0, e.1, e.2) == (&module, &used, &word)) => {
                    needed.insert((module.clone(), used, word));
                }
                Some(other) => wrong.push(format!(
                    "{}: {module} (level {}) uses {used}::{word} (level {})",
                    source.name(),
                    LEVELS[own].0,
                    LEVELS[other].0
                )),
                None => wrong.push(format!("{}: uses crate::{used}, which has no level", source.name())),
            }
        }
    }
    assert!(seen.len() > 10, "only {seen:?} were read");
    for (from, to, word, _) in EXCEPTIONS {
        let key = ((*from).to_string(), (*to).to_string(), (*word).to_string());
        if !needed.contains(&key) {
            wrong.push(format!("the exception {from} → {to}::{word} is not needed any more"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_in_sys_only() {
    let wrong: Vec<String> = sources()
        .iter()
        .filter(|s| s.place().first().is_none_or(|m| m != "sys") && tokens(&s.code).contains(&"unsafe"))
        .map(Source::name)
        .collect();
    assert!(wrong.is_empty(), "unsafe code in {wrong:?}");
}

#[test]
fn no_unwrap_and_no_expect_outside_tests() {
    let mut wrong = BTreeMap::new();
    for source in sources() {
        let tokens = tokens(&source.code);
        let count = tokens
            .windows(3)
            .filter(|w| w[0] == "." && w[2] == "(" && matches!(w[1], "unwrap" | "expect" | "unwrap_err" | "expect_err"))
            .count();
        if count > 0 {
            wrong.insert(source.name(), count);
        }
    }
    assert!(wrong.is_empty(), "calls that may panic: {wrong:#?}");
}

#[test]
fn files_stay_short() {
    let long: BTreeMap<String, usize> =
        sources().iter().filter(|s| s.lines > MAX_LINES).map(|s| (s.name(), s.lines)).collect();
    assert!(long.is_empty(), "more than {MAX_LINES} lines besides tests: {long:#?}");
}

#[test]
fn the_reference_model_knows_nothing_of_the_product() {
    let testkit = manifest_dir().join("crates/testkit");
    let manifest = fs::read_to_string(testkit.join("Cargo.toml")).unwrap();
    let names_us = |line: &&str| {
        let line = line.split('#').next().unwrap_or_default();
        line.contains("unply") || line.contains("path =") || line.contains("path=")
    };
    let bad: Vec<&str> = manifest.lines().filter(names_us).collect();
    assert!(bad.is_empty(), "testkit's manifest depends on something of ours: {bad:?}");
    // Its examples may start the product as a program, as anybody may.
    let files = rust_files(&testkit.join("src"));
    assert!(files.len() > 10, "only {files:?} were read");
    for file in files {
        let code = blanked(&fs::read_to_string(&file).unwrap());
        assert!(!tokens(&code).contains(&"unply"), "{} names the product", file.display());
    }
}

/// The checks above are only as good as the reader of sources below them.
mod the_reader {
    use super::*;

    fn place(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_string()).collect()
    }

    #[test]
    fn sees_every_form_of_a_use() {
        let code = "use crate::{a::{x, y}, b, error::Error as E};\n pub(in crate::c) fn f() -> crate::d::T {}\n\
                    use super::super::e::Z; use super::near::N;";
        let found: BTreeSet<String> = uses(code, &place(&["m", "n"])).into_iter().map(|(m, _)| m).collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "c", "d", "e", "error"]);
        let found = uses("use super::tar::Timestamp;", &place(&["root"]));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("tar".to_string(), "Timestamp".to_string())]);
    }

    #[test]
    fn is_not_fooled_by_text() {
        let code = blanked(
            "// unsafe\n/* a /* unsafe */ */ let a = \"unsafe \\\" unsafe\"; let b = r#\"un\"safe unsafe\"#; \
             let c = b\"unsafe\"; let d = '\"'; fn e<'a>(x: &'a str) {} let f = '\\''; done",
        );
        assert!(!tokens(&code).contains(&"unsafe"), "{code}");
        assert!(tokens(&code).contains(&"done"), "{code}");
        assert!(tokens(&blanked("let unsafe_code = 1; unsafe { f() }")).contains(&"unsafe"));
    }

    #[test]
    fn leaves_tests_out_and_nothing_else() {
        let code = "a();\n#[cfg(test)]\nmod tests {\n fn b() { c(); }\n}\nd();\n#[cfg(test)]\nmod more;\ne();";
        let (left, lines) = without_tests(code);
        assert_eq!(tokens(&left).join(""), "a();d();e();");
        assert_eq!(lines, 6);
    }
}

//! The rule book as data: what unply does about each rule, and what is known of four other tools.

use std::fmt;

/// The tools that unply is compared with, in the order of the page's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    Containerd,
    Docker,
    Podman,
    Umoci,
}
pub use Tool::*;

/// Every tool.
pub const ALL: &[Tool] = &[Containerd, Docker, Podman, Umoci];
/// Those that unpack layer by layer for overlayfs; umoci flattens.
pub const LAYERED: &[Tool] = &[Containerd, Docker, Podman];

impl Tool {
    /// Its name and the version that was measured.
    pub fn name(self) -> (&'static str, &'static str) {
        match self {
            Containerd => ("containerd", "1.6.20"),
            Docker => ("Docker", "20.10.24"),
            Podman => ("podman", "4.3.1"),
            Umoci => ("umoci", "0.4.7"),
        }
    }
}

/// How something is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Seen when the version named above ran.
    Measured,
    /// Read in the tool's source, tests, change log or issue tracker; possibly of another version.
    Source,
}
pub use Evidence::*;

/// What another tool does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theirs {
    /// Nothing is recorded.
    Unknown,
    /// The result is unply's.
    Same(Evidence),
    /// The result is another one.
    Differs(Evidence, &'static str),
    /// Something that is neither, such as a result that depends on the version.
    Says(Evidence, &'static str),
}

/// A rule's name, such as `W4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub letter: char,
    pub number: u8,
}

impl Id {
    /// Parses `W4`, `w04` or `R-24`.
    pub fn parse(text: &str) -> Option<Id> {
        let mut chars = text.chars();
        let letter = chars.next()?.to_ascii_uppercase();
        let digits = chars.as_str().strip_prefix('-').unwrap_or(chars.as_str());
        let known = letter == RULING || SECTIONS.iter().any(|s| s.letter == letter);
        let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        (known && plain).then(|| Id { letter, number: digits.parse().unwrap() })
    }

    /// As it begins the name of a test: `w04`.
    pub fn in_names(self) -> String {
        format!("{}{:02}", self.letter.to_ascii_lowercase(), self.number)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dash = if self.letter == RULING { "-" } else { "" };
        write!(f, "{}{dash}{}", self.letter, self.number)
    }
}

/// The letter of rulings.
pub const RULING: char = 'R';

/// A section of the rule book.
pub struct Section {
    pub letter: char,
    pub title: &'static str,
    /// How many rules the rule book has under this letter.
    pub rules: u8,
}

/// The sections, in the order of the page.
pub const SECTIONS: &[Section] = &[
    Section { letter: 'W', title: "Whiteouts and opaque directories", rules: 24 },
    Section { letter: 'O', title: "What overlayfs makes of a layer", rules: 10 },
    Section { letter: 'L', title: "Hard links", rules: 14 },
    Section { letter: 'S', title: "Symlinks and names", rules: 14 },
    Section { letter: 'D', title: "Directories, the root, duplicates", rules: 11 },
    Section { letter: 'M', title: "Metadata", rules: 22 },
    Section { letter: 'T', title: "Tar syntax", rules: 32 },
    Section { letter: 'Z', title: "Compression and digests", rules: 17 },
    Section { letter: 'I', title: "Images, indexes, archives", rules: 19 },
    Section { letter: 'N', title: "Mounts", rules: 17 },
    Section { letter: 'P', title: "The store and its snapshots", rules: 16 },
    Section { letter: 'B', title: "Limits", rules: 11 },
    Section { letter: 'X', title: "What follows from several rules", rules: 13 },
];

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    pub id: Id,
    /// What unply does, in one sentence.
    pub says: &'static str,
    /// Rulings that decide it.
    pub rulings: Vec<u8>,
    /// What each of [`ALL`] does.
    pub theirs: [Theirs; 4],
    /// Why there is no test, for a rule that has none.
    pub untested: Option<&'static str>,
}

/// Begins the description of a rule.
pub fn rule(id: &str, says: &'static str) -> Rule {
    let id = Id::parse(id).unwrap_or_else(|| panic!("{id} is no rule"));
    Rule { id, says, rulings: Vec::new(), theirs: [Theirs::Unknown; 4], untested: None }
}

impl Rule {
    /// Names a ruling that decides it.
    pub fn ruled(mut self, number: u8) -> Rule {
        self.rulings.push(number);
        self
    }

    fn set(mut self, tools: &[Tool], theirs: Theirs) -> Rule {
        for tool in tools {
            let slot = &mut self.theirs[*tool as usize];
            assert_eq!(*slot, Theirs::Unknown, "{}: {} is described twice", self.id, tool.name().0);
            *slot = theirs;
        }
        self
    }

    /// These tools do as unply does.
    pub fn same(self, evidence: Evidence, tools: &[Tool]) -> Rule {
        self.set(tools, Theirs::Same(evidence))
    }

    /// These tools do something else.
    pub fn differ(self, evidence: Evidence, tools: &[Tool], what: &'static str) -> Rule {
        self.set(tools, Theirs::Differs(evidence, what))
    }

    /// Something about these tools that is neither.
    pub fn says(self, evidence: Evidence, tools: &[Tool], what: &'static str) -> Rule {
        self.set(tools, Theirs::Says(evidence, what))
    }

    /// There is no test, for this reason.
    pub fn untested(mut self, why: &'static str) -> Rule {
        self.untested = Some(why);
        self
    }
}

/// A decision where specification, tools or both leave room.
pub struct Ruling {
    pub number: u8,
    pub question: &'static str,
    /// What unply does.
    pub says: &'static str,
    /// The option that chooses otherwise.
    pub option: Option<&'static str>,
    /// From whom it deviates: texts and tools.
    pub against: Option<&'static str>,
}

/// Every rule, section by section.
pub fn rules() -> Vec<Rule> {
    use crate::rules::*;
    [
        whiteouts::whiteouts(),
        whiteouts::overlay(),
        paths::links(),
        paths::symlinks(),
        paths::directories(),
        metadata::metadata(),
        tar::syntax(),
        images::compression(),
        images::images(),
        mounts::mounts(),
        store::store(),
        mounts::limits(),
        mounts::further(),
    ]
    .concat()
}

/// Lists what is wrong with the catalogue itself.
pub fn faults() -> Vec<String> {
    let mut out = Vec::new();
    let expected: Vec<Id> =
        SECTIONS.iter().flat_map(|s| (1..=s.rules).map(|number| Id { letter: s.letter, number })).collect();
    let rules = rules();
    let found: Vec<Id> = rules.iter().map(|r| r.id).collect();
    if expected != found {
        let missing: Vec<String> = expected.iter().filter(|e| !found.contains(e)).map(Id::to_string).collect();
        out.push(format!("the catalogue lacks {missing:?}, or its order is not that of the rule book"));
    }
    let rulings = crate::rulings::rulings();
    if !rulings.iter().map(|r| r.number).eq(1..=32) {
        out.push("the rulings are not R-1 to R-32 in order".into());
    }
    // Cells that wrap make a table that nobody reads.
    let mut short = |id: String, text: &str, most: usize| {
        if text.chars().count() > most || text.contains(['|', '\n']) {
            out.push(format!("{id}: over {most} characters, or with a bar or line break: {text}"));
        }
    };
    for rule in &rules {
        short(rule.id.to_string(), rule.says, 170);
        for theirs in rule.theirs {
            if let Theirs::Differs(_, what) | Theirs::Says(_, what) = theirs {
                short(rule.id.to_string(), what, 44);
            }
        }
        for number in &rule.rulings {
            assert!(rulings.iter().any(|r| r.number == *number), "{}: R-{number} is no ruling", rule.id);
        }
    }
    for ruling in &rulings {
        short(format!("R-{}", ruling.number), ruling.says, 200);
    }
    out
}

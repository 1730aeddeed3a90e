//! Holds what a tool showed against the prediction and against the rules.
//!
//! An image is explained when (1) the tool showed exactly the predicted tree, or refused with the predicted words, and
//! (2) each difference from the rules' tree has a noted rule that can cause a difference of its kind at its place.

use crate::disk::{NOW, at_or_below};
use crate::imitate::{DUPLICATES, Imitation, Note, rule_of};
use crate::tools::Shown;
use std::time::{SystemTime, UNIX_EPOCH};
use testkit::model::Refusal;
use testkit::tree::Difference;
use testkit::{Tree, compare};

/// How far a departure from a rule is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Only at the noted path.
    Here,
    /// At the noted path and below.
    Below,
    /// At any path: other names of an inode, places that symlinks lead to.
    Image,
}

/// What a departure from a rule can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sees {
    /// Modification times.
    Times,
    /// Mode, owner, times, xattrs.
    Metadata,
    /// Xattrs.
    Xattrs,
    /// Names that are there or not.
    Names,
    /// Everything.
    Anything,
}

/// A rule of the rule book, how far it reaches, and what tools do that depart from it.
pub struct Rule {
    pub id: &'static str,
    reach: Reach,
    sees: Sees,
    pub says: &'static str,
}

const fn rule(id: &'static str, reach: Reach, sees: Sees, says: &'static str) -> Rule {
    Rule { id, reach, sees, says }
}

use Reach::{Below, Here, Image};
use Sees::{Anything, Metadata, Names, Times, Xattrs};

/// Every departure that an imitation may note or refuse for.
pub const RULES: &[Rule] = &[
    rule("W1", Below, Anything, "a whiteout hides the lower name"),
    rule("W2", Below, Anything, "a whiteout after an entry of its own layer: the entry stays"),
    rule("W4", Below, Anything, "a whiteout, then a directory: the lower content must not reappear"),
    rule("W5", Below, Anything, "a whiteout, then a name below it: a new directory"),
    rule("W6", Below, Anything, "a whiteout below a whiteout hides nothing more"),
    rule("W8", Below, Anything, "an opaque root hides all lower layers"),
    rule("W9", Below, Names, "a whiteout in an opaque directory leaves no name"),
    rule("W10", Here, Names, "a whiteout of nothing leaves no name and makes no directory"),
    rule("W11", Below, Anything, "`.wh.`, `.wh..` and `.wh...` are refused"),
    rule("W13", Below, Anything, "AUFS names never appear"),
    rule("W15", Below, Anything, "nothing stands below a whiteout's name"),
    rule("W17", Below, Anything, "a whiteout acts through a lower symlink"),
    rule("W19", Below, Anything, "a whiteout under a lower file hides nothing"),
    rule("W21", Below, Anything, "a character device 0:0 is no whiteout and is not made"),
    rule("O1", Below, Anything, "`trusted.overlay.*` never reaches the disk"),
    rule("O4", Below, Anything, "an opaque marker over this layer's own file makes a directory"),
    rule("L2", Below, Anything, "a hard link to a file of a lower layer works"),
    rule("L6", Below, Anything, "forward references and links of a name to itself work"),
    rule("L9", Image, Metadata, "a link header's metadata is the inode's, but not a symlink's"),
    rule("L11", Below, Anything, "a hard link to a directory is refused"),
    rule("L13", Below, Anything, "a hidden file is no link target"),
    rule("S1", Below, Anything, "symlink targets of 1 to 4,095 bytes"),
    rule("S4", Below, Anything, "what a dangling symlink leads to is made inside the root"),
    rule("S5", Here, Times, "a directory's deferred time never goes through a symlink to another node"),
    rule("S6", Below, Anything, "an entry acts through a lower symlink"),
    rule("S8", Below, Anything, "`..` is clamped at the root (`--strict` refuses)"),
    rule("S10", Below, Anything, "a name below a file makes the file a directory"),
    rule("S11", Below, Anything, "components of up to 255 bytes, paths of any length"),
    rule("S12", Below, Anything, "40 symlinks in one walk, no more"),
    rule("D1", Here, Metadata, "a directory without entry keeps the lower metadata, a new one has its entry's time"),
    rule("D9", Here, Metadata, "a setgid directory gives nothing to what is made in it"),
    rule("D3", Here, Metadata, "the root is 0755 0:0, whatever a root entry says"),
    rule("D4", Here, Anything, "the root is a directory"),
    rule("D5", Here, Xattrs, "a directory entry replaces all xattrs of the directory"),
    rule("D6", Below, Anything, "of duplicates the last one wins"),
    rule("D11", Below, Anything, "a default ACL gives nothing to what is made below it"),
    rule("X3", Here, Metadata, "what a layer hid gives no metadata to a directory above"),
    rule("M5", Image, Metadata, "owners from 2^32-1 on are refused"),
    rule("M6", Here, Anything, "device numbers that do not fit are refused"),
    rule("M9", Here, Times, "times before 1970 are kept"),
    rule("M12", Image, Xattrs, "an xattr may have an empty value"),
    rule("M15", Here, Xattrs, "`security.selinux` is dropped"),
    rule("M16", Here, Xattrs, "a capability for a namespace of another machine is dropped"),
    rule("M21", Here, Anything, "an xattr too large for Linux is refused"),
    rule("M18", Here, Xattrs, "`user.*` on a symlink or device is dropped"),
    rule("R-21", Here, Anything, "an image without layers is an empty root"),
    rule("R-24", Below, Anything, "whiteouts act on lower layers first, wherever they stand"),
];

/// Departures that leave other names than the rules do, on which later layers then act.
const TRAVELS: &[&str] = &["W2", "W4", "W8", "W13", "W17", "W21", "O4", "L13", "S6", "D6", "R-24"];

/// Finds a rule.
///
/// # Panics
/// When an imitation notes a rule that the table does not have.
pub fn rule_named(id: &str) -> &'static Rule {
    RULES.iter().find(|rule| rule.id == id).unwrap_or_else(|| panic!("the table of rules lacks {id}"))
}

/// One thing that a tool did otherwise, and the rule that says so.
#[derive(Debug, Clone)]
pub struct Departure {
    pub rule: &'static str,
    pub how: How,
    /// One line, for people.
    pub text: String,
}

/// What was seen of a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The tree differs where the rule says.
    Differs,
    /// The tree differs elsewhere, in consequence.
    Follows,
    /// The tool refuses what the rules take.
    Refuses,
    /// The tool takes what the rules refuse.
    Takes,
}

/// What was found out about one image.
#[derive(Debug, Default)]
pub struct Finding {
    pub departures: Vec<Departure>,
    pub unexplained: Vec<String>,
}

/// Sets every time from the start of the run on to [`NOW`].
pub fn normal(mut tree: Tree, start: SystemTime) -> Tree {
    let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let (from, to) = (seconds(start) - 1, seconds(SystemTime::now()) + 1);
    for node in tree.0.values_mut().filter(|node| (from..=to).contains(&node.mtime.0)) {
        node.mtime = NOW;
    }
    tree
}

/// Judges what a tool showed.
pub fn judge(rules: &Result<Tree, Refusal>, predicted: &Imitation, shown: &Shown) -> Finding {
    let unpredicted = &predicted.blind;
    let mut finding = Finding::default();
    let blind = |d: &Difference| unpredicted.iter().find(|note| at_or_below(&d.path, &note.path)).map(|note| note.rule);
    match (&predicted.outcome, shown) {
        (Ok(predicted), Ok(shown)) => {
            let differences = compare(predicted, shown).into_iter().filter(|d| blind(d).is_none()).collect::<Vec<_>>();
            let line = |d: &Difference| format!("not as predicted: {d}");
            finding.unexplained.extend(differences.iter().take(12).map(line));
        }
        (Err(refused), Err(words))
            if words.contains(refused.says) || refused.duplicates && words.contains(DUPLICATES) => {}
        (Err(refused), Err(words)) => {
            finding.unexplained.push(format!("refused by {} with other words: {words}", refused.rule));
        }
        (Ok(_), Err(words)) => finding.unexplained.push(format!("refused, which was not predicted: {words}")),
        (Err(refused), Ok(_)) => {
            finding.unexplained.push(format!("taken, though a refusal was predicted: {refused:?}"))
        }
    }
    if !finding.unexplained.is_empty() {
        return finding;
    }
    match (rules, shown, &predicted.outcome) {
        (Ok(rules), Ok(shown), _) => {
            for difference in compare(rules, shown) {
                let blind = blind(&difference).map(|rule| (rule, How::Differs));
                match blind.or_else(|| cause(&difference, &predicted.notes)) {
                    Some((rule, how)) => {
                        let now = format!("{}.{:09}", NOW.0, NOW.1);
                        let text = difference.to_string().replace(&now, "the time of the run");
                        let text = text.replace("expected", "rules").replace("found", "tool");
                        finding.departures.push(Departure { rule, how, text });
                    }
                    None => finding.unexplained.push(format!("no rule explains: {difference}")),
                }
            }
        }
        (Ok(_), Err(words), Err(refused)) => {
            let words = if words.contains(refused.says) { refused.says } else { DUPLICATES };
            let path = &refused.path[..refused.path.len().min(60)];
            let text = format!("/{}: refused: {words}", testkit::tree::text(path));
            finding.departures.push(Departure { rule: refused.rule, how: How::Refuses, text });
        }
        (Err(refusal), Ok(_), _) => {
            let text = format!("taken; the rules refuse it: {refusal}");
            finding.departures.push(Departure { rule: rule_of(&refusal.reason), how: How::Takes, text });
        }
        _ => {}
    }
    finding
}

/// Finds the note that explains a difference: the nearest one above it, else one whose consequences it can be.
fn cause(difference: &Difference, notes: &[Note]) -> Option<(&'static str, How)> {
    let here = |note: &&Note| {
        let rule = rule_named(note.rule);
        let near = match rule.reach {
            Here => note.path == difference.path,
            Below => at_or_below(&difference.path, &note.path),
            Image => true,
        };
        near && can_cause(rule, difference)
    };
    // A note at the very path comes first; where there are several, one that changes more than metadata.
    let rank = |note: &&Note| (note.path == difference.path, rule_named(note.rule).reach == Below, note.path.len());
    if let Some(note) = notes.iter().filter(here).max_by_key(rank) {
        return Some((note.rule, How::Differs));
    }
    // Later layers build on what an earlier one left.
    notes.iter().find(|note| TRAVELS.contains(&note.rule)).map(|note| (note.rule, How::Follows))
}

fn can_cause(rule: &Rule, difference: &Difference) -> bool {
    let field = &difference.field[..];
    match rule.sees {
        Anything => true,
        Names => field == "presence",
        Times => field == "mtime",
        Xattrs => field.starts_with("xattr "),
        Metadata => matches!(field, "mode" | "owner" | "mtime") || field.starts_with("xattr "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imitate::Tool;
    use testkit::model::{Model, Options};
    use testkit::{EntrySpec, dir, file, whiteout};

    fn case() -> Vec<Vec<EntrySpec>> {
        vec![vec![dir("d/"), file("d/old", "")], vec![whiteout("", "d"), dir("d/"), file("d/new", "")]]
    }

    fn rules(layers: &[Vec<EntrySpec>]) -> Result<Tree, Refusal> {
        Model::of_image(Options::default(), layers).map(|model| model.tree())
    }

    #[test]
    fn the_predicted_departure_is_explained_by_its_rule() {
        let predicted = Tool::Containerd.imitate(&case());
        let finding = judge(&rules(&case()), &predicted, &predicted.outcome.clone().map_err(|_| String::new()));
        assert!(finding.unexplained.is_empty(), "{:?}", finding.unexplained);
        assert!(finding.departures.iter().any(|d| d.rule == "W4" && d.text.contains("/d/old")), "{finding:?}");
    }

    #[test]
    fn a_tree_that_was_not_predicted_is_unexplained_even_where_it_is_right() {
        let predicted = Tool::Containerd.imitate(&case());
        let right = rules(&case()).map_err(|_| String::new());
        assert!(!judge(&rules(&case()), &predicted, &right).unexplained.is_empty());
    }

    #[test]
    fn a_predicted_difference_without_a_rule_is_unexplained() {
        let mut predicted = Tool::Containerd.imitate(&case());
        predicted.notes.retain(|note| note.rule != "W4");
        let shown = predicted.outcome.clone().map_err(|_| String::new());
        assert!(!judge(&rules(&case()), &predicted, &shown).unexplained.is_empty());
    }

    #[test]
    fn a_rule_about_metadata_explains_no_name() {
        let mut predicted = Tool::Containerd.imitate(&case());
        predicted.notes.iter_mut().filter(|note| note.rule == "W4").for_each(|note| note.rule = "D1");
        let shown = predicted.outcome.clone().map_err(|_| String::new());
        assert!(!judge(&rules(&case()), &predicted, &shown).unexplained.is_empty());
    }

    #[test]
    fn a_refusal_in_other_words_is_unexplained() {
        let layers = vec![vec![file("a", "old")], vec![file("a", "new"), whiteout("", "a")]];
        let predicted = Tool::Podman.imitate(&layers);
        let says = |words: &str| judge(&rules(&layers), &predicted, &Err(words.into())).unexplained.len();
        assert_eq!((says("processing tar file(file exists)"), says("no space left on device")), (0, 1));
    }

    #[test]
    fn every_noted_rule_is_in_the_table() {
        for seed in 0..150 {
            for tool in Tool::ALL {
                let imitation = tool.imitate(&testkit::random::random_image(seed));
                imitation.notes.iter().for_each(|note| assert!(!rule_named(note.rule).says.is_empty()));
                imitation
                    .outcome
                    .err()
                    .into_iter()
                    .for_each(|refused| assert!(!rule_named(refused.rule).says.is_empty()));
            }
        }
    }
}

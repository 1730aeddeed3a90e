//! Every case of testkit, every way: what came out, and what was wrong.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use testkit::cases::{self, Case, Expect};
use testkit::{EntryKind, EntrySpec};

use crate::common::{Lab, check_image};

/// A run over the cases.
pub struct Run {
    /// By name: whether the image was refused, as it must be.
    outcomes: BTreeMap<&'static str, bool>,
    /// Everything that was not as it must be.
    pub wrong: Vec<String>,
    /// How many of all images a user namespace of one id can hold.
    pub fit_one_id: usize,
    /// How many one of 65,536 ids can hold.
    pub fit_many_ids: usize,
}

impl Run {
    /// Returns the run of this process; the first caller makes it. `UNPLY_CASE` picks cases by a part of their name.
    pub fn get() -> &'static Run {
        static RUN: OnceLock<Run> = OnceLock::new();
        RUN.get_or_init(|| {
            let mut lab = Lab::new();
            let only = std::env::var("UNPLY_CASE").ok();
            let mut run = Run { outcomes: BTreeMap::new(), wrong: Vec::new(), fit_one_id: 0, fit_many_ids: 0 };
            for case in cases::all() {
                let asked = only.as_ref().is_none_or(|o| case.name.contains(o.as_str()));
                if asked && lab.can_hold_with(&case.layers, case.options) {
                    run.case(&lab, &case);
                }
            }
            lab.in_user_namespace = true;
            let fit = |lab: &Lab| cases::all().iter().filter(|c| lab.can_hold_with(&c.layers, c.options)).count();
            (run.fit_many_ids, lab.one_id) = (fit(&lab), true);
            run.fit_one_id = fit(&lab);
            run
        })
    }

    /// Whether cases were left out on request.
    pub fn is_partial() -> bool {
        std::env::var_os("UNPLY_CASE").is_some()
    }

    fn case(&mut self, lab: &Lab, case: &Case) {
        let results = lab.every_way(&case.layers, case.options);
        // Where devices cannot be made, the model says what is left of an image that has some.
        let device = |e: &EntrySpec| matches!(e.kind, EntryKind::Char(..) | EntryKind::Block(..));
        let adapted = lab.in_user_namespace && case.layers.iter().flatten().any(device);
        match (&case.expect, &results) {
            (Expect::Refused, Ok(_)) => self.wrong.push(format!("{}: accepted, must be refused", case.name)),
            (Expect::Refused, Err(_)) => {}
            _ if adapted => {}
            (Expect::Tree(_), Err(e)) => self.wrong.push(format!("{}: refused: {e}", case.name)),
            (Expect::Tree(_), Ok(trees)) => {
                // One id cannot show the owners that an expectation names, and `user.overlay.*` are marks only in a user
                // namespace; the model's tree is adapted below.
                let xattrs = case.layers.iter().flatten().flat_map(|e| &e.xattrs);
                let marks = { xattrs }.any(|(name, _)| name.starts_with(b"user.overlay."));
                if !lab.one_id && (!marks || case.options.userxattr == lab.in_user_namespace) {
                    for (way, tree) in trees {
                        let mismatches = case.mismatches(tree).into_iter();
                        self.wrong.extend(mismatches.map(|m| format!("{} {way}: {m}", case.name)));
                    }
                }
            }
        }
        self.wrong.extend(check_image(lab, case.name, &case.layers, case.options, &results));
        self.outcomes.insert(case.name, results.is_err());
    }

    pub fn images(&self) -> usize {
        self.outcomes.len()
    }

    pub fn refused(&self) -> usize {
        self.outcomes.values().filter(|refused| **refused).count()
    }

    pub fn is_refused(&self, name: &str) -> bool {
        self.outcomes.get(name).copied().unwrap_or(false)
    }
}

//! The escape catalogue: whatever an archive or an image says, nothing outside the target changes; the result is the
//! model's tree or a typed refusal. Flat, mounted read-only and read-write, with both resolvers, in user namespaces.
//!
//! Tests are named after the rule, the CVE or the issue that they guard; `docs/threat-model.md` lists those that have none.

#[path = "../common/mod.rs"]
mod common;

mod catalogue;
mod devices;
mod images;
mod raw;

use std::path::{Path, PathBuf};

use common::*;
use testkit::model::{Model, Options as ModelOptions};
use testkit::{DescribeOptions, EntrySpec, Tree, compare, describe};
use unply::error::ErrorKind;
use unply::root::Resolver;

/// Things beside the target that hostile images reach for.
pub struct Canary(PathBuf);

impl Canary {
    /// Makes them.
    pub fn plant(at: &Path) -> Canary {
        std::fs::create_dir_all(at.join("VICTIM/sub")).unwrap();
        for name in ["VICTIM/file", "VICTIM/sub/deep", "passwd"] {
            std::fs::write(at.join(name), name).unwrap();
        }
        Canary(at.to_path_buf())
    }

    /// Describes them.
    pub fn look(&self) -> Tree {
        describe(&self.0, &DescribeOptions::default()).unwrap().without_root_meta()
    }
}

/// Where the canary is, as an image would spell it.
pub struct At {
    /// Its absolute path.
    pub victim: String,
    /// The same, climbing out of wherever the target is.
    pub climb: String,
}

impl At {
    /// Returns the absolute path of something in it.
    pub fn v(&self, rest: &str) -> String {
        format!("{}{rest}", self.victim)
    }
}

/// Layers as tars, bottom first, and as entries where the model can say what they give.
pub type Attempt = (Vec<Vec<u8>>, Option<Vec<Vec<EntrySpec>>>);

/// Runs archives, one a layer, in every way; `spoken` is what they mean, or nothing where they must be refused.
pub fn escape(name: &str, make: &dyn Fn(&At) -> Attempt) {
    if !root_or_skip(name) {
        return;
    }
    let mut lab = Lab::new();
    let outside = lab.path().join("outside");
    let canary = Canary::plant(&outside);
    let victim = outside.join("VICTIM").to_str().unwrap().to_owned();
    let at = At { climb: format!("{}{}", "../".repeat(24), &victim[1..]), victim };
    let (tars, spoken) = make(&at);
    if spoken.as_ref().is_some_and(|layers| !lab.can_hold(layers)) {
        return;
    }
    let before = canary.look();
    let model = spoken.map(|layers| Model::of_image(lab.options(ModelOptions::default()), &layers));
    for resolver in [Resolver::Openat2, Resolver::Steps] {
        lab.resolver = Some(resolver);
        let result = lab.every_way_of_tars(&tars, ModelOptions::default());
        let escaped = compare(&before, &canary.look());
        assert!(escaped.is_empty(), "{name}, {resolver:?}: ESCAPED: {escaped:?}");
        match (&model, result) {
            (None | Some(Err(_)), Err(e)) => {
                assert!(
                    matches!(e.kind(), ErrorKind::Malformed | ErrorKind::Limit),
                    "{name}: refused in an odd way: {e}"
                );
            }
            (Some(Ok(model)), Ok(trees)) => {
                let expected = lab.comparable(model.tree());
                for (way, tree) in trees {
                    let differences = compare(&expected, &lab.comparable(tree));
                    assert!(differences.is_empty(), "{name}, {resolver:?}, {way}: {differences:?}");
                }
            }
            (Some(Ok(_)), Err(e)) => panic!("{name}, {resolver:?}: the model takes it, we say: {e}"),
            (None | Some(Err(_)), Ok(_)) => panic!("{name}, {resolver:?}: accepted, must be refused"),
        }
    }
}

/// One test a name, and the list of names for the runs in user namespaces.
macro_rules! cases {
    ($($name:ident: |$at:pat_param| $layers:expr;)*) => {
        $(#[test]
        fn $name() {
            crate::escape(stringify!($name), &|$at: &crate::At| {
                let layers: Vec<Vec<testkit::EntrySpec>> = $layers;
                (layers.iter().map(testkit::layer).collect(), Some(layers))
            });
        })*
        pub const NAMES: &[&str] = &[$(concat!(module_path!(), "::", stringify!($name))),*];
    };
}
pub(crate) use cases;

#[test]
fn the_catalogue_in_user_namespaces() {
    // A test's name does not begin with the crate's.
    let names: Vec<&str> = [catalogue::NAMES, devices::NAMES, raw::NAMES]
        .concat()
        .iter()
        .map(|name| name.split_once("::").map_or(*name, |(_, rest)| rest))
        .collect();
    in_user_namespace(&names);
}

/// The canary itself must notice a write.
#[test]
fn the_canary_notices() {
    let dir = tempfile::tempdir().unwrap();
    let canary = Canary::plant(dir.path());
    let before = canary.look();
    std::fs::write(dir.path().join("VICTIM/file"), "VICTIM/filf").unwrap();
    assert!(!compare(&before, &canary.look()).is_empty());
}

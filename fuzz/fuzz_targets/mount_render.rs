//! Rendered option strings, read back by the kernel's rules, are the plan they were rendered from.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use unply::mount::{EmptyDirs, MountPlan, Upper};
use unply::policy::XattrFlavour;

#[derive(Debug, Arbitrary)]
struct Input {
    lowers: Vec<Vec<u8>>,
    upper: Option<(Vec<u8>, Vec<u8>)>,
    user: bool,
    volatile: bool,
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec([b"/", bytes].concat()))
}

/// Splits at `separator` where no backslash stands before it; what was escaped stays so.
/// (<https://docs.kernel.org/filesystems/overlayfs.html>: colons and commas are escaped by a single backslash.)
fn split(text: &str, separator: char) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let last = out.last_mut().unwrap();
        if c == '\\' {
            last.push(c);
            last.extend(chars.next());
        } else if c == separator {
            out.push(String::new());
        } else {
            last.push(c);
        }
    }
    out
}

fn unescaped(text: &str) -> PathBuf {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out.into()
}

fn check(plan: &MountPlan, options: &[String]) {
    let value = |key: &str| {
        let mut found = options.iter().filter_map(|o| o.strip_prefix(key)?.strip_prefix('='));
        let first = found.next();
        assert!(found.next().is_none(), "{key} comes twice in {options:?}");
        first
    };
    let lowers: Vec<PathBuf> = split(value("lowerdir").unwrap(), ':').iter().map(|l| unescaped(l)).collect();
    assert_eq!(lowers, plan.lowers);
    assert_eq!(value("upperdir").map(unescaped), plan.upper.as_ref().map(|u| u.upper.clone()));
    assert_eq!(value("workdir").map(unescaped), plan.upper.as_ref().map(|u| u.work.clone()));
    let has = |word: &str| options.iter().any(|o| o == word);
    assert_eq!(has("ro"), plan.upper.is_none());
    assert_eq!(has("userxattr"), plan.flavour == XattrFlavour::User);
    assert_eq!(has("volatile"), plan.upper.is_some() && plan.volatile);
}

fuzz_target!(|input: Input| {
    let lowers = input.lowers.iter().map(|l| path(l)).collect();
    let flavour = if input.user { XattrFlavour::User } else { XattrFlavour::Trusted };
    let empty = EmptyDirs::within(Path::new("/empty/e"));
    let mut plan = match &input.upper {
        Some((upper, work)) => {
            MountPlan::writable(lowers, Upper { upper: path(upper), work: path(work) }, flavour, &empty)
        }
        None => MountPlan::view(lowers, flavour, &empty),
    };
    plan.volatile = input.volatile;
    let utf8 = plan.lowers.iter().all(|p| p.to_str().is_some());
    if let Ok(text) = plan.render_mount8() {
        assert!(text.len() < 4096 + 3 && utf8);
        check(&plan, &split(&text, ','));
    }
    if let Ok(mount) = plan.render_containerd() {
        assert_eq!((&mount.fs_type[..], utf8), ("overlay", true));
        // containerd joins with commas and hands the page to mount(2).
        check(&plan, &split(&mount.options.join(","), ','));
        assert!(mount.options.iter().all(|o| !o.as_bytes().contains(&0)));
    }
    let _ = plan.lowers.first().map(|p| p.as_os_str().as_bytes().len());
});

//! A plan as text: for `mount(2)` and `mount(8)`, and for containerd.
//!
//! Text is made once, at the edge, and never parsed back.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{MAX_LOWERS, MountPlan, backend::options};
use crate::error::{Error, ErrorKind, escape};
use crate::sys;

/// A mount as containerd's API carries it
/// (<https://github.com/containerd/containerd/blob/main/api/types/mount.proto>).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerdMount {
    /// File system type: `overlay`.
    #[serde(rename = "type")]
    pub fs_type: String,
    /// Source: `overlay`, as containerd's own snapshotter has it.
    pub source: String,
    /// Options, one an element; containerd joins them with commas.
    pub options: Vec<String>,
}

/// The names under which the layers go into an option string.
pub(super) struct ClassicNames {
    lowers: Vec<PathBuf>,
    upper: Option<(PathBuf, PathBuf)>,
}

impl ClassicNames {
    /// Every directory under its path.
    pub(super) fn paths(plan: &MountPlan) -> Self {
        ClassicNames { lowers: plan.lowers.clone(), upper: upper_paths(plan) }
    }

    /// Lower directories under their descriptors' names; `opened` is in the order of [`MountPlan::directories`].
    pub(super) fn lowers_by_fd(plan: &MountPlan, opened: &[OwnedFd]) -> Self {
        let lowers = opened.iter().take(plan.lowers.len()).map(sys::proc_self_fd_path).collect();
        ClassicNames { lowers, upper: upper_paths(plan) }
    }

    /// Every directory under its descriptor's name.
    pub(super) fn all_by_fd(plan: &MountPlan, opened: &[OwnedFd]) -> Self {
        let upper = match opened.get(plan.lowers.len()..) {
            Some([upper, work]) => Some((sys::proc_self_fd_path(upper), sys::proc_self_fd_path(work))),
            _ => None,
        };
        ClassicNames { upper, ..ClassicNames::lowers_by_fd(plan, opened) }
    }
}

fn upper_paths(plan: &MountPlan) -> Option<(PathBuf, PathBuf)> {
    plan.upper.as_ref().map(|u| (u.upper.clone(), u.work.clone()))
}

/// Escapes a path for an option string: `\` and `,` everywhere, `:` in the list of lower directories.
fn escape_into(out: &mut Vec<u8>, path: &Path, colon: bool) {
    for &b in path.as_os_str().as_bytes() {
        if b == b'\\' || b == b',' || (colon && b == b':') {
            out.push(b'\\');
        }
        out.push(b);
    }
}

/// Returns the options one by one, the directories first.
fn option_list(plan: &MountPlan, names: &ClassicNames) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    let mut lower = b"lowerdir=".to_vec();
    for (i, path) in names.lowers.iter().enumerate() {
        if i > 0 {
            lower.push(b':');
        }
        escape_into(&mut lower, path, true);
    }
    list.push(lower);
    if let Some((upper, work)) = &names.upper {
        for (key, path) in [("upperdir=", upper), ("workdir=", work)] {
            let mut option = key.as_bytes().to_vec();
            escape_into(&mut option, path, false);
            list.push(option);
        }
    }
    list.extend(options(plan).into_iter().map(|(key, value)| match value {
        Some(value) => format!("{key}={value}").into_bytes(),
        None => key.as_bytes().to_vec(),
    }));
    list
}

/// Returns the option page of `mount(2)`.
pub(super) fn classic_data(plan: &MountPlan, names: &ClassicNames) -> Vec<u8> {
    option_list(plan, names).join(&b","[..])
}

fn text(bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|e| {
        let shown = escape(e.as_bytes());
        Error::new(ErrorKind::Unsupported, format!("a path is not UTF-8 and cannot be rendered: {shown}"))
    })
}

impl MountPlan {
    /// Renders the plan for `mount -t overlay unply -o OPTIONS TARGET`, escaped for the kernel; not for a shell.
    ///
    /// A `mount` of util-linux 2.39 and later hands over one option at a time and then takes at most 255 bytes of
    /// `lowerdir`; there, `LIBMOUNT_FORCE_MOUNT2=always` in its environment keeps the page of `mount(2)`.
    ///
    /// # Errors
    /// As [`MountPlan::check`]; `Unsupported` for more than [`MAX_LOWERS`] lower directories, where the text is longer than the page that `mount(2)` takes (the kernel
    /// would silently cut it), where a path is not UTF-8, or holds a `"`, which `mount(8)` takes for quoting.
    pub fn render_mount8(&self) -> Result<String, Error> {
        self.check()?;
        self.at_most(MAX_LOWERS)?;
        if let Some(path) = self.directories().find(|p| p.as_os_str().as_bytes().contains(&b'"')) {
            let path = escape(path.as_os_str().as_bytes());
            return Err(Error::new(ErrorKind::Unsupported, format!("mount(8) cannot take the quote in \"{path}\"")));
        }
        let data = text(classic_data(self, &ClassicNames::paths(self)))?;
        let room = rustix::param::page_size().saturating_sub(1);
        if data.len() > room {
            let message = format!("the options take {} bytes, mount(2) has room for {room}", data.len());
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("let unply mount it, which needs no option string, or shorten the store's path"));
        }
        // In front: libmount looks only one byte back for an escape and could take a comma after `\\` for an escaped one.
        Ok(if self.upper.is_none() { format!("ro,{data}") } else { data })
    }

    /// Renders the plan for containerd's mount API.
    ///
    /// The list may be longer than a page: containerd shortens common prefixes itself before it mounts.
    ///
    /// # Errors
    /// As [`MountPlan::check`]; `Unsupported` for more than [`MAX_LOWERS`] lower directories, where a path is not UTF-8.
    pub fn render_containerd(&self) -> Result<ContainerdMount, Error> {
        self.check()?;
        self.at_most(MAX_LOWERS)?;
        let mut options = Vec::new();
        if self.upper.is_none() {
            options.push("ro".to_owned());
        }
        for option in option_list(self, &ClassicNames::paths(self)) {
            options.push(text(option)?);
        }
        Ok(ContainerdMount { fs_type: "overlay".to_owned(), source: "overlay".to_owned(), options })
    }
}

//! The mount table of the calling thread, read and unescaped
//! (<https://docs.kernel.org/filesystems/proc.html#proc-pid-mountinfo-information-about-mounts>).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, escape};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountInfo {
    /// Identifies the mount for as long as it exists.
    pub id: u64,
    /// The mount it is attached to.
    pub parent: u64,
    /// Device number of its file system, `major:minor`; every overlay has its own.
    pub device: String,
    /// Where it is attached, as seen from the caller's root.
    pub target: PathBuf,
    /// File system type.
    pub fs_type: String,
    /// Source, as the mounter named it.
    pub source: OsString,
    /// Options of the mount itself: `ro`, `nosuid`, `relatime` ….
    pub options: Vec<OsString>,
    /// Options of the file system, with the kernel's octal escapes undone; overlayfs's own `\` escapes are still there.
    pub super_options: Vec<OsString>,
}

impl MountInfo {
    fn parse(line: &[u8]) -> Option<MountInfo> {
        let mut fields = line.split(|b| *b == b' ');
        let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let device = String::from_utf8_lossy(fields.next()?).into_owned();
        let _root = fields.next()?;
        let target = PathBuf::from(unescape_octal(fields.next()?));
        let options = split_options(fields.next()?);
        // Optional fields (propagation), any number of them, up to a single dash.
        fields.by_ref().find(|field| *field == b"-")?;
        let fs_type = unescape_octal(fields.next()?).to_string_lossy().into_owned();
        let source = unescape_octal(fields.next()?);
        // A source that was given empty leaves nothing between two blanks; options are always there.
        let super_options = split_options(fields.next().unwrap_or_default());
        Some(MountInfo { id, parent, device, target, fs_type, source, options, super_options })
    }

    fn super_values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.super_options
            .iter()
            .filter_map(move |option| option.as_bytes().strip_prefix(key.as_bytes())?.strip_prefix(b"="))
    }

    /// Returns the lower directories of an overlay under the names that the mounter used, topmost first.
    ///
    /// A name of the form `/proc/self/fd/N` says nothing any more; see [`MountInfo::names_its_layers`].
    pub fn lowers(&self) -> Vec<PathBuf> {
        let listed = self.super_values("lowerdir").flat_map(split_lowers);
        // `lowerdir+` is shown as it was given: no escapes but the octal ones.
        listed.chain(self.super_values("lowerdir+").map(path)).collect()
    }

    /// Returns the upper directory of a writable overlay, under the name that the mounter used.
    pub fn upper(&self) -> Option<PathBuf> {
        self.super_values("upperdir").next().map(path)
    }

    /// Tells whether every layer is shown under a path and none as `/proc/self/fd/N`.
    pub fn names_its_layers(&self) -> bool {
        let directories = ["upperdir", "workdir"].iter().flat_map(|key| self.super_values(key)).map(path);
        !self.lowers().into_iter().chain(directories).any(|p| p.starts_with("/proc"))
    }

    /// Tells whether a layer, the upper or the work directory of this overlay visibly is `dir` or lies below it.
    ///
    /// `upperdir` and `workdir` are shown escaped or not depending on how the overlay was made, so both readings count.
    pub fn uses(&self, dir: &Path) -> bool {
        let writable = ["upperdir", "workdir"].iter().flat_map(|key| self.super_values(key));
        let mut readings = writable.flat_map(|value| [path(value), path(&unescape_backslash(value))]);
        self.lowers().iter().any(|lower| lower.starts_with(dir)) || readings.any(|p| p.starts_with(dir))
    }

    /// Tells whether writes through this mount are refused.
    pub fn is_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

fn split_options(field: &[u8]) -> Vec<OsString> {
    // The kernel writes a comma inside a value as \054, so every comma here separates.
    field.split(|b| *b == b',').filter(|o| !o.is_empty()).map(unescape_octal).collect()
}

/// Undoes `\NNN` (three octal digits) of the kernel's `seq_escape`.
fn unescape_octal(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if let ([a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..], b'\\') = (tail, first) {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            out.push(*first);
        }
    }
    OsString::from_vec(out)
}

/// Undoes `\x` of overlayfs's option string.
fn unescape_backslash(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&b) = bytes.next() {
        out.push(if b == b'\\' { bytes.next().copied().unwrap_or(b) } else { b });
    }
    out
}

/// Splits the value of `lowerdir=` at colons that are not escaped; data-only layers (after `::`) count like others.
fn split_lowers(value: &[u8]) -> Vec<PathBuf> {
    let mut parts: Vec<Vec<u8>> = vec![Vec::new()];
    let mut bytes = value.iter();
    while let Some(&b) = bytes.next() {
        let literal = match b {
            b':' => {
                parts.push(Vec::new());
                continue;
            }
            b'\\' => bytes.next().copied().unwrap_or(b),
            other => other,
        };
        if let Some(last) = parts.last_mut() {
            last.push(literal);
        }
    }
    parts.iter().filter(|p| !p.is_empty()).map(|p| path(p)).collect()
}

/// Returns every mount of the calling thread's mount namespace, in the order of the table: of two mounts on one target
/// the later one is on top.
///
/// # Errors
/// When `/proc` is not there, or a line of the table does not parse.
pub fn all_mounts() -> Result<Vec<MountInfo>, Error> {
    // A thread may be in another mount namespace than the rest of its process; /proc/self would show the main thread's.
    const TABLE: &str = "/proc/thread-self/mountinfo";
    let table = std::fs::read(TABLE).map_err(|e| Error::io(format!("read {TABLE}"), e))?;
    let lines = table.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            MountInfo::parse(line)
                .ok_or_else(|| Error::new(ErrorKind::Other, format!("{TABLE} does not parse: {}", escape(line))))
        })
        .collect()
}

/// Returns every overlay of the calling thread's mount namespace, ours and others', in the order of the table.
///
/// # Errors
/// As [`all_mounts`].
pub fn overlay_mounts() -> Result<Vec<MountInfo>, Error> {
    Ok(all_mounts()?.into_iter().filter(|m| m.fs_type == "overlay").collect())
}

/// Returns the mount on top of `target`, an absolute path without symlinks, whatever its type.
///
/// # Errors
/// As [`all_mounts`].
pub fn find_mount(target: &Path) -> Result<Option<MountInfo>, Error> {
    Ok(all_mounts()?.into_iter().rfind(|m| m.target == target))
}

/// Returns the overlays that visibly have a layer, an upper or a work directory at or below `dir`.
///
/// Overlays of other mount namespaces, lazily detached ones, and those whose mounter gave `/proc/self/fd` names are not
/// seen: an empty answer is not a proof that nobody uses `dir`.
///
/// # Errors
/// As [`all_mounts`].
pub fn overlays_using(dir: &Path) -> Result<Vec<MountInfo>, Error> {
    Ok(overlay_mounts()?.into_iter().filter(|m| m.uses(dir)).collect())
}

/// An overlay that has a directory as one of its layers, in whatever mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayUse {
    /// Device number of the overlay, `major:minor`.
    pub device: String,
    /// Where it is mounted, as seen in its mount namespace.
    pub target: PathBuf,
    /// A process in that mount namespace; `None` for the caller's own.
    pub process: Option<u32>,
}

/// Returns the overlays that have a layer at or below `dir`, or do not tell, in the mount namespace of every process that
/// the caller may look at.
///
/// Namespaces that no process is in, and mounts that were detached lazily, are not seen.
///
/// # Errors
/// As [`all_mounts`].
pub fn overlays_anywhere_using(dir: &Path) -> Result<Vec<OverlayUse>, Error> {
    let may_use = |m: &MountInfo| m.fs_type == "overlay" && (m.uses(dir) || !m.names_its_layers());
    let mut out = Vec::new();
    let mut add = |mounts: Vec<MountInfo>, process: Option<u32>| {
        out.extend(mounts.into_iter().filter(&may_use).map(|m| OverlayUse {
            device: m.device,
            target: m.target,
            process,
        }));
    };
    add(all_mounts()?, None);
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/mnt")).ok();
    let mut seen = std::collections::HashSet::new();
    seen.extend(namespace(Path::new("/proc/thread-self")));
    let processes = std::fs::read_dir("/proc").map_err(|e| Error::io("list /proc", e))?;
    for process in processes.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Gone by now, or somebody else's: what cannot be looked at cannot be counted.
        if !namespace(&process.path()).is_some_and(|ns| seen.insert(ns)) {
            continue;
        }
        if let Ok(table) = std::fs::read(process.path().join("mountinfo")) {
            add(table.split(|b| *b == b'\n').filter_map(MountInfo::parse).collect(), Some(id));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n04_escapes_of_the_mount_table_are_undone() {
        let line = br"66 43 0:39 / /tmp/a\040b\134c\012d ro,relatime shared:1 master:2 - overlay unply ro,lowerdir=a\134:b:c\134\134d:e\040f\134\054g,upperdir=/u\054p,workdir=/w,redirect_dir=on";
        let m = MountInfo::parse(line).unwrap();
        assert_eq!((m.id, m.parent), (66, 43));
        assert_eq!(m.target, Path::new("/tmp/a b\\c\nd"));
        assert_eq!((m.fs_type.as_str(), m.source.to_str()), ("overlay", Some("unply")));
        assert_eq!(m.lowers(), ["a:b", "c\\d", "e f,g"].map(PathBuf::from));
        assert_eq!(m.upper(), Some(PathBuf::from("/u,p")));
        assert!(m.is_read_only() && m.names_its_layers());
        assert!(m.uses(Path::new("a:b")) && m.uses(Path::new("/w")) && !m.uses(Path::new("a")));
    }

    #[test]
    fn lines_without_a_source_or_cut_off_do_not_panic() {
        let m = MountInfo::parse(b"1 2 0:3 / / rw - tmpfs  rw").unwrap();
        assert_eq!((m.fs_type.as_str(), m.source.len()), ("tmpfs", 0));
        let whole = br"66 43 0:39 / /tmp ro shared:1 - overlay unply ro,lowerdir+=/a\1";
        for len in 0..whole.len() {
            let _ = MountInfo::parse(&whole[..len]);
        }
        assert_eq!(MountInfo::parse(whole).unwrap().lowers(), [PathBuf::from("/a\\1")]);
        assert_eq!(MountInfo::parse(b"x 43 0:39 / /tmp ro - overlay unply ro"), None);
    }
}

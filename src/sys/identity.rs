//! What the calling process is: its umask, its id maps, its user namespace, its share of the processors.

use crate::error::{Error, ErrorKind};

/// Returns the umask, read from `/proc` (Linux 4.7) because asking the system call for it would change it.
///
/// `None` where `/proc` does not tell.
pub fn umask() -> Option<u32> {
    u32::from_str_radix(&status_field("Umask:")?, 8).ok()
}

/// Tells whether the calling thread has `CAP_SYS_ADMIN` in its user namespace, which mounting needs.
pub fn has_effective_cap_sys_admin() -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    status_field("CapEff:")
        .and_then(|text| u64::from_str_radix(&text, 16).ok())
        .is_some_and(|caps| caps & CAP_SYS_ADMIN != 0)
}

fn status_field(key: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

/// A run of ids that a user namespace maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id as seen inside the namespace.
    pub inside: u32,
    /// First id as seen from the namespace of the reader.
    pub outside: u32,
    /// How many ids.
    pub count: u32,
}

/// Which owners the caller may give a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdMap {
    /// Every id stands for itself: the initial user namespace, or one that looks the same.
    Initial,
    /// The ids of these ranges, in the kernel's order: subordinate ids were set up.
    Full(Vec<IdRange>),
    /// One id only, given as seen inside: a user namespace without subordinate ids.
    Single(u32),
}

impl IdMap {
    /// Tells whether `id`, as seen inside the namespace, can own a file.
    pub fn maps(&self, id: u32) -> bool {
        match self {
            // The last number means "unchanged" to chown and is no id.
            IdMap::Initial => id != u32::MAX,
            IdMap::Single(only) => id == *only,
            IdMap::Full(ranges) => ranges.iter().any(|r| id.checked_sub(r.inside).is_some_and(|n| n < r.count)),
        }
    }

    fn parse(text: &str) -> Option<IdMap> {
        let mut ranges = Vec::new();
        for line in text.lines() {
            let mut numbers = line.split_ascii_whitespace().map(|n| n.parse::<u32>().ok());
            let range = IdRange { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? };
            ranges.push(range);
        }
        Some(match ranges[..] {
            [IdRange { inside: 0, outside: 0, count: u32::MAX }] => IdMap::Initial,
            [IdRange { inside, count: 1, .. }] => IdMap::Single(inside),
            _ => IdMap::Full(ranges),
        })
    }
}

/// Returns the user ids that the caller's user namespace maps.
///
/// # Errors
/// When `/proc` is not there or does not make sense. A kernel without user namespaces has the initial map.
pub fn uid_map() -> Result<IdMap, Error> {
    id_map("/proc/thread-self/uid_map")
}

/// Returns the group ids that the caller's user namespace maps.
///
/// # Errors
/// As [`uid_map`].
pub fn gid_map() -> Result<IdMap, Error> {
    id_map("/proc/thread-self/gid_map")
}

fn id_map(path: &str) -> Result<IdMap, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && std::path::Path::new("/proc/self").exists() => {
            return Ok(IdMap::Initial);
        }
        Err(e) => return Err(Error::io(format!("read {path}"), e)),
    };
    IdMap::parse(&text).ok_or_else(|| Error::new(ErrorKind::Other, format!("{path} does not parse: {text:?}")))
}

/// Tells whether the caller is in a user namespace other than the initial one.
///
/// There `trusted.*` xattrs and real device nodes are refused even where every id is mapped, so that the id map alone
/// does not answer this.
pub fn in_user_namespace() -> bool {
    // PROC_USER_INIT_INO of the kernel: the initial namespace has had this number since 3.8.
    const INITIAL: &str = "user:[4026531837]";
    match std::fs::read_link("/proc/thread-self/ns/user") {
        Ok(link) => link.as_os_str() != INITIAL,
        Err(_) => !matches!(uid_map(), Ok(IdMap::Initial)),
    }
}

/// Returns how many threads can run at once: processor affinity and the CPU quota of the caller's cgroup (v1 and v2)
/// count, and it is at least 1.
///
/// The standard library looks at all three since Rust 1.64.
pub fn available_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_map_says_who_can_own_a_file() {
        assert_eq!(IdMap::parse("         0          0 4294967295\n"), Some(IdMap::Initial));
        assert_eq!(IdMap::parse("0 1000 1\n"), Some(IdMap::Single(0)));
        let full = IdMap::parse("0 1000 1\n1 100000 65536\n").unwrap();
        assert!(full.maps(0) && full.maps(1) && full.maps(65536) && !full.maps(65537));
        assert!(IdMap::Single(0).maps(0) && !IdMap::Single(0).maps(1));
        assert!(IdMap::Initial.maps(4_000_000_000) && !IdMap::Initial.maps(u32::MAX));
        let top = IdMap::parse("4294967290 0 5\n").unwrap();
        assert!(top.maps(4_294_967_294) && !top.maps(u32::MAX) && !top.maps(0));
        assert!(!IdMap::parse("").unwrap().maps(0), "an unwritten map maps nothing");
        for bad in ["0 0", "0 0 x", "0 0 -1", "0 0 4294967296"] {
            assert_eq!(IdMap::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn n17_the_umask_is_read_and_left_alone() {
        let first = umask().unwrap();
        assert!(first <= 0o777);
        assert_eq!(umask(), Some(first));
    }

    #[test]
    fn this_process_has_an_identity() {
        let uid = rustix::process::geteuid().as_raw();
        assert!(uid_map().unwrap().maps(uid));
        assert!(gid_map().unwrap().maps(rustix::process::getegid().as_raw()));
        if !in_user_namespace() {
            assert_eq!(uid_map().unwrap(), IdMap::Initial);
        }
        assert!(available_cpus() >= 1);
    }
}

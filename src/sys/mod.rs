//! System calls that the wrappers lack, helpers on descriptors, and questions to the kernel.
//!
//! Owns: calls by descriptor that neither `nix` nor `rustix` carries (`setxattrat` and its family, `fchmodat2`),
//! xattrs of nodes that cannot be opened, starting a command in another root, what a child used, copying between
//! descriptors, what the calling process is allowed to do, what a file system can store, SHA-256 in the lanes of vector
//! registers, the call of ISA-L's inflate, and an error that carries a call with its arguments.
//! Refuses to know: policy, archives, overlayfs, the store.
//!
//! Invariants: nothing here changes process state (no working directory, umask, signals, environment); nothing is
//! cached between calls, so a kernel feature is asked for each time and a missing one costs one failed call; no
//! function follows a symlink in the last component of a name. `unsafe` stands in `raw`, once in `sha256`, in `isal`, and nowhere else
//! in the crate.

mod child;
mod copy;
mod error;
mod fd;
mod identity;
#[cfg(feature = "isal")]
pub(crate) mod isal;
mod probe;
mod raw;
pub(crate) mod sha256;
mod xattr;

pub use child::{Ended, end_of, ended_within, trim_heap};
pub use copy::{CopyMethod, reflink_or_copy};
pub use error::SysError;
pub use fd::{
    enter_root, fchmodat_nofollow, open_dir, open_dir_path, open_path_at, proc_self_fd_path, rename_new, sync_fs,
};
pub use identity::{
    IdMap, IdRange, available_cpus, gid_map, has_effective_cap_sys_admin, in_user_namespace, uid_map, umask,
};
pub use probe::{
    FsType, KernelCalls, StoreProbe, fs_space, fs_type, is_overlayfs, kernel_calls, probe_store, probe_store_at,
};
pub(crate) use probe::{PROBE, ProbeDir, identity};
pub use xattr::{
    get_xattr, get_xattr_fd, list_xattrs, list_xattrs_fd, remove_xattr, remove_xattr_fd, set_xattr, set_xattr_fd,
};

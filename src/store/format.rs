//! The store's format on disk, version 1, for whoever reads or repairs a store without this program.
//!
//! The directories stand in [`store`](super). Every document is JSON in UTF-8 and carries a `version`; one that this
//! program does not know is refused with exit code 6, before anything else of it is looked at. Fields that are not known
//! are ignored; none is ever given another meaning within a version.
//!
//! # Names
//! `ID` is twelve characters of the alphabet `a`–`z`, `2`–`7`: the first 60 bits of the SHA-256 of some lines, joined by line feeds,
//! without one at the end.
//!
//! | names | lines |
//! |---|---|
//! | a layer in `l`, `layers` | `layer`, diff_id, `drop` or `keep` (SELinux labels), `lenient` or `strict` |
//! | a fix-up in `l`, `fixups` | `fixup`, chain_id, `lenient` or `strict`, `ignore` or `apply` (root entry), `resolve` or `shadow` (lower symlinks), `drop` or `keep` |
//! | an image in `images` | `image`, image id |
//! | a snapshot in `snapshots` | `snapshot`, its key or name |
//! | a directory in `s` | nothing: it is random and stands in the record |
//!
//! The record holds the whole key, and is compared on every look-up.
//!
//! # `store.json`
//! The flavour is what every tree has in common: where overlay marks are (`trusted.overlay.*` or `user.overlay.*`), whether owners are
//! the image's (`keep`) or the caller's (`squash`), and how whiteouts look (a character device 0:0, or an empty file with
//! `overlay.whiteout` in a directory with `overlay.opaque=x`).
//! ```json store.json
//! {"version": 1, "flavour": {"xattr": "trusted", "ownership": "keep", "whiteouts": "char-device"}}
//! ```
//!
//! # `layers/ID/record.json`
//! `source` is the blob that the layer came from, `facts` what unpacking it found out. `durable` is `"yes"`, or `{"no": {"boot_id": …}}`: then
//! the layer counts as absent in every other boot. `entries`, beside the record, is the journal from which fix-ups are made: what the
//! archive asked for, in its order, in the binary form that `src/apply/journal.rs` describes, with a version of its own. `stash/` holds
//! content that a later entry of the archive replaced and that only hard links still name.
//! ```json layers
//! {
//!   "version": 1,
//!   "diff_id": "sha256:b0f6ae451a6d20b31890d6d7026b7c13097aee02e218fdd86077687d31894926",
//!   "options": {"selinux": "drop", "strict": false},
//!   "flavour": {"xattr": "trusted", "ownership": "keep", "whiteouts": "char-device"},
//!   "form": "directory",
//!   "durable": "yes",
//!   "source": {"digest": "sha256:dbbf9034d984b03137f3b081b058a361ebc09ac2bc4319a129dad62d4e71299d", "compressed_bytes": 204, "diff_id": "sha256:b0f6ae451a6d20b31890d6d7026b7c13097aee02e218fdd86077687d31894926", "uncompressed_bytes": 4096, "codec": "gzip"},
//!   "facts": {"entries": 4, "content_bytes": 4, "inodes": 4, "root_opaque": false, "depends_on_lower": true, "late_links": 0, "whiteouts": 0, "opaques": 1, "devices_skipped": false, "root_entry": null, "squashed": false, "xattrs_dropped": false, "copied_links": 0},
//!   "created": "1795261081.606662678"
//! }
//! ```
//!
//! # `fixups/ID/record.json`
//! `empty`: there was nothing to correct, and `l/ID` does not exist.
//! ```json fixups
//! {
//!   "version": 1,
//!   "chain_id": "sha256:3470964add80d0a64845b44835c2ed5207a64fae6c208a45baf2fc9a979b1d27",
//!   "options": {"strict": false, "root_entry": "ignore", "lower_symlinks": "resolve", "selinux": "drop"},
//!   "flavour": {"xattr": "trusted", "ownership": "keep", "whiteouts": "char-device"},
//!   "form": "directory",
//!   "empty": false,
//!   "durable": "yes",
//!   "created": "1795261081.607321996"
//! }
//! ```
//!
//! # `images/ID/record.json`
//! Beside it `config.json` and, where there is one, `manifest.json` stand byte for byte as they came. `layers` is bottom first; `source`, the reference with an absolute path, is where a repair reads. Of two
//! images that claim one name the one with the later `updated` has it.
//! ```json images
//! {
//!   "version": 1,
//!   "image_id": "sha256:9f482d57911fd25b3c93743bceddf1fbb906b05917b47b409e75a43f811deab1",
//!   "reference": "oci:image:t",
//!   "source": "oci:/images/image:t",
//!   "manifest_digest": "sha256:1e0f7f99e88ac2f3ec233695eda25c46b2978fd57f9e81cf8393efd202ac38e9",
//!   "platform": {"os": "linux", "architecture": "amd64"},
//!   "layers": [{"diff_id": "sha256:35c4c8cbc66b36c8b9858a340d31467c190cbc65da02e1310d0077ebeb0ecc3a", "digest": "sha256:1a5026b3a7f10eeeeff937d519dd740f7043d5ab092e67125ef45e282a471ab6", "size": 301, "media_type": "application/vnd.oci.image.layer.v1.tar+gzip"}, {"diff_id": "sha256:b0f6ae451a6d20b31890d6d7026b7c13097aee02e218fdd86077687d31894926", "digest": "sha256:dbbf9034d984b03137f3b081b058a361ebc09ac2bc4319a129dad62d4e71299d", "size": 204, "media_type": "application/vnd.oci.image.layer.v1.tar+gzip"}],
//!   "chain_id": "sha256:3470964add80d0a64845b44835c2ed5207a64fae6c208a45baf2fc9a979b1d27",
//!   "options": {"strict": false, "root_entry": "ignore", "lower_symlinks": "resolve", "selinux": "drop"},
//!   "names": ["t"],
//!   "durable": "yes",
//!   "created": "1795261081.607523311",
//!   "updated": "1795261081.612660251"
//! }
//! ```
//!
//! # `snapshots/ID.json`
//! `lowers` is topmost first, and says by itself what to mount: nothing else need be read. `parent` is a snapshot's name. `dir` is the
//! directory in `s`; a commit keeps it. `root` is the metadata that its `fs` directory was made with. `usage` is set by a commit. Times are seconds since 1970 with
//! nine decimals, as text.
//! ```json snapshots
//! {
//!   "version": 1,
//!   "key": "done",
//!   "kind": "committed",
//!   "parent": null,
//!   "image_id": "sha256:9f482d57911fd25b3c93743bceddf1fbb906b05917b47b409e75a43f811deab1",
//!   "dir": "qyi6s5ljjf62",
//!   "lowers": [{"fixup": "yxffe4j4qcfg"}, {"layer": "ieuguuyzs3s5"}, {"layer": "hm3q6ut4qop5"}],
//!   "root": {"mode": 493, "uid": 0, "gid": 0, "mtime": 0, "mtime_nanos": 0, "xattrs": []},
//!   "labels": {"example.org/why": "a golden store"},
//!   "usage": {"bytes": 4096, "inodes": 2},
//!   "durable": "yes",
//!   "created": "1795261081.659652378",
//!   "updated": "1795261081.659652378"
//! }
//! ```
//!
//! # What may be found after a crash
//! Trees in `l` without a record, temporary names (`.tmp-…`), staging and pins whose `flock` is free, anything in `trash`: all are
//! cleaned by the next command that finds the store idle. `.tmp-….commit` in `staging` names the key and the name, as IDs, of a commit
//! that was not finished: if both records name one directory, the key's is removed.

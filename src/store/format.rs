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
//! the layer counts as absent in every other boot. `entries`, beside the record, is the journal from which fix-ups are made: one line for
//! each entry of the archive, described in `src/apply/journal.rs`; `stash/` holds content that only hard links of other layers name.
//! ```json layers
//! LAYER
//! ```
//!
//! # `fixups/ID/record.json`
//! `empty`: there was nothing to correct, and `l/ID` does not exist.
//! ```json fixups
//! FIXUP
//! ```
//!
//! # `images/ID/record.json`
//! Beside it `config.json` and, where there is one, `manifest.json` stand byte for byte as they came. `layers` is bottom first. Of two
//! images that claim one name the one with the later `updated` has it.
//! ```json images
//! IMAGE
//! ```
//!
//! # `snapshots/ID.json`
//! `lowers` is topmost first, and says by itself what to mount: nothing else need be read. `parent` is a snapshot's name. `dir` is the
//! directory in `s`; a commit keeps it. `root` is the metadata of its `fs` directory. `usage` is set by a commit. Times are seconds since 1970 with
//! nine decimals, as text.
//! ```json snapshots
//! SNAPSHOT
//! ```
//!
//! # What may be found after a crash
//! Trees in `l` without a record, temporary names (`.tmp-…`), staging and pins whose `flock` is free, anything in `trash`: all are
//! cleaned by the next command that finds the store idle. `.tmp-….commit` in `staging` names the key and the name, as IDs, of a commit
//! that was not finished: if both records name one directory, the key's is removed.

//! One layer by itself: how it is packed, its headers, its names, and how its markers and entries go together.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::apply::journal::{RecordRef, Writer};
use crate::apply::plan::{AUFS_PREFIX, OPAQUE_NAME, WHITEOUT_PREFIX};
use crate::apply::{Action, LiteralPath, Node, PlanOptions, STARGZ_INDEX, Warning, each_entry, plan};
use crate::error::{Error, ErrorKind, Result, escape};
use crate::image;
use crate::policy::{Limit, TreeOptions, XattrFlavour};
use crate::root::{Meta, NodeMeta};
use crate::stream::{Codec, Framing, LayerStream, StreamOptions, StreamReport};
use crate::tar::{Entry, EntryKind, Parser};
use crate::unpack::Options;
use crate::unpack::archive::Passed;

use super::image::near;
use super::{Code, Expected, Findings, bad_layer};

/// An archive that was read once, each layer scanned as it went by.
pub(super) type Collected = image::Collected<Passed<((), Scanned)>>;

/// What a layer gave.
#[derive(Default)]
pub(super) struct Scanned {
    pub findings: Findings,
    /// The journal that an unpack would have kept, without places and values of xattrs.
    pub journal: Vec<u8>,
    pub marks: Marks,
    /// The proof, where the blob is whole.
    pub report: Option<StreamReport>,
    pub entries: u64,
    /// The first entry that is refused; those after it were looked at all the same.
    pub refusal: Option<Error>,
    /// What ended the look at this layer.
    pub error: Option<Error>,
}

impl Scanned {
    /// A layer that could not be read at all.
    pub(super) fn broken(error: Error) -> Scanned {
        Scanned { error: Some(error), ..Scanned::default() }
    }

    /// Returns what a second use of the same blob needs; findings and refusals were told at the first.
    pub(super) fn again(&mut self) -> Scanned {
        Scanned {
            findings: std::mem::take(&mut self.findings),
            journal: self.journal.clone(),
            marks: self.marks.clone(),
            report: self.report.clone(),
            entries: self.entries,
            refusal: self.refusal.take(),
            error: self.error.take(),
        }
    }
}

/// What the markers of a layer have to do with its entries, by literal path of what a whiteout names.
#[derive(Default, Clone)]
pub(super) struct Marks {
    /// Whiteouts whose name becomes a directory later in the archive.
    made_after: HashSet<LiteralPath>,
    /// Whiteouts about which everything is said, or which have an entry of their name.
    explained: HashSet<LiteralPath>,
    /// Opaque directories in which this layer has something.
    hold_entries: HashSet<LiteralPath>,
    /// Names that appear twice.
    repeated: HashSet<LiteralPath>,
}

impl Marks {
    pub(super) fn made_after(&self, path: &LiteralPath) -> bool {
        self.made_after.contains(path)
    }

    pub(super) fn is_explained(&self, path: &LiteralPath) -> bool {
        self.explained.contains(path)
    }

    pub(super) fn holds_entries(&self, dir: &LiteralPath) -> bool {
        self.hold_entries.contains(dir)
    }

    pub(super) fn is_repeated(&self, path: &LiteralPath) -> bool {
        self.repeated.contains(path)
    }
}

/// Reads a layer to its end; `spent` counts the bytes remembered of all layers.
///
/// # Errors
/// Only what is not the layer's fault.
pub(super) fn scan(
    blob: Box<dyn Read + Send>,
    expected: Expected,
    options: &Options,
    spent: &AtomicU64,
) -> Result<Scanned> {
    let stream = LayerStream::open(
        blob,
        StreamOptions {
            limits: options.limits.clone(),
            expected,
            cancel: options.cancel.clone(),
            ..StreamOptions::default()
        },
    );
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(e) => return Ok(Scanned::broken(bad_layer(e)?)),
    };
    let (progress, codec) = (stream.progress(), stream.codec());
    let mut layer = Layer::new(options, spent.load(Ordering::Relaxed))?;
    let read = layer.read(&mut stream, options);
    let proof = match read {
        Ok(()) => stream.finish(),
        Err(e) => Err(stream.damaged(e)),
    };
    let (report, error) = match proof {
        Ok(report) => (Some(report), None),
        Err(e) => (None, Some(bad_layer(e)?)),
    };
    spent.store(layer.remembered, Ordering::Relaxed);
    let mut scanned = layer.end()?;
    if let (Some(framing), true) = (progress.framing(), report.is_some()) {
        packing(codec, framing, &scanned.1, &mut scanned.0.findings);
    }
    let scanned = scanned.0;
    Ok(Scanned { report, error, ..scanned })
}

/// Tells of unusual packing; `last` is the last entry's name.
fn packing(codec: Codec, framing: Framing, last: &[u8], findings: &mut Findings) {
    let Framing { members, skippable, starts_skippable, padding } = framing;
    let estargz = codec == Codec::Gzip && members > 1 && last == STARGZ_INDEX;
    if estargz {
        findings.add(Code::LazyPulling, last, format!("eStargz: {members} gzip members and an index"));
    } else if codec == Codec::Zstd && skippable > 0 && !starts_skippable {
        findings.add(Code::LazyPulling, b"", format!("{skippable} skippable zstd frames, as zstd:chunked writes them"));
    } else if members > 1 {
        let what = if codec == Codec::Gzip { "gzip members" } else { "zstd frames" };
        findings.add(Code::SeveralMembers, b"", format!("{members} {what}"));
    }
    if starts_skippable {
        findings.add(Code::SkippableFirst, b"", "the blob starts with a skippable zstd frame");
    }
    if padding > 0 {
        findings.add(Code::Padding, b"", format!("{padding} zero bytes after the compressed data"));
    }
}

/// An entry that makes something.
struct Made {
    /// Position in the archive.
    number: u64,
    directory: bool,
    symlink: bool,
}

/// A layer while entries arrive.
struct Layer {
    plan: PlanOptions,
    findings: Findings,
    journal: Writer<Vec<u8>>,
    /// Bytes in the journals of the image so far, about.
    remembered: u64,
    entries: u64,
    made: HashMap<LiteralPath, Made>,
    whiteouts: HashMap<LiteralPath, u64>,
    opaques: HashSet<LiteralPath>,
    marks: Marks,
    /// Sources of hard links that AUFS keeps aside, with a number each.
    aufs: HashMap<Vec<u8>, u64>,
    early_aufs: Vec<(LiteralPath, Vec<u8>, NodeMeta)>,
    /// What each hard link leads to in the end, and how many do.
    links: HashMap<LiteralPath, LiteralPath>,
    linked: HashMap<LiteralPath, u64>,
    refusal: Option<Error>,
    last: Vec<u8>,
}

impl Layer {
    fn new(options: &Options, remembered: u64) -> Result<Layer> {
        // Strictness is a matter of what the findings are called.
        let tree = TreeOptions { strict: false, ..options.tree };
        Ok(Layer {
            plan: PlanOptions { tree, flavour: XattrFlavour::Trusted, limits: options.limits.clone() },
            findings: Findings::default(),
            journal: Writer::new(Vec::new())?,
            remembered,
            entries: 0,
            made: HashMap::new(),
            whiteouts: HashMap::new(),
            opaques: HashSet::new(),
            marks: Marks::default(),
            aufs: HashMap::new(),
            early_aufs: Vec::new(),
            links: HashMap::new(),
            linked: HashMap::new(),
            refusal: None,
            last: Vec::new(),
        })
    }

    fn read(&mut self, stream: &mut LayerStream, options: &Options) -> Result<()> {
        let limits = &options.limits;
        let parser = Parser::new(limits).with_notes();
        let odd: RefCell<Vec<Warning>> = RefCell::default();
        let check = || options.cancel.check();
        let read = each_entry(stream, parser, &mut |w| odd.borrow_mut().push(w), &check, &mut |entry, _, _| {
            self.entry(entry, odd.take())
        });
        self.warnings(odd.take());
        if read? == 0 {
            self.findings.add(Code::EmptyLayer, b"", "the layer has no entries");
        }
        self.settle_aufs()
    }

    fn warnings(&mut self, warnings: Vec<Warning>) {
        for Warning { kind, path, detail } in warnings {
            // Codes that both have are spelt alike; a kind without one would be a finding that nobody described.
            let Some(code) = Code::named(kind) else { continue };
            match code {
                // Here the spelling is the point.
                Code::NameClamped => self.findings.add(code, &path, detail),
                // The writer of eStargz that keeps a blob's own end puts its index behind it.
                Code::DataAfterEnd if path == STARGZ_INDEX => self.last = path,
                // A name of the header, which no entry has.
                Code::GlobalPaxHeader | Code::NoEndBlocks | Code::DataAfterEnd => self.findings.add(code, b"", detail),
                _ => self.findings.add(code, shown(&LiteralPath::clean(&path).0), detail),
            }
        }
    }

    /// Looks at one entry. A refusal is noted, and the entry left out.
    fn entry(&mut self, entry: Entry, odd: Vec<Warning>) -> Result<()> {
        self.entries += 1;
        let gnu_sparse = odd.iter().any(|w| w.kind == Code::GnuSparse.word());
        self.warnings(odd);
        self.name(&entry);
        self.kind(&entry, gnu_sparse);
        self.metadata(&entry);
        let (raw, mtime) = (entry.path.clone(), entry.mtime);
        let mut odd = Vec::new();
        let action = plan(entry, &self.plan, &mut |w| odd.push(w));
        self.warnings(odd);
        let path = LiteralPath::clean(&raw).0;
        self.last = path.as_bytes().to_vec();
        match action {
            Ok(action) => self.action(action, path, mtime),
            Err(e) if e.kind() == ErrorKind::Malformed => {
                self.findings.refuse(&e, shown(&path));
                self.refusal.get_or_insert(e);
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn name(&mut self, entry: &Entry) {
        let raw = &entry.path[..];
        let (path, clamped) = LiteralPath::clean(raw);
        let length = path.as_bytes().len();
        let shown = shown(&path);
        if raw.is_empty() {
            self.findings.add(Code::EmptyName, raw, "an entry without a name");
        }
        if raw.starts_with(b"/") {
            self.findings.add(Code::AbsoluteName, shown, "the name starts with a slash");
        }
        if !clamped && raw.split(|b| *b == b'/').any(|c| c == b"..") {
            self.findings.add(Code::DotDotName, shown, format!("the name is \"{}\"", escape(raw)));
        }
        if length > PATH_MAX {
            self.findings.add(Code::LongPath, shown, format!("the name has {length} bytes"));
        }
        if std::str::from_utf8(raw).is_err() || raw.iter().any(|b| b.is_ascii_control()) {
            self.findings.add(Code::OddName, shown, "the name holds control characters or is not UTF-8");
        }
        near(&self.plan.limits, Limit::PathBytes, raw.len() as u64, shown, &mut self.findings);
        near(&self.plan.limits, Limit::Depth, path.depth() as u64, shown, &mut self.findings);
    }

    fn kind(&mut self, entry: &Entry, gnu_sparse: bool) {
        let path = LiteralPath::clean(&entry.path).0;
        match &entry.kind {
            EntryKind::File { sparse: Some(regions), .. } => {
                if !gnu_sparse {
                    self.findings.add(Code::SparseFile, path.as_bytes(), format!("{} regions", regions.len()));
                }
                let regions = regions.len() as u64;
                near(&self.plan.limits, Limit::SparseRegions, regions, path.as_bytes(), &mut self.findings);
            }
            EntryKind::HardLink { target } => {
                let spelt = format!("the target is \"{}\"", escape(target));
                if LiteralPath::clean(target).1 {
                    self.findings.add(Code::LinkTargetClamped, path.as_bytes(), spelt);
                } else if target.starts_with(b"/") || target.split(|b| *b == b'/').any(|c| c == b"..") {
                    self.findings.add(Code::LinkTargetSpelling, path.as_bytes(), spelt);
                }
            }
            _ => {}
        }
    }

    fn metadata(&mut self, entry: &Entry) {
        let path = LiteralPath::clean(&entry.path).0;
        let path = shown(&path);
        if !(0..=MAX_EXT4_TIME).contains(&entry.mtime.seconds) {
            self.findings.add(Code::OddTime, path, format!("mtime {}", entry.mtime.seconds));
        }
        let mut bytes = 0;
        for (name, value) in &entry.xattrs {
            bytes += name.len() + value.len();
            let spelt = escape(name);
            if name.starts_with(XattrFlavour::User.prefix().as_bytes()) {
                self.findings.add(Code::UserOverlayXattr, path, format!("xattr {spelt}"));
            } else if name.starts_with(b"security.")
                && ![&b"security.selinux"[..], b"security.capability"].contains(&&name[..])
            {
                self.findings.add(Code::SecurityXattr, path, format!("xattr {spelt}"));
            }
        }
        if bytes > EXT4_XATTRS {
            self.findings.add(Code::LargeXattr, path, format!("xattrs of {bytes} bytes in all"));
        }
        near(&self.plan.limits, Limit::XattrBytes, bytes as u64, path, &mut self.findings);
    }

    fn action(&mut self, action: Action, path: LiteralPath, mtime: crate::tar::Timestamp) -> Result<()> {
        match action {
            Action::Skip => {
                let mut components = path.components();
                let aufs = components.next().is_some_and(|first| first.starts_with(AUFS_PREFIX));
                let nested =
                    |last: &[u8]| last.strip_prefix(WHITEOUT_PREFIX).is_some_and(|n| n.starts_with(WHITEOUT_PREFIX));
                if aufs {
                    self.findings.add(Code::AufsLeftover, path.as_bytes(), "a name of AUFS's own");
                } else if path.split_last().is_some_and(|(_, last)| nested(last) && last != OPAQUE_NAME) {
                    self.findings.add(Code::NestedWhiteout, path.as_bytes(), "a whiteout of a whiteout's name");
                }
                Ok(())
            }
            Action::AufsStash(name) => {
                self.findings.add(Code::AufsLeftover, path.as_bytes(), "a source of hard links that AUFS kept aside");
                self.remember(name.len() as u64)?;
                self.aufs.insert(name, self.entries);
                Ok(())
            }
            Action::Root(node) => {
                let Meta { mode, uid, gid, .. } = node.meta;
                if (mode, uid, gid) != (0o755, 0, 0) || !node.xattrs.is_empty() {
                    let xattrs = node.xattrs.len();
                    let detail = format!("the root has mode {mode:04o}, owner {uid}:{gid}, {xattrs} xattrs");
                    self.findings.add(Code::RootEntry, b"/", detail);
                }
                Ok(())
            }
            Action::Whiteout { parent, name } => {
                self.remember((path.as_bytes().len() * 2) as u64)?;
                self.journal.push(RecordRef::Whiteout { parent: &parent, name: &name })?;
                self.whiteouts.entry(parent.join(&name)).or_insert(self.entries);
                Ok(())
            }
            Action::Opaque { dir } => {
                self.remember((path.as_bytes().len() * 2) as u64)?;
                self.journal.push(RecordRef::Opaque { dir: &dir, mtime })?;
                self.opaques.insert(dir);
                Ok(())
            }
            Action::Make { path, node, meta } => self.make(path, node, meta),
        }
    }

    fn make(&mut self, path: LiteralPath, node: Node, mut meta: NodeMeta) -> Result<()> {
        // Whether there are any is all that matters.
        meta.xattrs.iter_mut().for_each(|(_, value)| *value = Vec::new());
        let made = Made {
            number: self.entries,
            directory: node == Node::Directory,
            symlink: matches!(node, Node::Symlink(_)),
        };
        let names: usize = meta.xattrs.iter().map(|(name, _)| name.len() + 2).sum();
        let target = match &node {
            Node::Symlink(target) | Node::AufsLink(target) => target.len(),
            Node::HardLink(target) => target.as_bytes().len(),
            _ => 0,
        };
        self.remember((path.as_bytes().len() * 2 + names + target) as u64)?;
        if let Some(before) = self.made.get(&path) {
            let by_symlink = before.symlink && made.directory || before.directory && made.symlink;
            let (code, detail) = match by_symlink {
                true => (Code::SymlinkReplaced, "a symlink and a directory of one name in one layer"),
                false => (Code::Duplicate, "the name appears twice in the layer"),
            };
            self.findings.add(code, path.as_bytes(), detail);
            self.marks.repeated.insert(path.clone());
        }
        if let Node::HardLink(target) = &node {
            self.link(&path, target)?;
        }
        if let Node::AufsLink(stored) = node {
            self.made.insert(path.clone(), made);
            return self.aufs_link(path, stored, meta);
        }
        self.journal.push(RecordRef::Make {
            path: &path,
            placed: None,
            source: None,
            node: &node,
            meta: &meta,
            sum: None,
        })?;
        self.made.insert(path, made);
        Ok(())
    }

    /// Counts the names of one file; a link to a link is one more of them.
    fn link(&mut self, path: &LiteralPath, target: &LiteralPath) -> Result<()> {
        let target = self.links.get(target).unwrap_or(target).clone();
        self.remember((path.as_bytes().len() + 2 * target.as_bytes().len()) as u64)?;
        let links = self.linked.entry(target.clone()).or_default();
        *links += 1;
        if *links == EXT4_LINKS {
            let detail = format!("more than {EXT4_LINKS} names of \"{}\"", escape(target.as_bytes()));
            self.findings.add(Code::ManyLinks, path.as_bytes(), detail);
        }
        self.links.insert(path.clone(), target);
        Ok(())
    }

    fn aufs_link(&mut self, path: LiteralPath, stored: Vec<u8>, meta: NodeMeta) -> Result<()> {
        let Some(number) = self.aufs.get(&stored) else {
            self.early_aufs.push((path, stored, meta));
            return Ok(());
        };
        let node = Node::AufsLink(number.to_string().into_bytes());
        self.journal.push(RecordRef::Make {
            path: &path,
            placed: None,
            source: None,
            node: &node,
            meta: &meta,
            sum: None,
        })
    }

    /// Makes the links that came before their source.
    fn settle_aufs(&mut self) -> Result<()> {
        for (path, stored, meta) in std::mem::take(&mut self.early_aufs) {
            if self.aufs.contains_key(&stored) {
                self.aufs_link(path, stored, meta)?;
                continue;
            }
            let message = "hard link to an AUFS link source that is not in the layer (R-32)";
            let error = Error::new(ErrorKind::Malformed, message).with_entry(path.as_bytes());
            self.findings.refuse(&error, path.as_bytes());
            self.refusal.get_or_insert(error);
        }
        Ok(())
    }

    fn remember(&mut self, bytes: u64) -> Result<()> {
        self.remembered = self.remembered.saturating_add(bytes).saturating_add(32);
        let max = self.plan.limits.max_layer_memory;
        if self.remembered > max { Err(Limit::LayerMemory.exceeded(max, self.remembered)) } else { Ok(()) }
    }

    /// Ends the layer: how its markers and entries go together. Also returns the last entry's name.
    fn end(mut self) -> Result<(Scanned, Vec<u8>)> {
        self.markers();
        let scanned = Scanned {
            findings: self.findings,
            journal: self.journal.finish()?,
            marks: self.marks,
            report: None,
            entries: self.entries,
            refusal: self.refusal,
            error: None,
        };
        Ok((scanned, self.last))
    }

    fn markers(&mut self) {
        if self.whiteouts.is_empty() && self.opaques.is_empty() {
            return;
        }
        // Whiteouts with entries below them, and opaque directories with entries in them.
        let mut entered: HashSet<LiteralPath> = HashSet::new();
        for path in self.made.keys() {
            let mut above = path.split_last().map(|(parent, _)| parent);
            while let Some(dir) = above {
                if self.whiteouts.contains_key(&dir) {
                    entered.insert(dir.clone());
                }
                if self.opaques.contains(&dir) {
                    self.marks.hold_entries.insert(dir.clone());
                }
                above = dir.split_last().map(|(parent, _)| parent);
            }
            if self.opaques.contains(path) {
                self.marks.hold_entries.insert(path.clone());
            }
        }
        let mut whiteouts: Vec<(u64, &LiteralPath)> = self.whiteouts.iter().map(|(path, at)| (*at, path)).collect();
        whiteouts.sort();
        for (number, path) in whiteouts {
            let made = self.made.get(path);
            let above = |test: &dyn Fn(&LiteralPath) -> bool| {
                let mut next = path.split_last().map(|(parent, _)| parent);
                while let Some(dir) = next {
                    if test(&dir) {
                        return true;
                    }
                    next = dir.split_last().map(|(parent, _)| parent);
                }
                false
            };
            let said = match made {
                Some(made) if made.number < number => {
                    Some((Code::WhiteoutAfterEntry, "a whiteout after an entry of the same name"))
                }
                Some(made) if made.directory => {
                    self.marks.made_after.insert(path.clone());
                    None
                }
                Some(_) => None,
                None if entered.contains(path) => Some((
                    Code::WhiteoutWithEntriesBelow,
                    "a whiteout of a directory into which the layer puts entries",
                )),
                None if above(&|dir| self.whiteouts.contains_key(dir) && !self.made.contains_key(dir)) => {
                    Some((Code::WhiteoutBelowWhiteout, "a whiteout below another whiteout's name"))
                }
                None if above(&|dir| self.opaques.contains(dir)) => {
                    Some((Code::WhiteoutInOpaque, "a whiteout in a directory that the layer makes opaque"))
                }
                None => continue,
            };
            if let Some((code, detail)) = said {
                self.findings.add(code, path.as_bytes(), detail);
            }
            self.marks.explained.insert(path.clone());
        }
    }
}

/// Bytes that the kernel takes in one path, without the final NUL.
const PATH_MAX: usize = 4095;
/// The last second that ext4 holds, in the year 2446.
const MAX_EXT4_TIME: i64 = 15_032_385_535;
/// What ext4 holds for one file with blocks of 4 KiB, about.
const EXT4_XATTRS: usize = 4_000;

/// Names of one inode that ext4 holds.
const EXT4_LINKS: u64 = 65_000;

/// Returns the name as findings show it.
fn shown(path: &LiteralPath) -> &[u8] {
    if path.is_root() { b"/" } else { path.as_bytes() }
}

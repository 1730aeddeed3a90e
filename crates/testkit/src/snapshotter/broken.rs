//! A snapshotter that breaks one promise of another one, to see that the suite can fail.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use super::mounting::Mounted;
use super::{Answer, Failure, FailureKind, Info, Kind, Labels, Mount, Snapshotter, Usage};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Fault {
    TakesAKeyTwice,
    StandsOnActiveOnes,
    CallsAMissingParentInvalid,
    CommitsViews,
    KeepsTheKeyAfterACommit,
    InheritsLabelsAtCommit,
    OverwritesNames,
    RemovesWhatOthersStandOn,
    DoesNotSayRemove,
    ForgetsLabels,
    UpdatesAnything,
    LeavesTheTimeOfAnUpdate,
    MergesLabels,
    IgnoresFilters,
    WalksPastViews,
    CountsParents,
    CountsNames,
    ChangesMounts,
    MakesWritableViews,
    ShowsTheParentOfTheParent,
    ClosesOnce,
    MakesPrivateRoots,
    LocksWhileItWalks,
    ForgetsParents,
    MovesTheTimeOfMaking,
    CutsLongOptions,
    ReusesWhatWasRemoved,
    NeverRebases,
}
use Fault::*;

impl Fault {
    /// Every fault.
    pub const ALL: [Fault; 28] = [
        TakesAKeyTwice,
        StandsOnActiveOnes,
        CallsAMissingParentInvalid,
        CommitsViews,
        KeepsTheKeyAfterACommit,
        InheritsLabelsAtCommit,
        OverwritesNames,
        RemovesWhatOthersStandOn,
        DoesNotSayRemove,
        ForgetsLabels,
        UpdatesAnything,
        LeavesTheTimeOfAnUpdate,
        MergesLabels,
        IgnoresFilters,
        WalksPastViews,
        CountsParents,
        CountsNames,
        ChangesMounts,
        MakesWritableViews,
        ShowsTheParentOfTheParent,
        ClosesOnce,
        MakesPrivateRoots,
        LocksWhileItWalks,
        ForgetsParents,
        MovesTheTimeOfMaking,
        CutsLongOptions,
        ReusesWhatWasRemoved,
        NeverRebases,
    ];
}

/// A snapshotter with one fault.
pub struct Broken {
    inner: Box<dyn Snapshotter>,
    fault: Fault,
    /// A directory to mount at.
    place: PathBuf,
    /// Committed keys and their names; or keys that say they are views.
    aliases: RefCell<BTreeMap<String, String>>,
    closed: Cell<bool>,
    walking: Cell<bool>,
}

impl Broken {
    /// Breaks `inner`; `place` is a directory of its own.
    pub fn new(inner: Box<dyn Snapshotter>, fault: Fault, place: PathBuf) -> Broken {
        let (aliases, closed, walking) = (RefCell::default(), Cell::new(false), Cell::new(false));
        Broken { inner, fault, place, aliases, closed, walking }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn shown(&self, mut info: Info) -> Info {
        match self.fault {
            LeavesTheTimeOfAnUpdate => info.updated = info.created,
            ForgetsParents => info.parent.clear(),
            MovesTheTimeOfMaking => info.created = SystemTime::now(),
            MakesWritableViews if self.aliases.borrow().contains_key(&info.name) => info.kind = Kind::View,
            _ => {}
        }
        info
    }

    fn made(&self, key: &str, answer: Answer<Vec<Mount>>) -> Answer<Vec<Mount>> {
        let kind = answer.as_ref().err().map(|e| e.kind);
        match (self.fault, kind) {
            (TakesAKeyTwice, Some(FailureKind::AlreadyExists)) => self.inner.mounts(key).or(Ok(Vec::new())),
            (StandsOnActiveOnes, Some(FailureKind::InvalidArgument)) => Ok(Vec::new()),
            (CallsAMissingParentInvalid, Some(FailureKind::NotFound)) => {
                answer.map_err(|e| Failure { kind: FailureKind::InvalidArgument, ..e })
            }
            _ => answer,
        }
    }

    fn cut(&self, mut mounts: Vec<Mount>) -> Vec<Mount> {
        if self.is(CutsLongOptions) {
            // As mount(2) does, at the last whole layer of its page.
            for option in mounts.iter_mut().flat_map(|m| &mut m.options).filter(|o| o.len() > 4096) {
                let end = option[..4096].rfind(':').unwrap();
                option.truncate(end);
            }
        }
        mounts
    }
}

impl Snapshotter for Broken {
    fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Answer<Vec<Mount>> {
        let labels = if self.is(ForgetsLabels) { &Labels::new() } else { labels };
        let name = format!("kept-{key}");
        if self.is(ReusesWhatWasRemoved) && self.aliases.borrow_mut().remove(key).is_some() {
            return self.inner.prepare(key, &name, labels);
        }
        let mounts = self.made(key, self.inner.prepare(key, parent, labels))?;
        if self.is(MakesPrivateRoots) {
            let mounted = Mounted::new(&mounts, &self.place);
            fs::set_permissions(mounted.path(), fs::Permissions::from_mode(0o700)).unwrap();
            mounted.detach();
        }
        Ok(self.cut(mounts))
    }

    fn view(&self, key: &str, parent: &str, labels: &Labels) -> Answer<Vec<Mount>> {
        let answer = match self.fault {
            MakesWritableViews => {
                let answer = self.inner.prepare(key, parent, labels);
                if answer.is_ok() {
                    self.aliases.borrow_mut().insert(key.to_owned(), String::new());
                }
                answer
            }
            ShowsTheParentOfTheParent => match self.inner.stat(parent) {
                Ok(info) if !info.parent.is_empty() => self.inner.view(key, &info.parent, labels),
                _ => self.inner.view(key, parent, labels),
            },
            _ => self.inner.view(key, parent, labels),
        };
        self.made(key, answer).map(|mounts| self.cut(mounts))
    }

    fn mounts(&self, key: &str) -> Answer<Vec<Mount>> {
        let mut mounts = self.inner.mounts(key)?;
        if self.is(ChangesMounts) {
            mounts.iter_mut().for_each(|m| m.options.push("nosuid".into()));
        }
        Ok(self.cut(mounts))
    }

    fn commit(&self, name: &str, key: &str, parent: &str, labels: &Labels) -> Answer<()> {
        let mut labels = labels.clone();
        if self.is(InheritsLabelsAtCommit)
            && let Ok(info) = self.inner.stat(key)
        {
            labels.extend(info.labels);
        }
        if self.is(NeverRebases) && !parent.is_empty() && self.inner.stat(parent).is_ok() {
            return self.inner.commit(name, key, "", &labels);
        }
        let answer = self.inner.commit(name, key, parent, &labels);
        match (self.fault, answer.as_ref().err().map(|e| e.kind)) {
            (CommitsViews, Some(FailureKind::FailedPrecondition)) => return Ok(()),
            (OverwritesNames, Some(FailureKind::AlreadyExists)) => return Ok(()),
            (KeepsTheKeyAfterACommit, None) => {
                self.aliases.borrow_mut().insert(key.to_owned(), name.to_owned());
            }
            _ => {}
        }
        answer
    }

    fn remove(&self, key: &str) -> Answer<()> {
        if self.is(ReusesWhatWasRemoved) && self.inner.stat(key).is_ok_and(|info| info.kind == Kind::Active) {
            self.aliases.borrow_mut().insert(key.to_owned(), String::new());
            return self.inner.commit(&format!("kept-{key}"), key, "", &Labels::new());
        }
        match (self.fault, self.inner.remove(key)) {
            (RemovesWhatOthersStandOn, Err(e)) if e.kind == FailureKind::FailedPrecondition => Ok(()),
            (DoesNotSayRemove, Err(e)) => Err(Failure { message: "no".into(), ..e }),
            (_, answer) => answer,
        }
    }

    fn stat(&self, key: &str) -> Answer<Info> {
        if self.is(LocksWhileItWalks) && self.walking.get() {
            return Err(Failure { kind: FailureKind::Other, message: "locked".into() });
        }
        let alias = self.aliases.borrow().get(key).filter(|_| self.is(KeepsTheKeyAfterACommit)).cloned();
        self.inner.stat(alias.as_deref().unwrap_or(key)).map(|info| self.shown(info))
    }

    fn update(&self, info: &Info, paths: &[&str]) -> Answer<Info> {
        let mut info = info.clone();
        if self.is(MergesLabels) && !paths.iter().any(|p| p.starts_with("labels.")) {
            let mut labels = self.inner.stat(&info.name)?.labels;
            labels.extend(info.labels);
            info.labels = labels;
        }
        match self.inner.update(&info, paths) {
            Err(e) if self.is(UpdatesAnything) && e.kind == FailureKind::InvalidArgument => self.stat(&info.name),
            other => other.map(|info| self.shown(info)),
        }
    }

    fn walk(&self, filters: &[&str], each: &mut dyn FnMut(Info)) -> Answer<()> {
        let filters = if self.is(IgnoresFilters) { &[] } else { filters };
        self.walking.set(true);
        let answer = self.inner.walk(filters, &mut |info| {
            if !(self.is(WalksPastViews) && info.kind == Kind::View) {
                each(self.shown(info));
            }
        });
        self.walking.set(false);
        answer
    }

    fn usage(&self, key: &str) -> Answer<Usage> {
        let mut usage = self.inner.usage(key)?;
        if self.is(CountsNames) && usage.inodes > 2 {
            usage.inodes += 2;
        }
        if self.is(CountsParents) {
            let mut info = self.inner.stat(key)?;
            while !info.parent.is_empty() {
                let parent = self.inner.usage(&info.parent)?;
                usage = Usage { bytes: usage.bytes + parent.bytes, inodes: usage.inodes + parent.inodes };
                info = self.inner.stat(&info.parent)?;
            }
        }
        Ok(usage)
    }

    fn cleanup(&self) -> Answer<()> {
        self.inner.cleanup()
    }

    fn close(&self) -> Answer<()> {
        if self.is(ClosesOnce) && self.closed.replace(true) {
            return Err(Failure { kind: FailureKind::Other, message: "closed already".into() });
        }
        self.inner.close()
    }
}

//! What writers put into an archive is what our parser gives back: names, numbers, times, xattrs, maps of sparse files.
//!
//! The writers are testkit's builder, told to use one of the dialects, and the `tar` crate's. What was read is written
//! again in testkit's own way and read once more: nothing is lost, and the second archive is the first to the byte.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use testkit::EntrySpec;
use testkit::tar::{Header, MAGIC_GNU, MAGIC_V7, TarBuilder, field, pax_time};
use unply::policy::Limits;
use unply::tar::{Entry, EntryKind, Region, Timestamp};
use unply_fuzz::{BLOCK, parse};

#[derive(Debug, Arbitrary)]
enum Kind {
    File(Vec<u8>),
    /// Gap before each region and its length; what follows the last one; how the map is written.
    Sparse(Vec<(u32, u8)>, u64, Map),
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Char(u16, u32),
    Block(u16, u32),
    Directory,
    /// A directory of a GNU dump, with the list of its content.
    Dump(Vec<u8>),
    Fifo,
}

#[derive(Debug, Arbitrary, Clone, Copy, PartialEq)]
enum Map {
    Old,
    Pax00,
    Pax01,
    Pax10,
}

/// The dialect of an entry.
#[derive(Debug, Arbitrary, Clone, Copy, PartialEq)]
enum Form {
    /// Testkit's own: ustar, PAX for what that cannot hold.
    Ustar,
    /// Long names and numbers in GNU's forms.
    Gnu,
    /// Everything in PAX records, over header fields that say something else.
    Pax,
    /// The same behind the type letter of Solaris.
    Solaris,
    /// Neither magic nor extension headers.
    V7,
}

#[derive(Debug, Arbitrary)]
struct Member {
    form: Form,
    name: Vec<u8>,
    /// Repeats the name, so that long ones are within reach.
    stretch: u8,
    kind: Kind,
    mode: u16,
    uid: u32,
    gid: u32,
    seconds: i64,
    nanos: u32,
    xattrs: Vec<(Vec<u8>, Vec<u8>, bool)>,
    /// Something harmless before the entry.
    comment: bool,
}

#[derive(Debug, Arbitrary)]
struct Input {
    members: Vec<Member>,
    /// The size of a last file whose data is missing.
    huge: Option<u64>,
    unfinished: bool,
}

fn without_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|b| *b != 0).collect()
}

/// Octal where it fits, GNU's base-256 where it does not.
fn number(header: Header, at: testkit::tar::Field, value: i128) -> Header {
    let digits = 3 * (at.1 as u32 - 1);
    match u64::try_from(value) {
        Ok(value) if value >> digits == 0 => header.octal(at, value),
        _ => header.base256(at, value),
    }
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let bits = chunk.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        (0..=chunk.len()).map(|i| ALPHABET[(bits >> (18 - 6 * i)) as usize & 63]).collect::<Vec<_>>()
    };
    bytes.chunks(3).flat_map(group).collect()
}

impl Member {
    /// What the parser must give back, `offset` aside, and the bytes that follow the headers.
    fn entry(&self) -> (Entry, Vec<u8>) {
        let mut path = without_nul(&self.name).repeat(usize::from(self.stretch % 32) + 1);
        path.truncate(3000);
        if path.is_empty() {
            path.push(b'n');
        }
        let target = |own: &[u8]| {
            let mut target = without_nul(own);
            target.truncate(4095);
            if target.is_empty() { b"t".to_vec() } else { target }
        };
        let mut data = Vec::new();
        let kind = match &self.kind {
            Kind::File(content) => {
                data = content.clone();
                EntryKind::File { size: data.len() as u64, sparse: None }
            }
            Kind::Sparse(parts, tail, _) => {
                let (mut end, mut regions) = (0, Vec::new());
                for (gap, length) in parts.iter().take(80) {
                    regions.push(Region { offset: end + u64::from(*gap), length: u64::from(*length) });
                    end += u64::from(*gap) + u64::from(*length);
                    data.resize(data.len() + usize::from(*length), *length);
                }
                EntryKind::File { size: end + tail % (1 << 62), sparse: Some(regions) }
            }
            Kind::HardLink(t) => EntryKind::HardLink { target: target(t) },
            Kind::Symlink(t) => EntryKind::Symlink { target: target(t) },
            Kind::Char(major, minor) => {
                EntryKind::CharDevice { major: u32::from(*major) % 4096, minor: minor % 1_048_576 }
            }
            Kind::Block(major, minor) => {
                EntryKind::BlockDevice { major: u32::from(*major) % 4096, minor: minor % 1_048_576 }
            }
            Kind::Directory | Kind::Dump(_) => EntryKind::Directory,
            Kind::Fifo => EntryKind::Fifo,
        };
        // A slash at the end makes a file without data a directory (T9).
        if matches!(kind, EntryKind::File { .. }) && path.ends_with(b"/") {
            path.push(b'f');
        }
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (name, value, _) in self.xattrs.iter().take(20) {
            // Longer names are refused: no file system holds them (M21).
            let mut name = without_nul(name);
            name.truncate(255);
            if !name.is_empty() && xattrs.iter().all(|(other, _)| *other != name) {
                xattrs.push((name, value.clone()));
            }
        }
        let stored = data.len() as u64;
        let entry = Entry {
            offset: 0,
            path,
            kind,
            mode: u32::from(self.mode) & 0o7777,
            uid: self.uid.min(u32::MAX - 1),
            gid: self.gid.min(u32::MAX - 1),
            mtime: Timestamp { seconds: self.seconds, nanos: self.nanos % 1_000_000_000 },
            atime: None,
            xattrs,
            stored,
        };
        (entry, data)
    }

    /// Writes the member in its dialect; what the dialect cannot say is changed in `entry`.
    fn write(&self, tar: TarBuilder, entry: &mut Entry, mut data: Vec<u8>) -> TarBuilder {
        let letter = match &self.kind {
            Kind::File(_) if self.comment && self.form != Form::V7 => b'7',
            Kind::File(_) | Kind::Sparse(..) => b'0',
            Kind::HardLink(_) => b'1',
            Kind::Symlink(_) => b'2',
            Kind::Char(..) => b'3',
            Kind::Block(..) => b'4',
            Kind::Directory => b'5',
            Kind::Dump(_) => b'D',
            Kind::Fifo => b'6',
        };
        if let Kind::Dump(list) = &self.kind {
            data = list.clone();
        }
        let map = match (&self.kind, self.form) {
            // A dialect without PAX has the old form only, and the others lose nothing by the new ones.
            (Kind::Sparse(..), Form::Gnu | Form::V7) => Some(Map::Old),
            (Kind::Sparse(_, _, map), _) => Some(*map),
            _ => None,
        };
        let form = match (map, self.form) {
            (Some(Map::Old), _) => Form::Gnu,
            (_, Form::V7) if entry.path.len() > 100 => Form::Gnu,
            (_, form) => form,
        };
        let target = match &entry.kind {
            EntryKind::HardLink { target } | EntryKind::Symlink { target } => target.clone(),
            _ => Vec::new(),
        };
        let form = if form == Form::V7 && target.len() > 100 { Form::Gnu } else { form };
        let devices = match entry.kind {
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => Some((major, minor)),
            _ => None,
        };
        let form = if form == Form::V7 && devices.is_some() { Form::Gnu } else { form };

        let mut header = Header::new(letter, "").octal(field::MODE, u64::from(entry.mode));
        if let Some((major, minor)) = devices {
            header = header.octal(field::DEVMAJOR, major.into()).octal(field::DEVMINOR, minor.into());
        }
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut tar = tar;
        match form {
            Form::Ustar | Form::Pax | Form::Solaris => {
                if self.comment {
                    tar = tar.pax_global(&[("comment", "nothing")]);
                }
                let Timestamp { seconds, nanos } = entry.mtime;
                records.push((b"mtime".to_vec(), pax_time(seconds, nanos).into_bytes()));
                records.push((b"uid".to_vec(), entry.uid.to_string().into_bytes()));
                records.push((b"gid".to_vec(), entry.gid.to_string().into_bytes()));
                if !target.is_empty() {
                    records.push((b"linkpath".to_vec(), target));
                }
                if map != Some(Map::Pax01) && map != Some(Map::Pax10) {
                    records.push((b"path".to_vec(), entry.path.clone()));
                }
                for (n, (name, value)) in entry.xattrs.iter().enumerate() {
                    let other = self.xattrs.get(n).is_some_and(|x| x.2);
                    // An equals sign ends the key of a record; only one of the two carriers can quote it.
                    if other || name.contains(&b'=') {
                        let quoted: String = name.iter().map(|b| format!("%{b:02X}")).collect();
                        records.push((format!("LIBARCHIVE.xattr.{quoted}").into_bytes(), base64(value)));
                    } else {
                        // The other carrier has the lower rank wherever it stands.
                        if self.comment {
                            let quoted = name.iter().map(|b| format!("%{b:02x}")).collect::<String>();
                            records.push((format!("LIBARCHIVE.xattr.{quoted}").into_bytes(), b"eA==".to_vec()));
                        }
                        records.push(([b"SCHILY.xattr.", &name[..]].concat(), value.clone()));
                    }
                }
                header = header.raw(field::NAME, "other").raw(field::LINKNAME, "other").octal(field::UID, 0o7777777);
            }
            Form::Gnu => {
                entry.xattrs.clear();
                entry.mtime.nanos = 0;
                header = header.raw(field::MAGIC, MAGIC_GNU);
                header = number(header, field::MTIME, entry.mtime.seconds.into());
                header = number(header, field::UID, entry.uid.into());
                header = number(header, field::GID, entry.gid.into());
                if entry.path.len() > 100 || self.comment {
                    tar = tar.gnu_long_name(&entry.path);
                    header = header.raw(field::NAME, "other");
                } else {
                    header = header.raw(field::NAME, &entry.path);
                }
                if target.len() > 100 {
                    tar = tar.gnu_long_link(&target);
                } else {
                    header = header.raw(field::LINKNAME, &target);
                }
            }
            Form::V7 => {
                entry.xattrs.clear();
                entry.mtime = Timestamp { seconds: entry.mtime.seconds.rem_euclid(1 << 33), nanos: 0 };
                (entry.uid, entry.gid) = (entry.uid % 0o10000000, entry.gid % 0o10000000);
                header = header
                    .raw(field::MAGIC, MAGIC_V7)
                    .raw(field::NAME, &entry.path)
                    .raw(field::LINKNAME, &target)
                    .octal(field::UID, entry.uid.into())
                    .octal(field::GID, entry.gid.into())
                    .octal(field::MTIME, entry.mtime.seconds as u64);
            }
        }
        let text = |n: u64| n.to_string().into_bytes();
        if let (Some(map), EntryKind::File { size, sparse: Some(regions) }) = (map, &entry.kind) {
            let count = text(regions.len() as u64);
            let mut key = |name: &str, value: Vec<u8>| records.push((format!("GNU.sparse.{name}").into_bytes(), value));
            match map {
                Map::Old => {
                    let header = number(header.raw(field::TYPEFLAG, b"S"), field::SIZE, data.len() as i128);
                    return old_sparse(tar, header, *size, regions).data(data);
                }
                Map::Pax00 => {
                    key("size", text(*size));
                    key("numblocks", count);
                    for region in regions {
                        key("offset", text(region.offset));
                        key("numbytes", text(region.length));
                    }
                }
                Map::Pax01 => {
                    key("size", text(*size));
                    key("numblocks", count);
                    let pairs: Vec<_> = regions.iter().map(|r| format!("{},{}", r.offset, r.length)).collect();
                    key("map", pairs.join(",").into_bytes());
                    key("name", entry.path.clone());
                }
                Map::Pax10 => {
                    key("major", text(1));
                    key("minor", text(0));
                    key("realsize", text(*size));
                    key("name", entry.path.clone());
                    let mut lines = format!("{}\n", regions.len());
                    regions.iter().for_each(|r| lines += &format!("{}\n{}\n", r.offset, r.length));
                    lines.extend(std::iter::repeat_n('\0', lines.len().next_multiple_of(BLOCK) - lines.len()));
                    data.splice(..0, lines.into_bytes());
                }
            }
        }
        if !records.is_empty() {
            let body = testkit::tar::pax_records(&records);
            tar = tar.pax_of_type(if form == Form::Solaris { b'X' } else { b'x' }, body);
        }
        tar.member(header, data)
    }
}

/// GNU's old map: four regions in the header, 21 in each extension block.
fn old_sparse(tar: TarBuilder, header: Header, size: u64, regions: &[Region]) -> TarBuilder {
    // A header block lends its fields' forms to the slots of an extension block as well.
    let slots = |mut header: Header, start: usize, regions: &[Region]| {
        for (n, region) in regions.iter().enumerate() {
            header = number(header, (start + 24 * n, 12), region.offset.into());
            header = number(header, (start + 24 * n + 12, 12), region.length.into());
        }
        header
    };
    let (first, rest) = regions.split_at(regions.len().min(4));
    let header = number(slots(header, 386, first), (483, 12), size.into()).raw((482, 1), [u8::from(!rest.is_empty())]);
    let mut tar = tar.header(&header);
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut block = [0; BLOCK];
        for (n, region) in chunk.iter().enumerate() {
            let one = slots(Header::new(0, ""), 386, &[*region]).block();
            block[24 * n..24 * (n + 1)].copy_from_slice(&one[386..410]);
        }
        block[504] = u8::from(chunks.peek().is_some());
        tar = tar.raw(block);
    }
    tar
}

fn expected_regions(entry: &mut Entry) {
    // Regions without data say nothing.
    if let EntryKind::File { sparse: Some(regions), .. } = &mut entry.kind {
        regions.retain(|r| r.length > 0);
    }
}

fn same(wanted: &[Entry], found: &[Entry], who: &str) {
    for (n, (wanted, found)) in wanted.iter().zip(found).enumerate() {
        let found = Entry { offset: wanted.offset, ..found.clone() };
        assert_eq!(*wanted, found, "{who}: entry {n}");
    }
    assert_eq!(wanted.len(), found.len(), "{who}: number of entries");
}

fn spec(entry: &Entry, data: &[u8]) -> Option<EntrySpec> {
    use testkit::EntryKind as To;
    let kind = match &entry.kind {
        EntryKind::File { sparse: None, .. } => To::File(data.to_vec()),
        EntryKind::File { .. } => return None,
        EntryKind::HardLink { target } => To::HardLink(target.clone()),
        EntryKind::Symlink { target } => To::Symlink(target.clone()),
        EntryKind::CharDevice { major, minor } => To::Char(*major, *minor),
        EntryKind::BlockDevice { major, minor } => To::Block(*major, *minor),
        EntryKind::Directory => To::Dir,
        EntryKind::Fifo => To::Fifo,
    };
    // The builder writes xattrs in one form only, which cannot quote an equals sign.
    let xattrs = entry.xattrs.iter().filter(|(name, _)| !name.contains(&b'=')).cloned().collect();
    Some(EntrySpec {
        path: entry.path.clone(),
        kind,
        mode: entry.mode,
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        mtime: (entry.mtime.seconds, entry.mtime.nanos),
        xattrs,
    })
}

/// Testkit's writer, our parser, testkit's writer again: the same archive.
fn again(entries: &[(Entry, Vec<u8>)]) {
    let specs: Vec<_> = entries.iter().filter_map(|(entry, data)| spec(entry, data)).collect();
    let first = testkit::layer(&specs);
    let parsed = parse(&first, &Limits::default());
    assert!(parsed.error.is_none() && parsed.ended && !parsed.odd, "{:?}", parsed.error);
    let data = |entry: &Entry| {
        let start = usize::try_from(entry.offset).unwrap() + BLOCK;
        first[start..start + usize::try_from(entry.stored).unwrap()].to_vec()
    };
    let read: Vec<_> = parsed.entries.iter().filter_map(|entry| spec(entry, &data(entry))).collect();
    assert_eq!(read, specs);
    assert!(testkit::layer(&read) == first, "the second archive differs");
}

/// The `tar` crate as the writer, of what it is willing to write.
fn by_the_crate(entries: &[(Entry, Vec<u8>)], pax: bool) {
    use std::os::unix::ffi::OsStrExt;
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut wanted = Vec::new();
    for (entry, data) in entries {
        // It takes names apart and drops what it holds for noise.
        let plain = |name: &[u8]| name.split(|b| *b == b'/').all(|c| !c.is_empty() && c != b"." && c != b"..");
        let path = |bytes: &[u8]| std::path::PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        let mut entry = entry.clone();
        let mut header = if pax { ::tar::Header::new_ustar() } else { ::tar::Header::new_gnu() };
        // Of a long one it puts the first bytes into the header as well, up to what is no UTF-8.
        let fits = |name: &[u8]| plain(name) && (name.len() <= 100 || (!pax && std::str::from_utf8(name).is_ok()));
        if !fits(&entry.path) {
            continue;
        }
        header.set_mode(entry.mode);
        if pax {
            (entry.uid, entry.gid) = (entry.uid % 0o10000000, entry.gid % 0o10000000);
        }
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        let Ok(seconds) = u64::try_from(entry.mtime.seconds) else { continue };
        let seconds = if pax { seconds % (1 << 33) } else { seconds };
        header.set_mtime(seconds);
        entry.mtime = Timestamp { seconds: seconds as i64, nanos: 0 };
        header.set_size(entry.stored);
        let mut link = None;
        header.set_entry_type(match &entry.kind {
            EntryKind::File { sparse: None, .. } => ::tar::EntryType::Regular,
            EntryKind::File { .. } => continue,
            EntryKind::HardLink { target } => {
                link = Some(target.clone());
                ::tar::EntryType::Link
            }
            EntryKind::Symlink { target } => {
                link = Some(target.clone());
                ::tar::EntryType::Symlink
            }
            EntryKind::CharDevice { .. } => ::tar::EntryType::Char,
            EntryKind::BlockDevice { .. } => ::tar::EntryType::Block,
            EntryKind::Directory => ::tar::EntryType::Directory,
            EntryKind::Fifo => ::tar::EntryType::Fifo,
        });
        if let EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } = entry.kind {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
        if link.as_ref().is_some_and(|target| !fits(target)) {
            continue;
        }
        let keys: Vec<_> = entry
            .xattrs
            .iter()
            .filter_map(|(name, value)| {
                let name = std::str::from_utf8(name).ok().filter(|name| pax && !name.contains('='))?;
                Some((format!("SCHILY.xattr.{name}"), value.clone()))
            })
            .collect();
        entry.xattrs.retain(|(name, _)| pax && !name.contains(&b'=') && std::str::from_utf8(name).is_ok());
        if !keys.is_empty() {
            builder.append_pax_extensions(keys.iter().map(|(key, value)| (key.as_str(), &value[..]))).unwrap();
        }
        let written = match &link {
            Some(target) => builder.append_link(&mut header, path(&entry.path), path(target)),
            None => builder.append_data(&mut header, path(&entry.path), &data[..]),
        };
        written.unwrap();
        wanted.push(entry);
    }
    let archive = builder.into_inner().unwrap();
    let parsed = parse(&archive, &Limits::default());
    assert!(parsed.error.is_none() && parsed.ended, "{:?}", parsed.error);
    same(&wanted, &parsed.entries, "the tar crate's archive");
}

fuzz_target!(|input: Input| {
    let mut tar = TarBuilder::new();
    let mut members = Vec::new();
    for member in input.members.iter().take(20) {
        let (mut entry, data) = member.entry();
        tar = member.write(tar, &mut entry, data.clone());
        expected_regions(&mut entry);
        members.push((entry, data));
    }
    let mut wanted: Vec<Entry> = members.iter().map(|(entry, _)| entry.clone()).collect();
    if let Some(size) = input.huge {
        // Beyond one block, so that the data is missing for sure; below where its end overflows.
        let size = (size % (1 << 62)).max(BLOCK as u64 + 1);
        tar = tar.header(&number(Header::new(b'0', "huge").raw(field::MAGIC, MAGIC_GNU), field::SIZE, size.into()));
        wanted.push(Entry {
            offset: 0,
            path: b"huge".to_vec(),
            kind: EntryKind::File { size, sparse: None },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            atime: None,
            xattrs: Vec::new(),
            stored: size,
        });
    }
    let whole = input.huge.is_none();
    let archive = if input.unfinished || !whole { tar.unfinished() } else { tar.finish() };
    let parsed = parse(&archive, &Limits::default());
    assert_eq!(parsed.error.is_none(), whole, "{:?}", parsed.error);
    same(&wanted, &parsed.entries, "testkit's archive");
    again(&members);
    by_the_crate(&members, false);
    by_the_crate(&members, true);
});

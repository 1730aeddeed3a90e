//! What the fuzz targets share: repaired checksums, layers as text, documents that refer to each other.

use std::path::PathBuf;

use testkit::{EntryKind, EntrySpec};
use unply::tar::{Entry, Error, Parser, Step};

/// Bytes of one tar block.
pub const BLOCK: usize = 512;

/// Writes the right checksum into every block that looks like a header, so that a mutation gets past it.
///
/// A block looks like one if it carries the ustar magic or if its checksum field is spelled as numbers are. Data that
/// happens to look so is changed too, which no target minds.
pub fn repair_checksums(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(BLOCK) {
        let number = |b: &u8| matches!(b, b'0'..=b'7' | b' ' | 0);
        let header = &block[257..262] == b"ustar"
            || (block[148..156].iter().all(number) && block[148..156].iter().any(|b| *b != 0));
        if !header {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// What our parser made of an archive in memory.
pub struct Parsed {
    /// The entries up to the end or the error.
    pub entries: Vec<Entry>,
    /// The refusal, if there was one.
    pub error: Option<Error>,
    /// Whether anything odd was accepted on the way.
    pub odd: bool,
    /// Whether two zero blocks ended it.
    pub ended: bool,
}

/// What is shown to people holds nothing that steers a terminal.
pub fn assert_printable(text: &str) {
    assert!(!text.contains(char::is_control), "unprintable: {text:?}");
}

/// Runs our parser over an archive, skipping data as a caller has to.
pub fn parse(archive: &[u8], limits: &unply::policy::Limits) -> Parsed {
    let mut parser = Parser::new(limits);
    let mut out = Parsed { entries: Vec::new(), error: None, odd: false, ended: false };
    let mut at = 0usize;
    loop {
        assert_eq!(parser.offset(), at as u64, "the parser and its caller disagree about the offset");
        let Some(block) = archive.get(at..at + BLOCK) else {
            let result = if at >= archive.len() { parser.finish() } else { Err(parser.partial_block()) };
            out.error = result.err();
            break;
        };
        let step = parser.block(block.try_into().unwrap());
        at += BLOCK;
        for oddity in parser.take_oddities() {
            out.odd = true;
            assert_printable(&oddity.to_string());
        }
        let skip = match step {
            Ok(Step::More) => 0,
            Ok(Step::End) => {
                out.ended = true;
                assert_eq!(parser.block(&[1; BLOCK]), Ok(Step::End), "the end must stick");
                break;
            }
            Ok(Step::Skip(bytes)) => bytes,
            Ok(Step::Entry(entry)) => {
                let stored = entry.stored;
                out.entries.push(*entry);
                stored.checked_next_multiple_of(BLOCK as u64).expect("the parser let the end of the data overflow")
            }
            Err(e) => {
                let again = parser.block(&[0; BLOCK]).expect_err("an error must stick");
                assert_eq!(again, e, "an error changed when asked again");
                assert_printable(&e.to_string());
                out.error = Some(e);
                break;
            }
        };
        // Data that reaches past the end is a truncated archive; the caller sees it, not the parser.
        match at.checked_add(usize::try_from(skip).unwrap_or(usize::MAX)).filter(|end| *end <= archive.len()) {
            Some(end) => at = end,
            None => {
                out.error = Some(parser.partial_block());
                break;
            }
        }
    }
    out
}

/// Reads layers, bottom first, from lines of tab-separated fields; whatever does not parse is left out.
///
/// ```text
/// f   PATH  CONTENT  [META…]     a file            d  PATH  [META…]     a directory
/// l   PATH  TARGET   [META…]     a symlink         h  PATH  TARGET  …   a hard link
/// p   PATH  [META…]              a fifo            c  PATH  MAJOR:MINOR …  b  … devices
/// ---                            the next layer begins
/// ```
/// META is one of `m=OCTAL`, `u=UID`, `g=GID`, `t=SECONDS.NANOS`, `x=NAME=VALUE`. Whiteouts are files named `.wh.…`.
pub fn layers_from_text(text: &[u8]) -> Vec<Vec<EntrySpec>> {
    let mut layers = vec![Vec::new()];
    for line in text.split(|b| *b == b'\n') {
        if line == b"---" {
            if layers.len() == 6 {
                break;
            }
            layers.push(Vec::new());
        } else if let (Some(entry), Some(layer)) = (entry_from_line(line), layers.last_mut())
            && layer.len() < 40
        {
            layer.push(entry);
        }
    }
    layers
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn split_at_byte(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|b| *b == byte)?;
    Some((&text[..at], &text[at + 1..]))
}

fn entry_from_line(line: &[u8]) -> Option<EntrySpec> {
    let mut fields = line.split(|b| *b == b'\t');
    let kind = fields.next()?;
    let path = fields.next()?;
    let device = |field: Option<&[u8]>| -> Option<(u32, u32)> {
        let (major, minor) = split_at_byte(field?, b':')?;
        // Larger numbers are refused by the parser; the model knows nothing of that.
        Some((number::<u32>(major)? % 4096, number::<u32>(minor)? % 1_048_576))
    };
    let kind = match kind {
        b"f" => EntryKind::File(fields.next()?.to_vec()),
        b"d" => EntryKind::Dir,
        b"l" => EntryKind::Symlink(fields.next()?.to_vec()),
        b"h" => EntryKind::HardLink(fields.next()?.to_vec()),
        b"p" => EntryKind::Fifo,
        b"c" => device(fields.next()).map(|(a, b)| EntryKind::Char(a, b))?,
        b"b" => device(fields.next()).map(|(a, b)| EntryKind::Block(a, b))?,
        _ => return None,
    };
    // A tar cannot say these: a NUL ends a name, and a name ending in a slash is a directory to every reader.
    let says = |name: &[u8]| !name.contains(&0) && name.len() <= 4096;
    let plain = !matches!(kind, EntryKind::File(_)) || !path.ends_with(b"/");
    let target = match &kind {
        EntryKind::Symlink(t) | EntryKind::HardLink(t) => Some(t.as_slice()),
        _ => None,
    };
    if !says(path) || path.is_empty() || !plain || target.is_some_and(|t| !says(t) || t.is_empty()) {
        return None;
    }
    let mut entry = EntrySpec::new(path, kind);
    for field in fields {
        let (key, value) = split_at_byte(field, b'=')?;
        match key {
            b"m" => entry.mode = u32::from_str_radix(std::str::from_utf8(value).ok()?, 8).ok()? & 0o7777,
            b"u" => entry.uid = number::<u32>(value)?.min(u32::MAX - 1).into(),
            b"g" => entry.gid = number::<u32>(value)?.min(u32::MAX - 1).into(),
            b"t" => {
                let (seconds, nanos) = split_at_byte(value, b'.')?;
                // What a file system cannot hold is saturated with a warning (R-8), which the model does not do.
                entry.mtime = (number::<u32>(seconds)?.into(), number::<u32>(nanos)? % 1_000_000_000);
            }
            b"x" => {
                let (name, value) = split_at_byte(value, b'=')?;
                // Other namespaces are up to the kernel and its security modules.
                let known = name.starts_with(b"user.") || name.starts_with(b"trusted.");
                let short = (6..=200).contains(&name.len()) && value.len() <= 200 && !name.ends_with(b".");
                if known && short && !name.contains(&0) && entry.xattrs.iter().all(|(n, _)| n != name) {
                    entry.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
            _ => return None,
        }
    }
    Some(entry)
}

/// Writes layers as [`layers_from_text`] reads them; `None` for what the text cannot say.
pub fn text_from_layers(layers: &[Vec<EntrySpec>]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        if n > 0 {
            out.extend_from_slice(b"---\n");
        }
        for entry in layer {
            let device = |(a, b): (&u32, &u32)| format!("\t{a}:{b}").into_bytes();
            let tabbed = |bytes: &[u8]| [b"\t", bytes].concat();
            let (letter, rest) = match &entry.kind {
                EntryKind::File(content) => (b'f', tabbed(content)),
                EntryKind::Dir => (b'd', Vec::new()),
                EntryKind::Symlink(t) => (b'l', tabbed(t)),
                EntryKind::HardLink(t) => (b'h', tabbed(t)),
                EntryKind::Fifo => (b'p', Vec::new()),
                EntryKind::Char(a, b) => (b'c', device((a, b))),
                EntryKind::Block(a, b) => (b'b', device((a, b))),
            };
            out.extend([&[letter, b'\t'], &entry.path[..], &rest].concat());
            let (seconds, nanos) = entry.mtime;
            out.extend(
                format!("\tm={:o}\tu={}\tg={}\tt={seconds}.{nanos}", entry.mode, entry.uid, entry.gid).into_bytes(),
            );
            for (name, value) in &entry.xattrs {
                out.extend([b"\tx=", &name[..], b"=", value].concat());
            }
            out.push(b'\n');
        }
    }
    (layers_from_text(&out) == layers).then_some(out)
}

/// Replaces `from` by `to` throughout.
pub fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(from.len()).position(|w| w == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Makes the directory of this process for files, in memory where there is some, and removes those of dead ones: a
/// fuzzer that is stopped or crashes tidies nothing up.
pub fn scratch() -> PathBuf {
    const PREFIX: &str = "unply-fuzz-";
    let shm = PathBuf::from("/dev/shm");
    let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
    for entry in std::fs::read_dir(&base).unwrap().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).filter(|n| n.parse::<u32>().is_ok());
        if owner.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path()); // another fuzzer may be at it as well
        }
    }
    let own = base.join(format!("{PREFIX}{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&own); // of an earlier process with this number
    std::fs::create_dir(&own).unwrap();
    own
}

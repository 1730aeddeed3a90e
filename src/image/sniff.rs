//! From a reference to the source that reads it; for bare paths, by looking.
//!
//! Owns: what a path is taken for. Refuses to know: how sources work inside.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::archive::{self, Holds, RangeReader, fill, holds};
use super::members::Blocks;
use super::outer::{Magic, Outer, check_packing, magic_at};
use super::reference::{Input, Reference, Selector};
use super::resolve::Wanted;
use super::stream::{ArchiveKind, ArchiveStream};
use super::{Image, OpenOptions, Source, layout, single};
use crate::cancel::CancelToken;
use crate::error::{Error, ErrorKind};

/// Entries and bytes of a compressed file that are unpacked only to see what it is.
const SNIFF_ENTRIES: u32 = 256;
const SNIFF_BYTES: u64 = 8 << 20;

/// Opens what `reference` names.
pub(crate) fn open(reference: &Reference, options: &OpenOptions) -> Result<Source, Error> {
    let image = |mut image: Image, reference: String| {
        image.reference = reference;
        Ok(Source::Image(image))
    };
    match reference {
        Reference::OciDir { dir, selector } => {
            image(layout::open(dir, &wanted(selector, options))?, reference.to_string())
        }
        Reference::OciArchive { file, selector } => open_archive(file, ArchiveKind::Oci, selector, options, reference),
        Reference::DockerArchive { file, selector } => {
            open_archive(file, ArchiveKind::Docker, selector, options, reference)
        }
        Reference::Layer(Input::File(path)) => image(open_layer(path, options)?, reference.to_string()),
        Reference::Layer(Input::Stdin) => image(single::from_stream(stdin(options)?, options), reference.to_string()),
        Reference::Stdin { selector } => {
            let stream = ArchiveStream::from_reader(stdin(options)?, ArchiveKind::Sniff, selector.clone(), options);
            Ok(Source::Stream(stream.named(reference.to_string())))
        }
        Reference::Stored(name) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("\"{}\" names an image in the store", crate::error::escape(name.as_bytes())),
        )
        .with_hint("open it through the store; for a file or directory, write a path or a transport such as oci:")),
        Reference::Path(path) => open_path(path, options),
    }
}

fn wanted<'a>(selector: &'a Selector, options: &'a OpenOptions) -> Wanted<'a> {
    Wanted { selector, platform: options.platform.as_ref(), limits: &options.limits, may_lack_layers: false }
}

/// Takes its own handle of standard input, unbuffered and shared with nobody's lock.
fn stdin(options: &OpenOptions) -> Result<Box<dyn Read + Send>, Error> {
    let fd = io::stdin().as_fd().try_clone_to_owned().map_err(|err| Error::io("taking standard input", err))?;
    Ok(Box::new(Pipe { file: Arc::new(File::from(fd)), cancel: options.cancel.clone() }))
}

/// Opens a file; says whether it can be read at any offset.
fn open_file(path: &Path) -> Result<(Arc<File>, bool), Error> {
    let file = File::open(path).map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::NotFound, format!("there is no file {}", path.display()))
            .with_hint("a name behind the path follows a colon: TRANSPORT:PATH:NAME"),
        _ => Error::io(format!("opening {}", path.display()), err),
    })?;
    let kind = file.metadata().map_err(|err| Error::io(format!("opening {}", path.display()), err))?.file_type();
    if kind.is_dir() {
        return Err(Error::new(ErrorKind::NotFound, format!("{} is a directory, not an archive", path.display()))
            .with_hint("for an image layout, write oci:DIR"));
    }
    Ok((Arc::new(file), kind.is_file()))
}

fn open_archive(
    path: &Path,
    kind: ArchiveKind,
    selector: &Selector,
    options: &OpenOptions,
    reference: &Reference,
) -> Result<Source, Error> {
    let (file, seekable) = open_file(path)?;
    archive_source(file, seekable, kind, selector, options, reference.to_string())
}

fn archive_source(
    file: Arc<File>,
    seekable: bool,
    kind: ArchiveKind,
    selector: &Selector,
    options: &OpenOptions,
    reference: String,
) -> Result<Source, Error> {
    let magic = if seekable { magic_at(&file)? } else { Magic::Other };
    check_packing(magic)?;
    if seekable && magic == Magic::Other {
        let mut image = archive::open(file, kind, &wanted(selector, options))?;
        image.reference = reference;
        return Ok(Source::Image(image));
    }
    // A pipe has no offsets, a file must not depend on where somebody else's handle stands.
    let reader: Box<dyn Read + Send> = if seekable {
        Box::new(RangeReader::whole(file))
    } else {
        Box::new(Pipe { file, cancel: options.cancel.clone() })
    };
    Ok(Source::Stream(ArchiveStream::from_reader(reader, kind, selector.clone(), options).named(reference)))
}

/// How long a read waits for bytes before it looks whether anybody still wants them.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A pipe: whoever writes it may stall for ever, so waiting for it can be cancelled.
struct Pipe {
    file: Arc<File>,
    cancel: CancelToken,
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.cancel.check()?;
            let mut fds = [PollFd::new(&*self.file, PollFlags::IN)];
            match poll(&mut fds, Some(&PATIENCE)) {
                Ok(0) | Err(Errno::INTR) => {}
                // Anything else than bytes, hang-up included, the read itself says best.
                Ok(_) => return (&*self.file).read(buf),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn open_layer(path: &Path, options: &OpenOptions) -> Result<Image, Error> {
    let (file, seekable) = open_file(path)?;
    if !seekable {
        return Ok(single::from_stream(Box::new(Pipe { file, cancel: options.cancel.clone() }), options));
    }
    let size = file.metadata().map_err(|err| Error::io(format!("opening {}", path.display()), err))?.len();
    single::from_file(file, size, options)
}

fn open_path(path: &Path, options: &OpenOptions) -> Result<Source, Error> {
    let metadata = std::fs::metadata(path).map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::NotFound, format!("there is nothing at {}", path.display()))
            .with_hint("name an image layout directory, an image archive or a layer"),
        _ => Error::io(format!("looking at {}", path.display()), err),
    })?;
    if metadata.is_dir() {
        if !layout::Layout::open(path)?.is_one()? {
            return Err(Error::new(ErrorKind::NotFound, format!("{} is no image layout", path.display()))
                .with_hint("a layout has oci-layout, index.json and blobs/"));
        }
        let reference = Reference::OciDir { dir: path.into(), selector: Selector::None };
        return open(&reference, options);
    }
    let (file, seekable) = open_file(path)?;
    if !seekable {
        let reference = Reference::Path(path.into()).to_string();
        return archive_source(file, false, ArchiveKind::Sniff, &Selector::None, options, reference);
    }
    let magic = magic_at(&file)?;
    check_packing(magic)?;
    let whole = RangeReader::whole(Arc::clone(&file));
    let found = match magic {
        Magic::Gzip | Magic::Zstd => {
            let mut packed = PackedBlocks(Outer::new(Box::new(whole), &options.limits)?);
            holds(&mut packed, &options.limits, SNIFF_ENTRIES, SNIFF_BYTES)
        }
        _ => {
            let members = u32::try_from(options.limits.max_archive_members).unwrap_or(u32::MAX);
            let mut whole = whole;
            holds(&mut whole, &options.limits, members, u64::MAX)
        }
    };
    match found {
        Holds::Archive => {
            let reference = path.display().to_string();
            archive_source(file, true, ArchiveKind::Sniff, &Selector::None, options, reference)
        }
        Holds::Layer => open(&Reference::Layer(Input::File(path.into())), options),
    }
}

/// The blocks of a compressed file.
struct PackedBlocks(Outer);

impl Blocks for PackedBlocks {
    fn block(&mut self, block: &mut [u8; 512]) -> io::Result<usize> {
        fill(&mut self.0, block)
    }
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        io::copy(&mut (&mut self.0).take(bytes), &mut io::sink()).map(|_| ())
    }
}

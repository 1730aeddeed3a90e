//! An archive that goes by once: every member that may be a layer is unpacked at once, before anybody knows which are wanted.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::cancel::CancelToken;
use crate::digest::{Algorithm, BlobDigest, DiffId, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result, from_io};
use crate::image::{ArchiveStream, Collected, Member};
use crate::store::{Claim, Staging};
use crate::stream::{Expected, StreamReport};

use super::layer::{Bench, Laid, Place};
use super::pull::{Pull, Pulled, place_of};
use super::{Event, Events};

/// Bytes handed over at a time, and how many pieces may wait: 1 MiB in all.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// A member that was worked on, or could not be.
pub(crate) struct Passed<T> {
    pub(crate) result: Result<T>,
    /// Digest of the member as it was, where its name does not promise one.
    pub(crate) raw: Option<Digest>,
}

impl<T> Passed<T> {
    /// Returns what was done, or why not, now that the manifest is known.
    pub(super) fn judged(self, expected: &Expected) -> Result<T> {
        self.result.map_err(|e| judge(self.raw, e, expected))
    }
}

/// Gives the error of a bad member, whose bytes have the digest `raw`, its right kind now that the manifest is known.
pub(crate) fn judge(raw: Option<Digest>, error: Error, expected: &Expected) -> Error {
    let Some(raw) = raw.filter(|_| error.kind() == ErrorKind::Malformed) else { return error };
    let wrong_blob = expected.digest.is_some_and(|d| d.0 != raw);
    // Without a blob digest the member is most likely the plain tar itself.
    let wrong_tar = expected.digest.is_none() && expected.diff_id.is_some_and(|d| d.0 != raw);
    if wrong_blob || wrong_tar {
        error.reclassified(ErrorKind::Integrity, format_args!("digest differs: found {raw}"))
    } else {
        error
    }
}

/// Unpacks the layer-like members of `stream`; `make` makes room for each and `place` says where its parts are.
pub(super) fn read_stream<P: Sync>(
    bench: &Bench<'_>,
    stream: ArchiveStream,
    make: &dyn Fn(usize) -> Result<P>,
    place: &(dyn Fn(&P) -> Place + Sync),
) -> Result<Collected<Passed<(P, Laid)>>> {
    each_layer(stream, &bench.options.cancel, make, &|at, here, expected, blob| {
        bench.lay(at, blob, expected, &place(here))
    })
}

/// What is done with a member: its number, what `prepare` made for it, what it must be, its bytes.
type Work<'a, P, T> = &'a (dyn Fn(usize, &P, Expected, Box<dyn Read + Send>) -> Result<T> + Sync);

/// Runs `work` on every member of `stream` that may be a layer, each on a thread of its own; a failure of the member is
/// kept, because the image may not need it.
///
/// # Errors
/// Those of the archive and of `prepare`, and what `work` fails with that is not the member's fault.
pub(crate) fn each_layer<P: Sync, T: Send>(
    stream: ArchiveStream,
    cancel: &CancelToken,
    prepare: &dyn Fn(usize) -> Result<P>,
    work: Work<'_, P, T>,
) -> Result<Collected<Passed<(P, T)>>> {
    let mut index = 0;
    stream.read(|member| {
        cancel.check()?;
        let at = index;
        index += 1;
        let expected = Expected { digest: digest_in_name(&member.name), size: Some(member.size), diff_id: None };
        let mut hasher = expected.digest.is_none().then(|| Hasher::new(Algorithm::Sha256));
        let here = prepare(at)?;
        let result = feed(member, hasher.as_mut(), |blob| work(at, &here, expected.clone(), blob))?;
        let result = match result {
            Ok(done) => Ok((here, done)),
            // The run itself failed, not the member.
            Err(e)
                if !matches!(
                    e.kind(),
                    ErrorKind::Malformed | ErrorKind::Integrity | ErrorKind::Limit | ErrorKind::Unsupported
                ) =>
            {
                return Err(e);
            }
            Err(e) => Err(e.with_entry(&member.name)),
        };
        Ok(Passed { result, raw: hasher.map(Hasher::finish) })
    })
}

/// Warns of members that are damaged and not needed.
pub(super) fn warn_unused<T>(collected: &Collected<Passed<T>>, events: Events<'_>) {
    for (at, (name, passed)) in collected.tokens.iter().enumerate() {
        if let Err(e) = &passed.result
            && !collected.layers.contains(&at)
        {
            let warning = crate::apply::Warning::new(
                "unused-member",
                name,
                format!("looks like a layer and cannot be unpacked, but the image does not need it: {e}"),
            );
            events(Event::Warning { layer: None, warning });
        }
    }
}

/// Returns what layer `at` of the image was promised to be.
pub(crate) fn expected_of<T>(collected: &Collected<Passed<T>>, at: usize) -> Expected {
    let layer = &collected.image.layers[at];
    Expected { digest: layer.digest, size: layer.size, diff_id: layer.diff_id }
}

/// Checks a report that was made before anything was promised.
pub(crate) fn check(report: &StreamReport, expected: &Expected) -> Result<()> {
    let differs = |what: &str, want: String, found: String| {
        Err(Error::new(ErrorKind::Integrity, format!("{what} differs: expected {want}, found {found}"))
            .with_layer(report.digest))
    };
    match expected {
        Expected { digest: Some(want), .. } if *want != report.digest => {
            differs("digest", want.to_string(), report.digest.to_string())
        }
        Expected { size: Some(want), .. } if *want != report.compressed_bytes => {
            differs("size in bytes", want.to_string(), report.compressed_bytes.to_string())
        }
        Expected { diff_id: Some(want), .. } if *want != report.diff_id => {
            differs("diff_id", want.to_string(), report.diff_id.to_string())
        }
        _ => Ok(()),
    }
}

pub(super) fn pull_stream(pull: Pull<'_>, stream: ArchiveStream) -> Result<Pulled> {
    let collected = read_stream(&pull.bench, stream, &|_| pull.store.stage(), &place_of)?;
    warn_unused(&collected, pull.bench.events);
    let expected: Vec<Expected> = (0..collected.image.layers.len()).map(|at| expected_of(&collected, at)).collect();
    let Collected { image, layers, tokens } = collected;
    let mut tokens: Vec<Option<Passed<(Staging, Laid)>>> = tokens.into_iter().map(|(_, t)| Some(t)).collect();
    let mut seconds: HashMap<DiffId, f64> = HashMap::new();
    let mut group = Vec::new();
    let mut locks = Vec::new();
    let mut held = Vec::new();
    for (token, expected) in layers.iter().zip(&expected) {
        // One member may serve several layers.
        let Some(passed) = tokens.get_mut(*token).and_then(Option::take) else { continue };
        let (staging, laid) = passed.judged(expected)?;
        let (took, diff_id) = (laid.seconds, laid.report.diff_id);
        let sealed = staging.seal(pull.layer_options, laid.facts, laid.report, expected)?;
        match pull.store.try_claim_layer(&pull.pin, &diff_id, &pull.layer_options)? {
            Claim::Present(_) => {}
            Claim::Vacant(lock) => {
                seconds.insert(diff_id, took);
                locks.push(lock);
                group.push(sealed);
            }
            Claim::Held => held.push((diff_id, sealed, took)),
        }
    }
    // What the image does not use goes before anything is published.
    drop(tokens);
    if !group.is_empty() {
        pull.store.publish(&pull.pin, group)?;
    }
    drop(locks);
    for (diff_id, sealed, took) in held {
        let cancelled = || pull.bench.options.cancel.is_cancelled();
        if let Claim::Vacant(_lock) = pull.store.claim_layer(&pull.pin, &diff_id, &pull.layer_options, &cancelled)? {
            seconds.insert(diff_id, took);
            pull.store.publish(&pull.pin, vec![sealed])?;
        }
    }
    pull.conclude(&image, seconds)
}

/// Returns the digest that a member's name promises (`blobs/sha256/HEX`).
fn digest_in_name(name: &[u8]) -> Option<BlobDigest> {
    let name = std::str::from_utf8(name).ok()?;
    let mut parts = name.rsplit('/');
    let (hex, algorithm) = (parts.next()?, parts.next()?);
    if parts.next()? != "blobs" {
        return None;
    }
    format!("{algorithm}:{hex}").parse().ok()
}

/// Runs `work` on a thread of its own with a reader of the member's bytes; returns what it returned.
///
/// # Errors
/// What reading the member gave: then the archive itself is damaged, whatever `work` says.
fn feed<T: Send>(
    member: &mut Member<'_>,
    mut hasher: Option<&mut Hasher>,
    work: impl FnOnce(Box<dyn Read + Send>) -> Result<T> + Send,
) -> Result<Result<T>> {
    let (to, from) = sync_channel::<io::Result<Vec<u8>>>(PIECES);
    let (give_back, spare) = sync_channel::<Vec<u8>>(PIECES);
    std::thread::scope(|scope| {
        let reader = Pieces { from, give_back, piece: Vec::new(), at: 0, ended: false };
        let worker = scope.spawn(move || work(Box::new(reader)));
        let mut listening = true;
        loop {
            let mut piece = spare.try_recv().unwrap_or_default();
            piece.resize(PIECE, 0);
            let n = match member.read(&mut piece) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // The reader must not take this for a clean end.
                    let _ = to.send(Err(io::Error::other("the archive ends or fails inside this member")));
                    drop(to);
                    let _ = worker.join();
                    return Err(from_io("read the archive", e));
                }
            };
            if n == 0 {
                break;
            }
            piece.truncate(n);
            if let Some(hasher) = &mut hasher {
                hasher.update(&piece);
            }
            // A reader that is gone has its verdict already; the rest is read for the digest only, or skipped by the archive.
            listening = listening && to.send(Ok(piece)).is_ok();
            if !listening && hasher.is_none() {
                break;
            }
        }
        drop(to);
        worker.join().map_err(|_| Error::new(ErrorKind::Other, "a thread that unpacked a layer panicked"))
    })
}

/// Reads the pieces that arrive.
struct Pieces {
    from: Receiver<io::Result<Vec<u8>>>,
    give_back: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() && !self.ended {
            // A full return lane only means that a new buffer will be made.
            let _ = self.give_back.try_send(std::mem::take(&mut self.piece));
            self.at = 0;
            match self.from.recv() {
                Ok(Ok(piece)) => self.piece = piece,
                Ok(Err(e)) => return Err(e),
                Err(_) => self.ended = true,
            }
        }
        let n = buf.len().min(self.piece.len() - self.at);
        buf[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

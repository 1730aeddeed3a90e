//! When which stage of which layer worked, for whoever wants to see where the time of an unpack went.
//!
//! Owns: recording spans, joining neighbours so that memory stays bounded, the clock. Refuses to know: what stages do, who
//! draws the spans. A trace that is off costs a comparison a chunk and reads no clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a thread does for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Reads the blob and computes its digest.
    Read,
    /// Decompresses, whatever the codec; copies where there is none.
    Inflate,
    /// Computes the diff_id.
    Hash,
    /// Reads the archive and makes files.
    Write,
}

impl Stage {
    /// All stages, in the order of the data.
    pub const ALL: [Stage; 4] = [Stage::Read, Stage::Inflate, Stage::Hash, Stage::Write];

    /// Returns its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Read => "read",
            Stage::Inflate => "inflate",
            Stage::Hash => "hash",
            Stage::Write => "write",
        }
    }
}

/// A time in which one stage of one layer was at work without a pause worth showing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The layer, counted from the bottom, which is 0.
    pub layer: usize,
    /// What was done.
    pub stage: Stage,
    /// Since the trace began.
    pub start: Duration,
    /// Since the trace began; not before `start`.
    pub end: Duration,
}

/// Pauses below this do not end a span.
const PAUSE: Duration = Duration::from_micros(500);

struct Inner {
    began: Instant,
    spans: Mutex<Vec<Span>>,
}

/// Collects spans, or nothing; clones share what they collect.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Inner>>);

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Trace(on)" } else { "Trace(off)" })
    }
}

impl Trace {
    /// Begins to record, now; [`Trace::default`] records nothing.
    pub fn begin() -> Trace {
        Trace(Some(Arc::new(Inner { began: Instant::now(), spans: Mutex::default() })))
    }

    /// Returns the spans of everything that ended, by their begin.
    pub fn spans(&self) -> Vec<Span> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let mut spans = inner.spans.lock().unwrap_or_else(PoisonError::into_inner).clone();
        spans.sort_by_key(|span| (span.start, span.layer, span.stage));
        spans
    }

    /// Returns the trace of one layer, counted from the bottom, which is 0.
    pub fn layer(&self, layer: usize) -> LayerTrace {
        LayerTrace { trace: self.clone(), layer }
    }
}

/// A trace, seen from one layer.
#[derive(Debug, Clone, Default)]
pub struct LayerTrace {
    trace: Trace,
    layer: usize,
}

impl LayerTrace {
    /// Returns a recorder for one stage, for one thread.
    pub fn recorder(&self, stage: Stage) -> Recorder {
        Recorder { layer: self.clone(), stage, last: None }
    }
}

/// Records one thread's work on one stage of one layer; what it has is in the trace once it is dropped.
#[derive(Debug)]
pub struct Recorder {
    layer: LayerTrace,
    stage: Stage,
    last: Option<(Instant, Instant)>,
}

impl Recorder {
    /// Runs a piece of work and records when.
    pub fn during<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = self.start();
        let out = work();
        self.stop(start);
        out
    }

    /// Says that work begins; `None` where nobody wants to know.
    pub fn start(&self) -> Option<Instant> {
        self.layer.trace.0.is_some().then(Instant::now)
    }

    /// Says that work ended which began at what [`Recorder::start`] returned.
    pub fn stop(&mut self, start: Option<Instant>) {
        if let Some(start) = start {
            self.add(start, Instant::now());
        }
    }

    fn add(&mut self, start: Instant, end: Instant) {
        match &mut self.last {
            Some((_, last)) if start.saturating_duration_since(*last) < PAUSE => *last = end,
            _ => {
                self.flush();
                self.last = Some((start, end));
            }
        }
    }

    fn flush(&mut self) {
        if let (Some(inner), Some((start, end))) = (&self.layer.trace.0, self.last.take()) {
            let since = |at: Instant| at.saturating_duration_since(inner.began);
            let span = Span { layer: self.layer.layer, stage: self.stage, start: since(start), end: since(end) };
            inner.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Returns how much of a layer's time, from its first span to its last, at least two of its stages were at work at once,
/// from 0 to 1.
pub fn overlap(spans: &[Span], layer: usize) -> f64 {
    let mine = || spans.iter().filter(move |span| span.layer == layer && span.start < span.end);
    let mut edges: Vec<(Duration, Stage, bool)> =
        mine().flat_map(|s| [(s.start, s.stage, true), (s.end, s.stage, false)]).collect();
    // At one moment ends come before begins.
    edges.sort_by_key(|&(at, stage, begins)| (at, begins, stage));
    let (Some(first), Some(last)) = (edges.first().map(|e| e.0), edges.last().map(|e| e.0)) else { return 0.0 };
    let mut running = [0usize; Stage::ALL.len()];
    let mut together = Duration::ZERO;
    let mut before = first;
    for (at, stage, begins) in edges {
        if running.iter().filter(|n| **n > 0).count() >= 2 {
            together += at.saturating_sub(before);
        }
        before = at;
        if let Some(n) = running.get_mut(stage as usize) {
            *n = if begins { *n + 1 } else { n.saturating_sub(1) };
        }
    }
    let whole = last.saturating_sub(first);
    if whole.is_zero() { 0.0 } else { together.as_secs_f64() / whole.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(stage: Stage, start: u64, end: u64) -> Span {
        Span { layer: 0, stage, start: Duration::from_secs(start), end: Duration::from_secs(end) }
    }

    #[test]
    fn overlap_counts_the_time_of_two_stages_or_more() {
        assert_eq!(overlap(&[], 0), 0.0);
        let spans = [span(Stage::Inflate, 0, 6), span(Stage::Hash, 2, 4), span(Stage::Write, 3, 10)];
        assert_eq!(overlap(&spans, 0), 0.4);
        assert_eq!(overlap(&spans, 1), 0.0);
        // Two threads of one stage are one stage.
        assert_eq!(overlap(&[span(Stage::Write, 0, 4), span(Stage::Write, 0, 4)], 0), 0.0);
    }

    #[test]
    fn neighbours_become_one_span_and_a_trace_that_is_off_records_nothing() {
        let trace = Trace::begin();
        let mut recorder = trace.layer(3).recorder(Stage::Hash);
        for _ in 0..1000 {
            recorder.during(|| std::hint::black_box(1));
        }
        drop(recorder);
        let spans = trace.spans();
        assert!((1..100).contains(&spans.len()), "{}", spans.len());
        assert!(spans.iter().all(|s| s.layer == 3 && s.stage == Stage::Hash && s.start <= s.end));
        let off = Trace::default();
        assert_eq!(off.layer(0).recorder(Stage::Read).during(|| 7), 7);
        assert!(off.spans().is_empty());
    }
}

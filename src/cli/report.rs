//! What happens while a command works: warnings and progress.
//!
//! Owns: the first warnings of each kind and their numbers, the progress bar, lines and documents on standard error.
//! Invariant: memory is bounded whatever an image gives cause to warn of.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::args::ProgressMode;
use super::output::{human_bytes, json_note, note};
use crate::stream::StreamProgress;
use crate::unpack::{Event, LayerOutcome};

/// Warnings of one kind that a JSON document lists.
const LISTED: usize = 100;
/// Warnings of one kind that standard error shows without `-v`.
const SHOWN: u64 = 10;
/// How often a bar or a document of progress is written.
const TICK: Duration = Duration::from_millis(100);
const JSON_TICKS: u32 = 5;

/// One warning, as JSON has it.
#[derive(Debug, Clone, Serialize)]
pub struct WarningDoc {
    layer: Option<String>,
    path: String,
    kind: &'static str,
    detail: String,
}

/// The warnings of a finished command.
#[derive(Debug, Default, Serialize)]
pub struct Warnings {
    warnings: Vec<WarningDoc>,
    warning_counts: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct State {
    warnings: Warnings,
    known: Option<u64>,
    layers: usize,
    done: usize,
    running: BTreeMap<usize, StreamProgress>,
}

impl State {
    /// Returns compressed and decompressed bytes so far.
    fn bytes(&self) -> (u64, u64) {
        let add = |(a, b): (u64, u64), p: &StreamProgress| (a + p.compressed_bytes(), b + p.uncompressed_bytes());
        self.running.values().fold((0, 0), add)
    }
}

#[derive(Debug)]
enum Display {
    Quiet,
    Bar(ProgressBar),
    Plain,
    Json,
}

#[derive(Debug)]
struct Shared {
    display: Display,
    shown: u64,
    state: Mutex<State>,
}

/// Takes the events of one command.
#[derive(Debug)]
pub struct Reporter {
    shared: Arc<Shared>,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Reporter {
    /// Starts showing progress.
    pub fn new(mode: ProgressMode, verbose: u8) -> Reporter {
        use std::io::IsTerminal as _;
        let terminal = std::io::stderr().is_terminal();
        let display = match mode {
            ProgressMode::Auto if terminal => bar(),
            ProgressMode::Bar => bar(),
            ProgressMode::Plain => Display::Plain,
            ProgressMode::Json => Display::Json,
            ProgressMode::Auto | ProgressMode::None => Display::Quiet,
        };
        let shown = if verbose > 0 { u64::MAX } else { SHOWN };
        let shared = Arc::new(Shared { display, shown, state: Mutex::default() });
        Reporter { ticker: ticker(&shared), shared }
    }

    /// Takes an event.
    pub fn event(&self, event: Event) {
        self.shared.event(event);
    }

    /// Ends the display, sums up, and returns the warnings; `outcomes` tell which layer a blob's digest meant.
    pub fn finish(mut self, outcomes: &[LayerOutcome]) -> Warnings {
        self.stop();
        let mut warnings = std::mem::take(&mut self.shared.state().warnings);
        let diff_ids: HashMap<String, String> =
            outcomes.iter().map(|o| (o.digest.to_string(), o.diff_id.to_string())).collect();
        for warning in &mut warnings.warnings {
            if let Some(diff_id) = warning.layer.as_ref().and_then(|layer| diff_ids.get(layer)) {
                warning.layer = Some(diff_id.clone());
            }
        }
        warnings
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.ticker.take() {
            drop(stop);
            // A ticker that panicked has nothing to say.
            let _ = thread.join();
        }
        if let Display::Bar(bar) = &self.shared.display {
            bar.finish_and_clear();
        }
        if matches!(self.shared.display, Display::Json) {
            return;
        }
        let state = self.shared.state();
        for (kind, count) in &state.warnings.warning_counts {
            if let Some(more @ 1..) = count.checked_sub(self.shared.shown) {
                note(format_args!("warning: {more} more of kind {kind}; -v shows them all"));
            }
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if self.ticker.is_some() {
            self.stop();
        }
    }
}

fn bar() -> Display {
    let style =
        "{spinner} {msg}  {decimal_bytes} of {decimal_total_bytes}  [{bar:30}]  {decimal_bytes_per_sec}  {elapsed}";
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // A template that does not parse leaves the default one.
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    Display::Bar(bar)
}

fn ticker(shared: &Arc<Shared>) -> Option<(Sender<()>, JoinHandle<()>)> {
    if !matches!(shared.display, Display::Bar(_) | Display::Json) {
        return None;
    }
    let (stop, stopped) = channel::<()>();
    let shared = Arc::clone(shared);
    let run = move || {
        let mut ticks = 0u32;
        while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            ticks = ticks.wrapping_add(1);
            shared.tick(ticks);
        }
    };
    let thread = std::thread::Builder::new().name("unply-progress".to_owned()).spawn(run);
    // Without a thread there is no progress to see, and nothing else is lost.
    thread.ok().map(|thread| (stop, thread))
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Note<'a> {
    Image { layers: usize, compressed_bytes: Option<u64> },
    LayerStarted { index: usize },
    Progress { layers: usize, layers_done: usize, compressed_bytes: u64, uncompressed_bytes: u64 },
    LayerDone { index: usize, outcome: LayerDoc },
    Warning { warning: &'a WarningDoc },
}

/// One layer of a finished pull or unpack, as JSON has it.
#[derive(Debug, Clone, Serialize)]
pub struct LayerDoc {
    digest: String,
    diff_id: String,
    chain_id: String,
    compressed_bytes: u64,
    uncompressed_bytes: u64,
    entries: u64,
    reused: bool,
    seconds: f64,
}

impl From<&LayerOutcome> for LayerDoc {
    fn from(o: &LayerOutcome) -> LayerDoc {
        LayerDoc {
            digest: o.digest.to_string(),
            diff_id: o.diff_id.to_string(),
            chain_id: o.chain_id.to_string(),
            compressed_bytes: o.compressed_bytes,
            uncompressed_bytes: o.uncompressed_bytes,
            entries: o.entries,
            reused: o.reused,
            seconds: o.seconds,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: impl std::fmt::Display) {
        match &self.display {
            Display::Bar(bar) => bar.suspend(|| note(line)),
            _ => note(line),
        }
    }

    fn event(&self, event: Event) {
        match event {
            Event::Image { layers } => {
                let known = layers.iter().try_fold(0u64, |sum, (_, size)| sum.checked_add((*size)?));
                let mut state = self.state();
                (state.known, state.layers) = (known, layers.len());
                drop(state);
                match &self.display {
                    Display::Bar(bar) => bar.set_length(known.unwrap_or(0)),
                    Display::Json => json_note(&Note::Image { layers: layers.len(), compressed_bytes: known }),
                    Display::Plain => {
                        let size = known.map(|known| format!(", {}", human_bytes(known))).unwrap_or_default();
                        note(format_args!("{} layers{size}", layers.len()));
                    }
                    Display::Quiet => {}
                }
            }
            Event::LayerStarted { index, progress } => {
                self.state().running.insert(index, progress);
                match &self.display {
                    Display::Json => json_note(&Note::LayerStarted { index }),
                    Display::Plain => note(format_args!("layer {} started", index + 1)),
                    _ => {}
                }
            }
            Event::LayerDone { index, outcome } => {
                self.state().done += 1;
                match &self.display {
                    Display::Json => json_note(&Note::LayerDone { index, outcome: (&outcome).into() }),
                    Display::Plain if outcome.reused => {
                        note(format_args!("layer {} {} is there already", index + 1, outcome.diff_id));
                    }
                    Display::Plain => {
                        let (size, seconds) = (human_bytes(outcome.uncompressed_bytes), outcome.seconds);
                        note(format_args!("layer {} {} done: {size}, {seconds:.2} s", index + 1, outcome.diff_id));
                    }
                    _ => {}
                }
            }
            Event::Warning { layer, warning } => self.warn(WarningDoc {
                layer,
                path: crate::error::escape(&warning.path),
                kind: warning.kind,
                detail: warning.detail,
            }),
        }
    }

    fn warn(&self, warning: WarningDoc) {
        let mut state = self.state();
        let count = state.warnings.warning_counts.entry(warning.kind).or_default();
        *count += 1;
        let count = *count;
        if matches!(self.display, Display::Json) {
            json_note(&Note::Warning { warning: &warning });
        } else if count <= self.shown {
            let layer = warning.layer.as_ref().map(|layer| format!("layer {layer}: ")).unwrap_or_default();
            let WarningDoc { path, kind, detail, .. } = &warning;
            let entry = if path.is_empty() { String::new() } else { format!("entry \"{path}\": ") };
            self.say(format_args!("warning: {layer}{entry}{detail} ({kind})"));
        }
        if count <= LISTED as u64 {
            state.warnings.warnings.push(warning);
        }
    }

    fn tick(&self, ticks: u32) {
        let state = self.state();
        let (compressed, uncompressed) = state.bytes();
        match &self.display {
            Display::Bar(bar) => {
                // A stream tells no total before its end.
                bar.set_length(state.known.unwrap_or(compressed).max(compressed));
                bar.set_position(compressed);
                let started = state.running.len();
                let layers = if state.layers > 0 { format!(" of {}", state.layers) } else { String::new() };
                bar.set_message(format!("layer {started}{layers}"));
                bar.tick();
            }
            Display::Json if ticks.is_multiple_of(JSON_TICKS) => json_note(&Note::Progress {
                layers: state.layers,
                layers_done: state.done,
                compressed_bytes: compressed,
                uncompressed_bytes: uncompressed,
            }),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Warning;

    #[test]
    fn the_first_hundred_of_a_kind_are_kept_and_all_are_counted() {
        let reporter = Reporter::new(ProgressMode::None, 0);
        for n in 0..250 {
            let kind = if n % 2 == 0 { "even" } else { "odd" };
            let warning = Warning::new(kind, format!("a\n{n}").as_bytes(), "x");
            reporter.event(Event::Warning { layer: None, warning });
        }
        let warnings = reporter.finish(&[]);
        assert_eq!(warnings.warnings.len(), 200);
        assert_eq!(warnings.warning_counts, BTreeMap::from([("even", 125), ("odd", 125)]));
        assert_eq!(warnings.warnings[0].path, "a\\n0");
    }
}

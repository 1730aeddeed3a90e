//! What `bench --report` writes: one page that needs nothing else.
//!
//! Invariants: no script, no link, no request; every text that is not ours is escaped, first for control characters, then
//! for HTML.

use std::fmt::Write as _;

use super::super::output::{human_bytes, printable};
use super::doc::{BenchDoc, ImageDoc, RivalDoc, SpanDoc, StagesDoc};
use super::text::{codec_word, place_words, rival_cells, short, stage_cells, sync_words};
use crate::trace::Stage;

/// Makes the page.
pub fn render(doc: &BenchDoc) -> String {
    let mut out = String::from(HEAD);
    let _ = write!(
        out,
        "<h1>unply bench</h1>\n<p class=\"sub\">unply {}. Median of {} run(s), {} job(s), empty store {}, blobs in the page \
         cache, gzip by {}, all digests verified, {}.</p>\n",
        env!("CARGO_PKG_VERSION"),
        doc.runs,
        doc.jobs,
        text(place_words(doc.fs)),
        doc.inflate,
        sync_words(doc.durable)
    );
    for image in &doc.images {
        self::image(&mut out, image);
    }
    out.push_str("</main></body></html>\n");
    out
}

/// Escapes text for HTML, attributes included.
fn text(plain: &str) -> String {
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn image(out: &mut String, image: &ImageDoc) {
    let _ = writeln!(out, "<section>\n<h2>{}</h2>", text(&printable(&image.reference)));
    out.push_str("<div class=\"tiles\">");
    let mut tile = |label: &str, value: String, more: String| {
        let _ = write!(out, "<div><span>{label}</span><b>{value}</b><small>{more}</small></div>");
    };
    let range = format!("{:.3} to {:.3} s", image.wall_seconds_min, image.wall_seconds_max);
    tile("wall time", format!("{:.3} s", image.total.wall_seconds), range);
    tile("CPU", format!("{:.3} s", image.cpu_seconds), "all threads".into());
    let (in_, out_) = (image.total.compressed_mb_per_second, image.total.uncompressed_mb_per_second);
    tile("throughput", format!("{out_:.0} MB/s"), format!("{in_:.0} MB/s of blobs"));
    tile("entries", format!("{:.0}/s", image.total.entries_per_second), format!("{} in all", image.total.entries));
    tile("peak memory", human_bytes(image.peak_rss_bytes), String::new());
    if let Some(stages) = &image.stages {
        let floor = format!("floor {:.3} s on {} CPUs", stages.floor_seconds, stages.cpus);
        tile("efficiency", format!("{:.2}", stages.efficiency), floor);
    }
    out.push_str("</div>\n");
    if let Some(stages) = &image.stages {
        verdicts(out, stages);
        out.push_str("<h3>Where the time went</h3>\n");
        out.push_str(&timeline(stages));
    }
    layers(out, image);
    if let Some(stages) = &image.stages {
        self::stages(out, stages);
    }
    if !image.versus.is_empty() {
        versus(out, &image.versus);
    }
    out.push_str("</section>\n");
}

fn verdicts(out: &mut String, stages: &StagesDoc) {
    if stages.verdicts.is_empty() {
        return;
    }
    out.push_str("<ul class=\"verdicts\">");
    for verdict in &stages.verdicts {
        let _ = write!(out, "<li>{}</li>", text(&verdict.text));
    }
    out.push_str("</ul>\n");
}

fn table(out: &mut String, caption: &str, heads: &[&str], rows: &[Vec<String>]) {
    let _ = write!(out, "<div class=\"wide\"><table><caption>{}</caption><thead><tr>", text(caption));
    for head in heads {
        let _ = write!(out, "<th scope=\"col\">{}</th>", text(head));
    }
    out.push_str("</tr></thead><tbody>");
    for row in rows {
        out.push_str("<tr>");
        for (at, cell) in row.iter().enumerate() {
            let _ = match at {
                0 => write!(out, "<th scope=\"row\">{}</th>", text(cell)),
                _ => write!(out, "<td>{}</td>", text(cell)),
            };
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>\n");
}

fn layers(out: &mut String, image: &ImageDoc) {
    let rows: Vec<Vec<String>> = image
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let rates = &layer.rates;
            vec![
                format!("{} · {}", index + 1, short(&layer.digest)),
                human_bytes(rates.compressed_bytes),
                human_bytes(rates.uncompressed_bytes),
                rates.entries.to_string(),
                format!("{:.3}", rates.wall_seconds),
                format!("{:.0}", rates.uncompressed_mb_per_second),
                format!("{:.0}", rates.entries_per_second),
            ]
        })
        .collect();
    let heads = ["Layer", "Blob", "Archive", "Entries", "Seconds", "MB/s", "Entries/s"];
    table(out, "Layers, bottom first; they run side by side, so their times do not add up", &heads, &rows);
}

fn stages(out: &mut String, stages: &StagesDoc) {
    let rows: Vec<Vec<String>> = stages
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let mut row = vec![(index + 1).to_string(), codec_word(layer.codec).to_owned()];
            for (step, stage) in layer.stages() {
                let [seconds, rate] = stage_cells(step, &stage);
                row.push(if rate.is_empty() { seconds } else { format!("{seconds} · {rate}") });
            }
            row.push(format!("{:.0} %", layer.overlap * 100.0));
            row
        })
        .collect();
    let heads = ["Layer", "Codec", "Read", "Hash blob", "Inflate", "Hash archive", "Create", "Overlap"];
    let caption = format!(
        "Each stage alone on one thread, CPU seconds and rate. Floor {:.3} s = max(longest stage {:.3} s, all stages {:.3} s on {} CPUs)",
        stages.floor_seconds, stages.longest_seconds, stages.shared_seconds, stages.cpus
    );
    table(out, &caption, &heads, &rows);
}

fn versus(out: &mut String, rivals: &[RivalDoc]) {
    let rows: Vec<Vec<String>> =
        rivals.iter().filter(|rival| !rival.pairs.is_empty()).map(|rival| rival_cells(rival).into()).collect();
    let heads =
        ["Tool", "Ours", "Ratio", "From", "To", "Wall ours", "Theirs", "CPU ours", "Theirs", "Memory ours", "Theirs"];
    table(out, "Beside other tools, in turns; the ratio is theirs / ours, wall, pair by pair", &heads, &rows);
    out.push_str("<dl>");
    for rival in rivals {
        let _ = write!(out, "<dt>{}</dt><dd><code>{}</code>. ", text(rival.tool), text(&rival.command));
        let _ = write!(out, "What it leaves out: {}. ", text(rival.leaves_out));
        if let Some(failed) = &rival.failed {
            let _ = write!(out, "<strong>Could not unpack this image:</strong> {}. ", text(failed));
        }
        if let Some(trees) = &rival.trees {
            let _ = write!(out, "Trees: {}. ", text(&trees.summary()));
            for (rule, n) in &trees.explained {
                let _ = write!(out, "{n} because {}. ", text(rule));
            }
            let unexplained: Vec<_> = trees.first.iter().filter(|d| d.because.is_none()).collect();
            if !unexplained.is_empty() {
                out.push_str("<ul>");
                for d in unexplained {
                    let layer = d.layer.map(|layer| format!("layer {}: ", layer + 1)).unwrap_or_default();
                    let _ = write!(
                        out,
                        "<li>{layer}<code>{}</code>: {}: ours {}, theirs {}</li>",
                        text(&d.path),
                        d.what,
                        text(&d.ours),
                        text(&d.theirs)
                    );
                }
                out.push_str("</ul>");
            }
        }
        out.push_str("</dd>");
    }
    out.push_str("</dl>\n");
}

/// Width of the drawing and where bars begin, in its own units.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 118.0;
const LANE: f64 = 13.0;
const GROUP_GAP: f64 = 10.0;
const TOP: f64 = 8.0;

/// Draws when which stage of which layer was at work.
fn timeline(stages: &StagesDoc) -> String {
    let end = stages.trace.iter().map(|span| span.end).fold(0.0, f64::max).max(1e-6);
    let group = LANE * Stage::ALL.len() as f64 + GROUP_GAP;
    let height = TOP + group * stages.layers.len() as f64;
    let x = |seconds: f64| LEFT + seconds / end * (WIDTH - LEFT - 12.0);
    let mut out = String::new();
    let legend = Stage::ALL.map(|stage| format!("<span class=\"{0}\"><i></i>{0}</span>", stage.name()));
    let _ = writeln!(out, "<p class=\"legend\">{}</p>", legend.concat());
    let label = format!(
        "Timeline of one traced run, {:.0} ms: for each of {} layers, bottom first, when its stages were at work.",
        end * 1000.0,
        stages.layers.len()
    );
    let _ = writeln!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{label}\"><title>{label}</title>",
        height + 34.0
    );
    let step = tick(end);
    let mut at = 0.0;
    while at <= end {
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{height:.1}\"/><text class=\"tick\" x=\"{0:.1}\" y=\"{1:.1}\">{2}</text>",
            x(at),
            height + 14.0,
            milliseconds(at)
        );
        at += step;
    }
    let _ = writeln!(
        out,
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">milliseconds since the run began</text>",
        (LEFT + WIDTH) / 2.0,
        height + 30.0
    );
    for layer in 0..stages.layers.len() {
        let top = TOP + group * layer as f64;
        let _ = writeln!(
            out,
            "<g class=\"layer\"><text class=\"name\" x=\"0\" y=\"{:.1}\">layer {}</text>",
            top + 10.0,
            layer + 1
        );
        for (lane, stage) in Stage::ALL.into_iter().enumerate() {
            let y = top + LANE * lane as f64;
            let mine = stages.trace.iter().filter(|span| span.layer == layer && span.stage == stage.name());
            let (bars, busy) = joined(mine, end / (WIDTH - LEFT));
            let name = stage.name();
            let _ = writeln!(
                out,
                "<g class=\"{name}\"><title>layer {}, {name}: at work for {} ms</title><text class=\"lane\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
                layer + 1,
                milliseconds(busy),
                LEFT - 6.0,
                y + 10.0
            );
            for (start, stop) in bars {
                let width = (x(stop) - x(start)).max(1.0);
                let _ = write!(
                    out,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
                    x(start),
                    y + 1.0,
                    LANE - 2.0
                );
            }
            out.push_str("</g>\n");
        }
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// Joins spans that touch or nearly do, as seen from the distance of `gap` seconds; returns them and how long they are in all,
/// side by side counted once.
fn joined<'a>(spans: impl Iterator<Item = &'a SpanDoc>, gap: f64) -> (Vec<(f64, f64)>, f64) {
    let mut sorted: Vec<(f64, f64)> = spans.map(|span| (span.start, span.end)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut out, mut busy, mut until) = (Vec::<(f64, f64)>::new(), 0.0, 0.0);
    for (start, end) in sorted {
        busy += (end - f64::max(start, until)).max(0.0);
        until = f64::max(until, end);
        match out.last_mut() {
            Some(last) if start - last.1 < gap => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    (out, busy)
}

/// A distance of marks on the axis so that there are about eight.
fn tick(end: f64) -> f64 {
    let rough = end / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|step| *step >= rough).unwrap_or(10.0 * power)
}

fn milliseconds(seconds: f64) -> String {
    let ms = seconds * 1000.0;
    if ms >= 10.0 || ms == 0.0 { format!("{ms:.0}") } else { format!("{ms:.2}") }
}

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>unply bench</title>
<style>
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --dim: #59636e; --line: #d8dee4; --card: #f6f8fa;
  --read: #6e7781; --inflate: #c2571a; --hash: #7a4bc2; --write: #1668b8; }
@media (prefers-color-scheme: dark) { :root { --bg: #0f1318; --fg: #e6edf3; --dim: #9198a1; --line: #30363d; --card: #171c22;
  --read: #8b949e; --inflate: #f0883e; --hash: #b78cf2; --write: #58a6ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0; } .sub { color: var(--dim); margin: 4px 0 24px; }
h2 { font-size: 18px; margin: 36px 0 12px; overflow-wrap: anywhere; } h3 { font-size: 15px; margin: 24px 0 4px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.tiles span, .tiles small { display: block; color: var(--dim); font-size: 12px; } .tiles b { font-size: 20px; font-weight: 600; }
.verdicts { padding-left: 18px; margin: 16px 0; } .verdicts li { margin: 3px 0; }
.wide { overflow-x: auto; margin: 20px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); padding-bottom: 6px; caption-side: top; }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; font-weight: 400; }
thead th { color: var(--dim); font-size: 12px; vertical-align: bottom; } th:first-child { text-align: left; }
dt { font-weight: 600; margin-top: 8px; } dd { margin: 0; color: var(--dim); overflow-wrap: anywhere; } code { font-size: 12px; }
.legend { margin: 0 0 6px; font-size: 13px; color: var(--dim); } .legend span { margin-right: 16px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px; vertical-align: -1px; }
svg { width: 100%; height: auto; display: block; font: 11px system-ui, sans-serif; }
svg .name { fill: var(--fg); font-weight: 600; } svg .lane { fill: var(--dim); text-anchor: end; font-size: 10px; }
svg .tick { fill: var(--dim); text-anchor: middle; } svg .grid { stroke: var(--line); stroke-width: 1; }
.read rect { fill: var(--read); } .inflate rect { fill: var(--inflate); } .hash rect { fill: var(--hash); }
.write rect { fill: var(--write); } .read i { background: var(--read); } .inflate i { background: var(--inflate); }
.hash i { background: var(--hash); } .write i { background: var(--write); }
</style></head><body><main>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_become_markup() {
        assert_eq!(text("<script>'&\"\n\u{7}"), "&lt;script&gt;&#39;&amp;&quot;  ");
    }

    #[test]
    fn spans_are_joined_as_far_as_the_eye_sees_and_counted_exactly() {
        let span = |start, end| SpanDoc { layer: 0, stage: "hash", start, end };
        let spans = [span(2.0, 3.0), span(0.0, 1.0), span(1.05, 1.5), span(0.5, 1.0)];
        let (bars, busy) = joined(spans.iter(), 0.1);
        assert_eq!(bars, [(0.0, 1.5), (2.0, 3.0)]);
        assert!((busy - 2.45).abs() < 1e-9, "{busy}");
    }

    #[test]
    fn the_axis_has_round_marks() {
        for (end, step) in [(1.0, 0.2), (8.0, 1.0), (0.05, 0.01), (170.0, 50.0)] {
            assert!((tick(end) / step - 1.0).abs() < 1e-9, "{end}: {}", tick(end));
        }
    }
}

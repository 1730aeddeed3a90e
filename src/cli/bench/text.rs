//! What `bench` prints for a human.

use super::super::output::{Align, Table, human_bytes, printable};
use super::doc::{BenchDoc, ImageDoc, Rates, RivalDoc, StageDoc, StagesDoc};
use crate::bench::Step;

pub fn render(doc: &BenchDoc) -> String {
    let mut out = format!(
        "median of {} run(s), -j {}, empty store {}, gzip by {}, all digests verified, {}\n",
        doc.runs,
        doc.jobs,
        place_words(doc.fs),
        doc.inflate,
        sync_words(doc.durable)
    );
    for image in &doc.images {
        out.push_str(&format!("\n{}\n", printable(&image.reference)));
        runs(&mut out, image);
        if let Some(stages) = &image.stages {
            self::stages(&mut out, stages);
        }
        if !image.versus.is_empty() {
            versus(&mut out, &image.versus);
        }
    }
    out
}

/// Says which syncs were measured.
pub fn sync_words(durable: bool) -> &'static str {
    if durable { "with all that makes it survive a loss of power" } else { "no syncs" }
}

/// Says where runs write.
pub fn place_words(fs: &str) -> &'static str {
    match fs {
        "tmpfs" => "on tmpfs",
        "ext4" => "on ext4 with a journal in RAM",
        _ => "in $TMPDIR",
    }
}

fn runs(out: &mut String, image: &ImageDoc) {
    let right = Align::Right;
    let mut table = Table::new(&[
        ("LAYER", Align::Left),
        ("BLOB", right),
        ("TAR", right),
        ("ENTRIES", right),
        ("SECONDS", right),
        ("BLOB MB/s", right),
        ("TAR MB/s", right),
        ("ENTRIES/s", right),
    ]);
    let row = |name: String, rates: &Rates| {
        let cells = [
            human_bytes(rates.compressed_bytes),
            human_bytes(rates.uncompressed_bytes),
            rates.entries.to_string(),
            format!("{:.3}", rates.wall_seconds),
            format!("{:.0}", rates.compressed_mb_per_second),
            format!("{:.0}", rates.uncompressed_mb_per_second),
            format!("{:.0}", rates.entries_per_second),
        ];
        std::iter::once(name).chain(cells)
    };
    for layer in &image.layers {
        table.row(row(short(&layer.digest), &layer.rates));
    }
    table.row(row("all".to_owned(), &image.total));
    out.push_str(&table.render());
    out.push_str(&format!(
        "wall {:.3} s ({:.3} to {:.3}), CPU {:.3} s, peak memory {}\n",
        image.total.wall_seconds,
        image.wall_seconds_min,
        image.wall_seconds_max,
        image.cpu_seconds,
        human_bytes(image.peak_rss_bytes)
    ));
}

/// Shortens a digest in text form.
pub fn short(digest: &str) -> String {
    digest.split_once(':').map_or(digest, |(_, hex)| hex).chars().take(12).collect()
}

fn stages(out: &mut String, stages: &StagesDoc) {
    let right = Align::Right;
    out.push_str("\neach stage alone, one thread: CPU seconds, and its rate (blob MB/s, archive MB/s, entries/s)\n");
    let mut table = Table::new(&[
        ("LAYER", Align::Left),
        ("CODEC", Align::Left),
        ("READ", right),
        ("", right),
        ("HASH BLOB", right),
        ("", right),
        ("INFLATE", right),
        ("", right),
        ("HASH TAR", right),
        ("", right),
        ("CREATE", right),
        ("", right),
        ("OVERLAP", right),
    ]);
    for (index, layer) in stages.layers.iter().enumerate() {
        let mut cells = vec![(index + 1).to_string(), codec_word(layer.codec).to_owned()];
        for (step, stage) in layer.stages() {
            cells.extend(stage_cells(step, &stage));
        }
        cells.push(format!("{:.0} %", layer.overlap * 100.0));
        table.row(cells);
    }
    out.push_str(&table.render());
    out.push_str(&format!(
        "floor {:.3} s = max(longest stage {:.3} s, all stages {:.3} s on {} CPUs); efficiency {:.2}\n",
        stages.floor_seconds, stages.longest_seconds, stages.shared_seconds, stages.cpus, stages.efficiency
    ));
    for verdict in &stages.verdicts {
        out.push_str(&format!("· {}\n", verdict.text));
    }
}

/// Returns a stage's time and its rate; nothing where there is no such stage.
pub fn stage_cells(step: Step, stage: &StageDoc) -> [String; 2] {
    if stage.cpu_seconds <= 0.0 {
        return ["–".to_owned(), String::new()];
    }
    let rate = match step {
        Step::Create => format!("{:.0}/s", stage.entries_per_second.unwrap_or_default()),
        _ => format!("{:.0} MB/s", stage.mb_per_second),
    };
    [format!("{:.3}", stage.cpu_seconds), rate]
}

pub fn codec_word(codec: crate::stream::Codec) -> &'static str {
    match codec {
        crate::stream::Codec::Plain => "plain",
        crate::stream::Codec::Gzip => "gzip",
        crate::stream::Codec::Zstd => "zstd",
    }
}

fn versus(out: &mut String, rivals: &[RivalDoc]) {
    let right = Align::Right;
    out.push_str("\nbeside other tools, in turns; the ratio is theirs / ours, wall, pair by pair\n");
    let mut table = Table::new(&[
        ("TOOL", Align::Left),
        ("OURS", Align::Left),
        ("RATIO", right),
        ("FROM", right),
        ("TO", right),
        ("WALL OURS", right),
        ("THEIRS", right),
        ("CPU OURS", right),
        ("THEIRS", right),
        ("RSS OURS", right),
        ("THEIRS", right),
    ]);
    for rival in rivals.iter().filter(|rival| !rival.pairs.is_empty()) {
        table.row(rival_cells(rival));
    }
    out.push_str(&table.render());
    for rival in rivals {
        out.push_str(&format!("{}: {}; {}\n", rival.tool, rival.command, rival.leaves_out));
        if let Some(failed) = &rival.failed {
            out.push_str(&format!("  could not unpack this image: {failed}\n"));
        }
        let Some(trees) = &rival.trees else { continue };
        out.push_str(&format!("  trees: {}\n", trees.summary()));
        let counts: Vec<String> = trees.counts.iter().map(|(what, n)| format!("{what} {n}")).collect();
        if !counts.is_empty() {
            out.push_str(&format!("  differences: {}\n", counts.join(", ")));
        }
        for (rule, n) in &trees.explained {
            out.push_str(&format!("  {n} because {rule}\n"));
        }
        for d in trees.first.iter().filter(|d| d.because.is_none()) {
            let layer = d.layer.map(|layer| format!("layer {}: ", layer + 1)).unwrap_or_default();
            out.push_str(&format!("  {layer}\"{}\": {}: ours {}, theirs {}\n", d.path, d.what, d.ours, d.theirs));
        }
    }
}

/// Returns a rival's numbers in the order of the columns.
pub fn rival_cells(rival: &RivalDoc) -> [String; 11] {
    let wall = rival.medians(|used| used.wall_seconds);
    let cpu = rival.medians(|used| used.cpu_seconds);
    let rss = rival.medians(|used| used.peak_rss_bytes as f64);
    [
        rival.tool.to_owned(),
        rival.ours.to_owned(),
        format!("{:.2}", rival.ratio),
        format!("{:.2}", rival.ratio_min),
        format!("{:.2}", rival.ratio_max),
        format!("{:.3}", wall.0),
        format!("{:.3}", wall.1),
        format!("{:.3}", cpu.0),
        format!("{:.3}", cpu.1),
        human_bytes(rss.0 as u64),
        human_bytes(rss.1 as u64),
    ]
}

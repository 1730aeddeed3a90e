//! `lint`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Context;
use super::args::{Deny, LintArgs};
use super::output::{self, Align, FailureBody, Table, human_bytes, note, short};
use crate::error::{ErrorKind, Result, escape};
use crate::image::Reference;
use crate::lint::{self, Code, Finding, LISTED, LayerSummary, Report, Severity};

#[derive(Serialize)]
struct LintDoc<'a> {
    reference: &'a str,
    image_id: Option<String>,
    layers: Vec<LayerDoc<'a>>,
    findings: Vec<FindingDoc<'a>>,
    finding_counts: BTreeMap<&'static str, u64>,
    severity_counts: BTreeMap<&'static str, u64>,
    denied: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureBody<'a>>,
}

#[derive(Serialize)]
struct LayerDoc<'a> {
    digest: Option<String>,
    diff_id: Option<String>,
    media_type: &'a str,
    compressed_bytes: Option<u64>,
    uncompressed_bytes: Option<u64>,
    entries: u64,
}

#[derive(Serialize)]
struct FindingDoc<'a> {
    code: &'static str,
    severity: Severity,
    rules: &'a [String],
    layer_index: Option<usize>,
    layer: Option<String>,
    path: String,
    detail: &'a str,
    here: &'static str,
    elsewhere: &'static str,
}

pub fn lint(context: &Context, args: &LintArgs) -> Result<u8> {
    let reference: Reference = args.image.parse()?;
    context.store_of(&reference)?;
    let report = lint::lint(&reference, &context.options())?;
    let denied: u64 = denied(&report, &args.deny).values().sum();
    match context.global.json {
        true => output::json(document(&report, denied > 0))?,
        false => output::text(&render(&report))?,
    }
    if let Some(error) = &report.error {
        note(error);
        return Ok(error.kind().exit_code());
    }
    if denied > 0 {
        note(format_args!("{denied} of what --deny names"));
        return Ok(ErrorKind::Malformed.exit_code());
    }
    Ok(0)
}

/// Returns how many findings of each code are denied. What a finding says beyond its code — its severity under `--strict`, the
/// rules of a refusal — is known of those listed, so a refusal's rule counts what is listed.
fn denied(report: &Report, deny: &[Deny]) -> BTreeMap<Code, u64> {
    let mut out = BTreeMap::new();
    let hit = |finding: &Finding| {
        deny.iter().any(|deny| match deny {
            Deny::From(severity) => finding.severity >= *severity,
            Deny::Code(code) => finding.code == *code,
            Deny::Rule(rule) => finding.rules.contains(rule),
        })
    };
    for finding in report.findings.iter().filter(|f| hit(f)) {
        *out.entry(finding.code).or_insert(0) += 1;
    }
    for (code, listed) in &mut out {
        if *listed == LISTED {
            *listed = report.counts.get(code).copied().unwrap_or(*listed);
        }
    }
    out
}

fn layer_id(layer: &LayerSummary) -> Option<String> {
    layer.diff_id.map(|d| d.to_string()).or_else(|| layer.digest.map(|d| d.to_string()))
}

fn document(report: &Report, denied: bool) -> LintDoc<'_> {
    let layers = report.layers.iter().map(|layer| LayerDoc {
        digest: layer.digest.map(|d| d.to_string()),
        diff_id: layer.diff_id.map(|d| d.to_string()),
        media_type: &layer.media_type,
        compressed_bytes: layer.compressed_bytes,
        uncompressed_bytes: layer.uncompressed_bytes,
        entries: layer.entries,
    });
    let findings = report.findings.iter().map(|finding| FindingDoc {
        code: finding.code.word(),
        severity: finding.severity,
        rules: &finding.rules,
        layer_index: finding.layer,
        layer: finding.layer.and_then(|at| report.layers.get(at)).and_then(layer_id),
        path: escape(&finding.path),
        detail: &finding.detail,
        here: finding.code.here(),
        elsewhere: finding.code.elsewhere(),
    });
    LintDoc {
        reference: &report.reference,
        image_id: report.image_id.map(|id| id.to_string()),
        layers: layers.collect(),
        findings: findings.collect(),
        finding_counts: report.counts.iter().map(|(code, n)| (code.word(), *n)).collect(),
        severity_counts: report.by_severity().into_iter().map(|(severity, n)| (severity.word(), n)).collect(),
        denied,
        error: report.error.as_ref().map(FailureBody::from),
    }
}

fn render(report: &Report) -> String {
    let mut out = String::new();
    let mut groups: BTreeMap<Option<usize>, Vec<&Finding>> = BTreeMap::new();
    for finding in &report.findings {
        groups.entry(finding.layer).or_default().push(finding);
    }
    for (layer, findings) in groups {
        out.push_str(&heading(report, layer));
        let columns = [
            ("SEVERITY", Align::Left),
            ("RULE", Align::Left),
            ("CODE", Align::Left),
            ("ENTRY", Align::Left),
            ("FOUND", Align::Left),
        ];
        let mut table = Table::new(&columns);
        for finding in findings {
            let rule = finding.rules.first().cloned().unwrap_or_else(|| "-".to_owned());
            let entry = if finding.path.is_empty() { "-".to_owned() } else { escape(&finding.path) };
            let (severity, code) = (finding.severity.to_string(), finding.code.to_string());
            table.row([severity, rule, code, entry, finding.detail.clone()]);
        }
        out.push_str(&table.render());
        out.push('\n');
    }
    out.push_str(&explanations(report));
    out.push_str(&summary(report));
    out
}

fn heading(report: &Report, layer: Option<usize>) -> String {
    let Some(at) = layer else { return "image\n".to_owned() };
    let summary = report.layers.get(at);
    let id = summary.and_then(|l| l.diff_id.map(|d| short(&d.0)).or_else(|| l.digest.map(|d| short(&d.0))));
    let entries = summary.map_or(0, |l| l.entries);
    let bytes = summary.and_then(|l| l.uncompressed_bytes).map(|n| format!(", {}", human_bytes(n))).unwrap_or_default();
    format!("layer {} of {}, {}, {entries} entries{bytes}\n", at + 1, report.layers.len(), id.unwrap_or_default())
}

/// Says of each code that was found what it comes to.
fn explanations(report: &Report) -> String {
    let listed: BTreeSet<Code> = report.findings.iter().map(|f| f.code).collect();
    let mut out = String::new();
    for code in listed {
        let rules: Vec<&str> = code.rules().collect();
        let rules = if rules.is_empty() { String::new() } else { format!(" ({})", rules.join(", ")) };
        let more = match report.counts.get(&code).and_then(|count| count.checked_sub(LISTED)) {
            Some(more @ 1..) => format!("\n  {more} more are not listed"),
            _ => String::new(),
        };
        out.push_str(&format!("{code}{rules}{more}\n  unply: {}\n  {}\n", code.here(), code.elsewhere()));
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

fn summary(report: &Report) -> String {
    let counts = report.by_severity();
    let count = |severity: Severity| counts.get(&severity).copied().unwrap_or(0);
    let layers = report.layers.len();
    let layers = if layers == 1 { "1 layer".to_owned() } else { format!("{layers} layers") };
    let all: u64 = counts.values().sum();
    if all == 0 {
        return format!("{layers}, no findings\n");
    }
    let findings = if all == 1 { "finding" } else { "findings" };
    format!(
        "{layers}, {all} {findings}: {} error, {} ambiguous, {} nonconforming, {} info\n",
        count(Severity::Error),
        count(Severity::Ambiguous),
        count(Severity::Nonconforming),
        count(Severity::Info)
    )
}

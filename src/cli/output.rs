//! What goes to standard output and standard error, and how.
//!
//! Owns: documents, tables, units, the form of errors. Invariants: standard output carries the result of a command and
//! nothing else, in one write at its end; a reader that went away is no failure.

use std::io::{self, Write as _};
use std::time::SystemTime;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// Version of every JSON document.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<T> {
    schema: u32,
    #[serde(flatten)]
    body: T,
}

/// Writes text to standard output.
///
/// # Errors
/// What writing answers; a closed pipe is success.
pub fn text(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes bytes, such as a path, to standard output.
///
/// # Errors
/// As [`text`].
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("write to standard output", e)),
        _ => Ok(()),
    }
}

/// Writes one JSON document, on one line, to standard output.
///
/// # Errors
/// As [`text`].
pub fn json<T: Serialize>(body: T) -> Result<()> {
    text(&line(body)?)
}

/// Writes one JSON document, on one line, to standard error.
pub fn json_note<T: Serialize>(body: &T) {
    if let Ok(line) = line(body) {
        // Nobody is left to tell.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

fn line<T: Serialize>(body: T) -> Result<String> {
    let mut line = serde_json::to_string(&Document { schema: SCHEMA, body })
        .map_err(|e| Error::new(ErrorKind::Other, "encode the result").with_source(e))?;
    line.push('\n');
    Ok(line)
}

/// Writes a line for a human to standard error.
pub fn note(line: impl std::fmt::Display) {
    // Nobody is left to tell.
    let _ = io::stderr().write_all(format!("unply: {line}\n").as_bytes());
}

#[derive(Serialize)]
struct Failure<'a> {
    error: FailureBody<'a>,
}

/// An error as JSON has it.
#[derive(Serialize)]
pub struct FailureBody<'a> {
    code: &'a str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

/// Tells of a failure: a line on standard error, and with `as_json` a document on standard output.
pub fn failure(error: &Error, as_json: bool) {
    note(error);
    if as_json {
        // The exit code says it too.
        let _ = json(Failure { error: error.into() });
    }
}

impl<'a> From<&'a Error> for FailureBody<'a> {
    fn from(error: &'a Error) -> Self {
        FailureBody {
            code: error.kind().code(),
            message: error.message(),
            image: error.image(),
            layer: error.layer(),
            entry: error.entry(),
            offset: error.offset(),
            hint: error.hint(),
        }
    }
}

/// Which side a column keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows of text under headings.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Starts a table.
    pub fn new(columns: &[(&'static str, Align)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Lays the table out.
    pub fn render(&self) -> String {
        let headings: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines = || std::iter::once(&headings).chain(&self.rows);
        let width = |column: usize| {
            lines().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut out = String::new();
        for row in lines() {
            let mut line = String::new();
            for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(&self.columns) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                match align {
                    Align::Left => line.extend([cell.as_str(), &pad]),
                    Align::Right => line.extend([pad.as_str(), cell]),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Formats bytes for a human: three digits and a decimal unit.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"].into_iter().peekable();
    while let Some(unit) = units.next() {
        if value < 999.5 || units.peek().is_none() {
            let digits = if unit == "B" || value >= 99.95 { 0 } else { 1 };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    bytes.to_string()
}

/// Formats how long ago something was.
pub fn age(then: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// Shortens a digest to its first twelve digits, for tables.
pub fn short(digest: &crate::digest::Digest) -> String {
    digest.hex().chars().take(12).collect()
}

/// Makes text from an image or a user safe for a terminal.
pub fn printable(text: &str) -> String {
    crate::error::escape(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (99_950, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (1_500_000_000, "1.5 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn tables_align_and_end_lines_without_blanks() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("", Align::Left)]);
        table.row(["a".into(), "1 B".into(), String::new()]);
        table.row(["long-name".into(), "12 kB".into(), "x".into()]);
        assert_eq!(table.render(), "NAME        SIZE\na            1 B\nlong-name  12 kB  x\n");
    }
}

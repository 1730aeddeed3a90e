//! Which snapshots somebody asks for, in the words of containerd's filters
//! (<https://github.com/containerd/containerd/blob/main/pkg/filters/filter.go>).
//!
//! `kind==active,labels."k"==v`: a comma is *and*; of several filters one has to fit; none fits everything. An operator is
//! `==` or `!=`; a field alone asks whether it has a value. containerd's `~=` (a regular expression) is refused.
//! Fields: `name`, `kind` (`active`, `view`, `committed`), `parent`, `image` (an image id) and `labels.KEY`, KEY quoted where it
//! holds more than letters, digits, `_` and dots. A value with a comma, a blank or a quote is quoted.

use super::record::{SnapshotKind, SnapshotRecord};
use crate::error::{Error, ErrorKind, Result, escape};

/// A choice of snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotFilter {
    /// One of these has to fit, if there is any.
    any: Vec<Vec<Selector>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Name,
    Kind,
    Parent,
    Image,
    Label(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
}

impl SnapshotFilter {
    /// Parses filters; a snapshot fits if one of them fits.
    ///
    /// # Errors
    /// `Usage`, with the place where a filter is not understood.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<SnapshotFilter> {
        let any = filters.iter().map(|text| parse_one(text.as_ref())).collect::<Result<_>>()?;
        Ok(SnapshotFilter { any })
    }

    /// Tells whether a snapshot is asked for.
    pub fn fits(&self, record: &SnapshotRecord) -> bool {
        self.any.is_empty() || self.any.iter().any(|all| all.iter().all(|selector| selector.fits(record)))
    }
}

impl Selector {
    fn fits(&self, record: &SnapshotRecord) -> bool {
        let image;
        let value = match &self.field {
            Field::Name => Some(record.key.as_str()),
            Field::Kind => Some(record.kind.word()),
            // containerd has an empty text here, which equals "" and is present.
            Field::Parent => Some(record.parent.as_deref().unwrap_or_default()),
            Field::Image => {
                image = record.image_id.map(|id| id.to_string());
                image.as_deref()
            }
            Field::Label(key) => record.labels.get(key).map(String::as_str),
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted.as_str()),
            // What has no value differs from every value, as in containerd.
            Test::NotEqual(wanted) => value != Some(wanted.as_str()),
        }
    }
}

impl SnapshotKind {
    /// Returns the kind's word in filters, listings and JSON.
    pub fn word(self) -> &'static str {
        match self {
            SnapshotKind::Active => "active",
            SnapshotKind::View => "view",
            SnapshotKind::Committed => "committed",
        }
    }
}

fn parse_one(text: &str) -> Result<Vec<Selector>> {
    let mut parser = Parser { text, at: 0 };
    let mut all = vec![parser.selector()?];
    while !parser.rest().is_empty() {
        if !parser.take(",") {
            return Err(parser.wrong("a comma"));
        }
        all.push(parser.selector()?);
    }
    Ok(all)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn run(&mut self, part: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn wrong(&self, wanted: &str) -> Error {
        let message = format!("filter \"{}\": {wanted} is expected at byte {}", escape(self.text.as_bytes()), self.at);
        Error::new(ErrorKind::Usage, message).with_hint("for example: kind==active,labels.\"some.key\"==value")
    }

    fn selector(&mut self) -> Result<Selector> {
        let field = self.field()?;
        let test = if self.take("==") {
            Test::Equal(self.value()?)
        } else if self.take("!=") {
            Test::NotEqual(self.value()?)
        } else if self.rest().starts_with("~=") {
            return Err(self.wrong("== or != (~= is not supported)"));
        } else {
            Test::Present
        };
        Ok(Selector { field, test })
    }

    fn field(&mut self) -> Result<Field> {
        let start = self.at;
        let word = self.run(|c| c.is_ascii_alphanumeric() || c == '_');
        Ok(match word {
            "name" => Field::Name,
            "kind" => Field::Kind,
            "parent" => Field::Parent,
            "image" => Field::Image,
            "labels" if self.take(".") => {
                let key = match self.rest().starts_with('"') {
                    true => self.quoted()?,
                    false => self.run(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).to_owned(),
                };
                if key.is_empty() {
                    return Err(self.wrong("the key of a label"));
                }
                Field::Label(key)
            }
            "labels" => return Err(self.wrong("a dot and the key of a label")),
            _ => {
                self.at = start;
                return Err(self.wrong("name, kind, parent, image or labels.KEY"));
            }
        })
    }

    fn value(&mut self) -> Result<String> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let value = self.run(|c| c != ',' && c != '"' && !c.is_whitespace());
        if value.is_empty() {
            return Err(self.wrong("a value (\"\" for none)"));
        }
        Ok(value.to_owned())
    }

    fn quoted(&mut self) -> Result<String> {
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += at + 1;
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, c @ ('"' | '\\'))) => out.push(c),
                    _ => break,
                },
                c => out.push(c),
            }
        }
        Err(self.wrong("a closed quotation, with \\\" and \\\\ inside,"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::apply::facts::RootMeta;
    use crate::store::{Durable, Id, Time};

    fn record(key: &str, kind: SnapshotKind, parent: Option<&str>, labels: &[(&str, &str)]) -> SnapshotRecord {
        SnapshotRecord {
            version: 1,
            key: key.into(),
            kind,
            parent: parent.map(str::to_owned),
            image_id: None,
            dir: Id::of_snapshot(key),
            lowers: Vec::new(),
            root: RootMeta::default(),
            labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<BTreeMap<_, _>>(),
            usage: None,
            durable: Durable::Yes,
            created: Time::now(),
            updated: Time::now(),
        }
    }

    #[test]
    fn p04_filters_read_as_containerd_does() {
        use SnapshotKind::{Active, Committed, View};
        let all = [
            record("a", Active, None, &[("x", "1"), ("containerd.io/gc.root", "now, or \"never\"")]),
            record("b", View, Some("c"), &[("x", "2"), ("d.e", "f")]),
            record("c", Committed, None, &[]),
        ];
        for (filters, expected) in [
            (&[][..], "abc"),
            (&["kind==active"], "a"),
            (&["kind!=active"], "bc"),
            (&["parent==c"], "b"),
            (&["parent==\"\""], "ac"),
            (&["name==c"], "c"),
            (&["name==b", "name==c"], "bc"),
            (&["kind==active", "kind==view,labels.x==2"], "ab"),
            (&["kind==view,labels.x==1"], ""),
            (&["labels.x"], "ab"),
            (&["labels.x!=1"], "bc"),
            (&["labels.d.e==f"], "b"),
            (&[r#"labels."containerd.io/gc.root""#], "a"),
            (&[r#"labels."containerd.io/gc.root"=="now, or \"never\"",kind==active"#], "a"),
            (&["image"], ""),
        ] {
            let filter = SnapshotFilter::parse(filters).unwrap();
            let found: String = all.iter().filter(|r| filter.fits(r)).map(|r| r.key.as_str()).collect();
            assert_eq!(found, expected, "{filters:?}");
        }
    }

    #[test]
    fn p04_a_filter_that_is_not_understood_is_refused_at_its_place() {
        for (filter, at) in [
            ("", 0),
            ("knd==active", 0),
            ("kind=active", 4),
            ("kind==", 6),
            ("kind==active,", 13),
            ("labels==x", 6),
            ("labels.==x", 7),
            ("name~=x", 4),
            ("name==\"x", 6),
            (r#"name=="x\n""#, 6),
            ("name==a b", 7),
        ] {
            let e = SnapshotFilter::parse(&[filter]).unwrap_err();
            assert!(e.kind() == ErrorKind::Usage && e.to_string().contains(&format!("byte {at};")), "{filter}: {e}");
        }
    }
}

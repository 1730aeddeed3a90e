//! The grammar of image references.
//!
//! Owns: the text forms of skopeo's transports and what they mean. Refuses to know: what is inside the named thing.
//!
//! A reference is `TRANSPORT:PLACE[SELECTOR]`. The place is a path and may itself contain `:` and `@`; names of images
//! contain them too (`oci:/images:quay.io/a/b:1.0`). So the selector is what follows the **longest** prefix of the rest that
//! exists in the file system and is followed by `:`, by `@` and a digest, or by nothing. Where nothing exists, the split is at the first `:` after
//! the last `/` (or at `@sha256:`), which is where a reader would see it, and opening then says what is missing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::BlobDigest;
use crate::error::{Error, ErrorKind, escape};

/// Which of the images of a source is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Selector {
    /// The only one.
    #[default]
    None,
    /// The one of this name: a layout's `org.opencontainers.image.ref.name` or `io.containerd.image.name`, or `REPO:TAG`
    /// of a Docker archive.
    Name(String),
    /// The one with this manifest digest or, in a Docker archive, this image id.
    Digest(BlobDigest),
}

/// Where a byte stream comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// Where an image is and which one it is; [`FromStr`] reads the text form, [`fmt::Display`] writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `oci:DIR[:NAME]`, `oci:DIR@DIGEST`: an OCI image layout directory.
    OciDir {
        /// The directory.
        dir: PathBuf,
        /// Which image.
        selector: Selector,
    },
    /// `oci-archive:FILE[:NAME]`: a tar of such a layout, perhaps compressed.
    OciArchive {
        /// The file.
        file: PathBuf,
        /// Which image.
        selector: Selector,
    },
    /// `docker-archive:FILE[:REPO:TAG]`: what `docker save` writes.
    DockerArchive {
        /// The file.
        file: PathBuf,
        /// Which image.
        selector: Selector,
    },
    /// `layer:FILE`, `layer:-`: one layer as a one-layer image.
    Layer(Input),
    /// `-`, `-:REPO:TAG`: an archive of either kind on standard input.
    Stdin {
        /// Which image.
        selector: Selector,
    },
    /// `id:HEX`, or a name: an image in the store.
    Stored(String),
    /// A path of which only looking at it tells what it is.
    Path(PathBuf),
}

impl Reference {
    /// Returns the same reference for whoever is in another directory: its path made absolute.
    ///
    /// # Errors
    /// When the current directory is not known.
    pub fn absolute(&self) -> std::io::Result<Reference> {
        let mut out = self.clone();
        let path = match &mut out {
            Reference::OciDir { dir: path, .. }
            | Reference::OciArchive { file: path, .. }
            | Reference::DockerArchive { file: path, .. }
            | Reference::Layer(Input::File(path))
            | Reference::Path(path) => path,
            Reference::Layer(Input::Stdin) | Reference::Stdin { .. } | Reference::Stored(_) => return Ok(out),
        };
        *path = std::path::absolute(&*path)?;
        Ok(out)
    }

    /// Tells whether it is standard input, which can be read only once.
    pub fn is_stdin(&self) -> bool {
        matches!(self, Reference::Layer(Input::Stdin) | Reference::Stdin { .. })
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// Parses a reference. Looks at the file system to find where a path ends (see the module's text); text without a
    /// transport is a [`Reference::Path`] when it exists or begins with `/`, `./` or `../`, else [`Reference::Stored`].
    ///
    /// # Errors
    /// `Usage` for an empty reference, place or selector, and for a malformed digest.
    fn from_str(s: &str) -> Result<Self, Error> {
        if let Some(rest) = s.strip_prefix("oci:") {
            let (dir, selector) = split_place(s, rest)?;
            return Ok(Reference::OciDir { dir, selector });
        }
        if let Some(rest) = s.strip_prefix("oci-archive:") {
            let (file, selector) = split_place(s, rest)?;
            return Ok(Reference::OciArchive { file, selector });
        }
        if let Some(rest) = s.strip_prefix("docker-archive:") {
            let (file, selector) = split_place(s, rest)?;
            return Ok(Reference::DockerArchive { file, selector });
        }
        if let Some(rest) = s.strip_prefix("layer:") {
            return match rest {
                "" => Err(usage(s, "names no file")),
                "-" => Ok(Reference::Layer(Input::Stdin)),
                file => Ok(Reference::Layer(Input::File(file.into()))),
            };
        }
        if s == "-" || s.starts_with("-:") || s.starts_with("-@") {
            return Ok(Reference::Stdin { selector: selector(s, s.get(1..).unwrap_or(""))? });
        }
        if s.is_empty() {
            return Err(usage(s, "is empty"));
        }
        if let Some(hex) = s.strip_prefix("id:") {
            let hex = hex.strip_prefix("sha256:").unwrap_or(hex);
            let digits = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if !digits || !(12..=128).contains(&hex.len()) {
                return Err(usage(s, "needs at least 12 lower-case hex digits after \"id:\""));
            }
            return Ok(Reference::Stored(format!("id:{hex}")));
        }
        let looks_like_path = ["/", "./", "../"].iter().any(|p| s.starts_with(p)) || s == "." || s == "..";
        if looks_like_path || Path::new(s).symlink_metadata().is_ok() {
            return Ok(Reference::Path(s.into()));
        }
        Ok(Reference::Stored(s.to_owned()))
    }
}

fn usage(reference: &str, what: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("image reference \"{}\" {what}", escape(reference.as_bytes())))
}

/// Reads what stands behind a place: nothing, `:NAME` or `@DIGEST`.
fn selector(reference: &str, text: &str) -> Result<Selector, Error> {
    if text.is_empty() {
        return Ok(Selector::None);
    }
    if let Some(digest) = text.strip_prefix('@') {
        return match digest.parse() {
            Ok(digest) => Ok(Selector::Digest(digest)),
            Err(_) => Err(usage(reference, "has no valid digest behind the \"@\"")),
        };
    }
    match text.strip_prefix(':') {
        Some("") | None => Err(usage(reference, "has an empty name behind the last \":\"")),
        Some(name) => Ok(Selector::Name(name.to_owned())),
    }
}

fn split_place(reference: &str, rest: &str) -> Result<(PathBuf, Selector), Error> {
    let begins_selector = |at: usize, sep: &str| match sep {
        "@" => rest.get(at + 1..).is_some_and(|digest| digest.parse::<BlobDigest>().is_ok()),
        _ => true,
    };
    let mut cuts: Vec<usize> = vec![rest.len()];
    cuts.extend(rest.rmatch_indices([':', '@']).filter(|(at, sep)| begins_selector(*at, sep)).map(|(at, _)| at));
    let exists =
        |cut: &&usize| rest.get(..**cut).is_some_and(|p| !p.is_empty() && Path::new(p).symlink_metadata().is_ok());
    let cut = match cuts.iter().find(exists) {
        Some(cut) => *cut,
        None => {
            let digest = rest.rfind('@').filter(|at| begins_selector(*at, "@"));
            let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
            let colon = rest.get(name_start..).and_then(|name| name.find(':')).map(|at| name_start + at);
            digest.or(colon).unwrap_or(rest.len())
        }
    };
    let (place, tail) = rest.split_at_checked(cut).unwrap_or((rest, ""));
    if place.is_empty() {
        return Err(usage(reference, "names no place"));
    }
    Ok((place.into(), selector(reference, tail)?))
}

impl fmt::Display for Selector {
    /// Writes the selector with its separator; nothing for [`Selector::None`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::None => Ok(()),
            Selector::Name(name) => write!(f, ":{name}"),
            Selector::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::OciDir { dir, selector } => write!(f, "oci:{}{selector}", dir.display()),
            Reference::OciArchive { file, selector } => write!(f, "oci-archive:{}{selector}", file.display()),
            Reference::DockerArchive { file, selector } => write!(f, "docker-archive:{}{selector}", file.display()),
            Reference::Layer(Input::File(file)) => write!(f, "layer:{}", file.display()),
            Reference::Layer(Input::Stdin) => f.write_str("layer:-"),
            Reference::Stdin { selector } => write!(f, "-{selector}"),
            Reference::Stored(name) => f.write_str(name),
            Reference::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(s: &str) -> Reference {
        let parsed: Reference = s.parse().unwrap();
        assert_eq!(parsed.to_string(), s, "the text form survives");
        parsed
    }

    fn name(s: &str) -> Selector {
        Selector::Name(s.to_owned())
    }

    #[test]
    fn every_form_of_the_table() {
        let hex = "ab".repeat(32);
        let digest = Selector::Digest(format!("sha256:{hex}").parse().unwrap());
        let dir = |d: &str, selector| Reference::OciDir { dir: d.into(), selector };
        assert_eq!(parse("oci:/no/such"), dir("/no/such", Selector::None));
        assert_eq!(parse("oci:/no/such:latest"), dir("/no/such", name("latest")));
        assert_eq!(parse("oci:/no/such:quay.io/a:1"), dir("/no/such:quay.io/a", name("1")));
        assert_eq!(parse(&format!("oci:/no/such@sha256:{hex}")), dir("/no/such", digest.clone()));
        assert_eq!(
            parse("docker-archive:/no/x.tar:repo:tag"),
            Reference::DockerArchive { file: "/no/x.tar".into(), selector: name("repo:tag") }
        );
        assert_eq!(
            parse("oci-archive:x.tar"),
            Reference::OciArchive { file: "x.tar".into(), selector: Selector::None }
        );
        assert_eq!(parse("layer:-"), Reference::Layer(Input::Stdin));
        assert_eq!(parse("layer:a:b"), Reference::Layer(Input::File("a:b".into())));
        assert_eq!(parse("-"), Reference::Stdin { selector: Selector::None });
        assert_eq!(parse("-:busybox:1"), Reference::Stdin { selector: name("busybox:1") });
        assert_eq!(parse(&format!("-@sha256:{hex}")), Reference::Stdin { selector: digest });
        assert_eq!(parse("id:0123456789ab"), Reference::Stored("id:0123456789ab".into()));
        assert_eq!(parse("busybox:latest"), Reference::Stored("busybox:latest".into()));
        assert_eq!(parse("./nowhere"), Reference::Path("./nowhere".into()));
        for bad in ["", "oci:", "oci::x", "layer:", "-:", "oci:/no:", "id:123", "id:0123456789AB", "-@sha256:12"] {
            assert_eq!(bad.parse::<Reference>().unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }

    #[test]
    fn the_longest_existing_path_ends_the_place() {
        let tmp = tempfile::tempdir().unwrap();
        let base = tmp.path().to_str().unwrap().to_owned();
        std::fs::create_dir_all(format!("{base}/a:b")).unwrap();
        std::fs::create_dir_all(format!("{base}/a")).unwrap();
        let split = |s: &str| match parse(&format!("oci:{base}/{s}")) {
            Reference::OciDir { dir, selector } => (dir.to_str().unwrap().replace(&format!("{base}/"), ""), selector),
            other => panic!("{other:?}"),
        };
        assert_eq!(split("a:b"), ("a:b".into(), Selector::None));
        assert_eq!(split("a:b:c"), ("a:b".into(), name("c")));
        assert_eq!(split("a:c"), ("a".into(), name("c")));
        assert_eq!(split("a:quay.io/x/y:1.0"), ("a".into(), name("quay.io/x/y:1.0")));
        assert_eq!(split("a:x@y"), ("a".into(), name("x@y")));
    }

    #[test]
    fn an_existing_file_is_a_path_and_not_a_stored_name() {
        let tmp = tempfile::NamedTempFile::new().unwrap();
        let path = tmp.path().to_str().unwrap();
        assert_eq!(path.parse::<Reference>().unwrap(), Reference::Path(path.into()));
    }
}

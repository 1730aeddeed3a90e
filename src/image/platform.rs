//! Platforms: parsing, normalising, and which image suits a machine best.
//!
//! Owns: the grammar `OS/ARCH[/VARIANT]`, the synonyms of architectures, the order of preference between variants
//! (rule I3; <https://github.com/opencontainers/image-spec/blob/main/image-index.md#platform-variants>).
//! Refuses to know: documents. Invariant: a parsed value is normalised, so equal platforms compare equal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, escape};

/// What an image is built for, in normalised words (`amd64`, never `x86_64`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, such as `linux`; empty when the image does not say.
    pub os: String,
    /// Architecture, such as `amd64`; empty when the image does not say.
    pub architecture: String,
    /// Variant of the architecture, such as `v7`; `None` for its baseline (`v8` on arm64, `v1` on amd64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// How much a platform may give way to find an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// The user named the platform: the same architecture, the same or an older variant.
    Asked,
    /// This machine: also what its CPU runs without emulation (386 on amd64, 32-bit arm on arm64), as a last choice.
    Machine,
}

impl Platform {
    /// Creates a platform from an image's own words and normalises them.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.unwrap_or("").to_ascii_lowercase();
        let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1" | "1" | "") => ("amd64".to_owned(), ""),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64".to_owned(), v),
            ("i386" | "i486" | "i586" | "i686" | "386", _) => ("386".to_owned(), ""),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "") => ("arm64".to_owned(), ""),
            ("aarch64" | "arm64", v) => ("arm64".to_owned(), v),
            ("armhf", _) => ("arm".to_owned(), "v7"),
            ("armel", _) => ("arm".to_owned(), "v6"),
            ("arm", "" | "7") => ("arm".to_owned(), "v7"),
            ("arm", "5") => ("arm".to_owned(), "v5"),
            ("arm", "6") => ("arm".to_owned(), "v6"),
            ("arm", "8") => ("arm".to_owned(), "v8"),
            (other, v) => (other.to_owned(), v),
        };
        let variant = (!variant.is_empty()).then(|| variant.to_owned());
        Platform { os, architecture, variant }
    }

    /// Returns the platform of this machine.
    pub fn host() -> Platform {
        let little = cfg!(target_endian = "little");
        let (architecture, variant) = match std::env::consts::ARCH {
            "arm" if cfg!(target_feature = "v7") => ("arm", Some("v7")),
            "arm" => ("arm", Some("v6")),
            "powerpc64" if little => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "mips64" if little => ("mips64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Platform::new(std::env::consts::OS, architecture, variant)
    }

    /// Says whether the image leaves its operating system or architecture open.
    pub(crate) fn is_unknown(&self) -> bool {
        self.os.is_empty() || self.architecture.is_empty()
    }

    /// Ranks `candidate` for this platform; 0 is best, `None` does not fit.
    pub(crate) fn rank(&self, candidate: &Platform, fit: Fit) -> Option<u32> {
        if self.os != candidate.os {
            return None;
        }
        if self.architecture == candidate.architecture {
            if self.variant == candidate.variant {
                return Some(0);
            }
            // A newer variant runs older code, never the reverse; variants that are no plain numbers must be equal.
            let (have, want) = (self.variant_number()?, candidate.variant_number()?);
            return have.checked_sub(want).filter(|d| *d > 0);
        }
        match (fit, self.architecture.as_str(), candidate.architecture.as_str()) {
            (Fit::Machine, "amd64", "386") => Some(10_000),
            (Fit::Machine, "arm64", "arm") => candidate.variant_number().map(|v| 20_000u32.saturating_sub(v)),
            _ => None,
        }
    }

    /// Returns the variant as hundredths: `v7` is 700, `v8.2` is 802.
    fn variant_number(&self) -> Option<u32> {
        let text = match (&self.variant, self.architecture.as_str()) {
            (Some(v), _) => v.strip_prefix('v')?,
            (None, "arm64") => "8",
            (None, "amd64") => "1",
            (None, _) => return None,
        };
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        let major: u8 = major.parse().ok()?;
        let minor: u8 = minor.parse().ok().filter(|m| *m < 100)?;
        Some(u32::from(major) * 100 + u32::from(minor))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |s: &str| if s.is_empty() { "unknown".to_owned() } else { escape(s.as_bytes()) };
        write!(f, "{}/{}", word(&self.os), word(&self.architecture))?;
        if let Some(variant) = &self.variant {
            write!(f, "/{}", escape(variant.as_bytes()))?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Parses `OS/ARCH` or `OS/ARCH/VARIANT`.
    ///
    /// # Errors
    /// `Usage` for any other text.
    fn from_str(s: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = s.split('/').collect();
        let word = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        match parts.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && parts.iter().all(word) => {
                Ok(Platform::new(os, architecture, rest.first().copied()))
            }
            _ => Err(Error::new(ErrorKind::Usage, format!("\"{}\" is not a platform", escape(s.as_bytes())))
                .with_hint("write OS/ARCH or OS/ARCH/VARIANT, such as linux/amd64 or linux/arm/v7")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> Platform {
        s.parse().unwrap()
    }

    #[test]
    fn i03_synonyms_are_one_platform() {
        for (a, b) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64/v8"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/7"),
            ("linux/i686", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
        ] {
            assert_eq!(p(a), p(b), "{a} {b}");
        }
        assert_eq!(p("linux/arm/6").to_string(), "linux/arm/v6");
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b"] {
            assert_eq!(bad.parse::<Platform>().unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }

    #[test]
    fn i03_older_variants_fit_and_the_nearest_is_best() {
        let rank = |a: &str, b: &str| p(a).rank(&p(b), Fit::Asked);
        assert_eq!(rank("linux/arm/v7", "linux/arm/v7"), Some(0));
        assert!(rank("linux/arm/v7", "linux/arm/v6") < rank("linux/arm/v7", "linux/arm/v5"));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert!(rank("linux/arm64/v8.2", "linux/arm64").is_some());
        assert_eq!(rank("linux/amd64", "linux/amd64/v2"), None);
        assert!(rank("linux/amd64/v3", "linux/amd64").is_some());
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
        assert_eq!(rank("linux/amd64", "linux/386"), None);
        assert!(p("linux/amd64").rank(&p("linux/386"), Fit::Machine).is_some());
        let arm64 = p("linux/arm64");
        assert!(
            arm64.rank(&p("linux/arm/v7"), Fit::Machine) < arm64.rank(&p("linux/arm/v6"), Fit::Machine),
            "the newest 32-bit variant is best"
        );
    }
}

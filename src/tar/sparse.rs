//! Sparse maps: GNU's old blocks, PAX 0.0, 0.1 and 1.0.
//!
//! Owns: reading the four forms into regions, and the arithmetic that makes a map safe to use (T25, T26, B6).
//! Refuses to know: which entry carries a map. Invariant of [`checked`]: regions are sorted, disjoint, not empty, end
//! within the file, and their lengths sum to the stored bytes. Nothing is allocated by a count that the archive states.
//! Formats: <https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html>.

use ::tar::GnuSparseHeader;

use super::error::{Error, Place};
use super::{BLOCK, Region, number};
use crate::policy::{Limit, Limits};

/// Digits of one number in a map; more than 64 bits need, to allow for leading zeros.
const MAX_DIGITS: usize = 40;

/// Offset and length as the archive states them, not checked yet.
pub(super) type RawRegion = (i128, i128);

/// The `GNU.sparse.*` keys of one PAX header.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) major: Option<i128>,
    pub(super) minor: Option<i128>,
    pub(super) real_size: Option<i128>,
    pub(super) count: Option<i128>,
    regions: Vec<RawRegion>,
    open_offset: Option<i128>,
    /// Whether `regions` came from one `map` record; the pairs of 0.0 may not be mixed in.
    from_map: bool,
}

/// Where the map of a PAX sparse file is.
pub(super) enum PaxMap {
    /// In the records (0.0 and 0.1).
    Records(Vec<RawRegion>),
    /// In front of the data (1.0).
    Data,
}

impl PaxSparse {
    /// Takes a `GNU.sparse.offset` record of format 0.0.
    pub(super) fn push_offset(&mut self, offset: i128, at: Place) -> Result<(), Error> {
        if self.from_map || self.open_offset.is_some() {
            return Err(malformed(at, "an offset without a length before it", offset, 0));
        }
        self.open_offset = Some(offset);
        Ok(())
    }

    /// Takes a `GNU.sparse.numbytes` record of format 0.0.
    pub(super) fn push_length(&mut self, length: i128, at: Place, limits: &Limits) -> Result<(), Error> {
        let Some(offset) = self.open_offset.take() else {
            return Err(malformed(at, "a length without an offset before it", length, 0));
        };
        push(&mut self.regions, (offset, length), &at, limits)
    }

    /// Takes the `GNU.sparse.map` record of format 0.1; the last one wins like any repeated key.
    pub(super) fn set_map(&mut self, text: &[u8], at: Place, limits: &Limits) -> Result<(), Error> {
        if !self.from_map && (self.open_offset.is_some() || !self.regions.is_empty()) {
            return Err(malformed(at, "both a map and single offsets", self.regions.len() as i128, 0));
        }
        self.regions.clear();
        self.from_map = !text.is_empty();
        let mut numbers = text.split(|&b| b == b',').filter(|_| !text.is_empty());
        while let Some(offset) = numbers.next() {
            let pair = number::decimal(offset).zip(numbers.next().and_then(number::decimal));
            let Some(pair) = pair else {
                return Err(malformed(at, "not pairs of numbers", self.regions.len() as i128, 0));
            };
            push(&mut self.regions, pair, &at, limits)?;
        }
        Ok(())
    }

    /// Decides where the map is and that the keys fit together.
    pub(super) fn map(self, at: &Place) -> Result<PaxMap, Error> {
        let found = self.regions.len() as i128;
        match (self.major.unwrap_or(0), self.minor.unwrap_or(0)) {
            (1, 0) if found > 0 || self.open_offset.is_some() => {
                Err(malformed(at.clone(), "format 1.0 with a map in its records", found, 0))
            }
            (1, 0) => Ok(PaxMap::Data),
            (0, 0 | 1) if self.open_offset.is_some() => {
                Err(malformed(at.clone(), "the last offset has no length", found, 0))
            }
            (0, 0 | 1) => match self.count {
                Some(count) if count != found => {
                    Err(malformed(at.clone(), "the number of regions differs from its statement", found, count))
                }
                _ => Ok(PaxMap::Records(self.regions)),
            },
            (major, _) => Err(malformed(at.clone(), "unknown format version", major, 1)),
        }
    }
}

/// Reads the regions of one old GNU header or extension block; the first empty slot ends them.
pub(super) fn old_regions(
    slots: &[GnuSparseHeader],
    regions: &mut Vec<RawRegion>,
    at: &Place,
    limits: &Limits,
) -> Result<(), Error> {
    for slot in slots {
        // Readers look at either field to find the end: a slot with only one of them would be read two ways.
        match (slot.offset[0] == 0, slot.numbytes[0] == 0) {
            (true, true) => break,
            (false, false) => {}
            _ => return Err(malformed(at.clone(), "a half-empty region", regions.len() as i128, 0)),
        }
        let decode = |field, raw: &[u8]| {
            number::field(raw).ok_or_else(|| Error::NotANumber { at: at.clone(), field, found: raw.to_vec() })
        };
        let region = (decode("sparse offset", &slot.offset)?, decode("sparse length", &slot.numbytes)?);
        push(regions, region, at, limits)?;
    }
    Ok(())
}

/// Reads the map of format 1.0, block by block: a count, then offset and length of each region, one number a line.
#[derive(Debug, Default)]
pub(super) struct MapText {
    count: Option<i128>,
    regions: Vec<RawRegion>,
    offset: Option<i128>,
    digits: Vec<u8>,
}

impl MapText {
    /// Takes the next block; true when the map is complete (the rest of the block is padding).
    pub(super) fn block(&mut self, block: &[u8; BLOCK], at: &Place, limits: &Limits) -> Result<bool, Error> {
        for &b in block {
            if b != b'\n' {
                if !b.is_ascii_digit() || self.digits.len() >= MAX_DIGITS {
                    return Err(malformed(at.clone(), "a line is not a number", b.into(), b'\n'.into()));
                }
                self.digits.push(b);
                continue;
            }
            let Some(value) = number::decimal(&self.digits) else {
                return Err(malformed(at.clone(), "an empty line", self.regions.len() as i128, 0));
            };
            self.digits.clear();
            match (self.count, self.offset.take()) {
                (None, _) => {
                    check_count(value, at, limits)?;
                    self.count = Some(value);
                }
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => push(&mut self.regions, (offset, value), at, limits)?,
            }
            if self.offset.is_none() && self.count == Some(self.regions.len() as i128) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the regions of a complete map.
    pub(super) fn into_regions(self) -> Vec<RawRegion> {
        self.regions
    }
}

/// Checks a map against the file's size and its stored bytes, and drops regions without data.
pub(super) fn checked(raw: &[RawRegion], size: u64, stored: u64, at: &Place) -> Result<Vec<Region>, Error> {
    let mut regions = Vec::with_capacity(raw.len());
    let (mut end, mut sum) = (0u64, 0u64);
    for &(offset, length) in raw {
        let bad = |problem, found, limit: u64| malformed(at.clone(), problem, found, limit.into());
        let region_offset = u64::try_from(offset).map_err(|_| bad("offset out of range", offset, size))?;
        let region_length = u64::try_from(length).map_err(|_| bad("length out of range", length, size))?;
        if region_offset < end {
            return Err(bad("regions overlap or are not sorted", offset, end));
        }
        end = match region_offset.checked_add(region_length) {
            Some(end) if end <= size => end,
            _ => return Err(bad("a region ends beyond the file", offset.saturating_add(length), size)),
        };
        // Disjoint regions below `size` cannot sum to more than it.
        sum = sum.saturating_add(region_length);
        if region_length > 0 {
            regions.push(Region { offset: region_offset, length: region_length });
        }
    }
    if sum != stored {
        return Err(malformed(at.clone(), "regions do not add up to the stored bytes", sum.into(), stored.into()));
    }
    Ok(regions)
}

fn push(regions: &mut Vec<RawRegion>, region: RawRegion, at: &Place, limits: &Limits) -> Result<(), Error> {
    check_count(regions.len() as i128 + 1, at, limits)?;
    regions.push(region);
    Ok(())
}

fn check_count(found: i128, at: &Place, limits: &Limits) -> Result<(), Error> {
    let limit = limits.max_sparse_regions as u64;
    if found > i128::from(limit) {
        return Err(Error::Limit { at: at.clone(), which: Limit::SparseRegions, found, limit });
    }
    Ok(())
}

pub(super) fn malformed(at: Place, problem: &'static str, found: i128, limit: i128) -> Error {
    Error::SparseMap { at, problem, found, limit }
}

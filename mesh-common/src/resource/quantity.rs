use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes per second, written as a whole Kubernetes quantity: `64Ki`, `10Mi`, `500k` or `1000`. More than zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteRate(u64);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rate; write bytes per second, from 1 to 1Ti, for example \"64Ki\", \"10Mi\" or \"500k\"")]
pub struct ByteRateError(String);

/// How many bytes, written in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size; write bytes, from 1 to 1Ti, for example \"16Ki\", \"10Mi\" or \"500k\"")]
pub struct ByteSizeError(String);

/// The largest first.
const UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1000),
];

/// Beyond this nothing is slowed down.
const MAX: u64 = 1 << 40;

impl ByteRate {
    pub fn per_second(self) -> u64 {
        self.0
    }

    /// In whole KiB, which is all that Envoy knows; what is less than one of them is one.
    pub fn kibibytes(self) -> u64 {
        self.0.div_ceil(1024)
    }
}

impl FromStr for ByteRate {
    type Err = ByteRateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read(text).map(Self).ok_or_else(|| ByteRateError(text.to_owned()))
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, f)
    }
}

fn read(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=MAX).contains(&bytes).then_some(bytes)
}

fn write(bytes: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match UNITS.iter().find(|(_, factor)| bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => write!(f, "{}{unit}", bytes / factor),
        None => write!(f, "{bytes}"),
    }
}

impl ByteSize {
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read(text).map(Self).ok_or_else(|| ByteSizeError(text.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, f)
    }
}

impl TryFrom<String> for ByteSize {
    type Error = ByteSizeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

impl TryFrom<String> for ByteRate {
    type Error = ByteRateError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ByteRate> for String {
    fn from(rate: ByteRate) -> Self {
        rate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_whole_quantities_and_writes_them_with_the_largest_unit() {
        for (text, bytes, written) in [
            ("1", 1, "1"),
            ("1023", 1023, "1023"),
            ("1024", 1024, "1Ki"),
            ("64Ki", 65_536, "64Ki"),
            ("10240Ki", 10_485_760, "10Mi"),
            ("500k", 500_000, "500k"),
            ("2M", 2_000_000, "2M"),
            ("1Ti", MAX, "1Ti"),
        ] {
            let rate: ByteRate = text.parse().unwrap();
            assert_eq!((rate.per_second(), rate.to_string().as_str()), (bytes, written), "{text}");
            assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }

    #[test]
    fn refuses_what_is_not_one() {
        for text in
            ["", "0", "0Mi", "Ki", "-1", "1.5Mi", "1K", "1KB", "1 Mi", "10Mbit", "2Ti", "99999999999999999999", "١Ki"]
        {
            assert!(text.parse::<ByteRate>().is_err() && text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn envoy_knows_whole_kibibytes() {
        let of = |text: &str| text.parse::<ByteRate>().unwrap().kibibytes();
        assert_eq!([of("1"), of("1Ki"), of("1025"), of("64Ki")], [1, 1, 2, 64]);
    }
}

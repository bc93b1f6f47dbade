use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A Gateway API duration (GEP-2257): one to four numbers of at most five digits with the units `h`, `m`, `s` and `ms`,
/// such as `1h30m`, `2s` or `500ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration(std::time::Duration);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a duration; write for example 2s, 500ms or 1h30m (up to four numbers of at most five digits with h, m, s or ms)"
)]
pub struct DurationError(String);

impl Duration {
    pub const fn from_millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    pub fn get(self) -> std::time::Duration {
        self.0
    }

    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

/// 99999h59m59s999ms: what is longer has no form of one number for each unit, so it could not be read again.
const MAX_MILLIS: u64 = 100_000 * 3_600_000 - 1;

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || DurationError(text.to_owned());
        let mut rest = text;
        let mut millis = 0_u64;
        for _ in 0..4 {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            if !(1..=5).contains(&digits) {
                return Err(error());
            }
            let (number, tail) = rest.split_at(digits);
            let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
            let (tail, factor) =
                units.iter().find_map(|(unit, factor)| Some((tail.strip_prefix(unit)?, factor))).ok_or_else(error)?;
            millis += number.parse::<u64>().map_err(|_| error())? * factor;
            rest = tail;
            if rest.is_empty() {
                return if millis <= MAX_MILLIS { Ok(Self::from_millis(millis)) } else { Err(error()) };
            }
        }
        Err(error())
    }
}

impl From<std::time::Duration> for Duration {
    /// Whole milliseconds; what is finer is cut off, and what is longer than can be written is shortened.
    fn from(duration: std::time::Duration) -> Self {
        Self::from_millis(u64::try_from(duration.as_millis()).map_or(MAX_MILLIS, |millis| millis.min(MAX_MILLIS)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            let n = rest / factor;
            rest %= factor;
            if n > 0 {
                write!(f, "{n}{unit}")?;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for Duration {
    type Error = DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_gateway_api_durations() {
        for (text, millis) in [
            ("0h", 0),
            ("0s", 0),
            ("1h", 3_600_000),
            ("30m", 1_800_000),
            ("10s", 10_000),
            ("500ms", 500),
            ("2h30m", 9_000_000),
            ("150m", 9_000_000),
            ("1h2m3s4ms", 3_723_004),
            ("10s30m1h", 5_410_000),
            ("99999h59m59s999ms", MAX_MILLIS),
        ] {
            assert_eq!(text.parse(), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_one() {
        for text in ["", "1", "1d", "h", "1.5h", "-1s", "1s ", "100000s", "1h1h1h1h1h", "s1", "1us", "١s", "99999h60m"]
        {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn writes_the_shortest_form() {
        for text in ["0s", "2s", "1h30m", "500ms", "1h2m3s4ms"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        assert_eq!("150m".parse::<Duration>().unwrap().to_string(), "2h30m");
    }
}

//! Times and durations as people write and read them.

use std::time::Duration;

use jiff::Timestamp;

/// Reads `90s`, `1h30m`, `500ms`: Gateway API's durations (GEP-2257), in any order, plus `d` for days.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("`{text}` is not a duration: write it like 500ms, 2s, 5m or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(problem());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().map_err(|_| problem())?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(problem()),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(problem)?;
        total = total.checked_add(part).ok_or_else(problem)?;
        rest = tail;
    }
    Ok(total)
}

/// A positive duration.
pub fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing".to_owned()),
        duration => Ok(duration),
    }
}

/// For reading: `87 ms`, `1.2 s`, `3m12s`, `5h20m`, `3d4h`.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |big: u64, b: &str, small: u64, s: &str| {
        if small == 0 { format!("{big}{b}") } else { format!("{big}{b}{small}{s}") }
    };
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..10 if duration.subsec_millis() >= 50 => format!("{:.1} s", duration.as_secs_f64()),
        1..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// Age in whole units, as tables show it: `12s`, `3m`, `5h`, `2d`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long until then, or that it is over.
pub fn until(then: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(then.duration_since(now)).ok().filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, milliseconds) in [("500ms", 500), ("2s", 2_000), ("1h30m", 5_400_000), ("0s", 0)] {
            assert_eq!(parse_duration(text).unwrap().as_millis(), milliseconds);
        }
        for text in ["", "5", "s", "1.5s", "-2s", "2 s", "5y", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_positive_duration("0ms").is_err());
    }

    #[test]
    fn durations_are_shown_in_two_units_at_most() {
        let human = |milliseconds| human_duration(Duration::from_millis(milliseconds));
        assert_eq!(human(87), "87 ms");
        assert_eq!(human(1_240), "1.2 s");
        assert_eq!(human(5_000), "5s");
        assert_eq!(human(192_000), "3m12s");
        assert_eq!(human(300_000), "5m");
        assert_eq!(human(273_600_000), "3d4h");
    }

    #[test]
    fn what_is_past_is_over() {
        let now = Timestamp::from_second(1_000).unwrap();
        assert_eq!(until(Timestamp::from_second(999).unwrap(), now), None);
        assert_eq!(until(Timestamp::from_second(1_060).unwrap(), now), Some(Duration::from_secs(60)));
    }
}

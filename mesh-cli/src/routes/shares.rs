//! `v1=90 v2=10`: versions and their weights.

use std::str::FromStr;

use mesh_common::names::version_label;

/// Gateway API's bound for a weight.
const MAX_WEIGHT: u32 = 1_000_000;

/// `VERSION` or `VERSION=WEIGHT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub version: String,
    pub weight: u32,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (version, weight) = match text.split_once('=') {
            Some((version, weight)) => (version, weight),
            None => (text, "100"),
        };
        mesh_common::identity::check_label(&version_label(version)).map_err(|_| {
            format!("`{version}` is not a version: write letters, digits, '-', '_' and '.', as in v1=90 or 1.2.3=90")
        })?;
        // People write percentages; the sign changes nothing.
        let weight = weight.strip_suffix('%').unwrap_or(weight);
        let weight = weight.parse().ok().filter(|w| *w <= MAX_WEIGHT);
        let weight =
            weight.ok_or_else(|| format!("the weight in `{text}` must be a whole number from 0 to {MAX_WEIGHT}"))?;
        Ok(Self { version: version.to_owned(), weight })
    }
}

/// Checks what can only be seen of all shares together.
pub fn check(shares: &[Share]) -> Result<(), String> {
    for (index, share) in shares.iter().enumerate() {
        let label = version_label(&share.version);
        match shares.iter().take(index).find(|other| version_label(&other.version) == label) {
            Some(other) if other.version == share.version => {
                return Err(format!("{} is there twice: give each version one weight", share.version));
            }
            Some(other) => return Err(format!("{} and {} are the same backend", other.version, share.version)),
            None => {}
        }
    }
    if shares.iter().all(|s| s.weight == 0) {
        return Err("all weights are 0, so nothing could be served: give at least one version a weight".to_owned());
    }
    Ok(())
}

/// Share of the whole in percent, with at most one decimal: `90 %`, `33.3 %`.
pub fn percent(weight: u32, total: u64) -> String {
    if total == 0 {
        return "0 %".to_owned();
    }
    let tenths = (u64::from(weight) * 1_000 + total / 2) / total;
    match tenths % 10 {
        0 => format!("{} %", tenths / 10),
        tenth => format!("{}.{tenth} %", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(texts: &[&str]) -> Vec<Share> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn reads_versions_and_weights() {
        assert_eq!("v1=90".parse(), Ok(Share { version: "v1".into(), weight: 90 }));
        assert_eq!("v2".parse(), Ok(Share { version: "v2".into(), weight: 100 }));
        assert_eq!("v2=10%".parse(), Ok(Share { version: "v2".into(), weight: 10 }));
        assert_eq!("1.2.3-RC_1=5".parse(), Ok(Share { version: "1.2.3-RC_1".into(), weight: 5 }));
        for text in ["", "=5", "v1=", "v1=-1", "v1=1.5", "v 1=1", ".1=1", "1.=1", "v1=1000001", "v1=1=2"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_a_version_that_is_there_twice_and_a_split_of_nothing() {
        assert!(check(&shares(&["v1=90", "v2=10"])).is_ok());
        assert!(check(&shares(&["v1=90", "v1=10"])).is_err());
        assert_eq!(check(&shares(&["1.2=90", "1-2=10"])).unwrap_err(), "1.2 and 1-2 are the same backend");
        assert!(check(&shares(&["v1=0", "v2=0"])).is_err());
    }

    #[test]
    fn percentages_have_a_decimal_only_where_it_says_something() {
        assert_eq!(percent(90, 100), "90 %");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(0, 0), "0 %");
    }
}

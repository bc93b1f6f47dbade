//! Slow start: an endpoint that is new gets little at first, and its whole share when the window is over.

use std::time::Duration;

use crate::config::SlowStart;

/// The part of its share that an endpoint of this age gets, above 0 and at most 1. As Envoy has it.
pub(super) fn factor(config: &SlowStart, age: Duration) -> f64 {
    if age >= config.window {
        return 1.0;
    }
    let passed = age.as_secs_f64() / config.window.as_secs_f64();
    passed.powf(1.0 / config.aggression).max(config.min_weight_percent / 100.0).clamp(f64::MIN_POSITIVE, 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_rises_from_the_least_to_all(window in 1u64..1000, aggression in 0.1f64..10.0, least in 1.0f64..100.0, ages in prop::collection::vec(0u64..2000, 2..20)) {
            let config = SlowStart { window: Duration::from_secs(window), aggression, min_weight_percent: least };
            let mut ages = ages;
            ages.sort_unstable();
            let factors: Vec<_> = ages.iter().map(|age| factor(&config, Duration::from_secs(*age))).collect();
            prop_assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]), "{factors:?}");
            prop_assert!((factor(&config, Duration::ZERO) - least / 100.0).abs() < 1e-9);
            prop_assert_eq!(factor(&config, config.window), 1.0);
        }
    }

    #[test]
    fn aggression_bends_the_line() {
        let at_half = |aggression| {
            let config = SlowStart { window: Duration::from_secs(10), aggression, min_weight_percent: 10.0 };
            factor(&config, Duration::from_secs(5))
        };
        assert!((at_half(1.0) - 0.5).abs() < 1e-9);
        assert!(at_half(2.0) > 0.7 && at_half(0.5) < 0.3);
    }
}

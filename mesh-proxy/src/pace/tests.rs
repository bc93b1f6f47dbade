use std::time::Duration;

use mesh_common::identity::Identity;
use proptest::prelude::*;

use super::bucket::{BURST, TICK};
use super::*;
use crate::config::PortRate;

fn rate(bytes_per_second: u64) -> Rate {
    Rate::new(bytes_per_second).unwrap()
}

fn alone(rate: Rate, now: Instant) -> Pacer {
    let mut pacer = Pacer::default();
    pacer.slow_down(rate, None, now);
    pacer
}

/// Lets a stream go on as soon as it may, or so much later each time. Says what went when.
fn run(pacer: &mut Pacer, began: Instant, pieces: &[(usize, u64)], end: Duration) -> Vec<(Duration, usize)> {
    let (mut now, mut went) = (began, Vec::new());
    for (mut left, late) in pieces.iter().copied().cycle() {
        while left > 0 {
            match pacer.at(left, now) {
                Ok(bytes) => {
                    assert!((1..=left).contains(&bytes));
                    went.push((now - began, bytes));
                    left -= bytes;
                }
                Err(wake) => {
                    assert!(wake > now);
                    now = wake + Duration::from_millis(late);
                }
            }
            if now - began >= end {
                return went;
            }
        }
    }
    went
}

/// The most that went within a window, beyond what the rate gives in it.
fn excess(went: &[(Duration, usize)], rate: Rate) -> usize {
    let mut most = 0;
    for (i, (from, _)) in went.iter().enumerate() {
        let mut sum = 0;
        for (at, bytes) in &went[i..] {
            sum += bytes;
            most = most.max(sum.saturating_sub(rate.bytes_in(*at - *from)));
        }
    }
    most
}

fn total(went: &[(Duration, usize)]) -> usize {
    went.iter().map(|(_, bytes)| bytes).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Within any window no more than the rate gives, and a burst with the turn that came late for it.
    #[test]
    fn a_stream_never_has_more_than_its_rate_and_a_burst(
        bytes_per_second in 1_000_u64..100_000_000,
        pieces in proptest::collection::vec((1_usize..50_000, 0_u64..400), 1..20),
    ) {
        let (began, rate) = (Instant::now(), rate(bytes_per_second));
        let went = run(&mut alone(rate, began), began, &pieces, Duration::from_millis(1500));
        prop_assert!(excess(&went, rate) <= rate.bytes_in(BURST + TICK) + 1, "{:?}", went);
        // It has saved nothing at first.
        let mut sum = 0;
        for (at, bytes) in &went {
            sum += bytes;
            prop_assert!(sum <= rate.bytes_in(*at) + 1);
        }
    }

    /// A stream that has data, and comes for its turn within a burst, is behind by a tick at most.
    #[test]
    fn a_stream_is_never_slower_than_its_rate_by_more_than_a_tick(
        bytes_per_second in 1_000_u64..100_000_000,
        pieces in proptest::collection::vec((20_000_usize..50_000, 0_u64..150), 1..20),
    ) {
        let (began, rate) = (Instant::now(), rate(bytes_per_second));
        let went = run(&mut alone(rate, began), began, &pieces, Duration::from_millis(1500));
        let mut sum = 0;
        let mut missing = 0;
        for (at, bytes) in &went {
            missing = missing.max(rate.bytes_in(at.saturating_sub(TICK + Duration::from_millis(150))).saturating_sub(sum));
            sum += bytes;
        }
        // Each turn's time is rounded up by less than a nanosecond.
        prop_assert!(missing <= went.len() + 1, "{} of {} bytes are missing: {:?}", missing, sum, went);
    }

    /// Streams at one bucket have its rate together, and none waits long for a turn.
    #[test]
    fn streams_share_a_bucket(streams in 1_usize..60, bytes_per_second in 100_000_u64..100_000_000) {
        let (began, rate) = (Instant::now(), rate(bytes_per_second));
        let mut bucket = Bucket::empty(began);
        let mut turns = vec![bucket.turn(rate, 50_000, began); streams];
        for turn in &mut turns[1..] {
            *turn = bucket.turn(rate, 50_000, began);
        }
        let (mut went, mut sums, mut longest) = (Vec::new(), vec![0; streams], Duration::ZERO);
        while let Some((next, turn)) = turns.iter_mut().enumerate().min_by_key(|(_, turn)| turn.at) {
            let now = turn.at;
            if now - began > Duration::from_secs(2) {
                break;
            }
            went.push((now - began, turn.bytes));
            sums[next] += turn.bytes;
            *turn = bucket.turn(rate, 50_000, now);
            longest = longest.max(turn.at - now);
        }
        let waits = TICK.mul_f64((streams as f64).sqrt() + 2.0);
        prop_assert!(longest <= waits, "{:?} instead of {:?}", longest, waits);
        prop_assert!(excess(&went, rate) <= rate.bytes_in(BURST + TICK) + streams);
        prop_assert!(total(&went) >= rate.bytes_in(Duration::from_secs(2) - waits) - went.len());
        let (least, most) = (sums.iter().min().unwrap(), sums.iter().max().unwrap());
        prop_assert!(*most <= least * 2 + rate.bytes_in(TICK), "{:?}", sums);
    }
}

#[test]
fn turns_are_a_tick_long_where_nobody_else_waits() {
    let began = Instant::now();
    let mut bucket = Bucket::empty(began);
    let turn = bucket.turn(rate(1000), 1_000_000, began);
    assert_eq!((turn.bytes, turn.at - began), (50, TICK));
    // Whoever comes while others wait gets less.
    assert_eq!(bucket.turn(rate(1000), 1_000_000, began).bytes, 25);
    // After a pause there is a burst, and no more however long it was.
    let later = began + Duration::from_secs(60);
    assert_eq!(bucket.turn(rate(1000), 1_000_000, later), Turn { bytes: 200, at: later });
    assert_eq!(bucket.turn(rate(1000), 1_000_000, later), Turn { bytes: 50, at: later + TICK });
    // What is slower than a byte in a tick has its time all the same.
    let slow = Bucket::empty(began).turn(rate(2), 10, began);
    assert_eq!((slow.bytes, slow.at - began), (1, Duration::from_millis(500)));
}

#[test]
fn what_slows_down_ends_in_the_middle_of_a_wait() {
    let began = Instant::now();
    let mut pacer = Pacer::default();
    let at = |millis| began + Duration::from_millis(millis);
    pacer.slow_down(rate(1), Some(at(2500)), began);
    pacer.slow_down(rate(2), Some(at(200)), began);
    // The slower of the two counts, and both are over at their time.
    assert_eq!(pacer.at(100, began), Err(at(1000)));
    assert_eq!(pacer.at(100, at(1000)), Ok(1));
    assert_eq!(pacer.at(99, at(1000)), Err(at(2000)));
    assert_eq!(pacer.at(99, at(2000)), Ok(1));
    assert_eq!(pacer.at(98, at(2000)), Err(at(2500)));
    assert_eq!(pacer.at(98, at(2500)), Ok(98));
}

#[tokio::test(start_paused = true)]
async fn waits_on_the_clock() {
    let began = tokio::time::Instant::now();
    let mut pacer = alone(rate(1000), began.into_std());
    let mut left = 1000;
    while left > 0 {
        left -= std::future::poll_fn(|cx| pacer.poll(left, cx)).await;
    }
    // The runtime's timers have milliseconds.
    assert!((1000..=1025).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

fn caller(account: usize) -> Identity {
    Identity::new("mesh.local", "default", &format!("account-{account}")).unwrap()
}

#[test]
fn each_caller_has_a_bucket_and_all_share_the_ports() {
    let (buckets, began) = (Buckets::default(), Instant::now());
    let limit = PortRate { max: Rate::new(2000), per_caller: Rate::new(1000) };
    let pacer = |who: Option<usize>, way| buckets.pacer("inbound:80", way, &limit, who.map(caller).as_ref(), began);
    // What is saved in a fifth of a second.
    assert_eq!(pacer(Some(1), Way::Up).at(10_000, began), Ok(200));
    // Another stream of the same caller has to wait, others not until the port's is gone.
    assert!(pacer(Some(1), Way::Up).at(10_000, began).is_err());
    assert_eq!(pacer(Some(2), Way::Up).at(10_000, began), Ok(200));
    assert!(pacer(None, Way::Up).at(10_000, began).is_err());
    // The other way is another matter.
    assert_eq!(pacer(Some(1), Way::Down).at(10_000, began), Ok(200));
    // So is another port.
    assert_eq!(buckets.pacer("inbound:81", Way::Up, &limit, Some(&caller(1)), began).at(10_000, began), Ok(200));
}

#[test]
fn callers_that_have_nothing_under_way_are_forgotten() {
    let (buckets, began) = (Buckets::default(), Instant::now());
    let limit = PortRate { max: None, per_caller: Rate::new(1000) };
    let kept = buckets.pacer("inbound:80", Way::Up, &limit, Some(&caller(0)), began);
    for i in 1..1000 {
        let now = began + Duration::from_millis(i);
        let who = caller(usize::try_from(i).unwrap());
        // Each takes what it has saved, which it does not get again by being forgotten.
        let mut pacer = buckets.pacer("inbound:80", Way::Up, &limit, Some(&who), now);
        assert_eq!(pacer.at(1000, now), Ok(200));
        let mut again = buckets.pacer("inbound:80", Way::Up, &limit, Some(&who), now);
        assert!(again.at(1000, now).is_err());
    }
    // Those of the last fractions of a second, and as many again.
    let callers = buckets.callers("inbound:80", Way::Up);
    assert!((200..=700).contains(&callers), "{callers}");
    drop(kept);
}

//! `demo --once`: plays a canary and faults with the commands that a user would type, measures what a client sees, and puts
//! that beside what was asked for.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::process::Command;

use super::live::{self, milliseconds};
use super::load::{Client, Tally};
use super::metrics;
use super::running::Running;
use crate::commands::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Table};

/// Weights and faults hit exact shares of so many.
const REQUESTS: u32 = 1000;
const CONNECTIONS: u32 = 8;
/// A delayed request holds up those behind it.
const FAULT_CONNECTIONS: u32 = 40;
/// One request of a thousand, for rounding at the ends.
const SHARE_TOLERANCE: f64 = 0.1;
const DELAY: Duration = Duration::from_millis(500);
/// What a delay may be longer than it was asked to be, by its median: as much as a busy host adds.
const DELAY_TOLERANCE: Duration = Duration::from_millis(250);
/// A host that stalls makes so many requests as slow as delayed ones, in percent, and a few times in a scene is possible.
const STALLED: f64 = 20.0;

struct Scene {
    title: &'static str,
    /// `meshctl` command lines, run before.
    commands: &'static [&'static str],
    headers: &'static [(&'static str, &'static str)],
    expect: Expect,
}

/// What must be measured.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// Share in percent that `v2` of reviews answers, `v1` answering the rest; nothing fails.
    V2(f64),
    /// Share in percent that the proxies have delayed, each of which takes at least [`DELAY`] and by the median hardly more;
    /// nothing fails. What else takes long may be the host's affair, but for more than [`STALLED`].
    Delayed(f64),
    /// Share in percent that gets status 503.
    Aborted(f64),
}

const SCENES: [Scene; 9] = [
    Scene {
        title: "all to v1",
        commands: &["route set-weight reviews v1=100 v2=0 --wait"],
        headers: &[],
        expect: Expect::V2(0.0),
    },
    Scene {
        title: "canary 90/10",
        commands: &["route set-weight reviews v1=90 v2=10 --wait"],
        headers: &[],
        expect: Expect::V2(10.0),
    },
    Scene {
        title: "canary 50/50",
        commands: &["route set-weight reviews v1=50 v2=50 --wait"],
        headers: &[],
        expect: Expect::V2(50.0),
    },
    Scene {
        title: "jason to v2",
        commands: &[
            "route set-weight reviews v1=100 v2=0",
            "route set-match reviews --header end-user=jason v2 --wait",
        ],
        headers: &[("end-user", "jason")],
        expect: Expect::V2(100.0),
    },
    Scene { title: "others to v1", commands: &[], headers: &[("end-user", "ada")], expect: Expect::V2(0.0) },
    Scene {
        title: "delay 50%",
        commands: &["fault delay reviews --percent 50 --delay 500ms --for 1m --from web --wait"],
        headers: &[],
        expect: Expect::Delayed(50.0),
    },
    Scene {
        title: "abort 30%",
        commands: &["fault clear --wait", "fault abort reviews --percent 30 --status 503 --for 1m --from web --wait"],
        headers: &[],
        expect: Expect::Aborted(30.0),
    },
    Scene {
        title: "abort of other callers",
        commands: &[
            "fault clear --wait",
            "fault abort reviews --percent 100 --status 503 --for 1m --from ratings --wait",
        ],
        headers: &[],
        expect: Expect::Aborted(0.0),
    },
    Scene { title: "no fault", commands: &["fault clear --wait"], headers: &[], expect: Expect::Delayed(0.0) },
];

/// Fails when one of them is off.
pub(super) async fn play(context: &Context, running: &Running, client: &Client) -> Result<(), Failure> {
    let mut table = Table::new(&["SCENE", "ASKED", "MEASURED", "REQUESTS", "LOST", "P50", "P99", "VERDICT"]);
    let mut off = 0;
    for scene in &SCENES {
        for command in scene.commands {
            context.out.note(&format!("$ meshctl {command}"));
            meshctl(running, command).await?;
        }
        let connections = match scene.expect {
            Expect::V2(_) => CONNECTIONS,
            Expect::Delayed(_) | Expect::Aborted(_) => FAULT_CONNECTIONS,
        };
        let before = delays(running).await?;
        let tally = client.send(REQUESTS, connections, scene.headers).await;
        let verdict = scene.expect.judge(&tally, delays(running).await? - before);
        off += u32::from(!verdict.good);
        table.row(vec![
            scene.title.into(),
            verdict.asked.into(),
            verdict.measured.into(),
            tally.requests().to_string().into(),
            tally.lost.to_string().into(),
            milliseconds(tally.quantile(0.5)).into(),
            milliseconds(tally.quantile(0.99)).into(),
            if verdict.good { Cell::good("as asked") } else { Cell::bad("OFF") },
        ]);
    }
    context.out.note("");
    context.out.table(&table)?;
    match off {
        0 => Ok(()),
        off => Err(Failure::with(Exit::Failed, format!("{off} of {} scenes are not as asked.", SCENES.len()))),
    }
}

struct Verdict {
    asked: String,
    measured: String,
    good: bool,
}

impl Expect {
    /// `delayed` is how many requests the proxies have delayed.
    fn judge(self, tally: &Tally, delayed: f64) -> Verdict {
        let version = |name: &str| tally.share(tally.versions.get(name).copied().unwrap_or(0));
        let near = |measured: f64, asked: f64| (measured - asked).abs() <= SHARE_TOLERANCE + 1e-9;
        // Of faults; what nobody asked for is none.
        let exact = |measured: f64, asked: f64| (measured - asked).abs() < 1e-6;
        let all_good = tally.good() == tally.requests();
        match self {
            Self::V2(asked) => {
                let (v1, v2) = (version("v1"), version("v2"));
                Verdict {
                    asked: format!("v1 {}% v2 {asked}%", 100.0 - asked),
                    measured: format!("v1 {v1:.1}% v2 {v2:.1}%"),
                    good: all_good && near(v2, asked) && near(v1, 100.0 - asked),
                }
            }
            Self::Delayed(asked) => {
                let (slow, quick): (Vec<Duration>, Vec<Duration>) =
                    tally.latencies.iter().copied().partition(|latency| *latency >= DELAY);
                let slow_ones = f64::from(u32::try_from(slow.len()).unwrap_or(u32::MAX));
                let added = median(slow).saturating_sub(median(quick));
                let requests = f64::from(tally.requests().max(1));
                let measured = 100.0 * delayed / requests;
                let by = if delayed > 0.0 { format!(" +{}", milliseconds(added)) } else { String::new() };
                Verdict {
                    asked: format!("{asked}% +{}", milliseconds(DELAY)),
                    measured: format!("{measured:.1}%{by}"),
                    good: all_good
                        && exact(measured, asked)
                        && (delayed == 0.0 || added <= DELAY + DELAY_TOLERANCE)
                        && slow_ones >= delayed
                        && 100.0 * (slow_ones - delayed) / requests <= STALLED,
                }
            }
            Self::Aborted(asked) => {
                let aborted = tally.statuses.get(&503).copied().unwrap_or(0);
                let measured = tally.share(aborted);
                Verdict {
                    asked: format!("{asked}% 503"),
                    measured: format!("{measured:.1}%"),
                    good: aborted + tally.good() == tally.requests() && exact(measured, asked),
                }
            }
        }
    }
}

/// Zero of none.
fn median(mut latencies: Vec<Duration>) -> Duration {
    latencies.sort_unstable();
    latencies.get(latencies.len() / 2).copied().unwrap_or_default()
}

/// How many requests all proxies together say that they have delayed.
async fn delays(running: &Running) -> Result<f64, Failure> {
    let counts = running.workloads.iter().map(|workload| async {
        let text = live::get(workload.sidecar.metrics).await;
        let silent = |error| Failure::new(format!("The proxy of {} gives no metrics: {error}.", workload.part.name()));
        Ok::<_, Failure>(metrics::injected(&text.map_err(silent)?, "delay"))
    });
    Ok(try_join_all(counts).await?.into_iter().sum())
}

/// Runs this program as a user would.
async fn meshctl(running: &Running, command: &str) -> Result<(), Failure> {
    let mut meshctl = Command::new("/proc/self/exe");
    meshctl.args(command.split(' ')).env("MESH_CONTROL", format!("unix:{}", running.socket.display()));
    let output = meshctl.kill_on_drop(true).output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("`meshctl {command}` failed: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn tally(versions: &[(&str, u32)], statuses: &[(u16, u32)], slow: usize) -> Tally {
        let requests: u32 = statuses.iter().map(|(_, count)| count).sum();
        let mut latencies = vec![Duration::from_millis(3); requests as usize - slow];
        latencies.extend(vec![DELAY + Duration::from_millis(4); slow]);
        let versions = versions.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Tally { versions, statuses: BTreeMap::from_iter(statuses.iter().copied()), lost: 0, latencies }
    }

    #[test]
    fn shares_must_be_exact_and_nothing_may_fail() {
        let good = |tally: &Tally| Expect::V2(10.0).judge(tally, 0.0).good;
        assert!(good(&tally(&[("v1", 900), ("v2", 100)], &[(200, 1000)], 0)));
        assert!(!good(&tally(&[("v1", 890), ("v2", 110)], &[(200, 1000)], 0)));
        assert!(!good(&tally(&[("v1", 900), ("v2", 100)], &[(200, 999), (503, 1)], 0)));
    }

    #[test]
    fn what_the_proxies_delayed_must_be_as_asked_and_have_taken_its_time() {
        let good = |asked: f64, delayed: f64, tally: &Tally| Expect::Delayed(asked).judge(tally, delayed).good;
        let slow = |slow: usize| tally(&[], &[(200, 1000)], slow);
        assert!(good(50.0, 500.0, &slow(500)));
        assert!(!good(50.0, 499.0, &slow(500)));
        assert!(!good(50.0, 500.0, &slow(499)), "one was not delayed at all");
        // A host that stalls makes others slow as well.
        assert!(good(50.0, 500.0, &slow(700)) && good(0.0, 0.0, &slow(40)));
        assert!(!good(50.0, 500.0, &slow(800)) && !good(0.0, 0.0, &slow(201)), "delays that no proxy owns up to");
        assert!(!good(0.0, 1.0, &slow(1)));
        let late = |by: u64| {
            let mut late = slow(500);
            late.latencies
                .iter_mut()
                .filter(|latency| **latency >= DELAY)
                .for_each(|it| *it += Duration::from_millis(by));
            late
        };
        assert!(good(50.0, 500.0, &late(200)));
        assert!(!good(50.0, 500.0, &late(300)) && !good(50.0, 500.0, &late(4500)), "delayed for longer than asked");
        assert!(!good(50.0, 500.0, &tally(&[], &[(200, 999), (503, 1)], 500)));
    }

    #[test]
    fn aborts_are_exact_and_nothing_else_fails() {
        let good = |asked: f64, tally: &Tally| Expect::Aborted(asked).judge(tally, 0.0).good;
        assert!(good(30.0, &tally(&[], &[(200, 700), (503, 300)], 0)));
        assert!(!good(30.0, &tally(&[], &[(200, 699), (503, 301)], 0)));
        assert!(!good(30.0, &tally(&[], &[(200, 700), (500, 300)], 0)));
        assert!(!good(0.0, &tally(&[], &[(200, 999), (503, 1)], 0)));
    }
}

//! `demo --once`: plays a canary and faults with the commands that a user would type, measures what a client sees, and puts
//! that beside what was asked for.

use std::time::Duration;

use tokio::process::Command;

use super::live::milliseconds;
use super::load::{Client, Tally};
use super::running::Running;
use crate::commands::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Table};

/// Weights are exact over so many requests.
const REQUESTS: u32 = 1000;
const CONNECTIONS: u32 = 8;
/// Faults are drawn at random: 4 standard deviations of a share of one half are 10 percent points.
const FAULT_REQUESTS: u32 = 400;
const FAULT_CONNECTIONS: u32 = 20;
const FAULT_TOLERANCE: f64 = 10.0;
/// One request of a thousand, for rounding at the ends.
const SHARE_TOLERANCE: f64 = 0.1;
const DELAY: Duration = Duration::from_millis(500);

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
    /// Share in percent that takes at least [`DELAY`]; nothing fails.
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
        let tally = match scene.expect {
            Expect::V2(_) => client.send(REQUESTS, CONNECTIONS, scene.headers).await,
            _ => client.send(FAULT_REQUESTS, FAULT_CONNECTIONS, scene.headers).await,
        };
        let verdict = scene.expect.judge(&tally);
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
    fn judge(self, tally: &Tally) -> Verdict {
        let version = |name: &str| tally.share(tally.versions.get(name).copied().unwrap_or(0));
        let near = |measured: f64, asked: f64, tolerance: f64| (measured - asked).abs() <= tolerance + 1e-9;
        // None and all are not a matter of chance.
        let drawn = |asked: f64| if asked > 0.0 && asked < 100.0 { FAULT_TOLERANCE } else { 0.0 };
        let all_good = tally.good() == tally.requests();
        match self {
            Self::V2(asked) => {
                let (v1, v2) = (version("v1"), version("v2"));
                Verdict {
                    asked: format!("v1 {}% v2 {asked}%", 100.0 - asked),
                    measured: format!("v1 {v1:.1}% v2 {v2:.1}%"),
                    good: all_good && near(v2, asked, SHARE_TOLERANCE) && near(v1, 100.0 - asked, SHARE_TOLERANCE),
                }
            }
            Self::Delayed(asked) => {
                let slow = tally.latencies.iter().filter(|latency| **latency >= DELAY).count();
                let measured = tally.share(u32::try_from(slow).unwrap_or(u32::MAX));
                Verdict {
                    asked: format!("{asked}% +{}", milliseconds(DELAY)),
                    measured: format!("{measured:.1}%"),
                    good: all_good && near(measured, asked, drawn(asked)),
                }
            }
            Self::Aborted(asked) => {
                let aborted = tally.statuses.get(&503).copied().unwrap_or(0);
                let measured = tally.share(aborted);
                Verdict {
                    asked: format!("{asked}% 503"),
                    measured: format!("{measured:.1}%"),
                    good: aborted + tally.good() == tally.requests() && near(measured, asked, drawn(asked)),
                }
            }
        }
    }
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
        let good = |tally: &Tally| Expect::V2(10.0).judge(tally).good;
        assert!(good(&tally(&[("v1", 900), ("v2", 100)], &[(200, 1000)], 0)));
        assert!(!good(&tally(&[("v1", 890), ("v2", 110)], &[(200, 1000)], 0)));
        assert!(!good(&tally(&[("v1", 900), ("v2", 100)], &[(200, 999), (503, 1)], 0)));
    }

    #[test]
    fn faults_may_vary_by_chance_but_not_where_there_is_none() {
        assert!(Expect::Delayed(50.0).judge(&tally(&[], &[(200, 400)], 215)).good);
        assert!(!Expect::Delayed(50.0).judge(&tally(&[], &[(200, 400)], 100)).good);
        assert!(!Expect::Delayed(0.0).judge(&tally(&[], &[(200, 400)], 1)).good);
        assert!(Expect::Aborted(30.0).judge(&tally(&[], &[(200, 275), (503, 125)], 0)).good);
        assert!(!Expect::Aborted(30.0).judge(&tally(&[], &[(200, 275), (500, 125)], 0)).good);
    }
}

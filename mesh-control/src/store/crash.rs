//! `kill -9` in the middle of writes: whatever was acknowledged is there afterwards.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Store;
use super::tests::service;

const DIR: &str = "MESH_TEST_STORE_DIR";
const ROUNDS: usize = 12;

/// Not a test by itself: the process that the test below kills.
#[test]
fn writer_process() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = Store::open(dir.as_ref()).unwrap();
    let mut number = store.current().objects.len() / 2;
    loop {
        // Two objects at a time, so that half a batch would show.
        let batch = vec![service(&format!("a-{number}"), 80), service(&format!("b-{number}"), 80)];
        let revision = store.apply(batch, false).unwrap().revision;
        let mut out = std::io::stderr().lock();
        // In one write, which no kill can cut.
        out.write_all(format!("acknowledged {number} {revision}\n").as_bytes()).unwrap();
        number += 1;
    }
}

#[test]
fn kill_dash_nine_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut acknowledged = 0;
    let end = Instant::now() + Duration::from_secs(8);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::crash::writer_process", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut last = None;
        for line in lines.by_ref().take(random.usize(1..20)) {
            last = line.unwrap().strip_prefix("acknowledged ").map(str::to_owned).or(last);
        }
        // Somewhere within the next few writes.
        let moment = Instant::now() + Duration::from_micros(random.u64(0..3_000));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            last = line.strip_prefix("acknowledged ").map(str::to_owned).or(last);
        }

        let last = last.expect("the writer acknowledged nothing");
        let (number, revision) = last.split_once(' ').unwrap();
        let store = Store::open(dir.path()).unwrap();
        let objects = store.current();
        assert!(objects.revision >= revision.parse().unwrap(), "round {round}: {} < {revision}", objects.revision);
        let count: usize = number.parse::<usize>().unwrap() + 1;
        assert!(count > acknowledged);
        acknowledged = count;
        for number in 0..count {
            for key in [service(&format!("a-{number}"), 80).key(), service(&format!("b-{number}"), 80).key()] {
                assert!(objects.objects.contains_key(&key), "round {round}: {key} is lost");
            }
        }
        assert_eq!(objects.objects.len() % 2, 0, "round {round}: half a batch");
        if Instant::now() > end {
            break;
        }
    }
}

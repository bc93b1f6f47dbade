//! What the process uses of the machine, as Linux tells it.

use std::fs;

/// Linux shows times to programs in hundredths of a second on every architecture.
const TICKS: u64 = 100;

/// Each is `None` where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub resident_bytes: Option<u64>,
    /// User and system time.
    pub cpu_seconds: Option<u64>,
    pub open_files: Option<usize>,
    /// In Unix seconds.
    pub start_time: Option<u64>,
}

/// Reads a few small files of `/proc`: for each scrape, not for each request.
pub fn usage() -> Usage {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    let (cpu_seconds, started) = times(&stat).unzip();
    Usage {
        resident_bytes: fs::read_to_string("/proc/self/status").ok().and_then(|status| resident(&status)),
        cpu_seconds,
        open_files: fs::read_dir("/proc/self/fd").ok().map(Iterator::count),
        start_time: started.and_then(|after| Some(after + boot_time(&boot)?)),
    }
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// CPU time, and the start after the boot, in seconds. The second field of the line may hold spaces, and ends with the last
/// parenthesis; fields 14 and 15 are CPU time, 22 is the start.
fn times(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)?.checked_add(field(15)?)? / TICKS, field(22)? / TICKS))
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_moves_no_field() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 3 0 9000 1000 200";
        assert_eq!(times(stat), Some((4, 90)));
        assert_eq!(times("7 (a) S 1"), None);
        assert_eq!(resident("VmPeak:\t 9 kB\nVmRSS:\t    12 kB\n"), Some(12 << 10));
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000));
    }

    #[test]
    fn this_process_is_told_of() {
        let usage = usage();
        assert!(usage.resident_bytes.unwrap() > 100_000 && usage.open_files.unwrap() >= 3, "{usage:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let started = usage.start_time.unwrap();
        assert!((now - 3600..=now + 1).contains(&started), "{started} {now}");
    }
}

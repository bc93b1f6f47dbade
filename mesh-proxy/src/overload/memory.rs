//! How much memory this process holds, and how much it may.

use std::fs;

/// Bytes in memory. `None` where the system does not tell.
pub(super) fn held() -> Option<u64> {
    resident(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Of `VmRSS:     5120 kB`.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group of this process may hold, where that is limited: of the second version, else of the first.
pub fn limit_of_cgroup() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let read = |path: String| limit(&fs::read_to_string(path).ok()?);
    // In a container, the group is the root of what can be seen.
    let paths = [
        group(&own, "").map(|path| format!("/sys/fs/cgroup{path}/memory.max")),
        Some("/sys/fs/cgroup/memory.max".to_owned()),
        group(&own, "memory").map(|path| format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
        Some("/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned()),
    ];
    paths.into_iter().flatten().find_map(read)
}

/// The path of the group that has this controller, of lines like `4:memory:/path`; the second version's has no name.
fn group<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|it| it == controller).then(|| path.trim_end_matches('/'))
    })
}

/// `max`, or a number that is larger than any memory, is none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| (1..1 << 60).contains(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t    5120 kB\nThreads:\t1\n"), Some(5120 * 1024));
        assert_eq!(resident("Name:\tx\n"), None);
        assert_eq!(group("0::/kubepods/x\n", ""), Some("/kubepods/x"));
        assert_eq!(group("0::/\n", ""), Some(""));
        assert_eq!(group("5:cpu,memory:/a\n0::/b\n", "memory"), Some("/a"));
        assert_eq!(group("5:cpu:/a\n", "memory"), None);
        assert_eq!(limit("268435456\n"), Some(268_435_456));
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("0"), None);
    }
}

//! Child processes that end with the test, and whose output is kept for when it fails.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` in a process group of its own, its output in `logs/<name>.{out,err}`.
    pub fn start(name: &str, mut command: Command, logs: &Path) -> anyhow::Result<Self> {
        let (stdout, stderr) = (logs.join(format!("{name}.out")), logs.join(format!("{name}.err")));
        command.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { name: name.to_owned(), child, stdout, stderr })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// Signals the descendant that runs `program`.
    pub fn signal_child(&self, program: &str, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.child(program)?.cast_signed()), signal)?)
    }

    /// The descendant that runs `program`.
    pub fn child(&self, program: &str) -> anyhow::Result<u32> {
        let runs = |pid: &u32| {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            exe.file_name().is_some_and(|name| name == program)
        };
        descendants(self.id()).into_iter().find(runs).with_context(|| format!("no {program} runs"))
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("{} did not end within {limit:?}:\n{}", self.name, self.tail())
    }

    /// Asks the process to end, and waits for it.
    pub fn end(&mut self) -> anyhow::Result<ExitStatus> {
        if self.running() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(Duration::from_secs(20))
    }

    /// The last lines of its output, for the report of a failure.
    pub fn tail(&self) -> String {
        let last = |text: String| {
            text.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        format!("--- {} stdout\n{}\n--- {} stderr\n{}", self.name, last(self.stdout()), self.name, last(self.stderr()))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.running() {
            let _ = self.signal(Signal::SIGTERM);
            if self.wait(Duration::from_secs(5)).is_err() {
                let _ = killpg(self.pid(), Signal::SIGKILL);
                let _ = self.child.wait();
            }
        }
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()));
        }
        next += 1;
    }
    found
}

/// Tries until `check` gives a value, or fails with its last error.
pub fn eventually<T>(limit: Duration, mut check: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error.context(format!("still so after {limit:?}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

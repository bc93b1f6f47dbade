//! The application itself: it has this command's terminal, gets its signals, and gives its exit code.

use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind};

use super::sidecar::Sidecar;
use crate::failure::{Exit, Failure};

/// The signals that are passed on.
const PASSED_ON: [Signal; 6] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];

/// A signal that is held back, and until when.
type Held = (Signal, Pin<Box<dyn Future<Output = ()> + Send>>);

pub(super) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        let listen = |signal: Signal| Ok((signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?));
        PASSED_ON.into_iter().map(listen).collect::<std::io::Result<_>>().map(Self)
    }

    pub(super) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (signal, received) in &mut self.0 {
                if received.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*signal);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Runs the application to its end: by itself, or because it has lost its proxy. Gives its exit code, as a shell would.
///
/// A signal that asks it to end is held back until no peer calls it any more; the same signal a second time is not.
pub(super) async fn run(command: Command, signals: &mut Signals, sidecar: &mut Sidecar) -> Result<u8, Failure> {
    let mut command = command;
    let mut child = command
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::new(format!("Cannot start the application: {error}.")))?;
    let mut leaving: Option<Held> = None;
    let lost = loop {
        tokio::select! {
            status = child.wait() => return Ok(code(status?)),
            signal = signals.next() => if leaving.is_none() && asks_to_end(signal) {
                leaving = Some((signal, Box::pin(sidecar.drained())));
            } else {
                pass_on(&child, signal);
            },
            signal = left(&mut leaving) => pass_on(&child, signal),
            reason = sidecar.lost() => break reason,
        }
    };
    // Every connection of it would hang or fail.
    pass_on(&child, Signal::TERM);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), child.wait()).await;
    Err(Failure::new(format!("The application was ended because {lost}.")))
}

/// Ctrl-C in a terminal has reached the application already.
fn asks_to_end(signal: Signal) -> bool {
    signal == Signal::TERM || signal == Signal::INT && !in_foreground()
}

/// The signal that was held back; pending if there is none, or none any more.
async fn left(leaving: &mut Option<Held>) -> Signal {
    match leaving {
        Some((signal, drained)) => {
            drained.as_mut().await;
            let signal = *signal;
            *drained = Box::pin(std::future::pending());
            signal
        }
        None => std::future::pending().await,
    }
}

fn pass_on(child: &Child, signal: Signal) {
    // Ctrl-C and Ctrl-\ reach the application from the terminal.
    if matches!(signal, Signal::INT | Signal::QUIT) && in_foreground() {
        return;
    }
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Whether this process and the application are the ones that the terminal sends its signals to.
fn in_foreground() -> bool {
    let group = rustix::process::getpgrp();
    std::fs::File::open("/dev/tty").is_ok_and(|tty| rustix::termios::tcgetpgrp(tty).is_ok_and(|front| front == group))
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

pub(super) fn killed_by(signal: Signal) -> Exit {
    Exit::Application(u8::try_from(128 + signal.as_raw()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_application_has_a_shells_exit_code() {
        assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
        assert_eq!(killed_by(Signal::INT).code(), 130);
    }
}

//! The phases of the proxy's life.

use tokio::sync::watch;

/// Later phases are greater; there is no way back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    #[default]
    Serving,
    /// Peers are told to go elsewhere, and who comes all the same is served.
    Draining,
    /// No peer comes any more: connections from them are finished. The application may still call others, also to
    /// answer what it has.
    Closing,
    /// What is still open is finished.
    Ending,
}

impl Phase {
    /// Goes on to a phase, unless it was reached before.
    pub fn advance(sender: &watch::Sender<Self>, to: Self) {
        sender.send_if_modified(|phase| {
            let later = *phase < to;
            *phase = (*phase).max(to);
            later
        });
    }
}

/// Waits until the phase is reached, or nobody is there any more who could say so.
pub(super) async fn reached(mut phase: watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_no_way_back() {
        let (sender, receiver) = watch::channel(Phase::default());
        Phase::advance(&sender, Phase::Closing);
        Phase::advance(&sender, Phase::Draining);
        assert_eq!(*receiver.borrow(), Phase::Closing);
        reached(receiver.clone(), Phase::Draining).await;
        reached(receiver.clone(), Phase::Closing).await;
        let never = reached(receiver.clone(), Phase::Ending);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(5), never).await.is_err());
        drop(sender);
        reached(receiver, Phase::Ending).await;
    }
}

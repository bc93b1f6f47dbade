//! What can be expected of the control plane, told by what was heard of it.
//!
//! A control plane that is gone closes its stream. One that hangs does not: its machine goes on taking what is sent to it,
//! and only a question without an answer shows it. The first question pays for that with its whole time; after it nobody
//! waits until something is heard again. There is no clock in here: whoever asks knows how long an answer may take, and this
//! knows whether anything was heard meanwhile.

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    state: State,
    heard: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No stream, but the next one is on its way: questions wait for it.
    Between,
    Open,
    /// The stream is open, and a question on it was not answered.
    Silent,
    /// No stream, and the last attempt to open one failed.
    Gone,
}

/// When a question was asked, counted in what was heard before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment(u64);

impl Link {
    /// Of a proxy that starts.
    pub(super) fn awaited() -> Self {
        Self { state: State::Between, heard: 0 }
    }

    /// Of a proxy that has no control plane.
    pub(super) fn none() -> Self {
        Self { state: State::Gone, heard: 0 }
    }

    /// Whether it makes sense to wait for an answer.
    pub(super) fn answers(&self) -> bool {
        matches!(self.state, State::Between | State::Open)
    }

    pub(super) fn moment(&self) -> Moment {
        Moment(self.heard)
    }

    /// A message, or a stream that was opened. True if nobody would have waited for it.
    pub(super) fn heard(&mut self) -> bool {
        let was_waited_for = self.answers();
        self.heard += 1;
        self.state = State::Open;
        !was_waited_for
    }

    /// A question had no answer in its time. True if nobody waits from now on.
    pub(super) fn unanswered(&mut self, asked: Moment) -> bool {
        // Something heard since then shows that it is only this answer that is late; without a stream nobody was asked.
        let silent = self.state == State::Open && asked == self.moment();
        if silent {
            self.state = State::Silent;
        }
        silent
    }

    /// The stream ended, or could not be opened. `worked`: it was of use, so that the next one is worth waiting for. True
    /// if nobody waits from now on.
    pub(super) fn ended(&mut self, worked: bool) -> bool {
        let waited = self.answers();
        self.state = if worked && waited { State::Between } else { State::Gone };
        waited && !self.answers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_without_an_answer_is_enough_until_something_is_heard() {
        let mut link = Link::awaited();
        assert!(!link.heard());
        let asked = link.moment();
        assert!(link.unanswered(asked) && !link.answers());
        // The others that were waiting tell nothing new.
        assert!(!link.unanswered(asked));
        assert!(link.heard() && link.answers());
        assert!(!link.unanswered(asked), "it was heard after that question");
    }

    #[test]
    fn a_late_answer_is_no_silence_while_others_come() {
        let mut link = Link::awaited();
        link.heard();
        let asked = link.moment();
        link.heard();
        assert!(!link.unanswered(asked) && link.answers());
    }

    #[test]
    fn between_two_streams_questions_wait() {
        let mut link = Link::awaited();
        let asked = link.moment();
        assert!(!link.unanswered(asked) && link.answers(), "nobody was asked yet");
        link.heard();
        assert!(!link.ended(true) && link.answers());
        assert!(!link.unanswered(link.moment()));
        assert!(link.ended(false) && !link.answers());
        assert!(!link.ended(false));
        assert!(link.heard() && link.answers());
    }

    #[test]
    fn the_end_of_a_silent_stream_makes_nobody_wait_again() {
        let mut link = Link::awaited();
        link.heard();
        link.unanswered(link.moment());
        assert!(!link.ended(true) && !link.answers());
    }
}

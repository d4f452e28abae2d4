//! A transfer's life as two tables of transitions, one for each end. Pure: state and event in, state and
//! actions out. What the network says out of turn changes nothing; what a person asks out of turn is
//! refused.
//!
//! ```text
//! queued → requested → awaiting-approval → transferring ⇄ paused → verifying → completed
//!                                         or denied, cancelled, failed
//! ```

use serde::{Deserialize, Serialize};

use crate::store::Durability;

/// Which way the book goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To this node.
    Incoming,
    /// From this node.
    Outgoing,
}

impl Direction {
    /// The direction as the API and the database write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Outgoing => "outgoing",
        }
    }
}

/// Where a transfer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Waiting for the peer to come online, or for a free slot.
    Queued,
    /// Incoming: asked, no answer yet. Outgoing: the book is being prepared.
    Requested,
    /// Waiting for a person at the sender, or for the sender to go on.
    AwaitingApproval,
    /// Bytes may flow.
    Transferring,
    /// Stopped by a person here.
    Paused,
    /// All bytes are here; the whole file is checked and put in its place.
    Verifying,
    /// The book is whole at the receiver.
    Completed,
    /// The sender said no.
    Denied,
    /// Withdrawn by either side.
    Cancelled,
    /// Ended by an error; some can be resumed.
    Failed,
}

impl State {
    /// Whether nothing more happens by itself.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Denied | Self::Cancelled | Self::Failed)
    }

    /// The state as the API and the database write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Requested => "requested",
            Self::AwaitingApproval => "awaiting-approval",
            Self::Transferring => "transferring",
            Self::Paused => "paused",
            Self::Verifying => "verifying",
            Self::Completed => "completed",
            Self::Denied => "denied",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// Every state.
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Requested,
        Self::AwaitingApproval,
        Self::Transferring,
        Self::Paused,
        Self::Verifying,
        Self::Completed,
        Self::Denied,
        Self::Cancelled,
        Self::Failed,
    ];

    /// Reads what [`State::as_str`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// What happens to an incoming transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// The peer is connected and this request's turn has come.
    LinkUp,
    /// The connection ended.
    LinkDown,
    /// The peer granted the book.
    Granted,
    /// The peer asks for patience.
    Pending,
    /// The peer said no.
    Denied,
    /// The peer does not have the book.
    Unavailable,
    /// Every block is here.
    AllBlocks,
    /// The file is whole and in its place.
    Landed,
    /// It cannot go on.
    Broke,
    /// A person pauses it.
    Pause,
    /// A person resumes it.
    Resume,
    /// A person cancels it.
    Cancel,
}

impl Incoming {
    /// What the step must survive; `None` where it is simply taken anew if it was forgotten.
    pub(super) fn survives(self) -> Option<Durability> {
        match self {
            Self::LinkUp | Self::Granted | Self::Pending | Self::AllBlocks => None,
            // The file, and where it is, survive already: after a loss of power it is found there.
            Self::Landed => Some(Durability::Process),
            _ => Some(Durability::Power),
        }
    }
}

/// What the engine is to do after a transition was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send the request.
    SendRequest,
    /// Tell the sender that we withdrew.
    SendCancel,
    /// Tell the sender that we have it all.
    SendDone,
    /// Join the book's core and download it.
    Start,
    /// Stop downloading; verified blocks stay.
    Stop,
    /// Check the file and put it in its place.
    Verify,
    /// Delete the partial file and the core's data.
    Discard,
    /// Build or open the book's core.
    Prepare,
    /// Let the peer read the core.
    Grant,
    /// No longer let the peer read it.
    Revoke,
    /// Send a reply that says how the transfer stands.
    Reply,
}

/// A transition: the next state and what to do.
pub type Step = (State, &'static [Action]);

/// The next step of an incoming transfer. `None`: the event does not apply in this state.
#[must_use]
pub fn incoming(state: State, event: Incoming) -> Option<Step> {
    use Action as A;
    use Incoming as E;
    use State as S;
    Some(match (state, event) {
        (S::Queued | S::Requested, E::LinkUp) => (S::Requested, &[A::SendRequest]),
        (S::AwaitingApproval, E::LinkUp) => (S::AwaitingApproval, &[A::SendRequest]),
        (S::Requested, E::LinkDown) => (S::Queued, &[]),
        (S::Transferring, E::LinkDown) => (S::Queued, &[A::Stop]),
        (S::Requested | S::AwaitingApproval, E::Granted) => (S::Transferring, &[A::Start]),
        (S::Requested | S::AwaitingApproval, E::Pending) => (S::AwaitingApproval, &[]),
        (S::Transferring, E::Pending) => (S::AwaitingApproval, &[A::Stop]),
        (S::Queued | S::Requested | S::AwaitingApproval, E::Denied) => (S::Denied, &[A::Discard]),
        (S::Transferring | S::Paused, E::Denied) => (S::Denied, &[A::Stop, A::Discard]),
        (S::Requested | S::AwaitingApproval | S::Transferring, E::Unavailable) => {
            (S::Failed, &[A::Stop])
        }
        (S::Transferring, E::AllBlocks) => (S::Verifying, &[A::Verify]),
        (S::Verifying, E::Landed) => (S::Completed, &[A::Discard, A::SendDone]),
        (S::Requested | S::AwaitingApproval | S::Transferring | S::Verifying, E::Broke) => {
            (S::Failed, &[A::Stop])
        }
        (S::Queued | S::Requested | S::AwaitingApproval, E::Pause) => (S::Paused, &[]),
        (S::Transferring, E::Pause) => (S::Paused, &[A::Stop]),
        (S::Paused | S::Failed, E::Resume) => (S::Queued, &[]),
        (S::Queued | S::Requested | S::AwaitingApproval | S::Failed, E::Cancel) => {
            (S::Cancelled, &[A::SendCancel, A::Discard])
        }
        (S::Transferring | S::Paused | S::Verifying, E::Cancel) => {
            (S::Cancelled, &[A::Stop, A::SendCancel, A::Discard])
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk_in(events: &[Incoming]) -> State {
        events.iter().fold(State::Queued, |state, event| {
            incoming(state, *event).map_or(state, |(next, _)| next)
        })
    }

    #[test]
    fn the_life_of_the_design() {
        use Incoming::*;
        assert_eq!(walk_in(&[LinkUp]), State::Requested);
        assert_eq!(walk_in(&[LinkUp, Pending]), State::AwaitingApproval);
        assert_eq!(walk_in(&[LinkUp, Pending, Granted]), State::Transferring);
        assert_eq!(walk_in(&[LinkUp, Granted, Pause]), State::Paused);
        assert_eq!(
            walk_in(&[LinkUp, Granted, Pause, Resume, LinkUp, Granted]),
            State::Transferring
        );
        assert_eq!(walk_in(&[LinkUp, Granted, AllBlocks, Landed]), State::Completed);
    }

    #[test]
    fn a_lost_connection_queues_and_the_next_one_asks_again() {
        use Incoming::*;
        assert_eq!(walk_in(&[LinkUp, Granted, LinkDown]), State::Queued);
        assert_eq!(walk_in(&[LinkUp, Granted, LinkDown, LinkUp]), State::Requested);
        assert_eq!(walk_in(&[LinkUp, Pending, LinkDown]), State::AwaitingApproval);
        assert_eq!(walk_in(&[LinkUp, Granted, AllBlocks, LinkDown]), State::Verifying);
    }

    #[test]
    fn a_paused_transfer_is_not_started_by_a_grant_or_a_connection() {
        use Incoming::*;
        assert_eq!(walk_in(&[LinkUp, Pause, Granted]), State::Paused);
        assert_eq!(walk_in(&[LinkUp, Pause, LinkDown, LinkUp]), State::Paused);
    }

    #[test]
    fn nothing_leaves_completed_and_denied_on_the_receiving_side() {
        for state in [State::Completed, State::Denied, State::Cancelled] {
            for event in [
                Incoming::LinkUp,
                Incoming::Granted,
                Incoming::Pending,
                Incoming::Denied,
                Incoming::AllBlocks,
                Incoming::Broke,
                Incoming::Pause,
                Incoming::Resume,
                Incoming::Cancel,
            ] {
                assert_eq!(incoming(state, event), None, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn states_read_back_from_their_text() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}

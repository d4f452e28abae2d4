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

/// Whether a peer may read a book now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// A person must decide first.
    AskPerson,
    /// It may not: policy says so, or it is no approved peer.
    Refused,
    /// The book is not in the catalog.
    NotPublished,
}

/// What happens to an outgoing transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    /// The peer asked (again).
    Asked,
    /// The core is ready and a slot is free.
    Ready,
    /// The core is ready, all slots are taken.
    NoSlot,
    /// A slot became free.
    SlotFree,
    /// Its file cannot be read.
    Unavailable,
    /// The connection ended.
    LinkDown,
    /// The peer withdrew.
    RemoteCancel,
    /// The peer has the whole book.
    RemoteDone,
    /// The owner decided something that may concern it.
    Reconsider,
    /// The catalog names other bytes for the book.
    Replaced,
    /// A person or the policy lets the peer have it, and the peer waits for it.
    Approve,
    /// As [`Outgoing::Approve`], and the peer has not asked on the connection there is, or is offline.
    ApproveOffline,
    /// A person says no.
    Deny,
    /// A person pauses it.
    Pause,
    /// A person resumes it, and the peer waits for it.
    Resume,
    /// As [`Outgoing::Resume`], and the peer has not asked on the connection there is, or is offline.
    ResumeOffline,
    /// A person cancels it.
    Cancel,
}

impl Outgoing {
    /// Whether it can lead to the peer reading the book: then approval, policy and publication are asked.
    pub(super) const fn needs_verdict(self) -> bool {
        matches!(
            self,
            Self::Asked
                | Self::Ready
                | Self::SlotFree
                | Self::Reconsider
                | Self::Replaced
                | Self::Approve
                | Self::ApproveOffline
                | Self::Resume
                | Self::ResumeOffline
        )
    }

    /// What the step to `next` must survive; `None` where the peer asks again for what was forgotten.
    pub(super) const fn survives(self, next: State) -> Option<Durability> {
        match self {
            Self::Approve
            | Self::ApproveOffline
            | Self::Deny
            | Self::Pause
            | Self::Resume
            | Self::ResumeOffline
            | Self::Cancel => Some(Durability::Power),
            // Over, it is read from the database; and the peer does not say again that it is done.
            _ if next.is_terminal() => Some(Durability::Process),
            _ => None,
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

/// The next step of an outgoing transfer. `None`: the event does not apply in this state. The verdict counts only
/// for events that can lead to reading.
#[must_use]
pub fn outgoing(state: State, event: Outgoing, verdict: Verdict) -> Option<Step> {
    use Action as A;
    use Outgoing as E;
    use State as S;
    use Verdict as V;
    if event.needs_verdict() {
        return match verdict {
            V::Allowed => allowed(state, event),
            _ => refused(state, event, verdict),
        };
    }
    Some(match (state, event) {
        (S::Requested, E::NoSlot) => (S::Queued, &[A::Reply]),
        (S::Requested | S::Queued, E::Unavailable) => (S::Failed, &[A::Reply]),
        (S::Transferring, E::Unavailable) => (S::Failed, &[A::Revoke, A::Reply]),
        (S::Requested, E::LinkDown) => (S::Queued, &[]),
        (S::Transferring, E::LinkDown) => (S::Queued, &[A::Revoke]),
        (S::Transferring | S::Queued | S::Requested | S::Paused, E::RemoteDone) => {
            (S::Completed, &[A::Revoke])
        }
        (S::Completed | S::Denied | S::Cancelled | S::Failed, _) => return None,
        (_, E::RemoteCancel) => (S::Cancelled, &[A::Revoke]),
        (_, E::Deny) => (S::Denied, &[A::Revoke, A::Reply]),
        (_, E::Cancel) => (S::Cancelled, &[A::Revoke, A::Reply]),
        (S::Queued | S::Requested | S::Transferring, E::Pause) => {
            (S::Paused, &[A::Revoke, A::Reply])
        }
        _ => return None,
    })
}

/// The next step when the peer may read the book.
fn allowed(state: State, event: Outgoing) -> Option<Step> {
    use Action as A;
    use Outgoing as E;
    use State as S;
    Some(match (state, event) {
        (S::Denied | S::Cancelled | S::Paused | S::Requested, E::Asked) => (state, &[A::Reply]),
        (S::Transferring, E::Asked) => (S::Transferring, &[A::Grant, A::Reply]),
        (_, E::Asked) => (S::Requested, &[A::Prepare]),
        (S::Requested, E::Ready) => (S::Transferring, &[A::Grant, A::Reply]),
        (S::Queued, E::SlotFree) => (S::Requested, &[A::Prepare]),
        (S::AwaitingApproval, E::Approve) => (S::Requested, &[A::Prepare]),
        (S::AwaitingApproval, E::ApproveOffline) => (S::Queued, &[]),
        (S::Paused, E::Resume) => (S::Requested, &[A::Prepare]),
        (S::Paused, E::ResumeOffline) => (S::Queued, &[]),
        (S::Requested | S::Transferring, E::Replaced) => {
            (S::Requested, &[A::Revoke, A::Reply, A::Prepare])
        }
        _ => return None,
    })
}

/// The next step when the peer may not, or not yet, read the book.
fn refused(state: State, event: Outgoing, verdict: Verdict) -> Option<Step> {
    use Action as A;
    use Outgoing as E;
    use State as S;
    Some(match (state, event, verdict) {
        (S::Denied | S::Cancelled, E::Asked, _) => (state, &[A::Reply]),
        (S::Completed | S::Failed, E::Asked, Verdict::AskPerson) => {
            (S::AwaitingApproval, &[A::Reply])
        }
        (S::Completed | S::Failed, E::Asked, Verdict::Refused) => (S::Denied, &[A::Reply]),
        (S::Completed | S::Failed, E::Asked, _) => (S::Failed, &[A::Reply]),
        (S::Completed | S::Denied | S::Cancelled | S::Failed, ..) => return None,
        (_, _, Verdict::Refused) => (S::Denied, &[A::Revoke, A::Reply]),
        (_, _, Verdict::NotPublished) => (S::Failed, &[A::Revoke, A::Reply]),
        (S::AwaitingApproval | S::Paused, E::Asked, _) => (state, &[A::Reply]),
        (S::Paused, E::Resume | E::ResumeOffline, _) => (S::AwaitingApproval, &[A::Reply]),
        (S::AwaitingApproval | S::Paused, ..) => return None,
        _ => (S::AwaitingApproval, &[A::Revoke, A::Reply]),
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

    const VERDICTS: [Verdict; 4] =
        [Verdict::Allowed, Verdict::AskPerson, Verdict::Refused, Verdict::NotPublished];
    const EVENTS: [Outgoing; 17] = [
        Outgoing::Asked,
        Outgoing::Ready,
        Outgoing::NoSlot,
        Outgoing::SlotFree,
        Outgoing::Unavailable,
        Outgoing::LinkDown,
        Outgoing::RemoteCancel,
        Outgoing::RemoteDone,
        Outgoing::Reconsider,
        Outgoing::Replaced,
        Outgoing::Approve,
        Outgoing::ApproveOffline,
        Outgoing::Deny,
        Outgoing::Pause,
        Outgoing::Resume,
        Outgoing::ResumeOffline,
        Outgoing::Cancel,
    ];

    fn every_step() -> impl Iterator<Item = (State, Outgoing, Verdict, Step)> {
        let all = State::ALL.into_iter().flat_map(|state| EVENTS.map(|event| (state, event)));
        let all = all.flat_map(|(state, event)| VERDICTS.map(|verdict| (state, event, verdict)));
        all.filter_map(|(state, event, verdict)| {
            Some((state, event, verdict, outgoing(state, event, verdict)?))
        })
    }

    /// Where a request ends after events that the verdict lets through.
    fn walk_out(events: &[Outgoing]) -> State {
        events.iter().fold(State::Requested, |state, event| {
            outgoing(state, *event, Verdict::Allowed).map_or(state, |(next, _)| next)
        })
    }

    #[test]
    fn what_ends_a_transfer_is_written_down_before_it_is_let_go_of() {
        for (state, event, verdict, (next, _)) in every_step() {
            let ends = next != state && next.is_terminal();
            assert!(!ends || event.survives(next).is_some(), "{state:?} {event:?} {verdict:?}");
        }
    }

    #[test]
    fn a_grant_is_given_only_where_the_verdict_allows_it() {
        for (state, event, verdict, (next, actions)) in every_step() {
            let step = format!("{state:?} {event:?} {verdict:?}");
            let leads = |action| actions.contains(&action);
            if leads(Action::Grant) || leads(Action::Prepare) {
                assert!(event.needs_verdict() && verdict == Verdict::Allowed, "{step}");
            }
            assert_eq!(leads(Action::Grant), next == State::Transferring, "{step}");
        }
    }

    #[test]
    fn whatever_leads_out_of_reading_takes_the_grant_back() {
        for (state, event, verdict, (next, actions)) in every_step() {
            if state == State::Transferring && next != State::Transferring {
                assert!(actions.contains(&Action::Revoke), "{event:?} {verdict:?}");
            }
        }
    }

    #[test]
    fn a_verdict_that_is_no_longer_good_ends_reading_at_the_next_question() {
        for event in EVENTS.into_iter().filter(|event| event.needs_verdict()) {
            for (verdict, ends_in) in [
                (Verdict::AskPerson, State::AwaitingApproval),
                (Verdict::Refused, State::Denied),
                (Verdict::NotPublished, State::Failed),
            ] {
                for state in [State::Transferring, State::Requested, State::Queued] {
                    let (next, actions) = outgoing(state, event, verdict).unwrap();
                    assert_eq!(next, ends_in, "{state:?} {event:?}");
                    assert!(actions.contains(&Action::Reply), "the peer hears of it");
                }
            }
        }
    }

    #[test]
    fn what_a_person_ended_is_not_begun_again_by_whoever_asks() {
        for verdict in VERDICTS {
            for state in [State::Denied, State::Cancelled] {
                let repeated = outgoing(state, Outgoing::Asked, verdict);
                assert_eq!(repeated, Some((state, &[Action::Reply][..])));
            }
        }
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
    fn the_sender_waits_for_a_person_a_slot_and_the_peer() {
        use Outgoing::*;
        assert_eq!(walk_out(&[Asked]), State::Requested, "preparing goes on");
        assert_eq!(walk_out(&[NoSlot, SlotFree, Ready]), State::Transferring);
        assert_eq!(walk_out(&[Ready, LinkDown, Asked, Ready]), State::Transferring);
        assert_eq!(walk_out(&[Ready, Pause, Asked]), State::Paused);
        assert_eq!(walk_out(&[Ready, Pause, Resume, Ready, RemoteDone]), State::Completed);
        assert_eq!(walk_out(&[Ready, RemoteCancel]), State::Cancelled);
        assert_eq!(walk_out(&[Ready, Replaced, Ready]), State::Transferring);
    }

    #[test]
    fn states_read_back_from_their_text() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}

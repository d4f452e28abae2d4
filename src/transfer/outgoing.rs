//! The life of an outgoing transfer, as a table of transitions. Whatever can lead to the peer reading the book takes
//! the verdict on whether it may.

use super::state::{Action, State, Step};
use crate::store::Durability;

/// Whether a peer may read a book now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
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
pub(super) enum Outgoing {
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

/// The next step of an outgoing transfer. `None`: the event does not apply in this state. The verdict counts only
/// for events that can lead to reading.
#[must_use]
pub(super) fn step(state: State, event: Outgoing, verdict: Verdict) -> Option<Step> {
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
            Some((state, event, verdict, step(state, event, verdict)?))
        })
    }

    /// Where a request ends after events that the verdict lets through.
    fn walk_out(events: &[Outgoing]) -> State {
        events.iter().fold(State::Requested, |state, event| {
            step(state, *event, Verdict::Allowed).map_or(state, |(next, _)| next)
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
                    let (next, actions) = step(state, event, verdict).unwrap();
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
                let repeated = step(state, Outgoing::Asked, verdict);
                assert_eq!(repeated, Some((state, &[Action::Reply][..])));
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
}

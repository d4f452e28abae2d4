//! Which of two connections to one peer stays, when both sides dial at the same moment or one comes back.
//!
//! Both sides decide for themselves and have to agree. They see the same two connections, each dialed by
//! one of them, but perhaps in another order, so order decides only between connections that the same
//! side dialed: a side that dials again has lost what it had. Between connections of both sides, the one
//! that the side with the greater key dialed stays (as in npm `hyperswarm`), unless the other side's
//! dialer, who knows best whether it still has the first, holds on to its new one.

use std::time::Duration;

use crate::crypto::PublicKey;

/// How long a dialer that has another connection already takes at most to withdraw a new one: its
/// goodbye is right behind the packet that opened the connection.
pub(super) const WITHDRAWAL: Duration = Duration::from_millis(750);

/// What to do with a new connection while there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The new one takes the place of the one that is there.
    Replace,
    /// The new one goes.
    Withdraw,
    /// The new one waits for [`WITHDRAWAL`], and replaces the other if it is open still.
    Wait,
}

/// Whether a connection that we dialed (or that `remote` did) is the one that stays.
pub(super) fn is_preferred(own: &PublicKey, remote: &PublicKey, we_dialed: bool) -> bool {
    (own > remote) == we_dialed
}

/// Decides over a new connection to `remote` beside an existing one.
pub(super) fn decide(
    own: &PublicKey,
    remote: &PublicKey,
    we_dialed_existing: bool,
    we_dialed_new: bool,
) -> Verdict {
    if we_dialed_existing == we_dialed_new || is_preferred(own, remote, we_dialed_new) {
        Verdict::Replace
    } else if we_dialed_new {
        Verdict::Withdraw
    } else {
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (PublicKey, PublicKey) {
        (PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]))
    }

    /// What is left at `own` after the connections came up in this order (`true`: dialed by the side
    /// with the greater key), when every withdrawal is heard of in time.
    fn left(own: &PublicKey, remote: &PublicKey, order: [bool; 2]) -> bool {
        let we_dialed = |by_greater: bool| (own > remote) == by_greater;
        match decide(own, remote, we_dialed(order[0]), we_dialed(order[1])) {
            Verdict::Replace => order[1],
            Verdict::Withdraw | Verdict::Wait => order[0],
        }
    }

    #[test]
    fn both_sides_keep_the_same_connection_in_whatever_order_they_see_them() {
        let (low, high) = keys();
        for at_low in [[true, false], [false, true]] {
            for at_high in [[true, false], [false, true]] {
                assert!(left(&low, &high, at_low) && left(&high, &low, at_high));
            }
        }
    }

    #[test]
    fn a_side_that_dials_again_has_lost_the_first() {
        let (low, high) = keys();
        for we_dialed in [true, false] {
            assert_eq!(decide(&low, &high, we_dialed, we_dialed), Verdict::Replace);
            assert_eq!(decide(&high, &low, we_dialed, we_dialed), Verdict::Replace);
        }
    }

    #[test]
    fn a_restarted_peer_with_the_lesser_key_gets_through_after_the_wait() {
        let (low, high) = keys();
        assert_eq!(decide(&high, &low, true, false), Verdict::Wait);
    }
}

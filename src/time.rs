//! The wall clock, in the two forms the API has: Unix milliseconds and RFC 3339.
//!
//! The wall clock is for people, and for what is written down. It jumps: a machine begins in 1970 and hears the
//! time later, or somebody sets it. So how often, how long and how fresh is asked of the monotonic clock,
//! never of this one.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// For rates, waits and order.
    pub(crate) at: Instant,
    /// For people, in Unix milliseconds.
    pub(crate) wall_ms: u64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { at: Instant::now(), wall_ms: now_ms() }
    }
}

/// Milliseconds since 1970; 0 when the clock is set before that.
#[must_use]
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Unix milliseconds as `2026-03-01T12:00:00.000Z`, what JavaScript's `toISOString` writes. Years
/// beyond 9999 are held at the end of 9999.
#[must_use]
pub(crate) fn rfc3339(millis: u64) -> String {
    const LAST: u64 = 253_402_300_799_999;
    let millis = millis.min(LAST);
    let (seconds, ms) = (millis / 1000, millis % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of a number of days since 1970 (the well-known algorithm over 400-year eras).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_javascript_writes_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(rfc3339(1_772_366_400_000), "2026-03-01T12:00:00.000Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}

//! Numbered events.

//! Rules that rows of several sections share.

use super::super::check;
use super::Rule;

/// The most any count of milliseconds may be: a day.
pub(super) const DAY_MS: i64 = 86_400_000;
pub(super) const DIALED: Rule =
    Rule::Text { check: check::dial, allowed: "host name or IP address, and a port that is not 0" };
pub(super) const POSITIVE: Rule = Rule::Number { min: 0.0, above: true, max: f64::MAX, below: false };
pub(super) const FRACTION: Rule = Rule::Number { min: 0.0, above: false, max: 1.0, below: false };
pub(super) const NOT_NEGATIVE: Rule = Rule::Number { min: 0.0, above: false, max: f64::MAX, below: false };

//! Rules that a program brings along: how a job names one, and what it must keep to.
//!
//! 1. A job names a rule by [`OwnName`], and states what the rule takes ([`RuleInput`]) and whether it is deterministic. A node
//!    whose program has no rule of that name, or one that says otherwise, does not take the job up.
//! 2. A name holds printable ASCII alone, one `@` in it, [`OwnName::MOST`] bytes at most, and no bytes beside them: the same name has
//!    one form on the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What something that a program brings along is called in a job: `name@version`. The author changes the version whenever what it
/// computes changes, so that nodes with another edition of it do not take the job up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnName {
    bytes: [u8; OwnName::MOST],
    length: u8,
}

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name of one's own: `name@version` is needed, letters, digits, `-`, `_` and `.` on either side, {most} bytes at most",
    most = OwnName::MOST
)]
pub struct OwnNameError(pub String);

impl OwnName {
    /// The most bytes of a name.
    pub const MOST: usize = 48;

    /// The name that `text` is.
    ///
    /// # Errors
    /// [`OwnNameError`] unless it is `name@version` (invariant 2).
    pub fn new(text: &str) -> Result<OwnName, OwnNameError> {
        let part = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !part.is_empty() && part.bytes().all(plain)
        };
        let fits = text.len() <= OwnName::MOST
            && text.split_once('@').is_some_and(|(name, version)| part(name) && part(version));
        if !fits {
            return Err(OwnNameError(text.chars().take(OwnName::MOST + 1).collect()));
        }
        let mut bytes = [0; OwnName::MOST];
        for (place, byte) in bytes.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        Ok(OwnName { bytes, length: text.len() as u8 })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.length)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl FromStr for OwnName {
    type Err = OwnNameError;

    fn from_str(text: &str) -> Result<OwnName, OwnNameError> {
        OwnName::new(text)
    }
}

impl fmt::Display for OwnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for OwnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for OwnName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for OwnName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OwnName, D::Error> {
        OwnName::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// What a rule is given of a slice in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleInput {
    /// One vote of each worker, in the order of logical shards: each the mean of its shard's gradients. There are as many logical
    /// shards as workers then, servers keep all votes of a step, and the number of workers decides bits.
    Votes,
    /// One vector: the mean over all examples of the step, the same for any number of workers.
    Mean,
}

/// What a job says of a rule that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRule {
    /// Its name.
    pub name: OwnName,
    /// What it is given.
    pub input: RuleInput,
    /// Votes that may be lies; 0 where there are no votes.
    pub hostile: u32,
    /// Whether it keeps to what [`Aggregator::is_deterministic`] says.
    pub deterministic: bool,
}

impl OwnRule {
    /// What `rule` says of itself.
    pub fn of(rule: &dyn Aggregator) -> OwnRule {
        let input = rule.input();
        let hostile = if input == RuleInput::Votes { rule.hostile() } else { 0 };
        OwnRule { name: rule.name(), input, hostile, deterministic: rule.is_deterministic() }
    }
}

/// One slice of one parameter in one step, as a rule is given it.
#[derive(Clone, Copy, Debug)]
pub struct VotesOnSlice<'a> {
    /// The parameter's name, like `fc1.weight`.
    pub parameter: &'a str,
    /// The slice's first element within the parameter, row-major.
    pub first: usize,
    /// The step, from 0.
    pub step: u64,
    /// The job's seed. What a rule draws at random should be a function of this, of the step, the parameter and the element alone:
    /// see [`Philox`](crate::Philox).
    pub seed: u64,
    /// What [`RuleInput`] says; all finite, and of one length.
    pub votes: &'a [Vec<f32>],
}

/// A rule of one's own: makes one gradient of what a step contributes to a slice. It runs on each server's compute thread, between
/// the last contribution to a slice and its update; shared by all slices of all servers of a process, so whatever it keeps between
/// calls needs a lock, and is lost with the process.
///
/// Parameters that are running means ([`Update::Average`](crate::Update)) are none of its business: they take the median of votes, or
/// the mean.
pub trait Aggregator: Send + Sync {
    /// What a job calls it.
    fn name(&self) -> OwnName;

    /// What it is given.
    fn input(&self) -> RuleInput;

    /// Whether each element of a result is a function of that element's votes, of their order, and of what else
    /// [`VotesOnSlice`] says but for where the slice begins and ends: in the same sequence of operations on every machine. Then the same job gives the
    /// same bits for any number of servers and any slicing. A rule that is not can only be run under `determinism = "relaxed"`.
    fn is_deterministic(&self) -> bool;

    /// Lies among the votes that it bears. Job and scheduler hold it to at least twice as many votes and one, and warn when deaths
    /// give hostile workers more.
    fn hostile(&self) -> u32 {
        0
    }

    /// Writes the gradient of the slice into `out`, which is as long as a vote and comes filled with zeros.
    ///
    /// # Errors
    /// Why there is no gradient: the server ends, and with it the run, with this text. So it does for a result that is not
    /// finite.
    fn aggregate(&self, slice: VotesOnSlice<'_>, out: &mut [f32]) -> Result<(), String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 2.
    #[test]
    fn names_have_one_form() {
        let longest = format!("{}@1", "n".repeat(OwnName::MOST - 2));
        for good in ["a@1", "geometric-mean@0.2.1", "x_Y@2026-01", &longest] {
            let name = OwnName::new(good).unwrap();
            assert_eq!((name.as_str(), name.to_string().as_str()), (good, good));
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<OwnName>(&json).unwrap(), name);
        }
        let too_long = format!("n{longest}");
        for bad in ["", "a", "@", "a@", "@1", "a@1@2", "a b@1", "ä@1", "a@1\n", "a/b@1", &too_long] {
            assert!(OwnName::new(bad).is_err(), "{bad}");
            assert!(serde_json::from_str::<OwnName>(&serde_json::to_string(bad).unwrap()).is_err(), "{bad}");
        }
    }
}

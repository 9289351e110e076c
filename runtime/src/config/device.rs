//! What a node computes on.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// What a node computes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ComputeDevice {
    /// The first GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of this number, as the driver counts them from 0.
    Cuda(u32),
}

/// `[servers]`: what servers do, each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Servers {
    /// What they sum and update on.
    pub device: ComputeDevice,
}

/// `[workers]`: what workers do, each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Workers {
    /// What they compute gradients on.
    pub device: ComputeDevice,
}

/// Most digits of a GPU's number.
const DIGITS_MOST: usize = 4;

impl FromStr for ComputeDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            _ => {}
        }
        let digits = text
            .strip_prefix("cuda:")
            .ok_or("it is neither `auto` nor `cpu`, and does not begin with `cuda:`")?;
        let plain =
            (1..=DIGITS_MOST).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse().ok().filter(|_| plain && (digits == "0" || !digits.starts_with('0')));
        number.map(Self::Cuda).ok_or_else(|| format!("{digits:?} is no number of a GPU"))
    }
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl Serialize for ComputeDevice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether a text names a device.
pub(super) fn check(text: &str) -> Result<(), String> {
    text.parse::<ComputeDevice>().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:17"] {
            assert_eq!(text.parse::<ComputeDevice>().unwrap().to_string(), text);
        }
        for text in
            ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:01", "cuda:0 ", "cuda:12345", "CPU"]
        {
            assert!(text.parse::<ComputeDevice>().is_err(), "{text}");
        }
    }
}

//! What a node computes on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};
use testudo_kernels::Precision;

use super::Config;

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
    /// How they multiply matrices.
    pub products: MatrixProducts,
}

impl Config {
    /// What workers compute on: `auto` is the CPU where GPUs have no kernels for the job's precision.
    #[must_use]
    pub fn worker_device(&self) -> ComputeDevice {
        match self.workers.device {
            ComputeDevice::Auto if self.training.precision != Precision::F32 => ComputeDevice::Cpu,
            device => device,
        }
    }
}

/// How matrices are multiplied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatrixProducts {
    /// With the CPU's bits.
    #[default]
    Exact,
    /// By cuBLAS, in f32.
    F32,
    /// By cuBLAS, on tensor cores in TF32.
    Tf32,
    /// By cuBLAS, on tensor cores in BF16.
    Bf16,
}

impl MatrixProducts {
    /// As the cluster file has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
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

    /// Their bits are their own, so they are asked for in as many words.
    #[test]
    fn products_of_a_library_need_a_gpu_and_relaxed_determinism() {
        let parse = |overrides: &[&str]| {
            let path = std::path::Path::new("/cluster.toml");
            Config::parse(super::super::tests::MINIMAL, path, overrides)
        };
        let all = ["workers.products=tf32", "workers.device=cuda:0", "training.determinism=relaxed"];
        assert_eq!(parse(&all).unwrap().workers.products, MatrixProducts::Tf32);
        for left_out in [1, 2] {
            let mut rest = all.to_vec();
            rest.remove(left_out);
            let said = parse(&rest).unwrap_err().to_string();
            assert!(said.contains("`workers.products` is \"tf32\""), "{said}");
        }
        assert!(parse(&["workers.products=exact"]).is_ok());
    }

    /// GPUs have no kernels for mixed precision: who asks for one is told, and `auto` is the CPU then.
    #[test]
    fn auto_is_the_cpu_under_mixed_precision() {
        let parse = |overrides: &[&str]| {
            let path = std::path::Path::new("/cluster.toml");
            Config::parse(super::super::tests::MINIMAL, path, overrides)
        };
        let bf16 = "training.precision=bf16";
        let config = parse(&["workers.device=auto", bf16]).unwrap();
        assert_eq!(
            (config.workers.device, config.worker_device()),
            (ComputeDevice::Auto, ComputeDevice::Cpu)
        );
        assert_eq!(parse(&["workers.device=auto"]).unwrap().worker_device(), ComputeDevice::Auto);
        let said = parse(&["workers.device=cuda:0", bf16]).unwrap_err().to_string();
        assert!(said.contains("`workers.device` is \"cuda:0\""), "{said}");
        // Products of a library are no CPU's.
        let products = ["workers.products=tf32", "training.determinism=relaxed"];
        let said = parse(&[&["workers.device=auto", bf16][..], &products].concat()).unwrap_err().to_string();
        assert!(said.contains("`workers.products` is \"tf32\""), "{said}");
    }
}

//! Bandwidth of kernels on a GPU: the bytes that each must read and write over its time, as a share of what a copy within the
//! GPU's memory reaches. And models' gradient steps there, parameters in and gradients out included, against another framework's.

mod measure;
mod models;
mod peer;

use std::path::Path;

use serde_json::{Map, Value, json};
use testudo_kernels::cuda::Gpu;

use crate::error::Failure;
use crate::say::say;
use peer::Peer;

/// Measurements of each kernel, of which the median counts; one more comes first, which compiles.
const REPEAT: usize = 5;
/// Launches of a measurement: what a launch costs the host hides behind them.
const LAUNCHES: u32 = 20;
/// What a kernel's bandwidth is measured by.
const COPY: &str = "copy";
/// The share of a copy's bandwidth that a kernel is to reach.
const LEAST_SHARE: f64 = 0.85;
/// The times that another framework's step is to take of ours.
const LEAST_RATIO: f64 = 1.0;

/// A kernel's bandwidth.
#[derive(Clone, Debug)]
struct Line {
    name: String,
    /// Bytes read and written, 10^9 a second.
    gb_per_second: f64,
}

impl Line {
    /// Of a kernel that must read and write so many bytes.
    fn new(name: impl Into<String>, bytes: usize, seconds: f64) -> Line {
        Line { name: name.into(), gb_per_second: bytes as f64 / seconds / 1e9 }
    }
}

/// A model's gradient step.
#[derive(Clone, Debug)]
struct Step {
    name: &'static str,
    examples: usize,
    /// Numbers that it learns.
    parameters: u64,
    milliseconds: f64,
}

/// Everything that was measured.
struct Report {
    gpu: String,
    mib: u32,
    /// A copy's first.
    lines: Vec<Line>,
    steps: Vec<Step>,
    peer: Option<Peer>,
}

/// Measures on GPU `number`, with tensors of `mib` MiB, and prints each kernel's share of a copy's bandwidth and each model's step, beside
/// those of the file `peer`.
///
/// # Errors
/// When there is no such GPU, with what was looked for and where, or its memory does not suffice, or `peer` is of another card.
pub fn run(number: u32, mib: u32, peer: Option<&Path>, json: bool) -> Result<(), Failure> {
    if !(1..=4096).contains(&mib) {
        return Err(Failure::misconfigured("--mib must be 1 to 4096"));
    }
    let peer = peer.map(Peer::read).transpose()?;
    let mut gpu = Gpu::open(number).and_then(Gpu::prepared).map_err(Failure::misconfigured)?;
    let lines = measure::measure(&mut gpu, mib as usize * (1 << 18)).map_err(Failure::failed)?;
    let steps = models::models(number).map_err(Failure::failed)?;
    let report = Report { gpu: gpu.name().into(), mib, lines, steps, peer };
    if let Some(peer) = &report.peer {
        let refused = |why| Failure::misconfigured(format!("--peer cannot be compared: {why}"));
        peer.check(&report.gpu, &report.steps).map_err(refused)?;
    }
    report.text().iter().for_each(|line| say!("{line}"));
    if json {
        say!("{}", report.object());
    }
    Ok(())
}

impl Report {
    /// A line's share of a copy's bandwidth.
    fn share(&self, line: &Line) -> f64 {
        line.gb_per_second / self.lines.first().map_or(f64::NAN, |copy| copy.gb_per_second)
    }

    /// What the other framework took, and how many times ours that is.
    fn compared(&self, step: &Step) -> Option<(f64, f64)> {
        let other = self.peer.as_ref()?.milliseconds(step.name)?;
        Some((other, other / step.milliseconds))
    }

    /// For a person.
    fn text(&self) -> Vec<String> {
        let below = |reached: bool| if reached { "" } else { ", below the target" };
        let mut text = vec![format!("{}, tensors of {} MiB, bytes read and written:", self.gpu, self.mib)];
        for line in &self.lines {
            let share = self.share(line);
            let missed = below(line.name == COPY || share >= LEAST_SHARE);
            let (name, speed) = (&line.name, line.gb_per_second);
            text.push(format!("{name:<26} {speed:>8.0} GB/s {:>5.0} % of a copy{missed}", 100.0 * share));
        }
        text.push("gradient steps:".into());
        for step in &self.steps {
            let Step { name, examples, milliseconds, .. } = step;
            let compared = match (self.compared(step), &self.peer) {
                (Some((other, ratio)), Some(peer)) => {
                    let missed = below(ratio >= LEAST_RATIO);
                    format!(", {ratio:.2} times {}, which takes {other:.3} ms{missed}", peer.framework)
                }
                _ => String::new(),
            };
            text.push(format!("{name:<26} {examples:>8} examples {milliseconds:>10.3} ms{compared}"));
        }
        text
    }

    /// For a program.
    fn object(&self) -> Value {
        let kernel = |line: &Line| {
            let share = self.share(line);
            let mut of = json!({ "gb_per_second": line.gb_per_second, "share_of_copy": share });
            if line.name != COPY {
                of["reached"] = json!(share >= LEAST_SHARE);
            }
            (line.name.clone(), of)
        };
        let model = |step: &Step| {
            let mut of = json!({
                "examples": step.examples, "parameters": step.parameters, "milliseconds": step.milliseconds
            });
            if let Some((other, ratio)) = self.compared(step) {
                of["peer_milliseconds"] = json!(other);
                of["ratio"] = json!(ratio);
                of["reached"] = json!(ratio >= LEAST_RATIO);
            }
            (step.name.to_owned(), of)
        };
        let kernels: Map<String, Value> = self.lines.iter().map(kernel).collect();
        let models: Map<String, Value> = self.steps.iter().map(model).collect();
        let mut object = json!({
            "gpu": self.gpu,
            "mib": self.mib,
            "least_share": LEAST_SHARE,
            "kernels": kernels,
            "models": models,
        });
        if let Some(peer) = &self.peer {
            object["peer"] = json!(peer.framework);
            object["least_ratio"] = json!(LEAST_RATIO);
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    /// Where there is no GPU of that number: what was looked for is said, whether a library is missing or the GPU.
    #[test]
    fn a_missing_gpu_is_said() {
        let failure = run(u32::MAX, 1, None, false).unwrap_err();
        assert_eq!(failure.status, Status::Misconfigured);
        let said = &failure.message;
        assert!(["libcuda", "libnvrtc", "GPU"].iter().any(|word| said.contains(word)), "{said}");
        assert!(run(0, 0, None, false).unwrap_err().message.contains("--mib"));
        let missing = run(0, 1, Some(Path::new("/nowhere.json")), false).unwrap_err();
        assert!(missing.message.starts_with("--peer /nowhere.json: "), "{}", missing.message);
    }

    fn report(peer: Option<Peer>) -> Report {
        let line = |name: &str, gb_per_second| Line { name: name.into(), gb_per_second };
        let step = |name, milliseconds| Step { name, examples: 16, parameters: 300, milliseconds };
        Report {
            gpu: "made up".into(),
            mib: 256,
            lines: vec![line(COPY, 2000.0), line("add", 1600.0), line("adam", 1800.0)],
            steps: vec![step("mlp", 2.0), step("cnn", 4.0)],
            peer,
        }
    }

    fn peer() -> Peer {
        let text = r#"{"framework": "torch 9", "gpu": "made up", "models": {
            "mlp": {"examples": 16, "parameters": 300, "milliseconds": 3.0},
            "cnn": {"examples": 16, "parameters": 300, "milliseconds": 2.0}}}"#;
        Peer::parse(text).unwrap()
    }

    #[test]
    fn bandwidth_is_bytes_by_seconds() {
        assert_eq!(Line::new("add", 3_000_000_000, 0.5).gb_per_second, 6.0);
    }

    #[test]
    fn shares_and_ratios_say_what_is_reached() {
        let object = report(Some(peer())).object();
        assert_eq!(object["kernels"]["copy"], json!({ "gb_per_second": 2000.0, "share_of_copy": 1.0 }));
        assert_eq!(object["kernels"]["add"]["share_of_copy"], json!(0.8));
        assert_eq!(object["kernels"]["add"]["reached"], json!(false));
        assert_eq!(object["kernels"]["adam"]["reached"], json!(true));
        let model = |milliseconds: f64, other: f64, ratio: f64, reached: bool| {
            json!({
                "examples": 16, "parameters": 300, "milliseconds": milliseconds, "peer_milliseconds": other,
                "ratio": ratio, "reached": reached
            })
        };
        assert_eq!(object["models"]["mlp"], model(2.0, 3.0, 1.5, true));
        assert_eq!(object["models"]["cnn"], model(4.0, 2.0, 0.5, false));
        assert_eq!(object["peer"], json!("torch 9"));
        let text = report(Some(peer())).text();
        let line = |start: &str| text.iter().find(|line| line.starts_with(start)).unwrap();
        assert!(line("add ").ends_with("80 % of a copy, below the target"), "{text:?}");
        assert!(line("copy ").ends_with("100 % of a copy"), "{text:?}");
        assert!(line("mlp ").ends_with("1.50 times torch 9, which takes 3.000 ms"), "{text:?}");
        assert!(line("cnn ").ends_with("below the target"), "{text:?}");
        // Without a peer nothing is said of one.
        let alone = report(None);
        let model = json!({ "examples": 16, "parameters": 300, "milliseconds": 2.0 });
        assert_eq!((&alone.object()["models"]["mlp"], &alone.object()["peer"]), (&model, &Value::Null));
        assert!(alone.text().last().unwrap().ends_with("4.000 ms"));
    }

    /// What is of another card or of other models is not compared.
    #[test]
    fn a_peer_is_of_the_same_card_and_models() {
        let report = report(None);
        let check = |peer: &Peer| peer.check(&report.gpu, &report.steps);
        assert_eq!(check(&peer()), Ok(()));
        let with = |from: &str, to: &str| {
            let text = r#"{"framework": "torch 9", "gpu": "made up", "models": {
                "mlp": {"examples": 16, "parameters": 300, "milliseconds": 3.0},
                "cnn": {"examples": 16, "parameters": 300, "milliseconds": 2.0}}}"#;
            Peer::parse(&text.replace(from, to))
        };
        assert!(check(&with("made up", "another").unwrap()).unwrap_err().contains("measured on another"));
        assert!(check(&with("\"examples\": 16", "\"examples\": 8").unwrap()).is_err());
        assert!(check(&with("300", "301").unwrap()).unwrap_err().contains("301 parameters"));
        assert!(check(&with("\"cnn\"", "\"rnn\"").unwrap()).unwrap_err().contains("no cnn"));
        for (from, to) in [("3.0", "0.0"), ("3.0", "-1"), ("framework", "frame"), ("2.0}}}", "2.0}}")] {
            assert!(with(from, to).is_err(), "{to}");
        }
    }

    /// As many as PyTorch's networks of these names have: `tests/peers/torch_eager.py` counts them.
    #[test]
    fn measured_models_learn_as_many_numbers_as_their_peers() {
        let learned = models::measured().map(|(name, spec, _)| (name, models::learned(&spec).unwrap()));
        let expected = [("mlp", 535_818), ("cnn", 1_199_882), ("resnet18", 11_173_962), ("gpt", 10_844_160)];
        assert_eq!(learned, expected);
    }
}

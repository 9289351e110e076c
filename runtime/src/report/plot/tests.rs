//! Drawings of many kinds of runs. `TESTUDO_PLOTS=DIR` keeps them for looking at.

use super::*;

const HEADING: Heading<'_> =
    Heading { job: "mnist", test_accuracy: Some(0.98123), bits_per_byte: None, workers: 2, servers: 2 };

/// A run whose loss falls from 2.3 with noise, as training on MNIST does.
fn run(steps: u64, epochs: u64) -> Vec<StepRecord> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    (1..=steps)
        .map(|step| {
            let done = step as f64 / steps as f64;
            let trend = 2.3 * (-30.0 * done).exp() + 0.25 * (-4.0 * done).exp() + 0.004;
            StepRecord {
                step,
                epoch: (step - 1) * epochs / steps + 1,
                loss: trend * (0.4 + 1.5 * noise() * noise() + 0.6 * noise()),
                learning_rate: 0.1
                    * 0.5
                    * (1.0 + (std::f64::consts::PI * done).cos())
                    * (done * 20.0).min(1.0),
                samples_per_second: 14_000.0 + 3000.0 * noise() - 3000.0 * f64::from(u8::from(step < 40)),
                bytes_sent: 2_678_824,
                bytes_received: 2_678_824,
                compute_ms: 5.5 + noise(),
                send_ms: 1.0 + 0.5 * noise(),
                wait_ms: 1.5 + 2.0 * noise(),
                elapsed_seconds: step as f64 * 0.009,
                push_error: 0.0,
            }
        })
        .collect()
}

fn drawn(name: &str, records: &[StepRecord], heading: &Heading<'_>) -> String {
    let text = loss_svg(records, &[], heading);
    if let Some(folder) = std::env::var_os("TESTUDO_PLOTS") {
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.svg")), &text).unwrap();
    }
    assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    for bad in ["NaN", "inf\"", " inf", "-inf"] {
        assert!(!text.contains(&format!(" {bad}")) && !text.contains(&format!("\"{bad}")), "{name}: {bad}");
    }
    let opened = text.matches("<text").count();
    assert_eq!(opened, text.matches("</text>").count());
    text
}

/// Invariant 1.
#[test]
fn long_runs_stay_small_and_keep_their_extremes() {
    let mut records = run(100_000, 20);
    let calm = drawn("long", &records, &HEADING);
    assert!(calm.len() < 60_000, "{}", calm.len());
    records[60_000].loss = 1.9;
    assert_ne!(drawn("long-spike", &records, &HEADING), calm, "one step of 100,000 still shows");
}

#[test]
fn a_usual_run_says_what_it_is() {
    let text = drawn("mnist", &run(2345, 5), &HEADING);
    for expected in [
        "mnist — 98.12 % test accuracy",
        "training loss (log scale)",
        "learning rate",
        "samples/s",
        "ms/step",
        "epoch 2",
        "epoch 5",
        "2,345 steps in 21.1 s",
        "2 workers, 2 servers",
        "prefers-color-scheme:dark",
        ">step<",
    ] {
        assert!(text.contains(expected), "{expected}");
    }
    assert!(text.len() < 60_000, "{}", text.len());
}

#[test]
fn short_runs_are_drawn_step_by_step() {
    let text = drawn("short", &run(60, 1), &HEADING);
    assert!(text.contains("class=\"rawline\"") && !text.contains("epochname\""));
    drawn("one", &run(1, 1), &HEADING);
    let one_worker = Heading { workers: 1, servers: 1, test_accuracy: None, ..HEADING };
    let text = drawn("three", &run(3, 1), &one_worker);
    assert!(text.contains("1 worker, 1 server") && !text.contains("accuracy"));
    let of_text = Heading { bits_per_byte: Some(1.91234), ..HEADING };
    let text = drawn("text", &run(3, 1), &of_text);
    assert!(text.contains("1.912 bits per byte held out") && !text.contains("accuracy"));
}

/// Invariant 2.
#[test]
fn strange_runs_are_drawn_too() {
    assert!(drawn("none", &[], &HEADING).contains("no step was recorded"));
    let mut diverged = run(500, 2);
    diverged.iter_mut().skip(300).for_each(|record| record.loss = f64::NAN);
    assert!(drawn("diverged", &diverged, &HEADING).contains("not finite at step 301"));
    diverged.iter_mut().for_each(|record| record.loss = f64::INFINITY);
    drawn("never-finite", &diverged, &HEADING);
    let mut flat = run(500, 2);
    for record in &mut flat {
        (record.loss, record.learning_rate, record.samples_per_second) = (0.0, 0.0, f64::NAN);
        (record.compute_ms, record.send_ms, record.wait_ms) = (0.0, 0.0, f64::NAN);
    }
    drawn("flat", &flat, &HEADING);
    let mut huge = run(500, 2);
    huge.iter_mut().enumerate().for_each(|(index, record)| record.loss = 10_f64.powi(index as i32 - 250));
    drawn("huge", &huge, &HEADING);
    let mut late = run(500, 2);
    late.iter_mut().for_each(|record| record.step += 1_000_000);
    drawn("resumed", &late, &HEADING);
    let epochs = drawn("many-epochs", &run(9380, 100), &HEADING).matches("class=\"epochname\"").count();
    assert!((8..=14).contains(&epochs), "{epochs} of 100 epochs are named");
}

/// Invariant 3.
#[test]
fn names_stay_text() {
    let heading = Heading { job: "</title><script>alert(1)</script>", ..HEADING };
    assert!(!drawn("hostile", &run(10, 1), &heading).contains("<script>"));
}

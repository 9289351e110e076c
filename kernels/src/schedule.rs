//! Learning-rate schedules: a factor of the base rate for each step.
//!
//! Invariants:
//! 1. The factor is a function of the step, the total and the settings, in `f64`, with the same bits everywhere: the
//!    cosine is our own.
//! 2. With valid settings it is between 0 and 1. A warm-up rises from 1/warmup at step 0 to 1 at step warmup - 1; the
//!    last step's factor is the final fraction, where there is one.

use serde::{Deserialize, Serialize};

use crate::math::{cos_pi, power};

/// How the learning rate changes over a run.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// Always the base rate.
    #[default]
    Constant,
    /// Half a cosine from 1 down to `final_fraction` (Loshchilov and Hutter, "SGDR", 2017, without restarts).
    Cosine {
        /// Steps of linear rise before the fall.
        #[serde(default)]
        warmup_steps: u64,
        /// The factor at the last step.
        #[serde(default)]
        final_fraction: f64,
    },
    /// A straight line from 1 down to `final_fraction`.
    Linear {
        /// Steps of linear rise before the fall.
        #[serde(default)]
        warmup_steps: u64,
        /// The factor at the last step.
        #[serde(default)]
        final_fraction: f64,
    },
    /// The rate is multiplied by `gamma` every so many steps after the warm-up.
    Step {
        /// Steps of linear rise before the first of them.
        #[serde(default)]
        warmup_steps: u64,
        /// Steps between two falls; at least 1.
        every_steps: u64,
        /// What is left of the rate at each.
        gamma: f64,
    },
    /// Half a cosine from `start_fraction` up to 1, and half a cosine down to `final_fraction` (Smith and Topin,
    /// "Super-Convergence", 2019; the numbers of PyTorch's `OneCycleLR`).
    OneCycle {
        /// The part of the steps that rises.
        rise_fraction: f64,
        /// The factor at the first step.
        start_fraction: f64,
        /// The factor at the last step.
        final_fraction: f64,
    },
}

impl Schedule {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`ScheduleError`] if a fraction is not between 0 and 1, or falls are less than a step apart.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        let fractions: &[(&str, f64)] = match *self {
            Schedule::Constant => &[],
            Schedule::Cosine { final_fraction, .. } | Schedule::Linear { final_fraction, .. } => {
                &[("final_fraction", final_fraction)]
            }
            Schedule::Step { every_steps: 0, .. } => return Err(ScheduleError::EverySteps),
            Schedule::Step { gamma, .. } => &[("gamma", gamma)],
            Schedule::OneCycle { rise_fraction, start_fraction, final_fraction } => &[
                ("rise_fraction", rise_fraction),
                ("start_fraction", start_fraction),
                ("final_fraction", final_fraction),
            ],
        };
        match fractions.iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            Some((setting, value)) => Err(ScheduleError::Fraction { setting, value: *value }),
            None => Ok(()),
        }
    }

    /// Whether factors depend on how many steps there are in all.
    #[must_use]
    pub fn reads_total(&self) -> bool {
        !matches!(self, Schedule::Constant | Schedule::Step { .. })
    }

    /// The factor of step `step`, counted from 0, of `total_steps`. Steps past the end have the last one's.
    pub fn factor(&self, step: u64, total_steps: u64) -> f64 {
        let (warmup_steps, final_fraction, fall): (_, _, fn(f64) -> f64) = match *self {
            Schedule::Constant => return 1.0,
            Schedule::Cosine { warmup_steps, final_fraction } => {
                (warmup_steps, final_fraction, |progress| 0.5 * (1.0 + cos_pi(progress)))
            }
            Schedule::Linear { warmup_steps, final_fraction } => {
                (warmup_steps, final_fraction, |progress| 1.0 - progress)
            }
            Schedule::Step { warmup_steps, every_steps, gamma } => {
                return match step.checked_sub(warmup_steps) {
                    Some(after) => power(gamma, after / every_steps.max(1)),
                    None => (step as f64 + 1.0) / warmup_steps as f64,
                };
            }
            Schedule::OneCycle { rise_fraction, start_fraction, final_fraction } => {
                let (step, last) = (step as f64, total_steps.saturating_sub(1) as f64);
                let top = rise_fraction * total_steps as f64 - 1.0;
                let (from, to, progress) = match step < top {
                    true => (start_fraction, 1.0, step / top),
                    false => (1.0, final_fraction, (step - top) / (last - top)),
                };
                // Where there is nothing to fall through, it is the last step.
                let progress = if progress < 1.0 { progress } else { 1.0 };
                return to + (from - to) * 0.5 * (1.0 + cos_pi(progress));
            }
        };
        if step < warmup_steps {
            return (step as f64 + 1.0) / warmup_steps as f64;
        }
        // The fall starts at 1 on the first step after the warm-up and ends on the last step of all.
        let last = total_steps.saturating_sub(1).saturating_sub(warmup_steps);
        let progress = if last == 0 { 1.0 } else { ((step - warmup_steps) as f64 / last as f64).min(1.0) };
        final_fraction + (1.0 - final_fraction) * fall(progress)
    }
}

/// Why a schedule is refused.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ScheduleError {
    /// A fraction is out of range.
    #[error("the schedule's {setting} is {value}, but must be between 0 and 1")]
    Fraction {
        /// Which.
        setting: &'static str,
        /// Its value.
        value: f64,
    },
    /// The rate would fall more often than there are steps.
    #[error("the schedule's every_steps is 0, but must be at least 1")]
    EverySteps,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 2.
    #[test]
    fn rises_then_falls_to_the_final_fraction() {
        for schedule in [
            Schedule::Cosine { warmup_steps: 10, final_fraction: 0.1 },
            Schedule::Linear { warmup_steps: 10, final_fraction: 0.1 },
        ] {
            let factors: Vec<f64> = (0..100).map(|step| schedule.factor(step, 100)).collect();
            assert_eq!((factors[0], factors[9], factors[10]), (0.1, 1.0, 1.0));
            assert!((factors[99] - 0.1).abs() < 1e-15, "{schedule:?}");
            assert!(factors[..10].is_sorted() && factors[10..].iter().rev().is_sorted());
            assert_eq!(schedule.factor(5000, 100), factors[99]);
        }
        let cosine = Schedule::Cosine { warmup_steps: 0, final_fraction: 0.0 };
        assert!((cosine.factor(50, 101) - 0.5).abs() < 1e-15);
        assert!((cosine.factor(25, 101) - 0.853_553_390_593_273_8).abs() < 1e-15);
        assert_eq!(Schedule::Linear { warmup_steps: 0, final_fraction: 0.0 }.factor(25, 101), 0.75);
        assert_eq!(Schedule::Constant.factor(7, 9), 1.0);
    }

    #[test]
    fn steps_fall_after_the_warm_up() {
        let schedule = Schedule::Step { warmup_steps: 4, every_steps: 3, gamma: 0.5 };
        let factors: Vec<f64> = (0..11).map(|step| schedule.factor(step, 0)).collect();
        assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]);
        assert_eq!(schedule.factor(u64::MAX, 0), 0.0);
    }

    /// `OneCycleLR(max_lr=1, total_steps=20)` by the formula that PyTorch documents, evaluated with the standard library's cosine.
    #[test]
    fn one_cycle_is_that_of_pytorch() {
        let schedule =
            Schedule::OneCycle { rise_fraction: 0.3, start_fraction: 1.0 / 25.0, final_fraction: 1.0 / 25e4 };
        let anneal = |from: f64, to: f64, part: f64| {
            to + (from - to) / 2.0 * (1.0 + (std::f64::consts::PI * part).cos())
        };
        for step in 0..20u64 {
            let expected = match step {
                0..=5 => anneal(0.04, 1.0, step as f64 / 5.0),
                _ => anneal(1.0, 0.04 / 1e4, (step as f64 - 5.0) / 14.0),
            };
            assert!((schedule.factor(step, 20) - expected).abs() < 1e-15, "step {step}");
        }
        assert_eq!(schedule.factor(5, 20), 1.0);
        assert_eq!(schedule.factor(5000, 20), schedule.factor(19, 20));
        assert!((schedule.factor(19, 20) - 4e-6).abs() < 1e-18);
    }

    #[test]
    fn short_runs_are_in_range() {
        for total in 0..5 {
            for warmup_steps in 0..5 {
                for step in 0..8 {
                    for schedule in [
                        Schedule::Cosine { warmup_steps, final_fraction: 0.25 },
                        Schedule::Linear { warmup_steps, final_fraction: 0.25 },
                        Schedule::Step { warmup_steps, every_steps: 9, gamma: 0.25 },
                        Schedule::OneCycle {
                            rise_fraction: warmup_steps as f64 / 4.0,
                            start_fraction: 0.25,
                            final_fraction: 0.25,
                        },
                    ] {
                        let factor = schedule.factor(step, total);
                        assert!((0.2..=1.0).contains(&factor), "{schedule:?} {step}/{total}: {factor}");
                    }
                }
            }
        }
    }

    #[test]
    fn settings_are_checked() {
        let schedule: Schedule = serde_json::from_str(r#"{"cosine":{"warmup_steps":5}}"#).unwrap();
        assert_eq!(schedule, Schedule::Cosine { warmup_steps: 5, final_fraction: 0.0 });
        assert_eq!(serde_json::to_string(&Schedule::Constant).unwrap(), r#""constant""#);
        for final_fraction in [-0.1, 1.1, f64::NAN] {
            assert!(Schedule::Linear { warmup_steps: 0, final_fraction }.validate().is_err());
            let gamma = final_fraction;
            assert!(Schedule::Step { warmup_steps: 0, every_steps: 1, gamma }.validate().is_err());
            let cycle = Schedule::OneCycle {
                rise_fraction: 0.3,
                start_fraction: final_fraction,
                final_fraction: 0.0,
            };
            assert!(cycle.validate().unwrap_err().to_string().contains("start_fraction"));
        }
        assert!(Schedule::Step { warmup_steps: 0, every_steps: 0, gamma: 0.5 }.validate().is_err());
        assert!(schedule.validate().is_ok());
    }
}

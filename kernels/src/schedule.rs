//! Learning-rate schedules: a factor of the base rate for each step.
//!
//! Invariants:
//! 1. The factor is a function of the step, the total and the settings, in `f64`, with the same bits everywhere: the
//!    cosine is our own.
//! 2. With valid settings it is between 0 and 1. A warm-up rises from 1/warmup at step 0 to 1 at step warmup - 1; the
//!    last step's factor is the final fraction.

use serde::{Deserialize, Serialize};

use crate::math::cos_pi;

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
}

impl Schedule {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`ScheduleError`] if `final_fraction` is not between 0 and 1.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        match *self {
            Schedule::Cosine { final_fraction, .. } | Schedule::Linear { final_fraction, .. }
                if !(0.0..=1.0).contains(&final_fraction) =>
            {
                Err(ScheduleError::FinalFraction { final_fraction })
            }
            _ => Ok(()),
        }
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
    /// The factor of the last step is out of range.
    #[error("the schedule's final_fraction is {final_fraction}, but must be between 0 and 1")]
    FinalFraction {
        /// Its value.
        final_fraction: f64,
    },
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
    fn short_runs_are_in_range() {
        for total in 0..5 {
            for warmup_steps in 0..5 {
                for step in 0..8 {
                    for schedule in [
                        Schedule::Cosine { warmup_steps, final_fraction: 0.25 },
                        Schedule::Linear { warmup_steps, final_fraction: 0.25 },
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
        }
        assert!(schedule.validate().is_ok());
    }
}

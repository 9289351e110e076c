//! Progress while a run goes on: one line on a terminal, redrawn in place; a plain line every few seconds
//! where the output is a file or a pipe; nothing when asked for nothing.
//!
//! Invariants:
//! 1. Off a terminal no control character is written; with `NO_COLOR` (<https://no-color.org>) no color.
//! 2. A redrawn line never wraps, however narrow the terminal.
//! 3. Output that fails (a closed pipe) does not disturb the run.
//!
//! The module has no clock of its own: time is what [`Status::elapsed_seconds`] says.

use std::io::Write;

use super::human;

/// Seconds between redraws on a terminal: smooth to the eye, nothing to the processor.
const REDRAW_SECONDS: f64 = 0.1;
/// Seconds between plain lines.
const PLAIN_SECONDS: f64 = 5.0;
/// Steps over which the shown loss and speed are smoothed.
const SMOOTHED_STEPS: f64 = 20.0;
/// Cells of the bar.
const BAR_CELLS: usize = 16;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One line, redrawn in place.
    Live,
    /// A line every few seconds.
    Plain,
    /// Nothing at all.
    Quiet,
}

/// How progress is shown, and whether in color.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// How.
    pub mode: Mode,
    /// Whether color may be used.
    pub color: bool,
}

impl Style {
    /// The style that fits: `quiet` as the user asked, `is_terminal` of the stream written to, and the
    /// environment (`NO_COLOR`, `TERM`) by `variable`.
    pub fn choose(quiet: bool, is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        let dumb = variable("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let no_color = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
        let mode = match (quiet, is_terminal && !dumb) {
            (true, _) => Mode::Quiet,
            (_, true) => Mode::Live,
            (_, false) => Mode::Plain,
        };
        Self { mode, color: mode == Mode::Live && !no_color }
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Status {
    /// Steps taken.
    pub step: u64,
    /// Steps planned.
    pub total_steps: u64,
    /// The current epoch, from 1.
    pub epoch: u64,
    /// Epochs planned.
    pub epochs: u64,
    /// Mean training loss of the last step, over its targets, in nats.
    pub loss: f64,
    /// Whether the targets are a text's bytes, so that the loss is also shown in bits for each.
    pub bytes: bool,
    /// What the last evaluation found right of the test set, 0 to 1; `None` before the first.
    pub test_accuracy: Option<f64>,
    /// Training examples a second.
    pub samples_per_second: f64,
    /// Seconds since training began.
    pub elapsed_seconds: f64,
}

/// Shows the progress of one run on `out`.
#[derive(Debug)]
pub struct Progress<W: Write> {
    out: W,
    style: Style,
    /// With the loss and the speed smoothed.
    status: Option<Status>,
    drawn_at: Option<f64>,
}

impl<W: Write> Progress<W> {
    /// Progress on `out` in the given style.
    pub fn new(out: W, style: Style) -> Self {
        Self { out, style, status: None, drawn_at: None }
    }

    /// Takes note of where the run stands, and shows it if it is time to.
    pub fn update(&mut self, status: &Status) {
        let weight = 2.0 / (SMOOTHED_STEPS + 1.0);
        let smooth = |before: f64, now: f64| match before.is_finite() && now.is_finite() {
            true => before + weight * (now - before),
            false => now,
        };
        let smoothed = match &self.status {
            None => *status,
            Some(before) => Status {
                loss: smooth(before.loss, status.loss),
                samples_per_second: smooth(before.samples_per_second, status.samples_per_second),
                ..*status
            },
        };
        self.status = Some(smoothed);
        let interval = if self.style.mode == Mode::Live { REDRAW_SECONDS } else { PLAIN_SECONDS };
        if self.drawn_at.is_none_or(|drawn_at| status.elapsed_seconds - drawn_at >= interval) {
            self.draw();
        }
    }

    /// Prints `message` as a line of its own, above a redrawn one.
    pub fn note(&mut self, message: &str) {
        match self.style.mode {
            Mode::Quiet => return,
            Mode::Live => self.write(&format!("\r\x1b[2K{message}\n")),
            Mode::Plain => self.write(&format!("{message}\n")),
        }
        if self.style.mode == Mode::Live && self.drawn_at.is_some() {
            self.draw();
        }
    }

    /// Shows the last status and leaves the line; call it once, when training ends for whatever reason.
    pub fn finish(&mut self) {
        let Some(status) = self.status else { return };
        if self.drawn_at != Some(status.elapsed_seconds) || self.style.mode == Mode::Live {
            self.draw();
        }
        if self.style.mode == Mode::Live {
            self.write("\n");
        }
        self.status = None;
    }

    fn draw(&mut self) {
        let Some(status) = &self.status else { return };
        self.drawn_at = Some(status.elapsed_seconds);
        match self.style.mode {
            Mode::Quiet => {}
            // Auto-wrap off for the line (DECAWM), so that a narrow terminal cuts it.
            Mode::Live => {
                let text = format!("\r\x1b[2K\x1b[?7l{}\x1b[?7h", live_line(status, self.style.color));
                self.write(&text);
            }
            Mode::Plain => {
                let text = format!("{}\n", plain_line(status));
                self.write(&text);
            }
        }
    }

    fn write(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

/// Seconds left at the pace so far; `None` before the first step.
pub fn seconds_left(status: &Status) -> Option<f64> {
    let left = status.total_steps.saturating_sub(status.step);
    (status.step > 0).then(|| status.elapsed_seconds / status.step as f64 * left as f64)
}

/// The line for a terminal, without control characters other than color.
pub fn live_line(status: &Status, color: bool) -> String {
    let (accent, dim, plain) = if color { ("\x1b[36m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
    let share = share(status);
    let filled = (share * BAR_CELLS as f64) as usize;
    let (full, empty) = ("━".repeat(filled), "─".repeat(BAR_CELLS - filled));
    format!(
        "{accent}{full}{plain}{dim}{empty}{plain} {:3.0}%  {dim}epoch{plain} {}/{}  {dim}step{plain} {}/{}  \
         {dim}loss{plain} {}{}  {} {dim}samples/s{plain}  {} {dim}left{plain}",
        (share * 100.0).floor(),
        status.epoch,
        status.epochs,
        human::count(status.step),
        human::count(status.total_steps),
        loss(status),
        test(status, &format!("{dim}test{plain}")),
        human::rate(status.samples_per_second),
        left(status),
    )
}

/// The test set's share, once there is one.
fn test(status: &Status, name: &str) -> String {
    status.test_accuracy.map_or(String::new(), |share| format!("  {name} {}", human::percent(share)))
}

/// The line for a file or a pipe.
pub fn plain_line(status: &Status) -> String {
    format!(
        "epoch {}/{}  step {}/{}  loss {}{}  {} samples/s  elapsed {}  left {}",
        status.epoch,
        status.epochs,
        status.step,
        status.total_steps,
        loss(status),
        test(status, "test"),
        human::rate(status.samples_per_second),
        human::countdown(status.elapsed_seconds),
        left(status),
    )
}

fn loss(status: &Status) -> String {
    let nats = human::loss(status.loss);
    match status.bytes {
        true => format!("{nats} ({:.2} bits/byte)", status.loss * std::f64::consts::LOG2_E),
        false => nats,
    }
}

fn left(status: &Status) -> String {
    seconds_left(status).map_or("-".into(), human::countdown)
}

fn share(status: &Status) -> f64 {
    (status.step as f64 / status.total_steps.max(1) as f64).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(step: u64, elapsed_seconds: f64) -> Status {
        Status {
            step,
            total_steps: 4690,
            epoch: 3,
            epochs: 10,
            loss: 0.12345,
            bytes: false,
            test_accuracy: None,
            samples_per_second: 8640.0,
            elapsed_seconds,
        }
    }

    fn shown(mode: Mode, color: bool, act: impl FnOnce(&mut Progress<&mut Vec<u8>>)) -> String {
        let mut bytes = Vec::new();
        act(&mut Progress::new(&mut bytes, Style { mode, color }));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn styles_follow_terminal_and_environment() {
        let choose = |quiet, terminal, term: Option<&str>, no_color: Option<&str>| {
            let variable = |name: &str| match name {
                "TERM" => term.map(str::to_string),
                "NO_COLOR" => no_color.map(str::to_string),
                _ => None,
            };
            let style = Style::choose(quiet, terminal, variable);
            (style.mode, style.color)
        };
        assert_eq!(choose(false, true, Some("xterm"), None), (Mode::Live, true));
        assert_eq!(choose(false, true, Some("xterm"), Some("1")), (Mode::Live, false));
        assert_eq!(choose(false, true, Some("xterm"), Some("")), (Mode::Live, true));
        assert_eq!(choose(false, true, Some("dumb"), None), (Mode::Plain, false));
        assert_eq!(choose(false, true, None, None), (Mode::Plain, false));
        assert_eq!(choose(false, false, Some("xterm"), None), (Mode::Plain, false));
        assert_eq!(choose(true, true, Some("xterm"), None), (Mode::Quiet, false));
    }

    #[test]
    fn lines_say_all_there_is_to_know() {
        assert_eq!(
            live_line(&status(1172, 10.0), false),
            "━━━───────────── 24%  epoch 3/10  step 1,172/4,690  loss 0.1235  8,640 samples/s  30s left"
                .replace(" 24%", "  24%")
        );
        assert_eq!(
            plain_line(&status(1172, 10.0)),
            "epoch 3/10  step 1172/4690  loss 0.1235  8,640 samples/s  elapsed 10s  left 30s"
        );
        let text = plain_line(&Status { loss: 1.6, bytes: true, ..status(1172, 10.0) });
        assert!(text.contains("  loss 1.600 (2.31 bits/byte)  "), "{text}");
        assert!(plain_line(&status(0, 0.0)).ends_with("left -"));
        assert!(live_line(&status(4690, 10.0), false).starts_with(&"━".repeat(BAR_CELLS)));
        assert!(live_line(&Status { total_steps: 0, ..status(0, 0.0) }, false).contains("0%"));
    }

    /// Invariant 1.
    #[test]
    fn plain_output_is_sparse_and_has_no_control_characters() {
        let text = shown(Mode::Plain, false, |progress| {
            for step in 0..=1200 {
                progress.update(&status(step, step as f64 * 0.01));
            }
            progress.note("worker/1 left");
            progress.finish();
            progress.finish();
        });
        assert_eq!(text.lines().count(), 5, "at 0, 5 and 10 s, the note, the end: {text}");
        assert!(text.chars().all(|c| !c.is_control() || c == '\n'), "{text:?}");
        assert!(text.lines().last().unwrap().contains("step 1200/4690"));
    }

    /// Invariants 1 and 2.
    #[test]
    fn live_output_redraws_one_line() {
        let draw = |progress: &mut Progress<&mut Vec<u8>>| {
            for step in 0..=100 {
                progress.update(&status(step, step as f64 * 0.01));
            }
            progress.note("worker/1 left");
            progress.finish();
        };
        let text = shown(Mode::Live, false, draw);
        assert_eq!(text.matches('\n').count(), 2, "the note and the end: {text:?}");
        let redraws = text.matches("\r\x1b[2K\x1b[?7l").count();
        assert!((10..=13).contains(&redraws), "{redraws}");
        assert_eq!(text.matches("\x1b[?7l").count(), text.matches("\x1b[?7h").count());
        assert!(!text.contains("\x1b[36m"));
        assert!(shown(Mode::Live, true, draw).contains("\x1b[36m"));
    }

    #[test]
    fn quiet_is_quiet() {
        let text = shown(Mode::Quiet, false, |progress| {
            progress.update(&status(1, 1.0));
            progress.note("x");
            progress.finish();
        });
        assert_eq!(text, "");
    }

    #[test]
    fn loss_is_smoothed_and_a_diverged_one_shows() {
        let mut progress = Progress::new(Vec::new(), Style { mode: Mode::Plain, color: false });
        for (step, loss) in [(1, 1.0), (2, 3.0)] {
            progress.update(&Status { loss, ..status(step, 0.0) });
        }
        let loss = progress.status.unwrap().loss;
        assert!(loss > 1.0 && loss < 1.5, "{loss}");
        progress.update(&Status { loss: f64::NAN, ..status(3, 9.0) });
        assert!(String::from_utf8(progress.out.clone()).unwrap().contains("loss NaN"));
        progress.update(&Status { loss: 2.0, ..status(4, 9.0) });
        assert_eq!(progress.status.unwrap().loss, 2.0);
    }

    /// Invariant 3.
    #[test]
    fn a_closed_pipe_is_no_matter() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut progress = Progress::new(Closed, Style { mode: Mode::Live, color: true });
        progress.update(&status(1, 1.0));
        progress.note("x");
        progress.finish();
    }
}

//! `loss.svg`: a run at a glance.
//!
//! The large panel shows the training loss over the steps: every step as a band, its trend as a line,
//! epochs as dotted verticals, on a logarithmic axis where the values call for one. Three small panels
//! below show the learning rate, the speed, and where a step's time goes.
//!
//! Invariants:
//! 1. However many steps, the file stays small: each panel has at most [`COLUMNS`] points, and a step's
//!    extremes survive in its column's band.
//! 2. Any records give a valid drawing: none, one, with NaN, with zeros.
//! 3. The job's name cannot break out of the text it stands in.

mod scale;
mod series;
mod svg;

use super::human;
use super::metrics::{EvaluationRecord, StepRecord};
use scale::Scale;
use svg::{Anchor, Svg};

/// Points of the large panel at most; half of that in each small one.
pub const COLUMNS: usize = 436;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 620.0;
const MAIN: Panel = Panel { left: 64.0, right: 932.0, top: 104.0, bottom: 414.0 };
const SMALL_TOP: f64 = 490.0;
const SMALL_BOTTOM: f64 = 578.0;
const SMALL: [Panel; 3] = [
    Panel { left: 64.0, right: 308.0, top: SMALL_TOP, bottom: SMALL_BOTTOM },
    Panel { left: 376.0, right: 620.0, top: SMALL_TOP, bottom: SMALL_BOTTOM },
    Panel { left: 688.0, right: 932.0, top: SMALL_TOP, bottom: SMALL_BOTTOM },
];
/// Pixels between epoch labels at least.
const EPOCH_SPACING: f64 = 62.0;

/// What the plot says besides the records.
#[derive(Debug, Clone, Copy)]
pub struct Heading<'a> {
    /// The job's name.
    pub job: &'a str,
    /// Final accuracy on the test set, 0 to 1.
    pub test_accuracy: Option<f64>,
    /// Of a text, bits for each byte that was held out.
    pub bits_per_byte: Option<f64>,
    /// Workers that took part.
    pub workers: u32,
    /// Servers that took part.
    pub servers: u32,
}

#[derive(Debug, Clone, Copy)]
struct Panel {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Panel {
    /// The axis of `steps`, from before the first to after the last.
    fn x(&self, steps: (f64, f64)) -> Scale {
        Scale::linear(steps, (self.left, self.right))
    }

    const fn y_pixels(&self) -> (f64, f64) {
        (self.bottom, self.top)
    }
}

/// The whole drawing.
pub fn loss_svg(records: &[StepRecord], evaluations: &[EvaluationRecord], heading: &Heading<'_>) -> String {
    let title = match (heading.bits_per_byte, heading.test_accuracy) {
        (Some(bits), _) => format!("{} — {bits:.3} bits per byte held out", heading.job),
        (None, Some(accuracy)) => format!("{} — {} test accuracy", heading.job, human::percent(accuracy)),
        (None, None) => heading.job.to_string(),
    };
    let subtitle = subtitle(records, heading);
    let mut svg = Svg::new(WIDTH, HEIGHT, &title, &subtitle);
    svg.text("title", 28.0, 42.0, Anchor::Start, &title);
    svg.text("sub", 28.0, 64.0, Anchor::Start, &subtitle);
    let (Some(first), Some(last)) = (records.first(), records.last()) else {
        svg.text("sub", WIDTH / 2.0, HEIGHT / 2.0, Anchor::Middle, "no step was recorded");
        return svg.finish();
    };
    let steps = (first.step.saturating_sub(1) as f64, last.step as f64);
    main_panel(&mut svg, records, evaluations, steps);
    let [rate, speed, time] = SMALL;
    let panel = |svg: &mut Svg, panel, name, class, values: Vec<f64>| {
        line_panel(svg, records, steps, panel, name, class, &values);
    };
    panel(&mut svg, rate, "learning rate", "rate", column_of(records, |record| record.learning_rate));
    panel(
        &mut svg,
        speed,
        "samples/s",
        "speed",
        series::smoothed(&column_of(records, |r| r.samples_per_second)),
    );
    time_panel(&mut svg, records, steps, time);
    svg.finish()
}

fn subtitle(records: &[StepRecord], heading: &Heading<'_>) -> String {
    let nodes = |number: u32, noun| format!("{number} {noun}{}", if number == 1 { "" } else { "s" });
    let mut parts = Vec::new();
    if let Some(last) = records.last() {
        let smoothed = series::smoothed(&column_of(records, |record| record.loss));
        if let Some(loss) = smoothed.last().filter(|loss| loss.is_finite()) {
            parts.push(format!("training loss {}", human::loss(*loss)));
        }
        parts.push(format!("{} steps in {}", human::count(last.step), human::seconds(last.elapsed_seconds)));
        let bytes: u64 = records
            .iter()
            .map(|record| record.bytes_sent.saturating_add(record.bytes_received))
            .fold(0, u64::saturating_add);
        parts.push(format!("{} moved", human::bytes(bytes)));
    }
    parts.push(format!("{}, {}", nodes(heading.workers, "worker"), nodes(heading.servers, "server")));
    parts.join("  ·  ")
}

fn column_of(records: &[StepRecord], field: impl Fn(&StepRecord) -> f64) -> Vec<f64> {
    records.iter().map(field).collect()
}

fn main_panel(svg: &mut Svg, records: &[StepRecord], evaluations: &[EvaluationRecord], steps: (f64, f64)) {
    let loss = column_of(records, |record| record.loss);
    let smooth = series::smoothed(&loss);
    // Quantiles keep one wild step from flattening the rest; the trend itself is always in view.
    let ends = |share, fold: fn(f64, f64) -> f64| {
        let trend = smooth.iter().copied().filter(|value| value.is_finite()).reduce(fold);
        let tested = evaluations.iter().map(|found| found.test_loss).filter(|loss| loss.is_finite());
        series::quantile(&loss, share).into_iter().chain(trend).chain(tested).reduce(fold)
    };
    let (low, high) = (ends(0.002, f64::min).unwrap_or(0.0), ends(0.998, f64::max).unwrap_or(1.0));
    let (x, y) = (MAIN.x(steps), Scale::fitting(low, high, MAIN.y_pixels()));
    svg.text(
        "panel",
        MAIN.left,
        MAIN.top - 14.0,
        Anchor::Start,
        if y.logarithmic { "training loss (log scale)" } else { "training loss" },
    );
    axes(svg, &MAIN, &x, &y, 9, 6);
    svg.text("", (MAIN.left + MAIN.right) / 2.0, MAIN.bottom + 38.0, Anchor::Middle, "step");
    epochs(svg, records, &x);

    let at = |index: usize, value: f64| {
        let step = records.get(index).map_or(steps.1, |record| record.step as f64);
        (x.pixel(step), y.pixel(value))
    };
    let columns = series::columns(&loss, COLUMNS);
    if loss.len() > COLUMNS {
        let upper: Vec<_> = columns.iter().map(|column| at(column.index, column.greatest)).collect();
        let lower: Vec<_> = columns.iter().map(|column| at(column.index, column.least)).collect();
        svg.area("raw", &upper, &lower);
    } else {
        svg.polyline("rawline", columns.iter().map(|column| at(column.index, column.mean)));
    }
    let trend: Vec<_> =
        columns.iter().filter_map(|column| Some(at(column.index, *smooth.get(column.index)?))).collect();
    svg.polyline("loss", trend.iter().copied());
    let every = evaluations.len().div_ceil(COLUMNS).max(1);
    let finite = evaluations.iter().filter(|found| found.test_loss.is_finite());
    let tested: Vec<_> =
        finite.step_by(every).map(|found| (x.pixel(found.step as f64), y.pixel(found.test_loss))).collect();
    svg.polyline("test", tested.iter().copied());
    if tested.len() <= COLUMNS / 8 {
        tested.iter().for_each(|(at_x, at_y)| svg.dot("testdot", *at_x, *at_y, 3.0));
    }
    legend(svg, loss.len() > COLUMNS, !tested.is_empty());
    if let Some((end, value)) = trend.last().zip(smooth.last()) {
        svg.dot("dot", end.0, end.1, 4.5);
        // Above the line, unless that is above the panel.
        let above = end.1 - MAIN.top > 30.0;
        let label_y = if above { end.1 - 12.0 } else { end.1 + 22.0 };
        svg.text("value", end.0, label_y, Anchor::End, &human::loss(*value));
    }
    if let Some(bad) = records.iter().find(|record| !record.loss.is_finite()) {
        let text = format!("the loss is not finite at step {}", human::count(bad.step));
        svg.text("bad", (MAIN.left + MAIN.right) / 2.0, MAIN.top + 40.0, Anchor::Middle, &text);
    }
}

fn legend(svg: &mut Svg, band: bool, tested: bool) {
    let y = MAIN.top - 14.0;
    if tested {
        svg.line("test", (MAIN.right - 248.0, y - 4.0), (MAIN.right - 230.0, y - 4.0));
        svg.text("", MAIN.right - 224.0, y, Anchor::Start, "test set");
    }
    svg.swatch(if band { "raw" } else { "rawline" }, MAIN.right - 176.0, y - 9.0, 18.0, 9.0);
    svg.text("", MAIN.right - 152.0, y, Anchor::Start, "each step");
    svg.line("loss", (MAIN.right - 82.0, y - 4.0), (MAIN.right - 64.0, y - 4.0));
    svg.text("", MAIN.right - 58.0, y, Anchor::Start, "smoothed");
}

/// Verticals where epochs begin, every one or every so many, as there is room for their names. The first
/// epoch's beginning is the axis and goes without.
fn epochs(svg: &mut Svg, records: &[StepRecord], x: &Scale) {
    let begins = records.windows(2).filter_map(|pair| match pair {
        [before, after] if before.epoch != after.epoch => {
            Some((x.pixel(after.step as f64 - 1.0), after.epoch))
        }
        _ => None,
    });
    let begins: Vec<_> = begins.collect();
    let spacing = (x.pixels.1 - x.pixels.0) / (begins.len() + 1) as f64;
    let every = (EPOCH_SPACING / spacing).ceil().max(1.0) as u64;
    let mut free_from = x.pixels.0;
    for (at, epoch) in begins {
        if !(epoch - 1).is_multiple_of(every) || at < free_from || at + EPOCH_SPACING > x.pixels.1 {
            continue;
        }
        free_from = at + EPOCH_SPACING;
        svg.line("epoch", (at, MAIN.top), (at, MAIN.bottom));
        svg.text("epochname", at + 5.0, MAIN.top + 14.0, Anchor::Start, &format!("epoch {epoch}"));
    }
}

fn axes(svg: &mut Svg, panel: &Panel, x: &Scale, y: &Scale, x_ticks: usize, y_ticks: usize) {
    for tick in y.ticks(y_ticks) {
        let at = y.pixel(tick.value);
        svg.line("grid", (panel.left, at), (panel.right, at));
        svg.text("", panel.left - 8.0, at + 4.0, Anchor::End, &tick.label);
    }
    svg.line("axis", (panel.left, panel.bottom), (panel.right, panel.bottom));
    for tick in x.ticks(x_ticks) {
        let at = x.pixel(tick.value);
        svg.line("axis", (at, panel.bottom), (at, panel.bottom + 4.0));
        svg.text("", at, panel.bottom + 18.0, Anchor::Middle, &tick.label);
    }
}

/// A small panel with one line from 0 up.
fn line_panel(
    svg: &mut Svg,
    records: &[StepRecord],
    steps: (f64, f64),
    panel: Panel,
    name: &str,
    class: &str,
    values: &[f64],
) {
    let high = values.iter().copied().filter(|value| value.is_finite()).fold(0.0, f64::max);
    let (x, y) = (panel.x(steps), Scale::from_zero(high, panel.y_pixels()));
    svg.text("panel", panel.left, panel.top - 12.0, Anchor::Start, name);
    axes(svg, &panel, &x, &y, 4, 4);
    let columns = series::columns(values, COLUMNS / 2);
    let points = columns.iter().filter_map(|column| {
        let step = records.get(column.index)?.step as f64;
        Some((x.pixel(step), y.pixel(column.mean)))
    });
    svg.polyline(class, points);
}

/// The small panel of where time goes, stacked.
fn time_panel(svg: &mut Svg, records: &[StepRecord], steps: (f64, f64), panel: Panel) {
    let parts = [
        ("compute", series::columns(&series::smoothed(&column_of(records, |r| r.compute_ms)), COLUMNS / 2)),
        ("send", series::columns(&series::smoothed(&column_of(records, |r| r.send_ms)), COLUMNS / 2)),
        ("wait", series::columns(&series::smoothed(&column_of(records, |r| r.wait_ms)), COLUMNS / 2)),
    ];
    let points = parts.iter().map(|(_, columns)| columns.len()).min().unwrap_or(0);
    let mut tops = vec![0.0; points];
    for (_, columns) in &parts {
        tops.iter_mut().zip(columns).for_each(|(top, column)| *top += column.mean.max(0.0));
    }
    let high = tops.iter().copied().fold(0.0, f64::max);
    let (x, y) = (panel.x(steps), Scale::from_zero(high, panel.y_pixels()));
    svg.text("panel", panel.left, panel.top - 12.0, Anchor::Start, "ms/step");
    axes(svg, &panel, &x, &y, 4, 4);
    let mut below = vec![0.0; points];
    for (class, columns) in &parts {
        let line = |heights: &[f64]| -> Vec<(f64, f64)> {
            let step = |index: usize| records.get(index).map_or(steps.1, |record| record.step as f64);
            let pair = heights.iter().zip(columns);
            pair.map(|(height, column)| (x.pixel(step(column.index)), y.pixel(*height))).collect()
        };
        let lower = line(&below);
        below.iter_mut().zip(columns).for_each(|(height, column)| *height += column.mean.max(0.0));
        svg.area(class, &line(&below), &lower);
    }
    for (index, (name, _)) in parts.iter().enumerate() {
        let at = panel.right - [172.0, 98.0, 44.0].get(index).copied().unwrap_or(0.0);
        svg.swatch(name, at, panel.top - 21.0, 9.0, 9.0);
        svg.text("", at + 14.0, panel.top - 12.0, Anchor::Start, name);
    }
}

#[cfg(test)]
mod tests;

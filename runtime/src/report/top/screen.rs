//! What stands on the screen, line by line.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use testudo_actors::message::{Finished, MemberRole, Outcome, StatusReport};

use super::series::Series;
use super::{Top, Wish, nodes};
use crate::report::human;
use crate::report::status::plain;

/// The smallest terminal on which there is something to see.
const LEAST: (usize, usize) = (60, 20);
/// Lines of a curve, on a small terminal and on one that is not.
const CURVE: (usize, usize) = (3, 6);
/// The height from which on a terminal is not small.
const TALL: usize = 36;

/// A kind of text. Without colours, what matters is bold or reversed.
#[derive(Clone, Copy)]
enum Tone {
    Plain,
    Quiet,
    Good,
    Notice,
    Bad,
    Curve,
    Heading,
}

/// The screen of `top` on a terminal of `width` and `height` cells; colours only with `color`.
#[must_use]
pub fn lines(top: &Top, (width, height): (u16, u16), color: bool) -> Vec<Line<'static>> {
    let (width, height) = (usize::from(width), usize::from(height));
    let pen = Pen { width, color };
    if width < LEAST.0 || height < LEAST.1 {
        return small(pen, height);
    }
    let Some(report) = top.report.as_ref().filter(|_| !top.is_help) else {
        let mut lines = match (top.is_help, &top.lost) {
            (true, _) => help(pen),
            (false, Some(why)) => vec![pen.line(Tone::Bad, why)],
            (false, None) => vec![pen.line(Tone::Plain, "asking the scheduler ...")],
        };
        lines.truncate(height - 1);
        lines.resize(height - 1, Line::default());
        lines.push(pen.line(Tone::Heading, if top.is_help { " ? back   q quit" } else { " q quit" }));
        return lines;
    };
    let mut lines = head(pen, top, report, height);
    let foot = foot(pen, top, report);
    table(pen, top, report, height.saturating_sub(lines.len() + foot.len()), &mut lines);
    lines.resize(height - foot.len(), Line::default());
    lines.extend(foot);
    lines
}

/// How many nodes can be scrolled past on such a terminal.
pub(super) fn most_skipped(top: &Top, (width, height): (u16, u16)) -> usize {
    let (width, height) = (usize::from(width), usize::from(height));
    let Some(report) = &top.report else { return 0 };
    let pen = Pen { width, color: false };
    let others = head(pen, top, report, height).len() + foot(pen, top, report).len();
    let table = nodes::table(report, top.sort, width.saturating_sub(1));
    table.rows.len().saturating_sub(rows(&table, height.saturating_sub(others)))
}

/// What stands above the nodes, on a terminal of that height.
fn head(pen: Pen, top: &Top, report: &StatusReport, height: usize) -> Vec<Line<'static>> {
    let mut lines = vec![title(pen, top, report), bar(pen, report)];
    curves(pen, top, report, curve(height), &mut lines);
    lines.push(pen.line(Tone::Plain, &evaluated(report)));
    lines.push(pen.line(Tone::Quiet, &members(report)));
    lines.extend(trouble(pen, top, report));
    lines.push(Line::default());
    lines
}

/// Lines of a curve on a terminal of that height.
fn curve(height: usize) -> usize {
    if height < TALL { CURVE.0 } else { CURVE.1 }
}

/// Nodes that are shown in so many lines: if not all fit, or not all columns do, one line says so.
fn rows(table: &nodes::Table, height: usize) -> usize {
    let room = height.saturating_sub(1);
    if table.rows.len() > room || !table.left_out.is_empty() { room.saturating_sub(1) } else { room }
}

/// A terminal's width, and whether it has colours to use.
#[derive(Clone, Copy)]
struct Pen {
    width: usize,
    color: bool,
}

impl Pen {
    fn style(self, tone: Tone) -> Style {
        let style = Style::new();
        let (color, modifier) = match tone {
            Tone::Plain => (None, Modifier::empty()),
            Tone::Quiet => (None, Modifier::DIM),
            Tone::Good => (Some(Color::Green), Modifier::BOLD),
            Tone::Notice => (Some(Color::Yellow), Modifier::BOLD),
            Tone::Bad => (Some(Color::Red), Modifier::BOLD.union(Modifier::REVERSED)),
            Tone::Curve => (Some(Color::Cyan), Modifier::empty()),
            Tone::Heading => (None, Modifier::REVERSED),
        };
        let style = style.add_modifier(modifier);
        match color.filter(|_| self.color) {
            Some(color) => style.fg(color),
            None => style,
        }
    }

    /// Text that fits: what is cut ends with an ellipsis.
    fn line(self, tone: Tone, text: &str) -> Line<'static> {
        let mut text = fit(&plain(text), self.width);
        if matches!(tone, Tone::Heading) {
            text += &" ".repeat(self.width.saturating_sub(text.chars().count()));
        }
        Line::from(self.span(tone, text))
    }

    fn span(self, tone: Tone, text: String) -> Span<'static> {
        Span::styled(text, self.style(tone))
    }
}

fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

fn small(pen: Pen, height: usize) -> Vec<Line<'static>> {
    let (width, least) = (pen.width, LEAST);
    let text = [
        format!("{width}x{height} is too small:"),
        format!("{}x{} are needed.", least.0, least.1),
        "q quit".to_owned(),
    ];
    text.iter().map(|text| pen.line(Tone::Plain, text)).take(height).collect()
}

fn title(pen: Pen, top: &Top, report: &StatusReport) -> Line<'static> {
    let tone = match top.state() {
        "failed" | "lost" => Tone::Bad,
        "paused" | "stopping" => Tone::Notice,
        _ => Tone::Good,
    };
    let state = top.state();
    let percent = (report.steps_done as f64 / report.steps.max(1) as f64 * 100.0).floor();
    let place = format!(
        "  step {}/{} ({percent:.0}%)  epoch {}/{}",
        human::count(report.steps_done),
        human::count(report.steps),
        report.epoch + 1,
        report.epochs,
    );
    let left = top.seconds_left().map_or_else(String::new, |left| format!("{} left", human::countdown(left)));
    let room = pen.width.saturating_sub(state.len() + place.len() + left.len() + 4);
    let job = fit(&plain(&top.job), room);
    let used = 1 + job.chars().count() + 2 + state.len() + place.len() + left.len() + 1;
    Line::from(vec![
        pen.span(Tone::Plain, format!(" {job}  ")),
        pen.span(tone, state.to_owned()),
        pen.span(Tone::Plain, format!("{place}{}{left} ", " ".repeat(pen.width.saturating_sub(used)))),
    ])
}

fn bar(pen: Pen, report: &StatusReport) -> Line<'static> {
    let cells = pen.width.saturating_sub(2);
    let share = report.steps_done as f64 / report.steps.max(1) as f64;
    let done = ((share * cells as f64) as usize).min(cells);
    Line::from(vec![
        pen.span(Tone::Curve, format!(" {}", "━".repeat(done))),
        pen.span(Tone::Quiet, "─".repeat(cells - done)),
    ])
}

/// Loss and throughput, side by side, each under its newest number and its range.
fn curves(pen: Pen, top: &Top, report: &StatusReport, height: usize, lines: &mut Vec<Line<'static>>) {
    let half = pen.width / 2;
    let loss = report.loss.map_or_else(|| "-".into(), human::loss);
    let (low, high) = top.loss.range().unwrap_or((0.0, 0.0));
    let range = top
        .loss
        .range()
        .map_or_else(String::new, |(low, high)| format!("  {} to {}", human::loss(low), human::loss(high)));
    let left = (format!("loss {loss}"), range, top.loss.bars(half - 2, height, (low, high)));
    let rate = human::rate(report.samples_per_second);
    let steps =
        top.steps_per_second.map_or_else(String::new, |rate| format!("  {} steps/s", human::rate(rate)));
    let most = top.throughput.range().map_or(0.0, |(_, most)| most);
    // From nothing on: a rate that halves is to look like it.
    let curve = |series: &Series| series.bars(half - 2, height, (0.0, most.max(f64::MIN_POSITIVE)));
    let right = (format!("{rate} samples/s"), steps, curve(&top.throughput));
    let mut heading = Vec::new();
    for (number, beside, _) in [&left, &right] {
        let number = fit(number, half - 2);
        let beside = fit(beside, half - 2 - number.chars().count());
        let space = " ".repeat((half - 1).saturating_sub(number.chars().count() + beside.chars().count()));
        heading.push(Span::styled(format!(" {number}"), pen.style(Tone::Plain).add_modifier(Modifier::BOLD)));
        heading.push(pen.span(Tone::Quiet, format!("{beside}{space}")));
    }
    lines.push(Line::from(heading));
    for (left, right) in left.2.into_iter().zip(right.2) {
        lines.push(Line::from(pen.span(Tone::Curve, format!(" {left}  {right}"))));
    }
}

fn evaluated(report: &StatusReport) -> String {
    match &report.evaluated {
        Some(found) => format!(
            " test loss {}, accuracy {} after step {}",
            human::loss(found.loss),
            human::percent(found.accuracy),
            human::count(found.step)
        ),
        None => " no evaluation yet".into(),
    }
}

fn members(report: &StatusReport) -> String {
    let of = |role| report.nodes.iter().filter(|node| node.member.role == role).count();
    let lost = match report.workers_lost {
        0 => String::new(),
        lost => format!("  {lost} lost"),
    };
    format!(
        " workers {}/{}  servers {}{lost}  operators {}  membership {}  leased to {}",
        of(MemberRole::Worker),
        report.workers_wanted,
        of(MemberRole::Server),
        report.operators,
        report.membership_epoch,
        human::count(report.until),
    )
}

/// What should not be.
fn trouble(pen: Pen, top: &Top, report: &StatusReport) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(stalled) = &report.stalled {
        lines.push(pen.line(Tone::Bad, &format!(" stalled: {stalled}")));
    }
    match (&report.outcome, &top.lost) {
        (Some(Outcome::Failed(reason) | Outcome::ServerLost(reason)), _) => {
            lines.push(pen.line(Tone::Bad, &format!(" the run failed: {reason}")));
        }
        (Some(Outcome::Finished(finished)), _) => lines.push(pen.line(Tone::Good, &ended(finished))),
        (None, Some(why)) => lines.push(pen.line(Tone::Bad, &format!(" {why}"))),
        (None, None) => {}
    }
    lines
}

fn ended(finished: &Finished) -> String {
    let how = if finished.stopped_early { "stopped" } else { "finished" };
    format!(
        " the run has {how} after step {}: test accuracy {}, {} in {}",
        human::count(finished.steps),
        human::percent(finished.test_accuracy),
        human::count(finished.samples) + " samples",
        human::seconds(finished.training_seconds),
    )
}

/// The nodes, in at most `height` lines; what does not fit is counted.
fn table(pen: Pen, top: &Top, report: &StatusReport, height: usize, lines: &mut Vec<Line<'static>>) {
    let table = nodes::table(report, top.sort, pen.width - 1);
    lines.push(pen.line(Tone::Heading, &format!(" {}", table.headings)));
    let (all, rows) = (table.rows.len(), rows(&table, height));
    let skipped = top.skipped.min(all.saturating_sub(rows));
    for row in table.rows.iter().skip(skipped).take(rows) {
        lines.push(pen.line(Tone::Plain, &format!(" {row}")));
    }
    let below = all.saturating_sub(skipped + rows);
    let mut notes = Vec::new();
    if skipped + below > 0 {
        notes.push(format!("{skipped} more above, {below} below: arrow keys"));
    }
    if !table.left_out.is_empty() {
        notes.push(format!("too narrow for: {}", table.left_out.join(", ")));
    }
    if !notes.is_empty() {
        lines.push(pen.line(Tone::Quiet, &format!(" ({})", notes.join("; "))));
    }
}

/// What was refused, what was said last, and the keys.
fn foot(pen: Pen, top: &Top, report: &StatusReport) -> Vec<Line<'static>> {
    let reasons = nodes::reasons(report);
    let since = nodes::refused(report).saturating_sub(top.refused_before);
    let refused = match reasons.is_empty() {
        true => pen.line(Tone::Quiet, " refused: nothing"),
        false => {
            let each: Vec<String> =
                reasons.iter().map(|(reason, count)| format!("{reason} {}", human::count(*count))).collect();
            let new =
                if since > 0 { format!("  ({} since you look)", human::count(since)) } else { String::new() };
            let tone = if since > 0 { Tone::Notice } else { Tone::Plain };
            pen.line(tone, &format!(" refused: {}{new}", each.join(", ")))
        }
    };
    let said = match &top.said {
        _ if top.asked == Some(Wish::Pause) => pen.line(Tone::Notice, " pause the run? p again"),
        _ if top.asked == Some(Wish::Resume) => pen.line(Tone::Notice, " let the run go on? p again"),
        Some(Ok(done)) => pen.line(Tone::Plain, &format!(" {done}")),
        Some(Err(why)) => pen.line(Tone::Notice, &format!(" refused by the scheduler: {why}")),
        None => Line::default(),
    };
    let pause = if report.paused { "resume" } else { "pause" };
    let keys = format!(" q quit   p {pause}   s sort: {}   ? help", top.sort.word());
    vec![refused, said, pen.line(Tone::Heading, &keys)]
}

fn help(pen: Pen) -> Vec<Line<'static>> {
    const TEXT: [(&str, &str); 17] = [
        ("q", "leave; the run goes on. So do Esc and Ctrl-C"),
        ("p", "twice: end the steps under way and begin no other, or go on again"),
        ("s", "sort nodes by the next column: those behind, silent or full first"),
        ("up, down", "look at more nodes than fit"),
        ("", ""),
        ("node", "role and number; a worker that joined again has a higher inc"),
        ("heard", "since it last said anything"),
        ("step", "the step a worker is in; a server's lowest version"),
        ("shards", "logical shards that it has leases on"),
        ("push", "queue: gradients sent and not answered, or come and not added up"),
        ("pull", "queue: parameters asked for and not there yet"),
        ("held", "bytes of messages that came and are not done with"),
        ("credit", "bytes that peers may send by what it promised, of all it may promise"),
        ("refused", "strangers, floods and broken messages turned away since it is up"),
        ("waits for", "the slice that keeps it from going on"),
        ("loss", "the curves are of the time that you look, the newest at the right"),
        ("", "every number: docs/watching.md; for programs: testudo status --json"),
    ];
    let mut lines = vec![pen.line(Tone::Heading, " testudo top"), Line::default()];
    lines.extend(TEXT.iter().map(|(what, means)| {
        let what = Span::styled(format!(" {what:<10}"), pen.style(Tone::Plain).add_modifier(Modifier::BOLD));
        Line::from(vec![what, pen.span(Tone::Plain, fit(means, pen.width.saturating_sub(11)))])
    }));
    lines
}

//! The table of nodes: a row each, the scheduler's included, and columns by how much they matter where not all fit.

use testudo_actors::message::{Load, NodeStatus, StatusReport};

use crate::report::human;
use crate::report::status::{plain, total};

/// Cells between two columns, and where that is too many.
const GAPS: [usize; 2] = [2, 1];

/// By what nodes are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// By name.
    Node,
    /// Those that are behind first.
    Step,
    /// Those that are silent first.
    Heard,
    /// Those that have most requests without an answer first.
    Queue,
    /// Those that hold most first.
    Held,
    /// Those that promised the greatest part of what they may first.
    Credit,
    /// Those that refused most first.
    Refused,
}

impl Sort {
    /// The next one, and after the last the first.
    #[must_use]
    pub fn next(self) -> Sort {
        match self {
            Sort::Node => Sort::Step,
            Sort::Step => Sort::Heard,
            Sort::Heard => Sort::Queue,
            Sort::Queue => Sort::Held,
            Sort::Held => Sort::Credit,
            Sort::Credit => Sort::Refused,
            Sort::Refused => Sort::Node,
        }
    }

    /// In words, for a person.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Sort::Node => "node",
            Sort::Step => "step",
            Sort::Heard => "heard",
            Sort::Queue => "queue",
            Sort::Held => "held",
            Sort::Credit => "credit",
            Sort::Refused => "refused",
        }
    }
}

/// A column: its heading, whether it is flush left, and its place among those that are left out where not all fit: the highest goes first.
struct Column {
    heading: &'static str,
    is_text: bool,
    rank: u8,
}

const fn column(heading: &'static str, is_text: bool, rank: u8) -> Column {
    Column { heading, is_text, rank }
}

const COLUMNS: [Column; 11] = [
    column("node", true, 0),
    column("inc", false, 8),
    column("heard", false, 6),
    column("step", false, 1),
    column("shards", false, 7),
    column("push", false, 3),
    column("pull", false, 4),
    column("held", false, 5),
    column("credit", false, 2),
    column("refused", false, 2),
    column("waits for", true, 9),
];

/// A table that fits.
pub(super) struct Table {
    /// The line of headings.
    pub(super) headings: String,
    /// A line a node, whether it is the scheduler's own or a member's.
    pub(super) rows: Vec<String>,
    /// The headings of columns that did not fit.
    pub(super) left_out: Vec<&'static str>,
}

/// All nodes of `report` in lines of at most `width` cells.
pub(super) fn table(report: &StatusReport, sort: Sort, width: usize) -> Table {
    let mut nodes: Vec<&NodeStatus> = report.nodes.iter().collect();
    nodes.sort_by(|a, b| compare(sort, a, b).then_with(|| a.member.cmp(&b.member)));
    let mut cells = vec![row("scheduler/0", ["-", "-", "-", "-"].map(str::to_owned), "", &report.load)];
    cells.extend(nodes.into_iter().map(node));

    let mut widths: Vec<usize> = COLUMNS.iter().map(|column| column.heading.len()).collect();
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut shown: Vec<usize> = (0..COLUMNS.len()).collect();
    // A column in which nothing stands takes no place, and is not missed.
    shown.retain(|at| COLUMNS.get(*at).is_some_and(|c| c.rank < 9) || waits(&cells));
    let fits = |shown: &[usize], gap: usize| {
        let total: usize = shown.iter().map(|at| widths.get(*at).unwrap_or(&0) + gap).sum();
        total <= width + gap
    };
    let [gap, narrow] = GAPS;
    let mut left_out = Vec::new();
    while !fits(&shown, narrow) && shown.len() > 1 {
        let rank = |at: &usize| COLUMNS.get(*at).map_or(0, |column| column.rank);
        let Some(last) = shown.iter().copied().max_by_key(rank) else { break };
        shown.retain(|at| *at != last);
        left_out.extend(COLUMNS.get(last).map(|column| column.heading));
    }
    let gap = if fits(&shown, gap) { gap } else { narrow };
    let line = |cell: &dyn Fn(usize) -> String| {
        let mut text = String::new();
        for at in &shown {
            let (Some(column), Some(width)) = (COLUMNS.get(*at), widths.get(*at)) else { continue };
            let cell = cell(*at);
            text += &" ".repeat(if text.is_empty() { 0 } else { gap });
            let space = " ".repeat(width.saturating_sub(cell.chars().count()));
            text += &if column.is_text { cell + &space } else { space + &cell };
        }
        text
    };
    let headings = line(&|at| COLUMNS.get(at).map_or("", |column| column.heading).to_owned());
    let rows = cells.iter().map(|row| line(&|at| row.get(at).cloned().unwrap_or_default())).collect();
    Table { headings, rows, left_out }
}

fn waits(cells: &[[String; COLUMNS.len()]]) -> bool {
    cells.iter().any(|row| row.last().is_some_and(|cell| !cell.is_empty()))
}

/// What all nodes refused, joins included.
pub(super) fn refused(report: &StatusReport) -> u64 {
    reasons(report).into_iter().fold(0, |sum, (_, count)| sum.saturating_add(count))
}

/// The same by reason; only those that there are.
pub(super) fn reasons(report: &StatusReport) -> Vec<(&'static str, u64)> {
    let all = total(report).reasons().into_iter().chain([("joins", report.joins_refused)]);
    all.filter(|(_, count)| *count > 0).collect()
}

fn node(node: &NodeStatus) -> [String; COLUMNS.len()] {
    let shards = if node.shards == 0 { "-".to_owned() } else { node.shards.to_string() };
    let said = [
        node.incarnation.to_string(),
        heard(node.heard_ms),
        // A server that keeps no slice is at no version.
        if node.step == u64::MAX { "-".to_owned() } else { human::count(node.step) },
        shards,
    ];
    row(&node.member.to_string(), said, node.waiting.as_deref().unwrap_or_default(), &node.load)
}

fn row(name: &str, said: [String; 4], waits: &str, load: &Load) -> [String; COLUMNS.len()] {
    let [incarnation, heard, step, shards] = said;
    [
        name.to_owned(),
        incarnation,
        heard,
        step,
        shards,
        load.pushes.to_string(),
        load.pulls.to_string(),
        human::bytes(load.held_bytes),
        credit(load),
        human::count(of_node(load)),
        waits.to_owned(),
    ]
    .map(|cell| plain(&cell))
}

/// What peers may send, as promised, and what part that is of all that may be.
fn credit(load: &Load) -> String {
    let promised = human::bytes(load.promised_bytes);
    match share(load) {
        Some(share) => format!("{promised} {:>3.0}%", share * 100.0),
        None => promised,
    }
}

fn share(load: &Load) -> Option<f64> {
    (load.budget_bytes > 0).then(|| load.promised_bytes as f64 / load.budget_bytes as f64)
}

fn of_node(load: &Load) -> u64 {
    load.refused.reasons().into_iter().fold(0, |sum, (_, count)| sum.saturating_add(count))
}

fn heard(milliseconds: u64) -> String {
    match milliseconds {
        0..10_000 => format!("{milliseconds} ms"),
        _ => human::countdown(milliseconds as f64 / 1e3),
    }
}

fn compare(sort: Sort, a: &NodeStatus, b: &NodeStatus) -> std::cmp::Ordering {
    let queue = |node: &NodeStatus| u64::from(node.load.pushes) + u64::from(node.load.pulls);
    match sort {
        Sort::Node => std::cmp::Ordering::Equal,
        Sort::Step => a.step.cmp(&b.step),
        Sort::Heard => b.heard_ms.cmp(&a.heard_ms),
        Sort::Queue => queue(b).cmp(&queue(a)),
        Sort::Held => b.load.held_bytes.cmp(&a.load.held_bytes),
        Sort::Credit => share(&b.load).unwrap_or(0.0).total_cmp(&share(&a.load).unwrap_or(0.0)),
        Sort::Refused => of_node(&b.load).cmp(&of_node(&a.load)),
    }
}

//! Screens, drawn by ratatui's test backend. `TESTUDO_REGENERATE=1` writes the whole ones anew, into `snapshots/`.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};
use ratatui::widgets::Paragraph;
use testudo_actors::message::{Load, Member, MemberRole, NodeStatus, Refused};

use super::*;
use crate::report::status::tests::report as known;

fn node(role: MemberRole, index: u32) -> NodeStatus {
    let refused = Refused { strangers: u64::from(index) * 3, ..Refused::default() };
    let load = Load {
        held_bytes: 40_000 * u64::from(index),
        promised_bytes: 3 << 20,
        budget_bytes: 64 << 20,
        connections: 3,
        pushes: 4 + index,
        pulls: 12 - index,
        busy_us: 0,
        refused,
    };
    NodeStatus {
        member: Member { role, index },
        incarnation: 1 + u64::from(index),
        heard_ms: 40 + 20 * u64::from(index),
        step: 1_235 - u64::from(index),
        shards: if role == MemberRole::Worker { 4 } else { 0 },
        waiting: None,
        load,
    }
}

fn report(steps_done: u64) -> StatusReport {
    let nodes = [(MemberRole::Server, 2), (MemberRole::Worker, 4)];
    StatusReport {
        steps_done,
        loss: Some(2.3 / (1.0 + steps_done as f64 / 200.0)),
        workers_wanted: 4,
        load: Load { budget_bytes: 64 << 20, ..Load::default() },
        nodes: nodes
            .into_iter()
            .flat_map(|(role, count)| (0..count).map(move |index| node(role, index)))
            .collect(),
        ..known()
    }
}

/// Looked at for a while.
fn top() -> Top {
    let mut top = Top::new("mnist");
    for second in 0..30_u32 {
        top.told(f64::from(second), report(200 + 35 * u64::from(second)));
    }
    top
}

fn terminal(top: &Top, size: (u16, u16), color: bool) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    terminal
        .draw(|frame| frame.render_widget(Paragraph::new(lines(top, size, color)), frame.area()))
        .unwrap();
    terminal
}

fn screen(top: &Top, size: (u16, u16)) -> Vec<String> {
    let terminal = terminal(top, size, true);
    let cells = terminal.backend().buffer().content();
    cells.chunks(usize::from(size.0)).map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect()
}

/// The screen is what the file of that name in `snapshots/` says.
fn is_as_before(name: &str, screen: &[String]) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/report/top/snapshots").join(name);
    let text: String = screen.iter().map(|line| format!("{}\n", line.trim_end())).collect();
    if std::env::var_os("TESTUDO_REGENERATE").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&file).unwrap(), "{}", file.display());
}

/// Invariant 1: whole screens.
#[test]
fn screens_are_as_they_were() {
    is_as_before("80x24.txt", &screen(&top(), (80, 24)));
    is_as_before("120x40.txt", &screen(&top(), (120, 40)));
    let mut asked = top();
    asked.press(Key::Help);
    is_as_before("help.txt", &screen(&asked, (80, 24)));
}

/// Invariant 2: texts of peers, in every place that has one.
#[test]
fn what_peers_say_moves_no_cursor() {
    let bad = "fc1\u{1b}[2J\u{7}\u{9b}31m\r\n\u{202e}\u{200b}end";
    let mut told = report(10);
    told.nodes[0].waiting = Some(bad.into());
    told.stalled = Some(bad.into());
    let mut top = Top::new(bad);
    top.told(0.0, told.clone());
    top.answered(Err(bad.into()));
    let shows_plain = |top: &Top| {
        let text = screen(top, (160, 30)).join("\n");
        assert!(text.contains("end"), "{text}");
        let hides = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{200b}');
        assert!(!text.contains(hides), "{text:?}");
    };
    shows_plain(&top);
    top.told(1.0, StatusReport { outcome: Some(Outcome::Failed(bad.into())), ..told });
    shows_plain(&top);
    top.lost(bad.into());
    shows_plain(&top);
}

/// Invariant 3.
#[test]
fn what_does_not_fit_is_said_to_be_left_out() {
    let tiny = screen(&top(), (40, 10)).join("\n");
    assert!(tiny.contains("40x10 is too small:") && tiny.contains("60x20 are needed."), "{tiny}");
    screen(&top(), (1, 1));
    let mut many = report(10);
    many.nodes = (0..100).map(|index| node(MemberRole::Worker, index % 12)).collect();
    many.nodes[3].waiting = Some("fc1.weight of server/0, slice 3".into());
    let mut top = top();
    top.told(31.0, many);
    let text = screen(&top, (80, 24)).join("\n");
    assert!(text.contains("0 more above, "), "{text}");
    assert!(text.contains("too narrow for: waits for"), "{text}");
    (0..200).for_each(|_| assert_eq!(top.press(Key::Down), None));
    let text = screen(&top, (80, 24)).join("\n");
    assert!(text.contains(" more above, 0 below") && !text.contains("scheduler/0"), "{text}");
    top.fit((80, 24));
    assert_eq!(top.press(Key::Up), None);
    let text = screen(&top, (80, 24)).join("\n");
    assert!(
        text.contains(" more above, 1 below"),
        "one key is one line, however often the other was pressed: {text}"
    );
    (0..200).for_each(|_| assert_eq!(top.press(Key::Up), None));
    // Where there is room for the column, it is there, some way down.
    let is_shown = (0..100).any(|_| {
        let text = screen(&top, (120, 40)).join("\n");
        top.press(Key::Down);
        text.contains("fc1.weight of server/0, slice 3")
    });
    assert!(is_shown);
    let long = Top { job: "x".repeat(300), ..top };
    assert!(screen(&long, (80, 24))[0].contains("…  training"), "a long name leaves the rest its place");
}

#[test]
fn keys_ask_for_what_they_say() {
    let mut top = Top::new("mnist");
    assert_eq!(top.press(Key::Pause), None, "nothing is known yet");
    top.told(0.0, report(10));
    let asks = |top: &Top, question: &str| screen(top, (80, 24)).join("\n").contains(question);
    assert_eq!(top.press(Key::Pause), None);
    assert!(asks(&top, " pause the run? p again"));
    assert_eq!(top.press(Key::Pause), Some(Wish::Pause));
    assert!(!asks(&top, "p again") && asks(&top, "asked the scheduler to pause"));
    top.told(1.0, StatusReport { paused: true, ..report(12) });
    let text = screen(&top, (80, 24)).join("\n");
    assert!(
        text.contains("paused") && text.contains("p resume") && text.contains("asked the scheduler to pause")
    );
    assert!(!text.contains("left"), "nothing is known of how long a pause takes: {text}");
    assert_eq!(top.press(Key::Pause), None);
    assert!(asks(&top, " let the run go on? p again"));
    assert_eq!(top.press(Key::Pause), Some(Wish::Resume));
    top.press(Key::Help);
    assert_eq!(top.press(Key::Pause), None, "help hides what the key would do");
    assert_eq!(top.press(Key::Quit), Some(Wish::Quit));
    top.press(Key::Help);
    let orders: Vec<&str> = (0..7)
        .map(|_| {
            assert_eq!(top.press(Key::Sort), None);
            top.sort.word()
        })
        .collect();
    assert_eq!(orders, ["step", "heard", "queue", "held", "credit", "refused", "node"]);
    top.lost("the connection to the scheduler was lost".into());
    assert!(top.is_over() && top.press(Key::Pause).is_none());
    assert!(screen(&top, (80, 24)).join("\n").contains("the connection to the scheduler was lost"));
}

/// Invariant 5: what was asked is not done when another key comes between, when help hides the question, or when the run has been
/// paused by somebody else since.
#[test]
fn what_changes_the_run_takes_two_keys() {
    for between in [Key::Sort, Key::Help, Key::Up, Key::Down] {
        let mut top = top();
        assert_eq!([Key::Pause, between].map(|key| top.press(key)), [None; 2]);
        if between == Key::Help {
            assert_eq!([Key::Pause, Key::Help].map(|key| top.press(key)), [None; 2]);
        }
        assert!(!screen(&top, (80, 24)).join("\n").contains("p again"), "{between:?}");
        assert_eq!(top.press(Key::Pause), None, "{between:?}");
        assert_eq!(top.press(Key::Pause), Some(Wish::Pause));
    }
    let mut top = top();
    assert_eq!(top.press(Key::Pause), None);
    top.told(31.0, StatusReport { paused: true, ..report(1_300) });
    assert_eq!([Key::Pause; 2].map(|key| top.press(key)), [None, Some(Wish::Resume)]);
}

/// What matters is first, whatever it is sorted by, and members that are alike keep their order.
#[test]
fn nodes_are_sorted() {
    let mut top = top();
    let first = |top: &Top| {
        let screen = screen(top, (120, 40));
        let at = screen.iter().position(|line| line.contains("scheduler/0")).unwrap();
        screen[at + 1].split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(first(&top), "server/0");
    for expected in ["worker/3", "worker/3", "server/0", "worker/3", "server/0", "worker/3", "server/0"] {
        top.press(Key::Sort);
        assert_eq!(first(&top), expected, "{:?}", top.sort);
    }
}

/// Refusals since one looks are told apart from those before; a rate is of what was seen.
#[test]
fn what_is_new_is_noticed() {
    let mut top = Top::new("mnist");
    top.told(0.0, report(100));
    let text = screen(&top, (80, 24)).join("\n");
    assert!(text.contains(" refused: strangers 21 ") && !text.contains("since you look"), "{text}");
    top.told(2.0, StatusReport { joins_refused: 5, ..report(200) });
    let text = screen(&top, (80, 24)).join("\n");
    assert!(text.contains("joins 5  (5 since you look)") && text.contains("50.0 steps/s"), "{text}");
    assert!(text.contains("3:04 left"), "9,180 steps at 50 a second: {text}");
    let stopped = StatusReport { stalled: Some("worker/1".into()), loss: Some(f64::NAN), ..report(200) };
    top.told(3.0, stopped);
    let text = screen(&top, (80, 24)).join("\n");
    assert!(text.contains("stalled: worker/1") && text.contains("loss NaN"), "{text}");
}

/// `NO_COLOR`: what matters is told apart without.
#[test]
fn without_colours_there_are_none() {
    let mut top = top();
    top.told(31.0, StatusReport { stalled: Some("worker/1".into()), paused: true, ..report(1_300) });
    let colours = |color: bool| {
        let terminal = terminal(&top, (80, 24), color);
        let cells = terminal.backend().buffer().content().to_vec();
        cells.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(colours(true) && !colours(false));
    let terminal = terminal(&top, (80, 24), false);
    let buffer = terminal.backend().buffer();
    let bad =
        buffer.content().chunks(80).find(|row| row[1].symbol() == "s" && row[10].symbol() == "w").unwrap();
    assert!(bad[1].modifier.contains(Modifier::REVERSED), "a stall stands out");
}

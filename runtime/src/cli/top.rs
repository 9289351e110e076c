//! `testudo top`: an operator watches a run on a terminal.
//!
//! It is the operator that `testudo status --watch` is: the same identity, the same line to the scheduler. What is shown is
//! `report/top.rs`'s; here are the terminal, the keys and the line.

mod terminal;

use std::io::IsTerminal as _;
use std::time::Instant;

use clap::Args;
use testudo_actors::message::Outcome;
use testudo_actors::operator::{Line, OperatorError, Said};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::operate::{Found, Target, over, seconds, summary, unreachable};
use crate::error::Failure;
use crate::report::progress::{Mode, Style};
use crate::report::top::{Top, Wish};
use terminal::{Pressed, Screen, read_keys};

/// `testudo top`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo top runs/mnist-20261123T081613Z
  testudo top --scheduler 10.0.0.1:4433 --identity ops/alice --every 0.5")]
pub(crate) struct TopArguments {
    #[command(flatten)]
    target: Target,
    /// Seconds between two reports
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    every: f64,
}

pub(super) fn top(arguments: &TopArguments) -> Result<(), Failure> {
    let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let style = Style::choose(false, is_terminal, |name| std::env::var(name).ok());
    if style.mode != Mode::Live {
        let why = if is_terminal { "TERM says that this one cannot be drawn on" } else { "this is none" };
        return Err(Failure::misconfigured(format!(
            "`testudo top` draws on a terminal, and {why}: for a program, or a file, there is `testudo status --json`, with --watch \
             until the run ends"
        )));
    }
    let site = match arguments.target.find()? {
        Found::Scheduler(site) => site,
        Found::Summary(text) => return summary(&text, false),
        Found::Nothing => return Err(over(&arguments.target)),
    };
    let top = Top::new(site.identity.id().job());
    let every_ms = (arguments.every * 1e3) as u32;
    site.enter(async move |line| watch(line, top, every_ms, style.color).await)
}

/// What happened while the screen was looked at.
enum Event {
    Said(Result<Said, OperatorError>),
    Pressed(Option<Pressed>),
    Ended,
}

async fn watch(line: Line, mut top: Top, every_ms: u32, color: bool) -> Result<(), Failure> {
    let (mut commands, mut reports) = line.follow(every_ms, true).await.map_err(unreachable)?;
    let mut signals = Signals::new().map_err(Failure::failed)?;
    let begun = Instant::now();
    let (keys, mut pressed) = mpsc::channel(16);
    let mut screen = Screen::open().map_err(drawn)?;
    let _keys = read_keys(keys).map_err(drawn)?;
    let mut lost = None;
    loop {
        screen.show(&mut top, color).map_err(drawn)?;
        let event = tokio::select! {
            said = reports.hear(), if !top.is_over() => Event::Said(said),
            key = pressed.recv() => Event::Pressed(key),
            () = signals.next() => Event::Ended,
        };
        let asked = match event {
            Event::Said(Ok(Said::Report(report))) => {
                top.told(begun.elapsed().as_secs_f64(), *report);
                // A scheduler whose run is over waits for who is still there.
                if top.is_over() {
                    commands.close();
                }
                continue;
            }
            Event::Said(Ok(Said::Answer(answer))) => {
                top.answered(answer);
                continue;
            }
            Event::Said(Err(error)) => Err(error),
            Event::Pressed(Some(Pressed::Key(key))) => match top.press(key) {
                Some(Wish::Quit) => break,
                Some(Wish::Pause) => commands.pause().await,
                Some(Wish::Resume) => commands.resume().await,
                None => continue,
            },
            Event::Pressed(Some(Pressed::Resized)) => continue,
            // The terminal is gone, or this is to end.
            Event::Pressed(None) | Event::Ended => break,
        };
        if let Err(error) = asked {
            top.lost(error.to_string());
            lost = Some(error);
        }
    }
    drop(screen);
    commands.close();
    match (top.outcome(), lost) {
        (Some(Outcome::Failed(reason) | Outcome::ServerLost(reason)), _) => Err(Failure::failed(reason)),
        (None, Some(error)) => Err(unreachable(error)),
        _ => Ok(()),
    }
}

fn drawn(error: std::io::Error) -> Failure {
    Failure::failed(format!("the terminal cannot be drawn on: {error}"))
}

/// What ends a process in order. A terminal in raw mode sends none for Ctrl-C: that is a key.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> std::io::Result<Signals> {
        let all = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
        let [terminate, hangup, interrupt] = all.map(signal);
        Ok(Signals([terminate?, hangup?, interrupt?]))
    }

    async fn next(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

//! The terminal: taken when the screen opens, given back however this ends.
//!
//! 1. Raw mode, the alternate screen and the hidden cursor last as long as a [`Screen`]; a panic ends them before its message is
//!    printed, wherever it is.

use std::io::{self, Stdout};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::widgets::Paragraph;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::report::top::{Key, Top, lines};

/// How soon the reader of keys sees that it is to end.
const GLANCE: Duration = Duration::from_millis(50);

/// Whether the terminal is to be given back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, while it is ours.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn open() -> io::Result<Screen> {
        before_panics(give_back);
        TAKEN.store(true, Ordering::SeqCst);
        let taken = enable_raw_mode()
            .and_then(|()| execute!(io::stdout(), EnterAlternateScreen, Hide))
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        match taken {
            Ok(terminal) => Ok(Screen { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// Draws.
    pub(super) fn show(&mut self, top: &mut Top, color: bool) -> io::Result<()> {
        self.terminal.draw(|frame| {
            let area = frame.area();
            let size = (area.width, area.height);
            top.fit(size);
            frame.render_widget(Paragraph::new(lines(top, size, color)), area);
        })?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back, once. Where that fails there is nobody to tell.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// Has `first` done before a panic is told of, in any thread.
fn before_panics(first: impl Fn() + Send + Sync + 'static) {
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        first();
        told(info);
    }));
}

/// What comes from the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressed {
    /// A key that means something.
    Key(Key),
    /// The terminal has another size.
    Resized,
}

/// A thread that reads keys; it ends when this is dropped.
pub(super) struct Keys {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads keys into `keys` until nobody wants them, or the terminal is gone.
pub(super) fn read_keys(keys: mpsc::Sender<Pressed>) -> io::Result<Keys> {
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    let read = move || {
        while !end.load(Ordering::Relaxed) {
            let pressed = match event::poll(GLANCE) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let pressed = match pressed {
                Ok(Event::Key(key)) => meaning(key).map(Pressed::Key),
                Ok(Event::Resize(..)) => Some(Pressed::Resized),
                Ok(_) => None,
                Err(_) => return,
            };
            // What is pressed faster than it is heeded is not waited for.
            if let Some(pressed) = pressed
                && let Err(TrySendError::Closed(_)) = keys.try_send(pressed)
            {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("keys".into()).spawn(read)?;
    Ok(Keys { ended, thread: Some(thread) })
}

fn meaning(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => Some(Key::Quit),
        KeyCode::Char(_) if control => None,
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char('p' | 'P') => Some(Key::Pause),
        KeyCode::Char('s' | 'S') => Some(Key::Sort),
        KeyCode::Char('?' | 'h' | 'H') => Some(Key::Help),
        KeyCode::Up | KeyCode::Char('k') => Some(Key::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(Key::Down),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Invariant 1: before its message, and once.
    #[test]
    fn a_panic_gives_back_first() {
        static ORDER: AtomicUsize = AtomicUsize::new(0);
        let before = panic::take_hook();
        panic::set_hook(Box::new(|_| {
            let _ = ORDER.compare_exchange(1, 2, Ordering::SeqCst, Ordering::SeqCst);
        }));
        before_panics(|| {
            let _ = ORDER.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst);
        });
        let panicked = std::thread::spawn(|| assert_eq!(ORDER.load(Ordering::SeqCst), 9)).join();
        panic::set_hook(before);
        assert!(panicked.is_err());
        assert_eq!(ORDER.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn keys_mean_what_the_help_says() {
        let press = |code, modifiers| meaning(KeyEvent::new(code, modifiers));
        let none = KeyModifiers::NONE;
        for (code, key) in [
            (KeyCode::Char('q'), Key::Quit),
            (KeyCode::Esc, Key::Quit),
            (KeyCode::Char('p'), Key::Pause),
            (KeyCode::Char('s'), Key::Sort),
            (KeyCode::Char('?'), Key::Help),
            (KeyCode::Up, Key::Up),
            (KeyCode::Down, Key::Down),
        ] {
            assert_eq!(press(code, none), Some(key));
        }
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!(press(KeyCode::Char('p'), KeyModifiers::CONTROL), None);
        assert_eq!(press(KeyCode::Char('x'), none), None);
    }
}

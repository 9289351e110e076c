//! What ends a command, and the exit status that it gets.

use std::path::Path;
use std::process::ExitCode;

use testudo_observability::InitError;

/// A command's failure: one text for a person (what, where, what to do) and one exit status.
#[derive(Debug)]
pub struct Failure {
    /// The text; may be of several lines.
    pub message: String,
    /// The exit status.
    pub status: Status,
}

/// Every exit status and what it says, for `testudo --help`, the manual pages and docs/commands.md.
pub const EXIT_STATUSES: [(u8, &str); 8] = [
    (0, "done"),
    (1, "failed while running"),
    (2, "misconfigured: something given is wrong, and nothing was started"),
    (3, "the scheduler refused the command"),
    (4, "no scheduler answers"),
    (
        5,
        "a scheduler lost a server, whose parameters are gone with it: the job can go on from its last checkpoint",
    ),
    (
        6,
        "a node was dismissed from a run that has lost a server: the job can go on, with this node if it is started again",
    ),
    (130, "interrupted twice"),
];

/// Why a command ended, of which [`EXIT_STATUSES`] says what each number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The command failed while it ran.
    Failed,
    /// The same, because a process died that the run cannot do without.
    Died,
    /// The same, because such a process did not come up.
    NotUp,
    /// The command line, the cluster file or the data is wrong; nothing was started.
    Misconfigured,
    /// The scheduler refused what an operator commanded.
    Refused,
    /// No scheduler answers where it should be.
    Unreachable,
    /// The scheduler lost a server, and with it parameters.
    LostServer,
    /// A node's run has lost a server, and the node may be started again for what goes on from its checkpoint.
    RunLost,
    /// Ended at once by a second interrupt.
    Interrupted,
}

/// A collector that cannot be spoken to is one that was named wrongly.
impl From<InitError> for Failure {
    fn from(error: InitError) -> Self {
        Failure::misconfigured(error)
    }
}

impl Status {
    /// The number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Status::Failed | Status::Died | Status::NotUp => 1,
            Status::Misconfigured => 2,
            Status::Refused => 3,
            Status::Unreachable => 4,
            Status::LostServer => 5,
            Status::RunLost => 6,
            Status::Interrupted => 130,
        }
    }

    /// The number, as a process returns it.
    #[must_use]
    pub fn code(self) -> ExitCode {
        ExitCode::from(self.number())
    }
}

impl Failure {
    /// The command failed while it ran.
    pub fn failed(message: impl std::fmt::Display) -> Failure {
        Failure { message: message.to_string(), status: Status::Failed }
    }

    /// The same failure, for the death of a process that the run cannot do without.
    #[must_use]
    pub fn died(self) -> Failure {
        Failure { status: Status::Died, ..self }
    }

    /// The same failure, for a process that did not come up; where something given is wrong, that stays what it is.
    #[must_use]
    pub fn not_up(self) -> Failure {
        match self.status {
            Status::Failed => Failure { status: Status::NotUp, ..self },
            _ => self,
        }
    }

    /// Nothing was started, because something given is wrong.
    pub fn misconfigured(message: impl std::fmt::Display) -> Failure {
        Failure { message: message.to_string(), status: Status::Misconfigured }
    }

    /// A file or folder that could not be used.
    pub fn file(path: &Path, what: &str, error: impl std::fmt::Display) -> Failure {
        Failure::failed(format!("{}: {what}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_status_is_documented_and_every_documented_one_occurs() {
        let all = [
            Status::Failed,
            Status::Died,
            Status::NotUp,
            Status::Misconfigured,
            Status::Refused,
            Status::Unreachable,
            Status::LostServer,
            Status::RunLost,
            Status::Interrupted,
        ];
        let mut numbers: Vec<u8> = std::iter::once(0).chain(all.map(Status::number)).collect();
        numbers.dedup();
        assert_eq!(numbers, EXIT_STATUSES.map(|(number, _)| number));
    }
}

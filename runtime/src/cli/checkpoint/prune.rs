//! `testudo checkpoint prune`: old checkpoints go, and with `--destroy-key` what opens those that are left.
//!
//! 1. What goes is recorded before it goes: beside the checkpoints, and in the audit log, signed with its key. Where there is a log
//!    and nothing can be added to it, that is said.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::json;
use testudo_actors::audit::{Entry, Hex};
use testudo_actors::checkpoint::Deletion;
use testudo_transport::Identity;

use crate::audit;
use crate::checkpoint::keys::{self, Identities};
use crate::checkpoint::retention::{self, Retention};
use crate::checkpoint::storage::{Disk, Storage as _};
use crate::checkpoint::{CheckpointError, Checkpoints, Layout};
use crate::config::Config;
use crate::error::Failure;
use crate::process::{RunAs, user};
use crate::rundir::{RunDir, in_words};
use crate::say::{note, say};

/// What goes on with the audit log.
const COMMAND: &str = "checkpoint prune";

/// `testudo checkpoint prune`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo checkpoint prune runs/mnist-20261123T081613Z --keep 1
  testudo checkpoint prune runs/mnist-20261123T081613Z --destroy-key --yes")]
pub(super) struct PruneArguments {
    /// The run directory; its run must not be under way
    run_dir: PathBuf,
    /// Keep so many, instead of checkpoint.keep_last
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Delete those older than so many hours, but for the last, instead of checkpoint.max_age_hours
    #[arg(long, value_name = "HOURS")]
    max_age_hours: Option<u32>,
    /// Destroy the run's own key too
    #[arg(long)]
    destroy_key: bool,
    /// Do not ask before a key is destroyed
    #[arg(long)]
    yes: bool,
    /// The key that signs the audit log [default: the one in the run directory]
    #[arg(long, value_name = "DIR")]
    audit_identity: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn prune(arguments: &PruneArguments) -> Result<(), Failure> {
    let run_dir = RunDir::open(&arguments.run_dir).map_err(Failure::misconfigured)?;
    // What is written and deleted here is the run's user's, who might have put anything in its place: root does it as him.
    let run_dir = match run_dir.owner() {
        Ok(owner @ 1..) if user::is_root() => {
            let run_dir = run_dir.hold().map_err(Failure::misconfigured)?;
            let user = RunAs::find(&owner.to_string()).map_err(Failure::misconfigured)?;
            user.take_over().map_err(Failure::misconfigured)?;
            run_dir
        }
        _ => run_dir,
    };
    let checkpoints = Checkpoints::open(&run_dir.checkpoints()).map_err(Failure::misconfigured)?;
    let _lock = run_dir.lock().map_err(Failure::misconfigured)?;
    let config = Config::load::<&str>(&run_dir.cluster_file(), &[]).map_err(Failure::misconfigured)?;
    let layout = checkpoints.layout();
    if arguments.destroy_key && layout.key().exists() && !arguments.yes {
        confirm(&layout.key())?;
    }
    let now = SystemTime::now();
    let retention = arguments.retention(&config);
    let deleted = retention::due(layout, &Disk, retention, now).map_err(Failure::failed)?;
    let destroyed = match arguments.destroy_key {
        true => record_key(layout, now).map_err(Failure::failed)?,
        false => None,
    };
    let logged = log(&run_dir, arguments.audit_identity.as_deref(), layout, destroyed.as_ref());
    if let Err(problem) = &logged {
        note!(
            "warning: the audit log does not tell of this, and {} does, which nobody signs: {problem}",
            in_words(&shown(&layout.deletions()))
        );
    }
    for deletion in &deleted {
        retention::delete(layout, &Disk, deletion.step).map_err(Failure::failed)?;
    }
    let mut leftovers = checkpoints.unfinished().map_err(Failure::failed)?;
    leftovers.extend(Some(layout.superseded()).filter(|aside| aside.exists()));
    for folder in &leftovers {
        Disk.remove_dir_all(folder).map_err(|e| Failure::file(folder, "cannot be deleted", e))?;
    }
    let destroyed = match arguments.destroy_key {
        true => Some(keys::destroy_run_key(layout).map_err(Failure::failed)?),
        false => None,
    };
    let leftovers: Vec<String> = leftovers.iter().map(|folder| in_words(&shown(folder))).collect();
    if arguments.json {
        let steps: Vec<u64> = deleted.iter().map(|d| d.step).collect();
        let object = json!({
            "deleted": steps,
            "leftovers_deleted": leftovers,
            "key_destroyed": destroyed == Some(true),
            "audit_head": logged.as_ref().ok(),
            "audit_problem": logged.as_ref().err(),
        });
        say!("{object}");
        return Ok(());
    }
    tell(&deleted, &leftovers, destroyed, layout);
    if let Ok(Some(head)) = logged {
        say!("the audit log's head is {head}");
    }
    Ok(())
}

impl PruneArguments {
    fn retention(&self, config: &Config) -> Retention {
        let mut retention = Retention::new(&config.checkpoint);
        if let Some(keep) = self.keep {
            retention.keep_last = keep as usize;
        }
        if let Some(hours) = self.max_age_hours {
            retention.max_age = (hours > 0).then(|| Duration::from_secs(u64::from(hours) * 3600));
        }
        retention
    }
}

/// Records that the run's key is about to be destroyed, if there is one.
fn record_key(layout: &Layout, now: SystemTime) -> Result<Option<Entry>, CheckpointError> {
    if !layout.key().exists() {
        return Ok(None);
    }
    // A damaged key is destroyed as well.
    let recipients = Identities::load(&layout.key()).map(|key| key.recipients()).unwrap_or_default();
    let recipients: Vec<String> = recipients.iter().map(ToString::to_string).collect();
    retention::record_key(layout, &Disk, now, &recipients)?;
    Ok(Some(Entry::KeyDestroyed { recipients }))
}

/// Tells the audit log of every deletion that it does not know yet, and of the key's end. The answer is its head; none if no log
/// was kept.
fn log(
    run_dir: &RunDir,
    named: Option<&Path>,
    layout: &Layout,
    destroyed: Option<&Entry>,
) -> Result<Option<Hex>, String> {
    let path = run_dir.audit_log();
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let folder = named.map_or_else(|| run_dir.audit_identity(), |folder| run_dir.reach(folder));
    let key = Identity::load(&folder).map_err(|e| format!("its key cannot sign any more: {e}"))?;
    let recorded = retention::read_deletions(layout).map_err(|e| e.to_string())?;
    let head = audit::go_on(&path, &key, COMMAND, &recorded, destroyed.map_or(&[], std::slice::from_ref));
    head.map(Some).map_err(|e| e.to_string())
}

fn tell(deleted: &[Deletion], leftovers: &[String], destroyed: Option<bool>, layout: &Layout) {
    for deletion in deleted {
        say!("deleted step {} ({})", deletion.step, deletion.why);
    }
    for folder in leftovers {
        say!("deleted {folder}");
    }
    match destroyed {
        Some(true) => say!("destroyed the key: what is encrypted to it alone can never be read again"),
        Some(false) => say!("there is no key of the run's own"),
        None if layout.key().exists() => say!(
            "the run's key is still there: --destroy-key destroys it, and with it every checkpoint for good"
        ),
        None => {}
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn confirm(key: &Path) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::misconfigured("--destroy-key asks first, and there is no terminal: give --yes"));
    }
    crate::say::aside(format_args!(
        "{} opens this run's checkpoints. Without it nobody can, ever. Destroy it? Type yes: ",
        in_words(&shown(key))
    ));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Failure::failed)?;
    match answer.trim() {
        "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was deleted")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        prune: PruneArguments,
    }

    /// The command's figures go before the cluster file's, each alone.
    #[test]
    fn what_is_kept_is_what_the_command_or_else_the_file_says() {
        let text = "[model]\nkind = \"mlp\"\ninputs = 4\nclasses = 2\n[data]\nkind = \"mnist\"\npath = \"d\"\n\
                    [checkpoint]\nkeep_last = 3\nmax_age_hours = 48\n";
        let config = Config::parse(text, Path::new("/c.toml"), &[] as &[&str]).unwrap();
        let kept =
            |line: &str| Command::try_parse_from(line.split_whitespace()).unwrap().prune.retention(&config);
        let hours = |hours: u64| Some(std::time::Duration::from_secs(hours * 3600));
        assert_eq!(kept("prune r"), Retention { keep_last: 3, max_age: hours(48) });
        assert_eq!(kept("prune r --keep 7"), Retention { keep_last: 7, max_age: hours(48) });
        assert_eq!(kept("prune r --max-age-hours 5"), Retention { keep_last: 3, max_age: hours(5) });
        assert_eq!(kept("prune r --max-age-hours 0"), Retention { keep_last: 3, max_age: None });
    }
}

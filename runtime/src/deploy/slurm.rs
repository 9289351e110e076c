//! A batch script for Slurm: one job, a step for each role.
//!
//! Slurm chooses the machines. The scheduler's step is on the first of them, and all others find it by that name and a port that
//! follows from the job's number. Everything that nodes need lies in one folder that all machines reach and only its owner enters.
//! The job's authority does not: whoever is root on one machine would have the key that makes every identity.
//!
//! 1. A worker that dies is started again in its place, at most `cluster.worker_restarts` times within ten minutes and a little later
//!    each time, as `testudo run` does it. One that ended in order, was misconfigured or was dismissed from a run that has lost a server is
//!    not, and none when the run is over.
//! 2. When a server or the scheduler has died, all nodes end, and the job goes on from its newest checkpoint, at most `cluster.restarts`
//!    times within ten minutes. An operator signs which checkpoint that is, so without that identity the job ends; as it does after any
//!    other failure, when a node was misconfigured or the servers could not be started, and whenever it was to stop.

mod lives;
mod worker;

use std::fmt::Write as _;
use std::path::Path;

use testudo_transport::Role;

use super::{identities, processes};
use crate::config::Config;

/// What the script says before anything that depends on the job.
const HEAD: &str = "#!/bin/bash
# A training job of Testudo for Slurm, as `testudo deploy` wrote it. Submit it with `sbatch`.
#
# In $folder, which every machine reaches and only its owner enters: cluster.toml, cluster.job, and in identities/ a folder for each
# node. Its operator makes them elsewhere: in a folder that no machine of the cluster reaches, where the key of the job's authority
# stays, with $folder set to this one (or to a folder that is copied there afterwards), and the data under data.path:
#
";

/// The script that runs `config` with `program` out of `folder`.
#[must_use]
pub fn script(config: &Config, folder: &Path, program: &str) -> String {
    let processes = processes(config);
    let tasks: u64 = 1 + processes.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
    let mut text = String::from(HEAD);
    let made = super::preparation(config);
    for line in std::iter::once(FETCH.to_owned()).chain(made).chain(handing(config)) {
        let _ = writeln!(text, "#   {line}");
    }
    let _ = write!(
        text,
        "{OPERATOR}#\n# Each run has a directory of its own beside them.\n\n#SBATCH --job-name={}\n#SBATCH --ntasks={tasks}\n#SBATCH --no-requeue\n\
         # In time before the limit, so that the run can end in order, with a checkpoint.\n#SBATCH --signal=B:TERM@120\n",
        config.job.name
    );
    if let Some(mib) = config.limits.memory_mib {
        let _ = writeln!(text, "# limits.memory_mib\n#SBATCH --mem-per-cpu={mib}M");
    }
    let _ = write!(
        text,
        "\nset -euo pipefail\numask 077\n\nfolder={}\nprogram={}\n{PLACES}",
        quoted(&folder.to_string_lossy()),
        quoted(program)
    );
    let restarts = config.cluster.supervision.worker_restarts > 0;
    if restarts && processes.iter().any(|(role, _)| *role == Role::Worker) {
        let _ = write!(text, "\n{}", worker::worker(config));
    }
    text.push_str(BEGIN);
    for (role, count) in &processes {
        let step = match role {
            Role::Worker if restarts => worker::step(*count),
            _ => step(*role, *count),
        };
        text.push_str(&step);
    }
    let _ = write!(text, "}}\n{}", lives::script(config));
    text
}

/// What the operator's folder begins with.
const FETCH: &str = "cp \"$folder/cluster.toml\" .";

/// The commands that put into the folder what nodes need, and nothing else.
fn handing(config: &Config) -> Vec<String> {
    let mut lines = vec!["mkdir -p -m 700 \"$folder/identities\"".to_owned()];
    lines.extend(
        super::nodes(config)
            .map(|(role, _)| format!("cp -Rp identities/{role}-[0-9]* \"$folder/identities/\"")),
    );
    lines.push("cp cluster.job \"$folder/\"".to_owned());
    lines.push("cp -Rp identities/operator-0 \"$folder/identities/\"".to_owned());
    lines
}

/// Why the operator's identity is there.
const OPERATOR: &str = "#
# The last line is for the order to stop in time before the limit, with a checkpoint, and to sign from which checkpoint the job goes on
# when a server or the scheduler has died. Whoever reads that key commands the job, and signs others in its name: without that line the
# job is ended at once instead, and does not go on.
";

/// Where things are. Ports from 16384 to 32767 are above those that are other services', and below those that systems give out by
/// themselves.
const PLACES: &str = "
if [ -e \"$folder/ca/ca-key.pem\" ]; then
    echo \"$folder/ca/ca-key.pem: with this key every machine could make itself any node; move ca/ to where none reaches it\" >&2
    exit 2
fi
run=$folder/run-$SLURM_JOB_ID
mkdir -p \"$run/logs\"
first=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)
scheduler=$first:$((16384 + SLURM_JOB_ID % 16384))
common=(--config \"$folder/cluster.toml\" --scheduler \"$scheduler\" --listen-by-scheduler --run-dir \"$run\")
audit=()
if [ -d \"$folder/identities/audit\" ]; then audit=(--audit-identity \"$folder/identities/audit\"); fi
job=$folder/cluster.job
export program folder run
";

/// Where a life begins: with the scheduler's step, beside which stand the others in `steps`.
const BEGIN: &str = "
begin() {
    rm -f \"$run/over\" \"$run/misconfigured\"
    steps=()
    srun --exact --nodes=1 --ntasks=1 --nodelist=\"$first\" \\
        \"$program\" node --role scheduler --identity \"$folder/identities/scheduler-0\" --job \"$job\" \\
        --log \"$run/logs/scheduler-0.log\" --summary \"$run/summary.json\" \"${audit[@]}\" \"${common[@]}\" &
    scheduler_step=$!
";

/// The step of `count` processes of a role, each of which is told its number by Slurm.
fn step(role: Role, count: u32) -> String {
    // What is in single quotes here is for the shell of each process.
    format!(
        "\n    # shellcheck disable=SC2016 # for each process's shell\n    srun --exact --ntasks={count} bash -c \\\n        \
         '{}{MISCONFIGURED}' \\\n        bash \"${{common[@]}}\" &\n    steps+=($!)\n",
        node(role)
    )
}

/// What a process's shell does after its node: whoever is misconfigured will be so again, and leaves word of it.
const MISCONFIGURED: &str =
    "; status=$?; if [ \"$status\" -eq 2 ]; then : > \"$run/misconfigured\"; fi; exit \"$status\"";

/// The command of one process, in its own shell.
fn node(role: Role) -> String {
    let mut own = String::new();
    for (option, of) in ["--identity", "--worker-identity"].iter().zip(identities(role)) {
        let _ = write!(own, " {option} \"$folder/identities/{of}-$SLURM_PROCID\"");
    }
    format!(
        "\"$program\" node --role {role} --index \"$SLURM_PROCID\"{own} --log \"$run/logs/{role}-$SLURM_PROCID.log\" \"$@\""
    )
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    let mut word = String::from('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            word.push('\\');
        }
        word.push(c);
    }
    word + "\""
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    pub(super) fn config(set: &[&str]) -> Config {
        let text = "[model]\nkind = \"mlp\"\ninputs = 4\nclasses = 2\n[data]\nkind = \"mnist\"\npath = \"data\"\n[job]\nname = \"mnist\"\n";
        Config::parse(text, Path::new("/srv/mnist.toml"), set).unwrap()
    }

    #[test]
    fn a_script_has_a_task_for_each_node() {
        let text = script(
            &config(&["cluster.workers=3", "cluster.servers=2", "limits.memory_mib=700"]),
            Path::new("/srv/m"),
            "testudo",
        );
        for part in [
            "--ntasks=6\n",
            "--mem-per-cpu=700M\n",
            "--ntasks=2 bash",
            "--ntasks=3 bash",
            "--job-name=mnist\n",
            "seq 0 2",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let text = script(
            &config(&["cluster.workers=2", "cluster.placement=colocated"]),
            Path::new("/srv/m"),
            "testudo",
        );
        assert!(
            text.contains("--ntasks=3\n")
                && text.contains("--worker-identity \"$folder/identities/worker-$SLURM_PROCID\"")
        );
    }

    /// What nodes do not need is not handed to them, and a folder that has the authority's key starts none.
    #[test]
    fn the_authority_stays_elsewhere() {
        let set = ["security.certificate_hours=100", "cluster.servers=2"];
        let place = tempfile::tempdir().unwrap();
        let text = script(&config(&set), place.path(), "testudo");
        assert_eq!(text.matches("--valid-for 100h").count(), 4, "{text}");
        assert!(
            !text.contains("$folder/ca\"") && text.contains("cp -Rp identities/worker-[0-9]* "),
            "{text}"
        );
        std::fs::create_dir(place.path().join("ca")).unwrap();
        std::fs::write(place.path().join("ca/ca-key.pem"), "").unwrap();
        let Ok(said) = Command::new("bash").args(["-c", &text]).output() else { return };
        let why = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.code() == Some(2) && why.contains("ca-key.pem"), "{why}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "and no run was begun");
    }

    /// Invariant 2 of [`super::super`]: what a folder is called is text, and the whole is a script.
    #[test]
    fn folders_are_quoted() {
        for (folder, program) in [("/srv/$(echo x)/it's", "a b"), ("/srv/`echo x`/\"\\n$HOME", "$0")] {
            let text = script(&config(&[]), Path::new(folder), program);
            let head = text.split("run=$folder").next().unwrap();
            let shell = |arguments: &[&str]| Command::new("bash").args(arguments).output();
            let Ok(said) = shell(&["-c", &format!("{head}printf '%s|%s' \"$folder\" \"$program\"")]) else {
                return;
            };
            assert_eq!(String::from_utf8_lossy(&said.stdout), format!("{folder}|{program}"));
            assert!(shell(&["-n", "-c", &text]).unwrap().status.success(), "its syntax: {text}");
        }
    }
}

//! A batch script for Slurm: one job, a step for each role.
//!
//! Slurm chooses the machines. The scheduler's step is on the first of them, and all others find it by that name and a port that
//! follows from the job's number. Everything that nodes need lies in one folder that all machines reach and only its owner enters.
//! The job's authority does not: whoever is root on one machine would have the key that makes every identity.
//!
//! 1. A worker that dies is started again in its place, at most `cluster.worker_restarts` times within ten minutes and a little later
//!    each time, as `testudo run` does it. One that ended in order or was misconfigured is not, and none when the run is over.
//!    A server's or the scheduler's death ends the job.

use std::fmt::Write as _;
use std::path::Path;

use testudo_transport::Role;

use super::{identities, processes};
use crate::config::Config;
use crate::launch::budget::WINDOW;

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
    for (role, count) in &processes {
        match role {
            Role::Worker if config.cluster.supervision.worker_restarts > 0 => {
                text.push_str(&workers(config, *count));
            }
            _ => text.push_str(&step(*role, *count)),
        }
    }
    text.push_str(REST);
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
# The last line is for the order to stop in time before the limit, with a checkpoint. Whoever reads that key commands the job, and
# signs others in its name: without that line the job is ended at once instead.
";

/// Where things are, and the scheduler's step. Ports from 16384 to 32767 are above those that are other services', and below those that
/// systems give out by themselves.
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

srun --exact --nodes=1 --ntasks=1 --nodelist=\"$first\" \\
    \"$program\" node --role scheduler --identity \"$folder/identities/scheduler-0\" --job \"$folder/cluster.job\" \\
    --log \"$run/logs/scheduler-0.log\" \"${audit[@]}\" \"${common[@]}\" &
scheduler_step=$!
steps=()
export program folder run
";

/// What is left: the end. A worker that is gone for good is the scheduler's to judge; a server that is ends the run.
const REST: &str = "
# shellcheck disable=SC2317 # the trap calls it
stop() {
    echo 'stopping in order' >&2
    \"$program\" stop --scheduler \"$scheduler\" --identity \"$folder/identities/operator-0\" || kill \"$scheduler_step\" || true
}
trap stop TERM

runs() { kill -0 \"$1\" 2> /dev/null; }

# The scheduler's end is the run's. The first step has the servers: if it fails, the scheduler has a minute to say why.
left=60
while runs \"$scheduler_step\"; do
    if ! runs \"${steps[0]}\" && [ $((left -= 1)) -eq 0 ]; then kill \"$scheduler_step\" || true; fi
    sleep 1 &
    wait $! || true
done
status=0
wait \"$scheduler_step\" || status=$?
# From now on no worker is started again.
touch \"$run/over\" || true
for step in \"${steps[@]}\"; do
    if [ \"$status\" -ne 0 ]; then kill \"$step\" 2> /dev/null || true; fi
    wait \"$step\" || true
done
echo \"$run\"
exit \"$status\"
";

/// The step of `count` processes of a role, each of which is told its number by Slurm.
fn step(role: Role, count: u32) -> String {
    // What is in single quotes here is for the shell of each process.
    format!(
        "\n# shellcheck disable=SC2016 # for each process's shell\nsrun --exact --ntasks={count} bash -c \\\n    'exec {}' \\\n    \
         bash \"${{common[@]}}\" &\nsteps+=($!)\n",
        node(role)
    )
}

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

/// The workers' step: the shell of each process starts its worker again. One that is gone for good does not end the others, whatever
/// the cluster's settings say.
fn workers(config: &Config, count: u32) -> String {
    format!(
        "\n{}# shellcheck disable=SC2016 # for each process's shell\nsrun --exact --kill-on-bad-exit=0 --ntasks={count} bash -c \\\n    \
         \"$(declare -f worker)\"'; worker \"$@\"' \\\n    bash \"${{common[@]}}\" &\nsteps+=($!)\n",
        worker(config)
    )
}

/// Invariant 1, as a function of a shell, which is told to end when its step is, and so tells what it waits for. No launcher tells the
/// scheduler of a death here: until it has missed the dead worker, it admits nobody under that name, so every pause begins with that.
fn worker(config: &Config) -> String {
    let (seconds, minutes, node) = (WINDOW.as_secs(), WINDOW.as_secs() / 60, node(Role::Worker));
    let restarts = config.cluster.supervision.worker_restarts;
    let missed = config.cluster.heartbeat_timeout_ms.div_ceil(1000);
    format!(
        r#"# A worker that dies is started again: cluster.worker_restarts times within {minutes} minutes, when the scheduler has missed it
# (cluster.heartbeat_timeout_ms), and a second later, then two, and so on. Not when it has ended in order, with 0, or was
# misconfigured, with 2: it would be so again.
# shellcheck disable=SC2317,SC2329 # the shell of each process calls it
worker() {{
    local child='' ending='' at status pause died=() recent
    trap 'ending=1; kill "$child" 2> /dev/null' TERM
    while true; do
        {node} &
        child=$!
        if [ -n "$ending" ]; then kill "$child" 2> /dev/null; fi
        wait "$child"
        status=$?
        # The signal itself ends the first wait.
        if [ -n "$ending" ]; then
            wait "$child"
            exit
        fi
        if [ "$status" -eq 0 ] || [ "$status" -eq 2 ]; then exit "$status"; fi
        recent=("$SECONDS")
        for at in "${{died[@]}}"; do
            if [ $((SECONDS - at)) -lt {seconds} ]; then recent+=("$at"); fi
        done
        if [ "${{#recent[@]}}" -gt {restarts} ]; then
            echo "worker/$SLURM_PROCID died more than {restarts} times within {minutes} minutes (cluster.worker_restarts) and is not started again" >&2
            exit "$status"
        fi
        died=("${{recent[@]}}")
        pause=$((1 << (${{#died[@]}} - 1)))
        pause=$(({missed} + (pause < 30 ? pause : 30)))
        echo "worker/$SLURM_PROCID ended with status $status and is started again in $pause s (restart ${{#died[@]}} of {restarts} within {minutes} minutes)" >&2
        for ((; pause > 0; pause -= 1)); do
            if [ -n "$ending" ] || [ -e "$run/over" ]; then exit "$status"; fi
            sleep 1 &
            child=$!
            wait "$child"
        done
        if [ -n "$ending" ] || [ -e "$run/over" ]; then exit "$status"; fi
    done
}}
"#
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
    use crate::config::Config;

    fn config(set: &[&str]) -> Config {
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

    /// What the shell of worker 1 does whose processes end with `statuses` one after the other: the status that it ends with, how many
    /// processes it has started, how many seconds it has waited in all, and what it says.
    fn supervised(restarts: u32, statuses: &str, over: bool) -> Option<(i32, usize, usize, String)> {
        // Stand-ins for the program and for the passing of time.
        const STAND_INS: &str = r#"
            program=fake
            fake() {
                echo "$@" >> "$run/started"
                set -- $statuses
                shift $(($(wc -l < "$run/started") - 1))
                return "$1"
            }
            sleep() { echo "$1" >> "$run/slept"; }
        "#;
        let run = tempfile::tempdir().unwrap();
        if over {
            std::fs::write(run.path().join("over"), "").unwrap();
        }
        let set = format!("cluster.worker_restarts={restarts}");
        let function = worker(&config(&[&set, "cluster.heartbeat_timeout_ms=4100"]));
        let shell = format!("{STAND_INS}\n{function}\nworker --common");
        let mut command = Command::new("bash");
        command.args(["-c", &shell]).env("statuses", statuses).env("SLURM_PROCID", "1");
        let said = command.env("run", run.path()).env("folder", "/srv/m").output().ok()?;
        let lines = |name: &str| std::fs::read_to_string(run.path().join(name)).unwrap_or_default();
        let started = lines("started");
        let each = "node --role worker --index 1 --identity /srv/m/identities/worker-1 --log ";
        assert!(started.lines().all(|l| l.starts_with(each) && l.ends_with(" --common")), "{started}");
        let slept = lines("slept").lines().count();
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        Some((said.status.code().unwrap(), started.lines().count(), slept, words))
    }

    /// Invariant 1.
    #[test]
    fn a_worker_that_dies_is_started_again_within_its_budget() {
        let Some((status, started, slept, said)) = supervised(2, "137 1 139 0", false) else { return };
        // The scheduler misses a worker after 4.1 seconds.
        assert_eq!((status, started, slept), (139, 3, 5 + 1 + 5 + 2), "{said}");
        for part in [
            "worker/1 ended with status 137 and is started again in 6 s (restart 1 of 2 within 10 minutes)",
            "worker/1 ended with status 1 and is started again in 7 s (restart 2 of 2 within 10 minutes)",
            "worker/1 died more than 2 times within 10 minutes (cluster.worker_restarts) and is not started again",
        ] {
            assert!(said.contains(part), "{part} is not in:\n{said}");
        }
        // Nor one that ended in order, or that was misconfigured, or whose run is over.
        for (statuses, over, found) in [
            ("0 0", false, (0, 1, 0)),
            ("2 0", false, (2, 1, 0)),
            ("137 2 0", false, (2, 2, 6)),
            ("137 0", true, (137, 1, 0)),
        ] {
            let (status, started, slept, said) = supervised(2, statuses, over).unwrap();
            assert_eq!((status, started, slept), found, "{statuses}: {said}");
        }
        let set = ["cluster.worker_restarts=0", "cluster.workers=3"];
        let text = script(&config(&set), Path::new("/srv/m"), "testudo");
        assert!(!text.contains("is started again in") && text.contains("node --role worker"), "{text}");
        let set = ["cluster.placement=colocated", "cluster.workers=2"];
        let text = script(&config(&set), Path::new("/srv/m"), "testudo");
        assert!(!text.contains("is started again in") && text.contains("node --role peer"), "{text}");
    }

    /// The step's end is not taken for its worker's death: what is running is told, and nothing follows.
    #[test]
    fn a_worker_that_is_told_to_end_is_not_started_again() {
        let run = tempfile::tempdir().unwrap();
        // The stand-in tells its shell to end, and ends by that signal, as one whose step has been cancelled does.
        let shell = format!(
            "program=fake\nfake() {{ echo \"$@\" >> \"$run/started\"; kill \"$$\"; while true; do sleep 1; done; }}\n{}\nworker",
            worker(&config(&[]))
        );
        let mut command = Command::new("bash");
        command.args(["-c", &shell]).env("SLURM_PROCID", "1").env("folder", "/srv/m");
        let Ok(said) = command.env("run", run.path()).output() else { return };
        let started = std::fs::read_to_string(run.path().join("started")).unwrap();
        let words = String::from_utf8_lossy(&said.stderr);
        assert_eq!(started.lines().count(), 1, "{words}");
        assert!(said.status.code() == Some(143) && !words.contains("again"), "{:?}: {words}", said.status);
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

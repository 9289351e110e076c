//! A worker's own shell, which starts it again.

use testudo_transport::Role;

use super::node;
use crate::config::Config;
use crate::error::Status;
use crate::launch::budget::WINDOW;

/// The workers' step: the shell of each process starts its worker again. One that is gone for good does not end the others, whatever
/// the cluster's settings say.
pub(super) fn step(count: u32) -> String {
    format!(
        "\n    # shellcheck disable=SC2016 # for each process's shell\n    srun --exact --kill-on-bad-exit=0 --ntasks={count} bash -c \\\n        \
         \"$(declare -f worker)\"'; worker \"$@\"' \\\n        bash \"${{common[@]}}\" &\n    steps+=($!)\n"
    )
}

/// Invariant 1 of [`super`], as a function of a shell, which is told to end when its step is, and so tells what it waits for. No
/// launcher tells the scheduler of a death here: until it has missed the dead worker, it admits nobody under that name, so every pause
/// begins with that.
pub(super) fn worker(config: &Config) -> String {
    let (seconds, minutes, node) = (WINDOW.as_secs(), WINDOW.as_secs() / 60, node(Role::Worker));
    let restarts = config.cluster.supervision.worker_restarts;
    let lost = Status::RunLost.number();
    let missed = config.cluster.heartbeat_timeout_ms.div_ceil(1000);
    format!(
        r#"# A worker that dies is started again: cluster.worker_restarts times within {minutes} minutes, when the scheduler has missed it
# (cluster.heartbeat_timeout_ms), and a second later, then two, and so on. Not when it has ended in order, with 0, or was
# misconfigured, with 2: it would be so again; nor when it was dismissed with {lost}, as all are when a server has died.
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
        # Of a worker's first start alone: later it may be that a run is over, which takes nobody in.
        if [ "$status" -eq 2 ] && [ "${{#died[@]}}" -eq 0 ]; then : > "$run/misconfigured"; fi
        if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$status" -eq {lost} ]; then exit "$status"; fi
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::super::{script, tests::config};
    use super::*;

    /// Is added to what a worker's shell says, if it left word that it was misconfigured.
    const MISCONFIGURED: &str = "\nmisconfigured";

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
        let mut words = String::from_utf8_lossy(&said.stderr).into_owned();
        if run.path().join("misconfigured").exists() {
            words += MISCONFIGURED;
        }
        Some((said.status.code().unwrap(), started.lines().count(), slept, words))
    }

    /// Invariant 1 of [`super::super`].
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
            ("6 0", false, (6, 1, 0)),
            ("137 2 0", false, (2, 2, 6)),
            ("137 0", true, (137, 1, 0)),
        ] {
            let (status, started, slept, said) = supervised(2, statuses, over).unwrap();
            assert_eq!((status, started, slept), found, "{statuses}: {said}");
            assert_eq!(said.contains(MISCONFIGURED), statuses.starts_with('2'), "{statuses}: {said}");
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
}

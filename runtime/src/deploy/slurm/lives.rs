//! The lives of a job: all of its nodes, from their start to the last one's end, as often as the job may go on.

use super::quoted;
use crate::config::Config;
use crate::error::Status;
use crate::launch::budget::WINDOW;

/// How often it is tried to sign, and how many seconds lie between: two minutes in all.
const SIGNING: [u32; 2] = [25, 5];

/// What ends one life. A worker that is gone for good is the scheduler's to judge; a server that is ends the life.
const FOLLOW: &str = "
stopping=
scheduler_step=
told=
# The order to stop is given once to each scheduler. Between two lives there is none: the next one is told when it has begun.
# shellcheck disable=SC2317,SC2329 # the trap calls it
stop() {
    stopping=1
    if [ \"$told\" = \"$scheduler_step\" ] || ! runs \"$scheduler_step\"; then return 0; fi
    told=$scheduler_step
    echo 'stopping in order' >&2
    \"$program\" stop --scheduler \"$scheduler\" --identity \"$folder/identities/operator-0\" || kill \"$scheduler_step\" || true
}

runs() { kill -0 \"$1\" 2> /dev/null; }

# The scheduler's end is the run's. The first step has the servers: if it ends, the scheduler has a minute to say why, and is then
# ended, with the servers' status in $servers_status.
follow() {
    local left=60 step
    servers_status=
    while runs \"$scheduler_step\"; do
        if ! runs \"${steps[0]}\" && [ $((left -= 1)) -eq 0 ]; then
            servers_status=0
            wait \"${steps[0]}\" || servers_status=$?
            echo \"the servers have ended (status $servers_status), and the scheduler has not: it is ended\" >&2
            kill \"$scheduler_step\" || true
        fi
        sleep 1 &
        wait $! || true
    done
    status=0
    wait \"$scheduler_step\" || status=$?
    # bash 5.2 answers -1 for what has ended just when it was told to stop.
    if [ \"$status\" -lt 0 ]; then status=143; fi
    # From now on no worker is started again.
    touch \"$run/over\" || true
    for step in \"${steps[@]}\"; do
        if [ \"$status\" -ne 0 ]; then kill \"$step\" 2> /dev/null || true; fi
        wait \"$step\" 2> /dev/null || true
    done
}

live() {
    begin
    if [ -n \"$stopping\" ]; then stop; fi
    follow
}

trap stop TERM
";

/// A job of one life.
const ONE: &str = "
live
echo \"$run\"
exit \"$status\"
";

/// What follows the functions that start a life: how one is followed, and whether another begins.
pub(super) fn script(config: &Config) -> String {
    match config.cluster.supervision.restarts {
        0 => format!("{FOLLOW}{ONE}"),
        most => format!("{FOLLOW}{}{}", go_on(config, most), several()),
    }
}

/// Invariant 2 of [`super`]: a job of several lives.
fn several() -> String {
    let lost = Status::LostServer.number();
    format!(
        r#"
while true; do
    live
    # {lost} is a server's death, and more than 128 the scheduler's own. What went wrong otherwise would go wrong again.
    if [ "$status" -ne {lost} ] && [ "$status" -le 128 ]; then break; fi
    # So would what keeps servers from starting, on whose account this script has ended the scheduler.
    if [ -n "$servers_status" ] && [ "$servers_status" -le 128 ]; then break; fi
    if [ -n "$stopping" ] || [ -e "$run/misconfigured" ]; then break; fi
    go_on || break
done
echo "$run"
exit "$status"
"#
    )
}

/// Whether the job goes on, at most so often, and as which job.
fn go_on(config: &Config, most: u32) -> String {
    let revoked = config.security.crl.as_deref();
    let revoked =
        revoked.map(|list| format!(" --crl {}", quoted(&list.to_string_lossy()))).unwrap_or_default();
    let (seconds, minutes) = (WINDOW.as_secs(), WINDOW.as_secs() / 60);
    let (failed, [tries, pause]) = (Status::Failed.number(), SIGNING);
    format!(
        r#"
# With a server its parameters are gone, and with the scheduler what everybody has done: the job goes on from its newest checkpoint,
# cluster.restarts times within {minutes} minutes, a second later, then two, and so on. Which checkpoint that is an operator signs.
died=()
go_on() {{
    local at pause signed left={tries} recent=("$SECONDS") operator=$folder/identities/operator-0
    for at in "${{died[@]}}"; do
        if [ $((SECONDS - at)) -lt {seconds} ]; then recent+=("$at"); fi
    done
    echo "a server or the scheduler has died (status $status)" >&2
    if [ "${{#recent[@]}}" -gt {most} ]; then
        echo "the job does not go on by itself: it did {most} times within {minutes} minutes (cluster.restarts)" >&2
        return 1
    fi
    if [ ! -d "$operator" ]; then
        echo "the job does not go on by itself: nobody is here to sign from where ($operator)" >&2
        return 1
    fi
    while true; do
        signed=0
        "$program" job --signed "$folder/cluster.job" --resume "$run" --identity "$operator"{revoked} --out "$run/resumed.job" >&2 || signed=$?
        if [ "$signed" -eq 0 ]; then break; fi
        if [ "$signed" -ne {failed} ]; then
            echo 'the job does not go on by itself: there is nothing to go on from' >&2
            return 1
        fi
        # A file server keeps a dead machine's lock for a while, and a file that cannot be read now may be a moment later.
        if [ -n "$stopping" ] || [ $((left -= 1)) -le 0 ]; then
            echo 'the job does not go on by itself: nothing could be signed for two minutes' >&2
            return 1
        fi
        sleep {pause} &
        wait $! || true
    done
    job=$run/resumed.job
    died=("${{recent[@]}}")
    pause=$((1 << (${{#died[@]}} - 1)))
    pause=$((pause < 30 ? pause : 30))
    echo "the job goes on from its newest checkpoint in $pause s (restart ${{#died[@]}} of {most} within {minutes} minutes)" >&2
    sleep "$pause" &
    wait $! || true
    [ -z "$stopping" ]
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::{script, tests::config};

    /// Stand-ins for Slurm, for the program and for the passing of time: the scheduler's step ends with one of `statuses` after the
    /// other, and the others when it does, or the servers' with `served` at once. A status `TERM` has the order to stop come first,
    /// `told` waits for what the order becomes, and `hangs` for the end. The order comes while a life begins if `stops` is `begin`, and
    /// while the operator signs if it is `job`.
    const STAND_INS: &str = r#"
        scontrol() { echo here; }
        sleep() { command sleep 0.01; }
        fake() {
            echo "$*" >> "$folder/said"
            if [ "$1" = stop ]; then return 0; fi
            if [ "$stops" = "$1" ]; then kill -TERM $$; fi
            if [ "$(grep -c '^job ' "$folder/said")" -gt "$passes" ]; then return 0; fi
            return "$signs"
        }
        rm() {
            if [ "$stops" = begin ]; then kill -TERM $$; fi
            command rm "$@"
        }
        srun() {
            case "$*" in
            *"--role scheduler"*)
                echo "$*" >> "$folder/lives"
                # shellcheck disable=SC2086
                set -- $statuses
                shift $(($(wc -l < "$folder/lives") - 1))
                case "$1" in
                TERM)
                    kill -TERM $$
                    return 143
                    ;;
                told)
                    for _ in {1..1000}; do
                        if grep -q '^stop ' "$folder/said" 2> /dev/null; then return 0; fi
                        sleep
                    done
                    return 1
                    ;;
                hangs) while true; do sleep; done ;;
                esac
                return "$1"
                ;;
            *"--role server"*)
                if [ -n "$misconfigured" ]; then : > "$run/misconfigured"; fi
                if [ -n "$served" ]; then return "$served"; fi
                while kill -0 "$scheduler_step" 2> /dev/null; do command sleep 0.01; done
                ;;
            esac
        }
    "#;

    /// What happens to a job.
    #[derive(Default)]
    struct Happens {
        restarts: u32,
        statuses: &'static str,
        /// The status of the operator's command, as often as `passes` says, and for ever without it.
        signs: u8,
        passes: Option<u32>,
        /// Whether the operator's identity is not there.
        alone: bool,
        misconfigured: bool,
        stops: &'static str,
        served: &'static str,
    }

    /// What becomes of it.
    struct Ended {
        status: i32,
        /// How often the operator's command was given.
        signed: usize,
        /// How the scheduler was started each time.
        lives: Vec<String>,
        said: String,
    }

    fn ended(happens: &Happens) -> Option<Ended> {
        let folder = tempfile::tempdir().unwrap();
        if !happens.alone {
            std::fs::create_dir_all(folder.path().join("identities/operator-0")).unwrap();
        }
        let restarts = format!("cluster.restarts={}", happens.restarts);
        let text = script(&config(&[&restarts]), folder.path(), "fake");
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{STAND_INS}\n{text}")]);
        command.env("SLURM_JOB_ID", "7").env("SLURM_JOB_NODELIST", "here").env("statuses", happens.statuses);
        command.env("signs", happens.signs.to_string()).env("stops", happens.stops);
        command.env("passes", happens.passes.unwrap_or(u32::MAX).to_string());
        command
            .env("served", happens.served)
            .env("misconfigured", if happens.misconfigured { "1" } else { "" });
        let said = command.output().ok()?;
        let lives = std::fs::read_to_string(folder.path().join("lives")).unwrap_or_default();
        let signed = std::fs::read_to_string(folder.path().join("said")).unwrap_or_default();
        let run = folder.path().join("run-7");
        let wanted = format!(
            "job --signed {0}/cluster.job --resume {1} --identity {0}/identities/operator-0 --out {1}/resumed.job",
            folder.path().display(),
            run.display()
        );
        assert!(signed.lines().all(|line| line == wanted || line.starts_with("stop ")), "{signed}");
        assert!(String::from_utf8_lossy(&said.stdout).contains(&run.display().to_string()));
        Some(Ended {
            signed: signed.lines().filter(|line| line.starts_with("job ")).count(),
            status: said.status.code().unwrap(),
            lives: lives.lines().map(str::to_owned).collect(),
            said: String::from_utf8_lossy(&said.stderr).into_owned(),
        })
    }

    /// Invariant 2 of [`super::super`].
    #[test]
    fn a_job_goes_on_from_its_checkpoint_within_its_budget() {
        let happens = Happens { restarts: 2, statuses: "5 137 0", ..Happens::default() };
        let Some(Ended { status, lives, said, .. }) = ended(&happens) else { return };
        assert_eq!((status, lives.len()), (0, 3), "{said}");
        assert!(lives[0].contains("/cluster.job "), "{lives:?}");
        assert!(lives[1..].iter().all(|life| life.contains("/run-7/resumed.job ")), "{lives:?}");
        for part in [
            "a server or the scheduler has died (status 5)",
            "goes on from its newest checkpoint in 1 s (restart 1 of 2 within 10 minutes)",
            "goes on from its newest checkpoint in 2 s (restart 2 of 2 within 10 minutes)",
        ] {
            assert!(said.contains(part), "{part} is not in:\n{said}");
        }
        let of = |restarts, statuses| Happens { restarts, statuses, ..Happens::default() };
        for (happens, (status, lives), why) in [
            (of(1, "137 5 0"), (5, 2), "it did 1 times within 10 minutes (cluster.restarts)"),
            (Happens { signs: 2, ..of(3, "5 0") }, (5, 1), "there is nothing to go on from"),
            (Happens { alone: true, ..of(3, "5 0") }, (5, 1), "nobody is here to sign"),
            (of(3, "1 0"), (1, 1), ""),
            (of(3, "2 0"), (2, 1), ""),
            (Happens { misconfigured: true, ..of(3, "5 0") }, (5, 1), ""),
            (of(0, "5 0"), (5, 1), ""),
        ] {
            let found = ended(&happens).unwrap();
            assert_eq!(
                (found.status, found.lives.len()),
                (status, lives),
                "{}: {}",
                happens.statuses,
                found.said
            );
            assert!(found.said.contains(why), "{}: {}", happens.statuses, found.said);
        }
        assert!(!super::script(&config(&["cluster.restarts=0"])).contains("go_on"));
        let heeds = super::script(&config(&["security.crl=/srv/a list.pem"]));
        assert!(heeds.contains("--crl \"/srv/a list.pem\" --out "), "{heeds}");
    }

    /// What passes is waited for, two minutes at most; what does not is not.
    #[test]
    fn an_operator_signs_when_that_can_be() {
        let of =
            |signs, passes| Happens { restarts: 3, statuses: "5 0", signs, passes, ..Happens::default() };
        for (happens, found, why) in [
            (of(1, Some(3)), (0, 2, 4), "restart 1 of 3"),
            (of(1, None), (5, 1, 25), "nothing could be signed for two minutes"),
            (of(2, Some(1)), (5, 1, 1), "there is nothing to go on from"),
            (Happens { stops: "job", ..of(1, None) }, (5, 1, 1), "nothing could be signed"),
        ] {
            let Some(Ended { status, lives, signed, said }) = ended(&happens) else { return };
            assert_eq!((status, lives.len(), signed), found, "{said}");
            assert!(said.contains(why), "{why}: {said}");
        }
    }

    /// Invariant 2 of [`super::super`]: whenever the order to stop comes, no other life begins, and the one that has begun is told.
    #[test]
    fn a_job_that_was_to_stop_does_not_go_on() {
        for (statuses, stops, restarts, status) in [
            ("TERM 0", "", 3, 143),
            ("5 0", "job", 3, 5),
            ("told 0", "begin", 3, 0),
            ("told 0", "begin", 0, 0),
        ] {
            let happens = Happens { restarts, statuses, stops, ..Happens::default() };
            let Some(found) = ended(&happens) else { return };
            assert_eq!((found.status, found.lives.len()), (status, 1), "{statuses} {stops}: {}", found.said);
            let tried = found.said.contains("has died");
            assert_eq!(tried, stops == "job", "{statuses} {stops}: {}", found.said);
        }
    }

    /// Servers that cannot be started will not be in another life either; those that a signal ended may.
    #[test]
    fn a_job_whose_servers_do_not_start_does_not_go_on() {
        for (served, ended_with) in [("127", (143, 1)), ("0", (143, 1)), ("137", (0, 2))] {
            let happens = Happens { restarts: 3, statuses: "hangs 0", served, ..Happens::default() };
            let Some(found) = ended(&happens) else { return };
            assert_eq!((found.status, found.lives.len()), ended_with, "{served}: {}", found.said);
            assert!(
                found.said.contains(&format!("the servers have ended (status {served})")),
                "{}",
                found.said
            );
        }
    }
}

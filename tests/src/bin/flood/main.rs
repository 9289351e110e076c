//! Measures what floods cost a cluster.
//!
//! ```text
//! cargo build --release -p testudo -p testudo-tests
//! target/release/flood measure target/release/testudo [ATTACK ...]
//! ```
//!
//! The cluster is pinned to the first core, the attacker, which is this program again, to the second. The program fails, and says
//! of which attack, if a node has occupied more than [`cluster::CEILING_MIB`], if honest throughput fell below [`LEAST`] of an
//! undisturbed run's on that core, or if an operator waited longer than [`cluster::DEADLINE`] for an answer.

mod attacker;
mod cluster;

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cluster::{ALONE, ATTACKED, CEILING_MIB, Cluster, DEADLINE, Place, Rate, SHARED};
use testudo_tests::flood::Attack;

/// How long the cluster trains before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long it is measured without an attack, and under one.
const QUIET: Duration = Duration::from_secs(4);
const FLOODED: Duration = Duration::from_secs(7);
/// How long an attack has to reach its strength before that.
const SETTLING: Duration = Duration::from_secs(1);
/// Where an attack comes from: another address than the cluster's, as it would be.
const ATTACKER: &str = "127.0.0.66";
/// Share of an undisturbed run's throughput that an attack must leave.
const LEAST: f64 = 0.8;
/// Share of the cluster's core taken by something else, before the attack, from which on a run is repeated.
const DISTURBED: f64 = 0.08;
/// Runs for one attack at most.
const TRIES: usize = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["measure", program, ref names @ ..] => measure(Path::new(program), names),
        ["attack", name, dir, from, ref targets @ ..] => {
            attacker::attack(name, Path::new(dir), from, targets)
        }
        _ => {
            let all = Attack::ALL.iter().chain(&Attack::INSIDE);
            let names: Vec<&str> = all.map(|(name, _)| *name).collect();
            eprintln!("flood measure TESTUDO [ATTACK ...]\nattacks: {}", names.join(", "));
            ExitCode::from(2)
        }
    }
}

/// Runs the cluster once for each attack, and prints a row of the table for each.
fn measure(program: &Path, names: &[&str]) -> ExitCode {
    let chosen = |name: &str| names.is_empty() || names.contains(&name);
    let mut failed = Vec::new();
    println!(
        "| attack | a second | samples/s undisturbed | before | during | ratio to undisturbed, before | others' share | control p50 | \
         p99 | most | scheduler, server, worker, of {CEILING_MIB} MiB | model | attacker lost |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let place = Place::new(program, ATTACKED);
    for (name, _) in Attack::ALL.iter().filter(|(name, _)| chosen(name)) {
        for _ in 0..TRIES {
            if outside(&place, name, &mut failed) {
                break;
            }
        }
    }
    let inside: Vec<&str> =
        Attack::INSIDE.iter().map(|(name, _)| *name).filter(|name| chosen(name)).collect();
    if !inside.is_empty() {
        let places = (Place::new(program, ALONE), Place::new(program, SHARED));
        inside.iter().for_each(|name| from_inside(&places, name, &mut failed));
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    failed.iter().for_each(|what| eprintln!("{what}"));
    ExitCode::FAILURE
}

fn spawn(place: &Place, name: &str, targets: &[std::ffi::OsString]) -> Child {
    Command::new("taskset")
        .args(["-c", "1"])
        .arg(std::env::current_exe().unwrap())
        .args(["attack", name])
        .arg(place.dir())
        .arg(ATTACKER)
        .args(targets)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// One run attacked from outside; whether it was undisturbed but by the attack.
fn outside(place: &Place, name: &str, failed: &mut Vec<String>) -> bool {
    let mut cluster = Cluster::start(place, |_| ());
    std::thread::sleep(WARM_UP);
    let quiet = cluster.rate(QUIET);
    let attacker = spawn(place, name, cluster.targets());
    row(&mut cluster, attacker, name, (quiet.samples, quiet), failed);
    quiet.others < DISTURBED
}

/// One run of which the attacker is a part, after one without it: what the honest nodes do on their core when the job is theirs.
fn from_inside((alone, place): &(Place, Place), name: &str, failed: &mut Vec<String>) {
    let cluster = Cluster::start(alone, |_| ());
    std::thread::sleep(WARM_UP);
    let undisturbed = cluster.rate(QUIET);
    drop(cluster);
    let mut attacker = None;
    let mut cluster = Cluster::start(place, |targets| attacker = Some(spawn(place, name, targets)));
    std::thread::sleep(WARM_UP);
    // Before the flood, the attacker is a worker like any other.
    let quiet = cluster.rate(QUIET);
    row(&mut cluster, attacker.unwrap(), name, (undisturbed.samples, quiet), failed);
}

/// Has the attacker attack, and prints what came of it. An undisturbed run makes `undisturbed` samples a second.
fn row(
    cluster: &mut Cluster,
    mut attacker: Child,
    name: &str,
    (undisturbed, quiet): (f64, Rate),
    failed: &mut Vec<String>,
) {
    attacker.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let began = Instant::now();
    std::thread::sleep(SETTLING);
    cluster.forget_probes();
    let flooded = cluster.rate(FLOODED);
    let probes = cluster.probes();
    drop(attacker.stdin.take());
    let seconds = began.elapsed().as_secs_f64();
    let peaks = cluster.peaks();
    let (model, lost) = cluster.finish();
    let output = attacker.wait_with_output().unwrap().stdout;
    let sent: f64 = String::from_utf8_lossy(&output).trim().parse().unwrap_or(f64::NAN);
    let at = |share: f64| probes.get((probes.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    let slowest = probes.last().copied().unwrap_or(f64::NAN);
    let resident: Vec<String> = peaks.iter().map(|(_, mib)| format!("{mib:.0}")).collect();
    println!(
        "| {name} | {:.0} | {undisturbed:.0} | {:.0} | {:.0} | {:.2}, {:.2} | {:.2}, {:.2} | {:.1} ms | {:.1} ms | {slowest:.1} ms | {} \
         MiB | {model} | {} |",
        sent / seconds,
        quiet.samples,
        flooded.samples,
        flooded.samples / undisturbed,
        flooded.samples / quiet.samples,
        quiet.others,
        flooded.others,
        at(0.5),
        at(0.99),
        resident.join(", "),
        if lost { "yes" } else { "no" },
    );
    // What is not known is not as it should be either.
    let ratio = flooded.samples / undisturbed;
    if ratio.is_nan() || ratio < LEAST {
        failed.push(format!(
            "{name}: {ratio:.2} of an undisturbed run's throughput was left, and {LEAST} must be"
        ));
    }
    let deadline = DEADLINE.as_secs_f64() * 1000.0;
    if slowest.is_nan() || slowest > deadline {
        failed.push(format!(
            "{name}: an operator waited {slowest:.1} ms for an answer, and may wait {deadline} ms"
        ));
    }
    for (node, mib) in peaks {
        if mib.is_nan() || mib > CEILING_MIB as f64 {
            failed.push(format!(
                "{name}: the {node} has occupied {mib:.0} MiB, and may occupy {CEILING_MIB} (limits.memory_mib)"
            ));
        }
    }
}

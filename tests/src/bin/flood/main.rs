//! Measures what floods cost a cluster.
//!
//! ```text
//! cargo build --release -p testudo -p testudo-tests
//! target/release/flood measure target/release/testudo [ATTACK ...]
//! ```
//!
//! The cluster is pinned to the first core, the attacker, which is this program again, to the second. Every node may occupy
//! [`cluster::CEILING_MIB`]; one that has occupied more is named, and the program fails.

mod attacker;
mod cluster;

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cluster::{ALONE, ATTACKED, CEILING_MIB, Cluster, Place, Rate, SHARED};
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
    let mut over = Vec::new();
    println!(
        "| attack | a second | samples/s before | during | ratio | others' share | control p50 | p99 | most | scheduler, server, \
         worker, of {CEILING_MIB} MiB | model | attacker lost |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    let place = Place::new(program, ATTACKED);
    for (name, _) in Attack::ALL.iter().filter(|(name, _)| chosen(name)) {
        for _ in 0..TRIES {
            if outside(&place, name, &mut over) {
                break;
            }
        }
    }
    let inside: Vec<&str> =
        Attack::INSIDE.iter().map(|(name, _)| *name).filter(|name| chosen(name)).collect();
    if !inside.is_empty() {
        let (alone, place) = (Place::new(program, ALONE), Place::new(program, SHARED));
        // What the honest worker does when the job is its own, to know what a second one adds.
        let mut cluster = Cluster::start(&alone, |_| ());
        std::thread::sleep(WARM_UP);
        let quiet = cluster.rate(QUIET);
        let (model, _) = cluster.finish();
        println!(
            "without an attacker, one worker: {:.0} samples/s, others {:.2}, model {model}",
            quiet.samples, quiet.others
        );
        inside.iter().for_each(|name| from_inside(&place, name, &mut over));
    }
    if over.is_empty() {
        return ExitCode::SUCCESS;
    }
    over.iter().for_each(|what| eprintln!("{what}"));
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
fn outside(place: &Place, name: &str, over: &mut Vec<String>) -> bool {
    let mut cluster = Cluster::start(place, |_| ());
    std::thread::sleep(WARM_UP);
    let quiet = cluster.rate(QUIET);
    let attacker = spawn(place, name, cluster.targets());
    row(&mut cluster, attacker, (name, quiet), over);
    quiet.others < DISTURBED
}

/// One run of which the attacker is a part.
fn from_inside(place: &Place, name: &str, over: &mut Vec<String>) {
    let mut attacker = None;
    let mut cluster = Cluster::start(place, |targets| attacker = Some(spawn(place, name, targets)));
    std::thread::sleep(WARM_UP);
    // Before the flood, the attacker is a worker like any other.
    let quiet = cluster.rate(QUIET);
    row(&mut cluster, attacker.unwrap(), (name, quiet), over);
}

/// Has the attacker attack, and prints what came of it.
fn row(cluster: &mut Cluster, mut attacker: Child, (name, quiet): (&str, Rate), over: &mut Vec<String>) {
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
    let resident: Vec<String> = peaks.iter().map(|(_, mib)| format!("{mib:.0}")).collect();
    println!(
        "| {name} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2}, {:.2} | {:.1} ms | {:.1} ms | {:.1} ms | {} MiB | {model} | {} |",
        sent / seconds,
        quiet.samples,
        flooded.samples,
        flooded.samples / quiet.samples,
        quiet.others,
        flooded.others,
        at(0.5),
        at(0.99),
        probes.last().copied().unwrap_or(f64::NAN),
        resident.join(", "),
        if lost { "yes" } else { "no" },
    );
    for (node, mib) in peaks {
        // What is not known is not below the ceiling either.
        if mib.is_nan() || mib > CEILING_MIB as f64 {
            over.push(format!(
                "{name}: the {node} has occupied {mib:.0} MiB, and may occupy {CEILING_MIB} (limits.memory_mib)"
            ));
        }
    }
}

//! Measures what floods cost a cluster.
//!
//! ```text
//! cargo build --release -p testudo -p testudo-tests
//! target/release/flood measure target/release/testudo [ATTACK ...]
//! ```
//!
//! The cluster is pinned to the first core, the attacker, which is this program again, to the second.

mod cluster;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster::{Cluster, Place};
use testudo_tests::flood::{Attack, Attacker, Done, Target, run};
use testudo_transport::{Identity, SpiffeId};

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
        ["attack", name, dir, from, ref targets @ ..] => attack(name, Path::new(dir), from, targets),
        _ => {
            let names: Vec<&str> = Attack::ALL.iter().map(|(name, _)| *name).collect();
            eprintln!("flood measure TESTUDO [ATTACK ...]\nattacks: {}", names.join(", "));
            ExitCode::from(2)
        }
    }
}

/// Attacks until standard input ends; prints how often.
fn attack(name: &str, dir: &Path, from: &str, targets: &[&str]) -> ExitCode {
    let (_, attack) = Attack::ALL.into_iter().find(|(known, _)| *known == name).unwrap();
    let targets: Vec<Target> = targets
        .chunks(2)
        .map(|pair| Target { id: SpiffeId::parse(pair[0]).unwrap(), address: pair[1].parse().unwrap() })
        .collect();
    let load = |name: &str| Arc::new(Identity::load(&dir.join(name)).unwrap());
    let attacker =
        Attacker { from: from.parse().unwrap(), identity: load("malicious"), foreign: load("foreign") };
    let done = Arc::new(Done::default());
    let ending = Arc::clone(&done);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ending.stop.store(true, Ordering::Relaxed);
    });
    run(attack, &attacker, &targets, &done);
    println!("{}", done.sent.load(Ordering::Relaxed));
    ExitCode::SUCCESS
}

/// Runs the cluster once for each attack, and prints a row of the table for each.
fn measure(program: &Path, names: &[&str]) -> ExitCode {
    let place = Place::new(program);
    println!(
        "| attack | a second | samples/s before | during | ratio | others' share | control p50 | p99 | most | largest RSS | model |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (name, _) in Attack::ALL.iter().filter(|(name, _)| names.is_empty() || names.contains(name)) {
        for _ in 0..TRIES {
            if row(&place, name) {
                break;
            }
        }
    }
    ExitCode::SUCCESS
}

/// One run; whether it was undisturbed but by the attack.
fn row(place: &Place, name: &str) -> bool {
    let mut cluster = Cluster::start(place);
    std::thread::sleep(WARM_UP);
    let quiet = cluster.rate(QUIET);
    let mut attacker = Command::new("taskset")
        .args(["-c", "1"])
        .arg(std::env::current_exe().unwrap())
        .args(["attack", name])
        .arg(place.dir())
        .arg(ATTACKER)
        .args(cluster.targets())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    std::thread::sleep(SETTLING);
    cluster.forget_probes();
    let flooded = cluster.rate(FLOODED);
    let probes = cluster.probes();
    drop(attacker.stdin.take());
    let seconds = began.elapsed().as_secs_f64();
    let output = attacker.wait_with_output().unwrap().stdout;
    let sent: f64 = String::from_utf8_lossy(&output).trim().parse().unwrap_or(f64::NAN);
    let rss = cluster.largest();
    let model = cluster.finish();
    let at = |share: f64| probes.get((probes.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    println!(
        "| {name} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2}, {:.2} | {:.1} ms | {:.1} ms | {:.1} ms | {rss:.0} MiB | {model} |",
        sent / seconds,
        quiet.samples,
        flooded.samples,
        flooded.samples / quiet.samples,
        quiet.others,
        flooded.others,
        at(0.5),
        at(0.99),
        probes.last().copied().unwrap_or(f64::NAN),
    );
    quiet.others < DISTURBED
}

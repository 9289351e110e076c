//! The attacker's process: attacks from the first line of standard input to its end, and prints how often.

use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use testudo::config::Config;
use testudo::node::{Setup, transport};
use testudo_actors::link::Network;
use testudo_actors::node::{NodeOptions, run_worker};
use testudo_tests::flood::inside::Inside;
use testudo_tests::flood::{Attack, Attacker, Done, Target, run};
use testudo_transport::{Endpoint, Identity, Role, SpiffeId};

pub(crate) fn attack(name: &str, dir: &Path, from: &str, targets: &[&str]) -> ExitCode {
    let mut all = Attack::ALL.into_iter().chain(Attack::INSIDE);
    let (_, attack) = all.find(|(known, _)| *known == name).unwrap();
    let is_inside = Attack::INSIDE.contains(&(name_of(attack), attack));
    let targets: Vec<Target> = targets
        .chunks(2)
        .map(|pair| Target { id: SpiffeId::parse(pair[0]).unwrap(), address: pair[1].parse().unwrap() })
        .collect();
    let load = |name: &str| Arc::new(Identity::load(&dir.join(name)).unwrap());
    let identity = load(if is_inside { "inside" } else { "malicious" });
    let attacker = Attacker { from: from.parse().unwrap(), identity, foreign: load("foreign") };
    let done = Arc::new(Done::default());
    if is_inside {
        take_part(attack, dir, &attacker, &targets, &done);
    } else {
        wait_for_the_word(&done);
        run(attack, &attacker, &targets, &done);
    }
    println!("{}", done.sent.load(Ordering::Relaxed));
    ExitCode::SUCCESS
}

fn name_of(attack: Attack) -> &'static str {
    let mut all = Attack::ALL.into_iter().chain(Attack::INSIDE);
    all.find(|(_, known)| *known == attack).unwrap().0
}

/// Returns when a line has come; at the input's end, `done` says stop.
fn wait_for_the_word(done: &Arc<Done>) {
    let _ = std::io::stdin().lock().read_line(&mut String::new());
    let ending = Arc::clone(done);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ending.stop.store(true, Ordering::Relaxed);
    });
}

/// Works as the job's second worker, to the run's end or its own, and floods beside.
fn take_part(attack: Attack, dir: &Path, attacker: &Attacker, targets: &[Target], done: &Arc<Done>) {
    let config = Config::load(&dir.join("cluster.toml"), &[] as &[&str]).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let find = |role| targets.iter().find(|target| target.id.role() == role).unwrap();
    let network = {
        let _inside = runtime.enter();
        let policy = Arc::new(testudo_actors::policy::policy(config.transport.slice_bytes).unwrap());
        let settings = transport(&config, Role::Worker, (attacker.from, 0).into(), 0);
        Network::Quic(Endpoint::bind(&settings, (*attacker.identity).clone(), policy).unwrap())
    };
    let options = NodeOptions {
        identity: Arc::clone(&attacker.identity),
        network: network.clone(),
        scheduler: find(Role::Scheduler).address.to_string(),
        advertise: None,
        lanes: u32::from(config.transport.lanes),
        runtime: runtime.handle().clone(),
        codecs: None,
    };
    let inside = Inside::default();
    let mut setup = inside.watch(Box::new(Setup::new(config, dir.join("attacker.safetensors"))));
    // However it ends: it may well be cut off.
    let worker = std::thread::spawn(move || run_worker(options, &mut setup).is_ok());
    wait_for_the_word(done);
    runtime.block_on(inside.flood(attack, (attacker, &network), find(Role::Server), done));
    let _ = worker.join();
}

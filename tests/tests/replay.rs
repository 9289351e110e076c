//! `testudo replay`: genuine runs are confirmed, whoever trained them; altered records and lying servers are refuted; and
//! what cannot be said is not said.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testudo_actors::checkpoint::{PartSource, RestoredSlice, Snapshot};
use testudo_actors::message::Finished;
use testudo_actors::placement::Slice;
use testudo_actors::replay::{Replay, ReplayError};
use testudo_actors::server::SumOrder;
use testudo_actors::{CheckpointError, Checkpoints, JobSpec, Resume};
use testudo_kernels::{OptimizerSpec, Schedule};
use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended};
use testudo_tests::sim::Simulation;
use testudo_tests::{left, toy};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

struct Place {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let file = files::write_job(folder.path());
        Place { folder, file }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self, name: &str, arguments: &[&str], until: u64) -> Value {
        let (dir, steps) = (self.dir(name), format!("training.max_steps={until}"));
        let all = [&["run", "--json", "--quiet", "--set", &steps], arguments].concat();
        process::run(PROGRAM, &all, &dir).succeeded().json()
    }

    fn run(&self, name: &str, options: &[&str], until: u64) -> Value {
        let dir = self.dir(name);
        let options = [&[text(&self.file), "--run-dir", text(&dir)], options].concat();
        self.train(name, &[&options[..], &["--set", "checkpoint.keep_last=100"]].concat(), until)
    }

    fn resume(&self, name: &str, options: &[&str], until: u64) -> Value {
        let dir = self.dir(name);
        self.train(name, &[&["--resume", text(&dir)], options].concat(), until)
    }

    /// A run in three goes, so that there are checkpoints at steps 5, 10 and 15: the last of a go is never skipped.
    fn run_to_15(&self, name: &str) -> Value {
        let _ = self.run(name, &[], 5);
        let _ = self.resume(name, &[], 10);
        self.resume(name, &[], 15)
    }

    fn replay(&self, name: &str, step: u64, options: &[&str]) -> Ended {
        let dir = self.dir(name);
        let step = step.to_string();
        let all = [&["replay", text(&dir), "--step", &step, "--json"], options].concat();
        process::run(PROGRAM, &all, &dir)
    }

    /// The hash that is confirmed, what was compared, and what it began with.
    fn confirmed(&self, name: &str, step: u64, options: &[&str]) -> (String, Vec<String>, Value) {
        let verdict = self.replay(name, step, options).succeeded().json();
        assert_eq!((&verdict["verdict"], &verdict["step"]), (&json!("confirmed"), &json!(step)));
        let checks = verdict["checks"].as_array().unwrap();
        assert!(!checks.is_empty() && checks.iter().all(|c| c["agrees"] == true), "{verdict}");
        let names = checks.iter().map(|c| c["record"].as_str().unwrap().to_owned()).collect();
        (verdict["params_blake3"].as_str().unwrap().to_owned(), names, verdict["from"].clone())
    }

    /// A run in one process whose server 1 lies in step 9, so that what has 10 steps behind it is wrong.
    fn with_liar(&self, name: &str) -> Finished {
        // Unwitnessed: what is found here is found by whoever looks afterwards.
        let overrides = [
            "training.max_steps=15",
            "checkpoint.every_steps=5",
            "checkpoint.keep_last=100",
            "audit.witness_rate=0",
        ];
        let liar = |server| if server == 1 { SumOrder::Wrong { step: 9 } } else { SumOrder::Canonical };
        left::leave(&self.file, &overrides, &self.dir(name), liar)
    }
}

#[track_caller]
fn ends(ended: &Ended, code: i32, verdict: &str, parts: &[&str]) -> Value {
    assert_eq!(ended.code(), Some(code), "{ended:#?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is missing in {}", ended.stderr);
    }
    let json = ended.json();
    assert_eq!(json["verdict"], verdict, "{json}");
    json
}

fn flip_last_byte(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn from_step(from: &Value) -> Option<u64> {
    from["checkpoint"]["step"].as_u64()
}

/// Invariant 4 too: what it began with is said.
#[test]
fn a_genuine_run_is_confirmed_at_every_record_whoever_trained_it() {
    let place = Place::new();
    let whole = place.run("whole", &[], 15);
    let (hash, records, from) = place.confirmed("whole", 15, &[]);
    assert_eq!(json!(hash), whole["params_blake3"]);
    assert_eq!(records, ["audit log", "checkpoint at step 15", "exported model", "summary.json"]);
    assert_eq!(from, json!("seed"), "nothing is before it");

    // Trained by others, and in three goes: the same steps, the same bits.
    let _ = place.run("goes", &["--workers", "4", "--servers", "1"], 5);
    let _ = place.resume("goes", &["--workers", "1", "--servers", "3"], 10);
    let _ = place.resume("goes", &["--workers", "3", "--servers", "2"], 15);
    let (again, _, from) = place.confirmed("goes", 15, &[]);
    assert_eq!((&again, from_step(&from)), (&hash, Some(10)));
    let (again, _, from) = place.confirmed("goes", 15, &["--from-seed"]);
    assert_eq!((&again, from), (&hash, json!("seed")));
    let (at_10, records, from) = place.confirmed("goes", 10, &[]);
    assert_eq!(
        (&records[..], from_step(&from)),
        (&["audit log", "checkpoint at step 10"].map(str::to_owned)[..], Some(5))
    );
    assert_eq!(place.confirmed("goes", 10, &["--from-seed"]).0, at_10);
    assert_eq!(place.confirmed("goes", 5, &[]).2, json!("seed"));
    // Every step is in the audit log, and what the first one begins with.
    for step in [0, 1, 7, 13] {
        let (at, records, _) = place.confirmed("goes", step, &[]);
        assert_eq!(
            (&records[..], &at),
            (&["audit log".to_owned()][..], &place.confirmed("whole", step, &[]).0)
        );
    }
    let dir = place.dir("goes");

    // For a person: what was confirmed and what it rests on, and progress on the way.
    let ended = process::run(PROGRAM, &["replay", text(&dir), "--step", "15"], &dir).succeeded();
    assert!(ended.stdout.contains(&format!("step 15 is confirmed: {hash}")), "{}", ended.stdout);
    assert!(ended.stdout.contains("from the checkpoint at step 10 (5 steps)"), "{}", ended.stdout);
    assert!(ended.stderr.contains("step 5/5") && ended.stderr.contains("--ca"), "{}", ended.stderr);
}

/// The line: a server that applied a wrong update is found by a third party, and named, though everything that the
/// run left behind is signed and consistent with itself.
#[test]
fn a_server_that_applied_a_wrong_update_is_refuted_and_named() {
    let place = Place::new();
    let finished = place.with_liar("lie");
    let _ = place.run("honest", &[], 10);
    let honest = place.resume("honest", &[], 15);
    let lied = blake3::Hash::from_bytes(finished.params_blake3).to_hex().to_string();
    assert_ne!(json!(lied), honest["params_blake3"]);

    let _ = place.confirmed("lie", 5, &[]);
    let named = ["step 10 is refuted", "server 1 kept slice"];
    let verdict = ends(&place.replay("lie", 10, &[]), 1, "refuted", &named);
    assert_eq!(json!(place.confirmed("honest", 10, &[]).0), verdict["params_blake3"]);
    let differences = verdict["checks"][0]["differences"].as_array().unwrap().clone();
    assert!(!differences.is_empty());
    for difference in &differences {
        let servers: Vec<&String> = difference["servers"].as_object().unwrap().keys().collect();
        assert_eq!(servers, ["1"], "server 0 is not accused: {difference}");
    }
    // From the wrong checkpoint on, what followed was right; from the seed, all of it is wrong.
    assert_eq!(place.confirmed("lie", 15, &[]).0, lied);
    let verdict = ends(&place.replay("lie", 15, &["--from-seed"]), 1, "refuted", &["step 15 is refuted"]);
    assert_eq!(verdict["params_blake3"], honest["params_blake3"]);
}

/// Invariant 2.
#[test]
fn altered_records_are_refuted() {
    let place = Place::new();
    let _ = place.run_to_15("run");
    let dir = place.dir("run");
    let summary = dir.join("summary.json");
    let genuine = std::fs::read_to_string(&summary).unwrap();
    let mut altered: Value = serde_json::from_str(&genuine).unwrap();
    altered["params_blake3"] = json!("ab".repeat(32));
    std::fs::write(&summary, altered.to_string()).unwrap();
    let verdict = ends(&place.replay("run", 15, &[]), 1, "refuted", &["summary.json: it has abab"]);
    let agree: Vec<bool> =
        verdict["checks"].as_array().unwrap().iter().map(|c| c["agrees"] == true).collect();
    assert_eq!(agree, [true, true, true, false]);
    std::fs::write(&summary, genuine).unwrap();

    // One digit of the audit log, and another hash for one step in it.
    let log = dir.join("audit.log");
    let kept = std::fs::read_to_string(&log).unwrap();
    let hash = verdict["params_blake3"].as_str().unwrap();
    let at = kept.find(hash).unwrap();
    let digit = if hash.starts_with('0') { "1" } else { "0" };
    std::fs::write(&log, [&kept[..at], digit, &kept[at + 1..]].concat()).unwrap();
    ends(&place.replay("run", 15, &[]), 1, "refuted", &["audit log: it does not hold"]);
    ends(&place.replay("run", 7, &[]), 1, "refuted", &["audit log: it does not hold"]);
    std::fs::write(&log, kept).unwrap();

    // One bit of the exported model's last value.
    let model = dir.join("checkpoint/final/model.safetensors");
    flip_last_byte(&model);
    ends(
        &place.replay("run", 15, &[]),
        1,
        "refuted",
        &["exported model: it does not hold", "its header says"],
    );
    flip_last_byte(&model);

    // A record that would fill memory, were its size believed; the file has holes, so it costs no disk.
    let kept = std::fs::read(&model).unwrap();
    std::fs::OpenOptions::new().write(true).open(&model).unwrap().set_len(40 << 30).unwrap();
    ends(
        &place.replay("run", 15, &[]),
        0,
        "confirmed",
        &["the exported model", "42949672960 bytes, at most"],
    );
    std::fs::write(&model, kept).unwrap();

    // A part that is not what the manifest says, and a manifest that is not what was signed.
    let part = left::step(&dir, 15).join("server-1.part.age");
    flip_last_byte(&part);
    ends(&place.replay("run", 15, &[]), 1, "refuted", &["server-1.part.age", "BLAKE3"]);
    flip_last_byte(&part);
    let manifest = left::step(&dir, 15).join("manifest.json");
    let signed = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, signed.replace("\"samples\": 9", "\"samples\": 8")).unwrap();
    assert_ne!(std::fs::read_to_string(&manifest).unwrap(), signed);
    ends(&place.replay("run", 15, &[]), 1, "refuted", &["manifest.json", "signature"]);
    std::fs::write(&manifest, signed).unwrap();

    // Parameters of another step under this step's name: signed, but not for here.
    let other = left::step(&dir, 5).join("manifest.json");
    let kept = std::fs::read(&other).unwrap();
    std::fs::write(&other, std::fs::read(left::step(&dir, 10).join("manifest.json")).unwrap()).unwrap();
    ends(&place.replay("run", 5, &[]), 1, "refuted", &["of step 10 in the folder of step 5"]);
    std::fs::write(&other, kept).unwrap();
    let _ = place.confirmed("run", 15, &[]);
    let _ = place.confirmed("run", 5, &[]);
}

/// A base that is damaged is passed over, never used.
#[test]
fn a_damaged_base_is_passed_over() {
    let place = Place::new();
    let _ = place.run_to_15("run");
    flip_last_byte(&left::step(&place.dir("run"), 10).join("server-0.part.age"));
    let (_, _, from) = place.confirmed("run", 15, &[]);
    assert_eq!(from_step(&from), Some(5));
    flip_last_byte(&left::step(&place.dir("run"), 5).join("manifest.sig"));
    let ended = place.replay("run", 15, &[]);
    assert!(ended.stderr.contains("the checkpoint at step 5 is passed over"), "{}", ended.stderr);
    assert_eq!(ends(&ended, 0, "confirmed", &[])["from"], "seed");
}

/// Invariants 1 and 3.
#[test]
fn what_cannot_be_said_is_not_said() {
    let place = Place::new();
    let _ = place.run_to_15("run");
    let dir = place.dir("run");
    let unknown = |step: u64, options: &[&str], parts: &[&str]| {
        let missing = ends(&place.replay("run", step, options), 2, "unknown", parts);
        assert!(missing["missing"].as_str().unwrap().contains(parts[0]), "{missing}");
    };
    unknown(16, &[], &["nothing is recorded for step 16; there are records of steps 0 to 15"]);
    unknown(u64::MAX, &[], &["none of the job's"]);

    // Another run's CA did not sign this job, nor these checkpoints.
    let _ = place.run("other", &[], 1);
    let ca = place.dir("other").join("checkpoint/ca.pem");
    unknown(15, &["--ca", text(&ca)], &["job.signed", "signature does not hold"]);
    let _ = place.confirmed("run", 15, &["--ca", text(&dir.join("checkpoint/ca.pem"))]);
    let job = dir.join("job.signed");
    let signed = std::fs::read(&job).unwrap();
    let mut altered = signed.clone();
    let at = altered.windows(5).position(|w| w == b"small").unwrap();
    altered[at] ^= 1;
    std::fs::write(&job, altered).unwrap();
    unknown(15, &[], &["job.signed", "signature does not hold"]);
    std::fs::write(&job, signed).unwrap();

    // Other data than the job was signed for; the same elsewhere is as good.
    files::write_data(&place.dir("elsewhere"));
    let _ = place.confirmed("run", 15, &["--data", text(&place.dir("elsewhere"))]);
    flip_last_byte(&place.dir("elsewhere").join("train-images-idx3-ubyte"));
    unknown(15, &["--data", text(&place.dir("elsewhere"))], &["not what the job was signed for", "--data"]);

    // Without the key, no checkpoint can be begun with; from the seed, the rest can still be compared.
    let key = place.dir("key.txt");
    std::fs::rename(dir.join("checkpoint/key.txt"), &key).unwrap();
    unknown(15, &[], &["--identity-file"]);
    assert_eq!(place.confirmed("run", 10, &["--from-seed"]).1, ["audit log"]);
    let (_, records, _) = place.confirmed("run", 15, &["--from-seed"]);
    assert_eq!(records, ["audit log", "exported model", "summary.json"]);
    let (_, records, _) = place.confirmed("run", 15, &["--identity-file", text(&key)]);
    assert_eq!(records.len(), 4);
    let wrong = place.dir("other").join("checkpoint/key.txt");
    unknown(10, &["--identity-file", text(&wrong)], &["step 10 could not be computed", "none of the given"]);

    std::fs::remove_dir_all(dir.join("identities")).unwrap();
    std::fs::remove_file(dir.join("checkpoint/ca.pem")).unwrap();
    unknown(15, &[], &["no CA to check", "--ca"]);
}

/// What simulated servers kept at one step.
struct Kept(Vec<Snapshot>);

impl PartSource for Kept {
    fn load(&mut self, _: &JobSpec, wanted: &[Slice]) -> Result<Vec<RestoredSlice>, CheckpointError> {
        let all = || self.0.iter().flat_map(|part| &part.slices);
        let restored = wanted.iter().map(|slice| {
            let kept = all().find(|kept| kept.slice.id == slice.id).expect("every slice was kept");
            let (weights, state) = (kept.weights.to_vec(), kept.state.clone());
            RestoredSlice { id: slice.id, weights, state, scalars: kept.scalars.clone() }
        });
        Ok(restored.collect())
    }
}

/// Invariants 1 and 2 of `actors/src/replay.rs`: parameters and optimizer state have the bits of a simulated cluster's at
/// every step that one of them kept, for every optimizer, from the seed and from any such step.
#[test]
fn a_replay_has_the_bits_of_any_cluster_for_every_optimizer() {
    for (name, seed) in ["sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "lamb"].into_iter().zip(0..)
    {
        let optimizer = OptimizerSpec::shipped(name).unwrap().with("weight_decay", 0.01);
        let job = JobSpec {
            optimizer,
            schedule: Schedule::Cosine { warmup_steps: 3, final_fraction: 0.1 },
            learning_rate: 0.01,
            checkpoints: Checkpoints { every_steps: 4, at_end: true },
            ..toy::job(3, 2, 6, 12)
        };
        let mut cluster = Simulation::new(job.clone(), seed, SumOrder::Canonical);
        let finished = cluster.finish();
        let begin = |from: Option<(Resume, &mut dyn PartSource)>| {
            let model = job.build_model().unwrap();
            Replay::new(&job, model, toy::data(), from).unwrap()
        };
        let mut whole = begin(None);
        let mut compared = 0;
        while whole.steps() < 12 {
            let taken = whole.advance().unwrap();
            assert_eq!(taken.loss, cluster.steps[taken.step as usize].loss);
            let Some(parts) = cluster.parts.get(&whole.steps()) else { continue };
            compared += 1;
            let parameters = whole.parameters();
            for kept in parts.values().flat_map(|part| &part.slices) {
                let ours = &parameters[kept.slice.id.parameter as usize];
                let place = kept.slice.first..kept.slice.first + kept.slice.elements;
                assert_eq!(ours.weights[place.clone()], kept.weights[..], "{name}");
                for (ours, theirs) in ours.state.iter().zip(&kept.state) {
                    assert_eq!(ours[place.clone()], theirs[..], "{name}");
                }
                assert_eq!(ours.state.len(), kept.state.len());
                assert_eq!(ours.scalars, kept.scalars, "{name}");
            }
            let resume = Resume {
                step: whole.steps(),
                manifest_blake3: [0; 32],
                samples: 0,
                last_loss: None,
                best: None,
            };
            let mut source = Kept(parts.values().cloned().collect());
            let mut later = begin(Some((resume, &mut source)));
            assert_eq!(later.params_blake3(), whole.params_blake3());
            while later.steps() < 12 {
                let _ = later.advance().unwrap();
            }
            assert_eq!(later.params_blake3(), finished.params_blake3, "{name}");
        }
        assert!(compared > 0);
        assert_eq!(whole.params_blake3(), finished.params_blake3, "{name}");
    }
}

/// What the job plans is all there is.
#[test]
fn there_is_no_step_beyond_the_last() {
    let job = JobSpec { epochs: 1, ..toy::job(1, 1, 6, 1) };
    let model = job.build_model().unwrap();
    let mut replay = Replay::new(&job, model, toy::data(), None).unwrap();
    let planned = testudo_actors::plan::Plan::new(&job).planned_steps();
    for _ in 0..planned {
        let _ = replay.advance().unwrap();
    }
    assert!(matches!(replay.advance(), Err(ReplayError::Over(steps)) if steps == planned));
}

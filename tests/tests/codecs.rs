//! Wire codecs through whole clusters: the same bits for any number of nodes, what every reader decodes, what error feedback loses
//! with a worker, and encodings that no honest worker sends.

use bytes::Bytes;
use testudo_actors::checkpoint::PartSource;
use testudo_actors::message::{Body, Finished, Outcome, Pull, Push, PushRefusal, SliceVersion};
use testudo_actors::placement::SliceId;
use testudo_actors::replay::Replay;
use testudo_actors::server::SumOrder;
use testudo_actors::{Checkpoints, Codecs, JobSpec, Resume};
use testudo_kernels::{Aggregation, Codec};
use testudo_tests::cluster::{Cluster, Links};
use testudo_tests::member::{Answer, placement};
use testudo_tests::sim::{Kept, Simulation};
use testudo_tests::stage::{self, play};
use testudo_tests::toy;

const STEPS: u64 = 6;
const SHARDS: u32 = 6;
const F32: Codecs = Codecs { push: Codec::F32, pull: Codec::F32 };

/// Every codec in either direction.
const ALL: [Codecs; 8] = [
    Codecs { push: Codec::F16, pull: Codec::F16 },
    Codecs { push: Codec::Bf16, pull: Codec::Bf16 },
    Codecs { push: Codec::Int8, pull: Codec::Int8 },
    Codecs { push: Codec::TwoBit { threshold: 0.5 }, pull: Codec::F32 },
    Codecs { push: Codec::OneBit { threshold: 0.0 }, pull: Codec::Bf16 },
    Codecs { push: Codec::TopK { fraction: 0.25 }, pull: Codec::F16 },
    Codecs { push: Codec::F32, pull: Codec::Int8 },
    Codecs { push: Codec::Bf16, pull: Codec::F32 },
];

/// Slices of 400 values, so that one holds more than a block of `int8`.
fn job(codecs: Codecs, workers: u32, servers: u32) -> JobSpec {
    JobSpec { codecs, slice_bytes: 1600, ..toy::job(workers, servers, SHARDS, STEPS) }
}

fn simulate(job: JobSpec, seed: u64) -> (Finished, Simulation) {
    let mut simulation = Simulation::new(job, seed, SumOrder::Canonical);
    let finished = simulation.finish();
    (finished, simulation)
}

fn reference(codecs: Codecs) -> Finished {
    simulate(job(codecs, 1, 1), 0).0
}

fn pushes(simulation: &Simulation) -> impl Iterator<Item = (Push, &Bytes)> {
    let pushes = simulation.carried.iter().filter(|(kind, ..)| *kind == Push::KIND);
    pushes.map(|(_, body, values)| (Push::decode(body).unwrap(), values))
}

/// Actors' invariant 5, under every codec; small slices too, most of which are shorter than a block.
#[test]
fn same_bits_for_any_number_of_workers_and_servers() {
    let lossless = reference(F32);
    for codecs in ALL {
        let (reference, alone) = simulate(job(codecs, 1, 1), 0);
        assert_ne!(reference.params_blake3, lossless.params_blake3, "{codecs:?} is used");
        let losses: Vec<f64> = alone.steps.iter().map(|step| step.loss).collect();
        // What says little at a time takes more than a few steps.
        let says_little = matches!(codecs.push, Codec::OneBit { .. } | Codec::TwoBit { .. });
        assert!(says_little || losses[STEPS as usize - 1] < losses[0], "{codecs:?} learns: {losses:?}");
        let small = simulate(JobSpec { slice_bytes: 64, ..job(codecs, 1, 1) }, 0).0;
        for (seed, workers, servers) in [(1, 1, 3), (2, 2, 1), (3, 3, 2), (5, 6, 3)] {
            let mut simulation = Simulation::new(job(codecs, workers, servers), seed, SumOrder::Canonical);
            simulation.duplicate = seed % 2 == 1;
            let finished = simulation.finish();
            assert_eq!(finished.params_blake3, reference.params_blake3, "{codecs:?}: {workers}, {servers}");
            assert!(simulation.steps.iter().map(|step| step.loss).eq(losses.iter().copied()));
            assert_eq!(finished.test_loss.to_bits(), reference.test_loss.to_bits());
            assert!(simulation.refused.is_empty());
            let cut = JobSpec { slice_bytes: 64, ..job(codecs, workers, servers) };
            assert_eq!(
                simulate(cut, seed).0.params_blake3,
                small.params_blake3,
                "{codecs:?} in small slices"
            );
        }
    }
}

/// A server that sums in order of arrival is caught by the test above under a codec as well.
#[test]
fn the_mutant_that_sums_in_order_of_arrival_is_caught() {
    let expected = reference(ALL[2]).params_blake3;
    let arrival = |seed| {
        let mut simulation = Simulation::new(job(ALL[2], 3, 2), seed, SumOrder::Arrival);
        simulation.finish().params_blake3 != expected
    };
    assert!((0..4).any(arrival), "arrival order went unnoticed");
}

/// What is on the wire: each logical shard by itself, in the job's codec, in the codec's length; versions in the pull codec but for
/// the last, which is evaluated and exported exactly.
#[test]
fn what_travels_is_what_the_job_says() {
    for codecs in ALL {
        let (finished, simulation) = simulate(job(codecs, 2, 2), 4);
        let elements = |slice: SliceId| placement(&job(codecs, 2, 2)).slice(slice).unwrap().elements;
        for (push, values) in pushes(&simulation) {
            assert_eq!(push.codec, codecs.push.id());
            assert_eq!(values.len(), codecs.push.encoded_len(elements(push.slice)));
            assert!(push.node.leaves == 1 || codecs.push.is_lossless(), "{codecs:?}: {:?}", push.node);
        }
        let mut exact = 0;
        for (kind, body, values) in &simulation.carried {
            if *kind != SliceVersion::KIND {
                continue;
            }
            let given = SliceVersion::decode(body).unwrap();
            let is_exact = given.codec != codecs.pull.id();
            exact += usize::from(is_exact);
            assert!(!is_exact || (given.codec, given.version) == (0, STEPS), "{given:?}");
            let codec = if is_exact { Codec::F32 } else { codecs.pull };
            assert_eq!(values.len(), codec.encoded_len(elements(given.slice)));
        }
        let lossy = [!codecs.push.is_lossless(), !codecs.pull.is_lossless()];
        assert_eq!(exact > 0, lossy[1]);
        assert_eq!([finished.push_error > 0.0, finished.pull_error > 0.0], lossy, "{finished:?}");
        let whole = matches!(codecs.push, Codec::F16 | Codec::Bf16 | Codec::Int8);
        assert!(finished.push_error < if whole { 0.01 } else { 100.0 }, "{finished:?}");
        assert!(finished.pull_error < 0.01, "{finished:?}");
        assert_eq!(simulation.steps[2].push_error > 0.0, lossy[0]);
    }
}

/// Codecs without feedback lose nothing with a worker: its heirs encode the same.
#[test]
fn a_death_changes_no_bit_without_feedback() {
    for codecs in [ALL[0], ALL[1], ALL[6]] {
        let expected = reference(codecs).params_blake3;
        for seed in 0..6 {
            let mut simulation = Simulation::new(job(codecs, 3, 2), seed, SumOrder::Canonical);
            let step = seed % 4;
            assert!(simulation.run_until(|s| s.steps.len() as u64 >= step && s.pushes_under_way(1) > 0));
            simulation.kill(1);
            let finished = simulation.finish();
            assert_eq!(
                (finished.params_blake3, finished.residuals_lost),
                (expected, 0),
                "{codecs:?}, {seed}"
            );
        }
    }
}

/// With feedback, a death loses residuals: training goes on, and it is said. What is witnessed is not guessed.
#[test]
fn a_death_with_feedback_is_said_to_lose_residuals() {
    for codecs in [ALL[2], ALL[3], ALL[4], ALL[5]] {
        let expected = reference(codecs).params_blake3;
        let mut differ = 0;
        for seed in 0..4 {
            let witnessed = JobSpec { witness_rate: 1.0, ..job(codecs, 3, 2) };
            let mut simulation = Simulation::new(witnessed, seed, SumOrder::Canonical);
            assert!(simulation.run_until(|s| s.steps.len() as u64 >= 2 && s.pushes_under_way(1) > 0));
            simulation.kill(1);
            let finished = simulation.finish();
            assert_eq!((finished.steps, finished.residuals_lost), (STEPS, 2));
            let said = |what: &str| simulation.notices.iter().any(|notice| notice.contains(what));
            assert!(said("residuals of 2 logical shards"), "{:?}", simulation.notices);
            assert!(said("no update is witnessed any longer"), "{:?}", simulation.notices);
            differ += usize::from(finished.params_blake3 != expected);
        }
        assert!(differ > 0, "{codecs:?}: nothing was lost");
    }
}

/// What is witnessed is what servers decode, and what workers do: who is right is never named, and who is wrong is.
#[test]
fn witnesses_understand_every_codec() {
    for codecs in ALL {
        let expected = reference(codecs).params_blake3;
        let witnessed = |rate| JobSpec { witness_rate: rate, ..job(codecs, 3, 2) };
        for (seed, rate) in [(1, 1.0), (2, 0.3)] {
            let (finished, simulation) = simulate(witnessed(rate), seed);
            assert_eq!(finished.params_blake3, expected, "{codecs:?}");
            assert!(simulation.notices.iter().all(|n| !n.contains("witnessed")), "{:?}", simulation.notices);
        }
        let mut lying = Simulation::new(witnessed(1.0), 3, SumOrder::Wrong { step: 2 });
        let Outcome::Failed(reason) = lying.run() else { panic!("{codecs:?}: nobody noticed") };
        // What rounding hides from the workers as well is seen when it shows.
        assert!(reason.contains("applied a wrong update in step"), "{reason}");
    }
}

/// A replay has the bits of the run, and so has a resumption; residuals in checkpoints are `residuals.rs`'s.
#[test]
fn replays_and_resumptions_understand_codecs() {
    for codecs in ALL {
        let checkpoints = Checkpoints { every_steps: 2, at_end: false };
        let keeps = !codecs.push.feeds_back();
        let job = JobSpec {
            checkpoints: if keeps { checkpoints } else { Checkpoints::default() },
            ..job(codecs, 3, 2)
        };
        let (finished, cluster) = simulate(job.clone(), 9);
        let begin = |from: Option<(Resume, &mut dyn PartSource)>| {
            let model = job.build_model().unwrap();
            Replay::new(&job, model, toy::data(), from).unwrap()
        };
        let mut replay = begin(None);
        for step in &cluster.steps {
            assert_eq!(replay.advance().unwrap().loss, step.loss, "{codecs:?}");
        }
        assert_eq!(replay.params_blake3(), finished.params_blake3, "{codecs:?}");
        if !keeps {
            continue;
        }
        let parts: Vec<_> = cluster.parts[&4].values().cloned().collect();
        let resume = Resume { step: 4, manifest_blake3: [0; 32], samples: 0, last_loss: None, best: None };
        let mut kept = Kept(parts.clone());
        let mut later = begin(Some((resume, &mut kept)));
        while later.steps() < STEPS {
            let _ = later.advance().unwrap();
        }
        assert_eq!(later.params_blake3(), finished.params_blake3, "{codecs:?}");
        let again = JobSpec { resume: Some(resume), workers: 2, servers: 3, ..job.clone() };
        let resumed = Simulation::resumed(again, 5, SumOrder::Canonical, parts).finish();
        assert_eq!(resumed.params_blake3, finished.params_blake3, "{codecs:?}");
    }
}

/// Robust rules vote on what is decoded.
#[test]
fn votes_are_what_servers_decode() {
    for codecs in ALL {
        let job = |servers| JobSpec {
            aggregation: Aggregation::Median { hostile: 2 },
            ..job(codecs, SHARDS, servers)
        };
        let one = simulate(job(1), 1).0.params_blake3;
        assert_eq!(simulate(job(3), 2).0.params_blake3, one, "{codecs:?}");
    }
}

/// The same cores as real shells with sealed messages, to the bits of the simulation.
#[test]
fn shells_train_to_the_same_bits() {
    for (codecs, links) in [(ALL[2], Links::SecuredMemory), (ALL[1], Links::Quic), (ALL[5], Links::Memory)] {
        let job = JobSpec { heartbeat_timeout_ms: 600_000, ..job(codecs, 2, 2) };
        let outcome = Cluster::start(job, links).outcome();
        let Outcome::Finished(finished) = outcome else { panic!("{outcome:?}") };
        assert_eq!(finished.params_blake3, reference(codecs).params_blake3, "{codecs:?}");
    }
}

/// A codec that the job does not name, a length that its codec does not give, and bytes that no encoder writes are refused with the
/// reason, and leave their place free for a good value.
#[test]
fn hostile_encodings_are_refused() {
    let int8 = |scale: f32, codes: [u8; 4]| [&scale.to_le_bytes()[..], &codes].concat();
    let sparse = |index: u32, value: f32| [index.to_le_bytes(), value.to_le_bytes()].concat();
    let cases: [(Codec, Vec<u8>, Vec<Vec<u8>>); 4] = [
        (
            Codec::Int8,
            int8(0.5, [2, 0, 0, 0]),
            vec![
                int8(f32::NAN, [0; 4]),
                int8(f32::INFINITY, [1; 4]),
                int8(-1.0, [1; 4]),
                int8(f32::MAX, [127; 4]),
                int8(1.0, [0x80, 0, 0, 0]),
            ],
        ),
        (
            Codec::TwoBit { threshold: 1.0 },
            vec![0b1100_0000, 0, 0, 0],
            vec![vec![0b0100_0000, 0, 0, 0], vec![0, 0b1100_0000, 0, 0], vec![0, 0, 0, 1]],
        ),
        (
            Codec::OneBit { threshold: 0.0 },
            vec![0b1010_0000, 0, 0, 0],
            vec![vec![0b0000_1000, 0, 0, 0], vec![0, 0, 0, 0x80]],
        ),
        (Codec::TopK { fraction: 0.25 }, sparse(0, 1.0), vec![sparse(4, 1.0), sparse(u32::MAX, 1.0)]),
    ];
    for (push, good, bad) in cases {
        let codecs = Codecs { push, pull: Codec::F32 };
        play(JobSpec { codecs, ..stage::job(2, 1, 2) }, async |stage| {
            let mut owed = stage.push_of(0, 0, FIRST);
            owed.codec = push.id();
            for other in [0, 1, 2, 3, 4, 5, 6, 255].into_iter().filter(|id| *id != push.id()) {
                let wrong = Push { codec: other, ..owed.clone() };
                let refused = Answer::Refused(PushRefusal::UnknownCodec(other));
                assert_eq!(pushed(stage, &wrong, &good).await, refused, "{push}");
            }
            // What is longer than any slice can be is refused by its announcement: `policy.rs`.
            for length in [0, 1, good.len() - 1] {
                let (expected, found) = (good.len() as u64, length as u64);
                let refused = Answer::Refused(PushRefusal::WrongLength { expected, found });
                assert_eq!(pushed(stage, &owed, &vec![0; length]).await, refused, "{push}");
            }
            for bytes in bad {
                let refused = Answer::Refused(PushRefusal::Malformed);
                assert_eq!(pushed(stage, &owed, &bytes).await, refused, "{push}: {bytes:?}");
            }
            if let Codec::TopK { .. } = push {
                let refused = Answer::Refused(PushRefusal::NotFinite { element: 2 });
                assert_eq!(pushed(stage, &owed, &sparse(2, f32::NAN)).await, refused);
            }
            assert_eq!(pushed(stage, &owed, &good).await, Answer::Accepted(false), "{push}");
            assert_eq!(pushed(stage, &owed, &good).await, Answer::Accepted(true), "{push}");
        });
    }
}

const FIRST: SliceId = SliceId { parameter: 0, index: 0 };

async fn pushed(stage: &mut stage::Stage, push: &Push, bytes: &[u8]) -> Answer {
    let lane = stage.lane(0, FIRST);
    let request = lane.push_bytes(push, Bytes::from(bytes.to_vec())).await;
    lane.answer(request).await
}

/// Who wants every bit of a version gets it, whatever codec versions are given out in.
#[test]
fn exact_values_are_there_for_the_asking() {
    let codecs = Codecs { push: Codec::F32, pull: Codec::Bf16 };
    play(JobSpec { codecs, ..stage::job(2, 1, 2) }, async |stage| {
        let mut get = async |exact| {
            let lane = stage.lane(0, FIRST);
            let Answer::Values(words) = lane.pulled(&Pull { slice: FIRST, version: 0, exact }).await else {
                panic!("version 0 is there");
            };
            bytemuck::cast_slice::<f32, u8>(&words).to_vec()
        };
        let (given, exact) = (get(false).await, get(true).await);
        assert_eq!((given.len(), exact.len()), (8, 16));
        let (mut decoded, mut again) = ([0.0; 4], [0; 8]);
        Codec::F32.decode(&exact, &mut decoded).unwrap();
        Codec::Bf16.encode(&decoded, &mut again).unwrap();
        assert_eq!(given[..], again);
    });
}

/// What no run could work with is refused when it is signed.
#[test]
fn jobs_that_cannot_work_are_refused() {
    let of = |push, pull| JobSpec { codecs: Codecs { push, pull }, ..toy::job(2, 1, 2, 3) };
    let checkpoints = Checkpoints { every_steps: 0, at_end: true };
    for (job, why) in [
        (of(Codec::TwoBit { threshold: 0.0 }, Codec::F32), "above 0"),
        (of(Codec::TopK { fraction: 0.9 }, Codec::F32), "at most 0.5"),
        (of(Codec::F32, Codec::TwoBit { threshold: 1.0 }), "use f32, f16, bf16 or int8"),
        (JobSpec { slice_bytes: 4, ..of(Codec::F32, Codec::Int8) }, "use larger slices"),
    ] {
        let error = job.validate().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    JobSpec { checkpoints, ..of(Codec::Int8, Codec::Int8) }.validate().unwrap();
}

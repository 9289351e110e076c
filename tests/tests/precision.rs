//! Mixed precision in a cluster: the bits of a job under bf16 depend on the job, not on who computes it; a step is computed again
//! in the job's precision; and a job says what it computes in.

use testudo_actors::replay::Replay;
use testudo_actors::server::SumOrder;
use testudo_actors::{Codecs, JobSpec};
use testudo_kernels::{Codec, ModelSpec, Precision};
use testudo_tests::sim::Simulation;
use testudo_tests::toy;

const STEPS: u64 = 8;

fn job(precision: Precision, workers: u32, servers: u32) -> JobSpec {
    JobSpec { precision, ..toy::job(workers, servers, 4, STEPS) }
}

fn params(job: JobSpec, seed: u64) -> [u8; 32] {
    Simulation::new(job, seed, SumOrder::Canonical).finish().params_blake3
}

#[test]
fn the_number_of_nodes_changes_no_bit_and_the_precision_does() {
    let alone = params(job(Precision::Bf16, 1, 1), 0);
    for (seed, (workers, servers)) in [(1, 2), (3, 1), (3, 2), (4, 3)].into_iter().enumerate() {
        assert_eq!(params(job(Precision::Bf16, workers, servers), seed as u64), alone, "{workers} {servers}");
    }
    assert_ne!(params(job(Precision::F32, 1, 1), 0), alone);
}

#[test]
fn a_step_is_computed_again_in_the_jobs_precision() {
    for precision in [Precision::F32, Precision::Bf16] {
        let job = job(precision, 3, 2);
        let mut replay = Replay::new(&job, job.build_model().unwrap(), toy::data(), None).unwrap();
        while replay.steps() < STEPS {
            let _ = replay.advance().unwrap();
        }
        assert_eq!(replay.params_blake3(), params(job, 5), "{precision:?}");
    }
}

/// What the scheduler computes a second time are updates, of `f32` masters: they hold whatever workers compute in.
#[test]
fn witnesses_confirm_updates_of_masters() {
    let witnessed = JobSpec { witness_rate: 1.0, ..job(Precision::Bf16, 3, 2) };
    assert_eq!(params(witnessed, 6), params(job(Precision::Bf16, 3, 2), 6));
}

/// A bf16 pull rounds as the worker would have, but for biases, which only the codec rounds.
#[test]
fn parameters_may_travel_as_they_are_computed_with() {
    let codecs = Codecs { push: Codec::F32, pull: Codec::Bf16 };
    let pulled = |workers, servers| JobSpec { codecs, ..job(Precision::Bf16, workers, servers) };
    assert_eq!(params(pulled(3, 2), 1), params(pulled(1, 1), 2));
}

#[test]
fn a_network_of_the_programs_own_decides_for_itself() {
    let own = |precision| {
        let job = job(precision, 1, 1);
        let parameters = job.model.parameters().unwrap();
        let model =
            ModelSpec::Custom { name: "own@1".into(), inputs: 12, classes: 4, targets: 1, parameters };
        JobSpec { model, ..job }
    };
    own(Precision::F32).validate().unwrap();
    let error = own(Precision::Bf16).validate().unwrap_err().to_string();
    assert!(error.contains("training.precision is bf16, and the model own@1"), "{error}");
}

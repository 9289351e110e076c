//! Whole checkpoints: written, found, loaded, deleted, and what a crash at any write leaves.

mod crash;
mod residuals;
mod site;

use std::sync::Arc;
use std::time::Duration;

use testudo_actors::checkpoint::{PartSource as _, RestoredSlice};
use testudo_actors::{Codecs, JobSpec, Resume};
use testudo_kernels::Codec;

use self::site::{Site, slices, values};
use super::load;
use super::part::Frame;
use super::retention::{Retention, read_deletions};
use super::storage::Disk;
use super::*;

#[test]
fn what_was_written_is_found_checked_and_loaded_for_any_placement() {
    let site = Site::new();
    site.write(4, 2);
    site.write(8, 2);
    let all = site.checkpoints();
    assert_eq!(all.steps().unwrap(), [4, 8]);
    let whole = all.newest(None).unwrap();
    assert_eq!((whole.step(), whole.manifest.parts.len(), whole.manifest.samples), (8, 2, 8 * 64));
    assert_eq!(whole.manifest.parent, Some(all.read(4).unwrap().manifest_blake3));
    assert_eq!(all.newest(Some(7)).unwrap().step(), 4);
    assert!(matches!(all.newest(Some(3)), Err(CheckpointError::None { .. })));
    all.check_parts(&whole).unwrap();
    let mut checked = Vec::new();
    assert_eq!(all.verify(&mut checked).unwrap(), [""; 0]);
    assert_eq!(checked.len(), 2);

    let frame = Frame::of(&whole.manifest).unwrap();
    assert_eq!(frame, Frame::new(&site.job, 8).unwrap(), "the manifest says all that is needed");
    for parameter in load::load_all(all.layout(), &whole.manifest, &site.identities(), &frame).unwrap() {
        assert_eq!(parameter.weights, values(8, 0.0, 0, parameter.weights.len()), "{}", parameter.name);
        assert_eq!(parameter.state[0], values(8, 0.5, 0, parameter.weights.len()));
    }
    for servers in [1, 3, 5] {
        let wanted = slices(&JobSpec { servers, slice_bytes: 64, ..site.job.clone() }, servers - 1);
        let resume = resume::resume(&site.job, &whole).unwrap();
        let mut source = load::Source::new(all.layout().clone(), site.identities(), resume);
        for (RestoredSlice { id, weights, state, .. }, slice) in
            source.load(&site.job, &wanted).unwrap().into_iter().zip(&wanted)
        {
            assert_eq!(id, slice.id);
            assert_eq!(weights, values(8, 0.0, slice.first, slice.elements));
            assert_eq!(state, [values(8, 0.5, slice.first, slice.elements)]);
        }
    }
}

/// Invariant 2: the manifest is the scheduler's word, and nobody else's.
#[test]
fn a_manifest_that_was_altered_or_is_anothers_is_refused() {
    let site = Site::new();
    site.write(4, 2);
    let all = site.checkpoints();
    let path = all.layout().manifest(4);
    let text = std::fs::read_to_string(&path).unwrap();
    for (from, to) in
        [("\"samples\": 256", "\"samples\": 257"), ("server-0.part.age", "../../server-0"), ("\n", " ")]
    {
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let error = all.read(4).unwrap_err();
        assert!(
            matches!(error, CheckpointError::Untrusted { .. } | CheckpointError::Malformed { .. }),
            "{from:?}: {error}"
        );
    }
    for bad in ["", "{}", "null", "[1", &text[..text.len() / 2]] {
        std::fs::write(&path, bad).unwrap();
        assert!(matches!(all.read(4), Err(CheckpointError::Malformed { .. })), "{bad:?}");
    }
    std::fs::write(&path, &text).unwrap();
    assert!(all.read(4).is_ok());
    // Signed by another run's scheduler, however much of it is alike.
    let other = Site::new();
    other.write(4, 2);
    for name in ["manifest.json", "manifest.sig"] {
        std::fs::copy(other.layout().step(4).join(name), all.layout().step(4).join(name)).unwrap();
    }
    assert!(matches!(all.read(4), Err(CheckpointError::Untrusted { .. })));
    // And one whose CA is not the one that an operator has kept.
    assert!(site.checkpoints().trusting(&other.layout().trust()).unwrap().read(4).is_ok());
    std::fs::remove_file(all.layout().trust()).unwrap();
    assert!(matches!(site.checkpoints().read(4), Err(CheckpointError::Untrusted { .. })), "no CA, no trust");
}

/// Invariant 2, for files: each flipped, cut, swapped or missing one is named.
#[test]
fn parts_that_are_not_the_manifests_are_refused() {
    let site = Site::new();
    site.write(4, 2);
    let all = site.checkpoints();
    let whole = all.newest(None).unwrap();
    let (zero, one) = (all.layout().part(4, 0), all.layout().part(4, 1));
    let bytes = (std::fs::read(&zero).unwrap(), std::fs::read(&one).unwrap());
    let refused = |name: &str| {
        let error = all.check_parts(&whole).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        let mut checked = Vec::new();
        assert!(all.verify(&mut checked).unwrap().iter().any(|problem| problem.contains(name)));
        let resume = resume::resume(&site.job, &whole).unwrap();
        let mut source = load::Source::new(all.layout().clone(), site.identities(), resume);
        assert!(source.load(&site.job, &slices(&site.job, 0)).is_err());
    };
    std::fs::write(&zero, &bytes.1).unwrap();
    std::fs::write(&one, &bytes.0).unwrap();
    refused("server-0.part.age");
    std::fs::write(&zero, &bytes.0).unwrap();
    refused("server-1.part.age");
    std::fs::write(&one, &bytes.1[..bytes.1.len() - 1]).unwrap();
    refused("server-1.part.age");
    std::fs::remove_file(&one).unwrap();
    refused("server-1.part.age");
    std::fs::write(&one, &bytes.1).unwrap();
    all.check_parts(&whole).unwrap();
    // Another manifest than the one that the operator signed with the job.
    let resume = Resume { manifest_blake3: [1; 32], ..resume::resume(&site.job, &whole).unwrap() };
    let mut source = load::Source::new(all.layout().clone(), site.identities(), resume);
    assert!(source.load(&site.job, &slices(&site.job, 0)).unwrap_err().0.contains("resumes from"));
}

/// Invariant 4.
#[test]
fn a_rollback_is_seen_and_steps_only_grow() {
    let site = Site::new();
    site.write(4, 2);
    site.write(8, 2);
    let all = site.checkpoints();
    let head = std::fs::read(all.layout().head()).unwrap();
    std::fs::remove_dir_all(all.layout().step(8)).unwrap();
    let error = all.newest(None).unwrap_err();
    assert!(
        matches!(error, CheckpointError::RolledBack { .. }) && error.to_string().contains("step 8"),
        "{error}"
    );
    assert!(all.verify(&mut Vec::new()).unwrap().iter().any(|problem| problem.contains("rolled back")));
    assert_eq!(all.newest(Some(8)).unwrap().step(), 4, "a person may mean it");
    // A forged head is none.
    let forged = String::from_utf8(head).unwrap().replace("\"step\": 8", "\"step\": 4");
    std::fs::write(all.layout().head(), forged).unwrap();
    assert!(matches!(all.newest(None), Err(CheckpointError::Untrusted { .. })));

    // Nor does it help to take the head away.
    let site = Site::new();
    let mut ledger = site.ledger(None);
    for step in [4, 8, 12] {
        site.write_with(&mut ledger, step, 2).unwrap();
    }
    let all = site.checkpoints();
    std::fs::remove_dir_all(all.layout().step(12)).unwrap();
    std::fs::remove_file(all.layout().head()).unwrap();
    let error = all.newest(None).unwrap_err();
    assert!(matches!(error, CheckpointError::RolledBack { .. }), "{error}");
    // The very first checkpoint is whole before its head is written.
    std::fs::remove_dir_all(all.layout().step(8)).unwrap();
    assert_eq!(all.newest(None).unwrap().step(), 4);

    let site = Site::new();
    let mut ledger = site.ledger(None);
    site.write_with(&mut ledger, 8, 2).unwrap();
    for step in [8, 7, 1] {
        let error = site.write_with(&mut ledger, step, 2).unwrap_err();
        assert!(error.contains("steps only grow") || error.contains("there already"), "{error}");
    }
    assert_eq!(site.checkpoints().steps().unwrap(), [8]);
    // Another run in the same place is refused; the same one resumed is not.
    assert!(site.try_ledger(None).is_err());
}

#[test]
fn a_run_resumed_from_an_earlier_step_puts_the_newer_ones_aside() {
    let site = Site::new();
    let mut ledger = site.ledger(None);
    for step in [4, 8, 12] {
        site.write_with(&mut ledger, step, 2).unwrap();
    }
    std::fs::create_dir(site.layout().step(16)).unwrap();
    let resume = resume::resume(&site.job, &site.checkpoints().read(4).unwrap()).unwrap();
    let mut ledger = site.ledger(Some(resume));
    let all = site.checkpoints();
    assert_eq!(all.steps().unwrap(), [4]);
    assert!(all.unfinished().unwrap().is_empty());
    assert_eq!(all.newest(None).unwrap().step(), 4, "the head says so too");
    let recorded: Vec<u64> = read_deletions(&site.layout()).unwrap().iter().map(|r| r.step).collect();
    assert_eq!(recorded, [8, 12]);
    site.write_with(&mut ledger, 8, 3).unwrap();
    assert_eq!(all.newest(None).unwrap().step(), 8);
    assert_eq!(site.checkpoints().verify(&mut Vec::new()).unwrap(), [""; 0]);
    assert_eq!(std::fs::read_dir(site.layout().superseded()).unwrap().count(), 2);
}

/// Nobody has signed for a job's going back behind what it has written itself.
#[test]
fn a_job_that_has_begun_does_not_begin_again() {
    let site = Site::new();
    let mut ledger = site.ledger(None);
    for step in [4, 8] {
        site.write_with(&mut ledger, step, 2).unwrap();
    }
    let resume = resume::resume(&site.job, &site.checkpoints().read(4).unwrap()).unwrap();
    let signed = site.signs(Some(resume));
    let hash = testudo_actors::audit::Hex::hash(&signed.1.to_bytes());
    let open = || site.ledger_of(Arc::new(Disk), &signed, Retention { keep_last: 9, max_age: None });
    site.checkpoints().check_beginning(&resume, hash).unwrap();
    let mut ledger = open().unwrap();
    // Before it has written anything it may: nothing is lost.
    drop(open().unwrap());
    site.write_with(&mut ledger, 12, 2).unwrap();
    let begun = |error: CheckpointError| matches!(error, CheckpointError::Begun { step: 12, begins: 4 });
    assert!(begun(site.checkpoints().check_beginning(&resume, hash).unwrap_err()));
    assert!(begun(open().unwrap_err()));
    assert_eq!(site.checkpoints().steps().unwrap(), [4, 12], "nothing is put aside");
    // The operator's word of today.
    drop(site.ledger(Some(resume)));
    assert_eq!(site.checkpoints().steps().unwrap(), [4]);
    // Nor where its checkpoint is not.
    let other = Resume { manifest_blake3: [1; 32], ..resume };
    assert!(site.checkpoints().check_beginning(&other, hash).is_err());
    let empty = Site::new();
    assert!(empty.checkpoints().check_beginning(&resume, hash).is_err());
}

/// Invariant 3.
#[test]
fn old_ones_are_deleted_and_that_is_recorded() {
    let site = Site::new();
    let mut ledger = site.ledger_keeping(None, Retention { keep_last: 2, max_age: None });
    for step in 1..=5 {
        let deleted = site.write_with(&mut ledger, step, 2).unwrap().deleted;
        assert_eq!(
            deleted.iter().map(|d| d.step).collect::<Vec<_>>(),
            if step > 2 { vec![step - 2] } else { vec![] }
        );
    }
    let all = site.checkpoints();
    assert_eq!(all.steps().unwrap(), [4, 5]);
    let records = read_deletions(&site.layout()).unwrap();
    assert_eq!(records.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(records[0].why.contains("keep_last is 2") && records[0].at > 0);
    assert_eq!(all.verify(&mut Vec::new()).unwrap(), [""; 0], "what is recorded is not missed");
    std::fs::remove_file(site.layout().deletions()).unwrap();
    assert!(all.verify(&mut Vec::new()).unwrap()[0].contains("no deletion is recorded"));
    // A day later, all but the last are too old.
    let day = std::time::SystemTime::now() + Duration::from_secs(86_400);
    let old = Retention { keep_last: 9, max_age: Some(Duration::from_secs(3600)) };
    let deleted = retention::due(&site.layout(), &storage::Disk, old, day).unwrap();
    assert_eq!(deleted.iter().map(|d| d.step).collect::<Vec<_>>(), [4]);
    retention::delete(&site.layout(), &storage::Disk, 4).unwrap();
    assert_eq!(all.steps().unwrap(), [5]);
    assert_eq!(all.newest(None).unwrap().step(), 5);
}

#[test]
fn a_job_with_other_settings_may_not_go_on_and_hears_which() {
    let site = Site::new();
    site.write(4, 2);
    let whole = site.checkpoints().newest(None).unwrap();
    let job = &site.job;
    let may = [
        JobSpec { workers: 3, servers: 7, ..job.clone() },
        JobSpec { max_steps: Some(400), epochs: job.epochs + 3, slice_bytes: 256, ..job.clone() },
        JobSpec { heartbeat_ms: 77, export: false, ..job.clone() },
    ];
    for job in may {
        let resume = resume::resume(&job, &whole).unwrap();
        assert_eq!((resume.step, resume.samples, resume.last_loss), (4, 256, Some(0.25)));
    }
    let cosine = testudo_kernels::Schedule::Cosine { warmup_steps: 1, final_fraction: 0.5 };
    let adam = testudo_kernels::OptimizerSpec::shipped("adam").unwrap();
    let faster = job.optimizer.clone().with("momentum", 0.5);
    let data = testudo_actors::DataSpec { blake3: [9; 32], ..job.data.clone() };
    for (job, name) in [
        (JobSpec { seed: 8, ..job.clone() }, "training.seed is 8, was 7"),
        (JobSpec { learning_rate: 0.1_f64.next_up(), ..job.clone() }, "optimizer.learning_rate"),
        (JobSpec { schedule: cosine, ..job.clone() }, "schedule"),
        (JobSpec { schedule: cosine, ..job.clone() }, "training.epochs"),
        (JobSpec { optimizer: adam.clone(), ..job.clone() }, "optimizer is \"adam\", was \"momentum\""),
        (JobSpec { optimizer: adam, ..job.clone() }, "optimizer.program is a text of"),
        (JobSpec { optimizer: faster, ..job.clone() }, "optimizer.constants is {\"momentum\":0.5"),
        (JobSpec { batch_size: 32, ..job.clone() }, "training.batch_size"),
        (JobSpec { logical_shards: 2, ..job.clone() }, "training.logical_shards"),
        (
            JobSpec { codecs: Codecs { push: Codec::F32, pull: Codec::Int8 }, ..job.clone() },
            "transport.pull_codec is \"int8\", was not set",
        ),
        (
            JobSpec { aggregation: testudo_kernels::Aggregation::Median { hostile: 1 }, ..job.clone() },
            "training.aggregation",
        ),
        (
            JobSpec { precision: testudo_kernels::Precision::Bf16, ..job.clone() },
            "training.precision is \"bf16\", was not set",
        ),
        (JobSpec { data, ..job.clone() }, "data (content)"),
        (JobSpec { name: "other".into(), ..job.clone() }, "job.name"),
    ] {
        let error = resume::resume(&job, &whole).unwrap_err().to_string();
        assert!(error.contains(name), "{name:?} is missing in {error}");
    }
}

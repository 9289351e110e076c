//! Workers' parts of checkpoints: written, found, loaded for any leases, and refused where they are not the manifest's.

use testudo_actors::checkpoint::PartSource as _;
use testudo_kernels::Codec;

use super::site::{Damage, Site, shard_residuals, slices};
use crate::checkpoint::part::{self, Frame};
use crate::checkpoint::storage::{Disk, replace};
use crate::checkpoint::{CheckpointError, Layout, load, manifest, resume};

fn source(site: &Site) -> load::Source {
    let whole = site.checkpoints().newest(None).unwrap();
    let resume = resume::resume(&site.job, &whole).unwrap();
    load::Source::new(site.layout(), site.identities(), resume)
}

#[test]
fn residuals_are_found_whoever_is_to_go_on_with_them() {
    let site = Site::with_codec(Codec::Int8);
    site.write(4, 2);
    site.write(8, 3);
    let all = site.checkpoints();
    assert_eq!(all.verify(&mut Vec::new()).unwrap(), [""; 0]);
    let whole = all.newest(None).unwrap();
    assert_eq!(whole.manifest.files().count(), 5);
    for wanted in [&[0, 1, 2, 3][..], &[3], &[2, 0]] {
        let kept: Vec<_> = wanted.iter().map(|shard| shard_residuals(&site.job, *shard, 8)).collect();
        assert_eq!(source(&site).residuals(&site.job, wanted).unwrap(), kept);
    }
    assert!(
        source(&site).residuals(&site.job, &[4]).unwrap_err().0.contains("logical shard 4 are not there")
    );
    assert!(source(&site).load(&site.job, &slices(&site.job, 0)).is_ok(), "and parameters beside them");
    // A checkpoint without any does not pretend.
    let site = Site::new();
    site.write(4, 2);
    assert!(source(&site).residuals(&site.job, &[0]).is_err());
    assert!(!std::fs::read_to_string(site.layout().manifest(4)).unwrap().contains("residuals"));
}

/// Invariant 2, for workers' files.
#[test]
fn workers_parts_that_are_not_the_manifests_are_refused() {
    let site = Site::with_codec(Codec::TopK { fraction: 0.1 });
    site.write(4, 2);
    let (all, layout) = (site.checkpoints(), site.layout());
    let whole = all.newest(None).unwrap();
    let (zero, one) = (layout.residuals(4, 0), layout.residuals(4, 1));
    let bytes = (std::fs::read(&zero).unwrap(), std::fs::read(&one).unwrap());
    let refused = |name: &str, shard: u32| {
        assert!(all.check_parts(&whole).unwrap_err().to_string().contains(name), "{name}");
        assert!(all.verify(&mut Vec::new()).unwrap().iter().any(|problem| problem.contains(name)));
        assert!(source(&site).residuals(&site.job, &[shard]).unwrap_err().0.contains(name));
    };
    std::fs::write(&zero, &bytes.1).unwrap();
    std::fs::write(&one, &bytes.0).unwrap();
    refused("worker-0.part.age", 0);
    std::fs::write(&zero, &bytes.0).unwrap();
    refused("worker-1.part.age", 3);
    std::fs::write(&one, &bytes.1[..bytes.1.len() - 1]).unwrap();
    refused("worker-1.part.age", 1);
    std::fs::remove_file(&one).unwrap();
    refused("worker-1.part.age", 1);
    // A worker that needs nothing of it is not held up.
    assert!(source(&site).residuals(&site.job, &[2, 0]).is_ok());
    std::fs::write(&one, &bytes.1).unwrap();
    all.check_parts(&whole).unwrap();
}

/// What a worker says that it has stored is compared with what lies there, before the scheduler signs.
#[test]
fn a_checkpoint_is_not_signed_where_a_workers_part_is_not_what_it_says() {
    let site = Site::with_codec(Codec::Int8);
    let mut ledger = site.ledger(None);
    site.write_with(&mut ledger, 4, 2).unwrap();
    for damage in [Damage::Altered, Damage::Missing] {
        let error = site.write_damaged(&mut ledger, 8, damage).unwrap_err();
        assert!(error.contains("worker-1.part.age"), "{error}");
        assert_eq!(site.checkpoints().newest(None).unwrap().step(), 4);
    }
    site.write_with(&mut ledger, 12, 2).unwrap();
}

/// What a manifest says of workers' parts is refused where it cannot be, before any file is looked at; and a part that holds other
/// shards or other sizes than it is said to is refused by its header.
#[test]
fn lies_about_shards_and_sizes_are_refused() {
    let site = Site::with_codec(Codec::Int8);
    site.write(4, 2);
    let path = site.layout().manifest(4);
    let text = std::fs::read_to_string(&path).unwrap();
    let first = "\"name\": \"worker-0.part.age\"";
    for (from, to, why) in [
        (first, "\"name\": \"../worker-0.part.age\"", "no name of a worker's part"),
        ("\"worker\": 1", "\"worker\": 0", "stands twice or out of order"),
        ("\"worker\": 0", "\"worker\": 7", "stands twice or out of order"),
        ("        1,\n        3", "        1,\n        2", "logical shard 2 stand twice"),
        ("        1,\n        3", "        1,\n        -3", "invalid value"),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        let error = manifest::Manifest::parse(&path, text.replacen(from, to, 1).as_bytes(), 4).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::Malformed { .. }) && error.to_string().contains(why),
            "{error}"
        );
    }
    // The manifest may say what it likes of which shards a part holds: the part is asked.
    let mut manifest = site.checkpoints().newest(None).unwrap().manifest;
    let frame = Frame::new(&site.job, 4).unwrap();
    let load = |manifest: &manifest::Manifest, frame: &Frame, shard| {
        load::residuals(&site.layout(), manifest, &site.identities(), frame, &[shard])
            .map_err(|e| e.to_string())
    };
    assert!(load(&manifest, &frame, 2).is_ok());
    let smaller =
        Frame { parameters: vec![("fc1.weight".into(), 4), ("fc1.bias".into(), 10)], ..frame.clone() };
    assert!(load(&manifest, &smaller, 2).unwrap_err().contains("worker-0.part.age"));
    let larger = Frame {
        parameters: frame.parameters.iter().map(|(name, elements)| (name.clone(), elements + 1)).collect(),
        ..frame.clone()
    };
    assert!(load(&manifest, &larger, 2).unwrap_err().contains("end at element"));
    manifest.residuals[0].shards = vec![0];
    assert!(load(&manifest, &frame, 0).unwrap_err().contains("none of this job's"));
    manifest.residuals[0].shards = vec![0, 2, 9];
    assert!(load(&manifest, &frame, 0).unwrap_err().contains("residual-9 of"));
    // One that was encrypted to the run's key, and is nothing.
    let recipients = site.identities().recipients();
    let other = Layout::new(&site.layout().folder().join("other"));
    std::fs::create_dir_all(other.step(4)).unwrap();
    let nothing = testudo_actors::checkpoint::ResidualSnapshot { version: 4, shards: Vec::new() };
    let receipt =
        part::write_residuals(&Disk, &other.residuals(4, 0), &frame, (0, &nothing), &recipients).unwrap();
    replace(&Disk, &site.layout().residuals(4, 0), &std::fs::read(other.residuals(4, 0)).unwrap()).unwrap();
    manifest.residuals[0].shards = vec![0, 2];
    (manifest.residuals[0].bytes, manifest.residuals[0].blake3.0) = (receipt.bytes, receipt.blake3);
    assert!(load(&manifest, &frame, 0).unwrap_err().contains("end at element 0"));
}

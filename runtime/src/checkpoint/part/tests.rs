//! Invariant 2 of the checkpoints: nothing is used before it is checked. Threats, class G.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use testudo_actors::checkpoint::{PartReceipt, ResidualSnapshot, ShardResiduals, SliceSnapshot, Snapshot};
use testudo_actors::placement::{Slice, SliceId};

use super::*;
use crate::checkpoint::keys::{self, Identities};
use crate::checkpoint::layout::Layout;
use crate::checkpoint::storage::Disk;

struct Place {
    folder: tempfile::TempDir,
    identities: Identities,
    frame: Frame,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        keys::recipients(&[], &layout, &Disk).unwrap();
        let identities = Identities::load(&layout.key()).unwrap();
        let frame = Frame {
            job: "toy".into(),
            step: 60,
            parameters: vec![("fc1.weight".into(), 10), ("fc1.bias".into(), 40_000)],
            kinds: vec![WEIGHTS.into(), "velocity".into()],
            scalars: vec!["product".into()],
        };
        Place { folder, identities, frame }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("part")
    }

    fn write(&self, snapshot: &Snapshot) -> PartReceipt {
        write(&Disk, &self.path(), &self.frame, snapshot, &self.identities.recipients()).unwrap()
    }

    fn read(&self, receipt: PartReceipt) -> Result<Vec<(Run, Vec<f32>)>, CheckpointError> {
        let mut found: Vec<(Run, Vec<f32>)> = Vec::new();
        let mut take = |run: Run, done: usize, values: &[f32]| match found.last_mut() {
            Some((last, sofar)) if *last == run => {
                assert_eq!(sofar.len(), done);
                sofar.extend(values);
            }
            _ => found.push((run, values.to_vec())),
        };
        let holder = Holder::Server(2);
        let (_, scalars) = read(&self.path(), receipt, &self.identities, &self.frame, holder, &mut take)?;
        assert!(scalars.iter().all(|s| s.scalar == 0 && s.value == 0.5 + s.parameter as f64), "{scalars:?}");
        Ok(found)
    }

    /// What the file is now: for what is hostile and yet what the manifest says.
    fn receipt(&self) -> PartReceipt {
        let bytes = std::fs::read(self.path()).unwrap();
        PartReceipt { bytes: bytes.len() as u64, blake3: *blake3::hash(&bytes).as_bytes() }
    }

    /// Encrypts any plaintext in the part's place.
    fn encrypt(&self, plaintext: &[u8]) -> PartReceipt {
        let recipients = self.identities.recipients();
        let recipients = recipients.iter().map(|r| r as &dyn age::Recipient);
        let mut bytes = Vec::new();
        let mut stream =
            age::Encryptor::with_recipients(recipients).unwrap().wrap_output(&mut bytes).unwrap();
        stream.write_all(plaintext).unwrap();
        stream.finish().unwrap();
        std::fs::write(self.path(), bytes).unwrap();
        self.receipt()
    }

    /// Refused as damaged, with that said of it.
    fn refused(&self, receipt: PartReceipt, part: &str) {
        let error = self.read(receipt).unwrap_err();
        assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(part), "{part:?} is missing in {error}");
    }
}

fn slice(parameter: u32, index: u32, first: usize, elements: usize) -> SliceSnapshot {
    let at = |offset: usize| (first + offset) as f32 + parameter as f32 * 1e6;
    SliceSnapshot {
        slice: Slice { id: SliceId { parameter, index }, first, elements, server: 2 },
        weights: Arc::new((0..elements).map(at).collect()),
        state: vec![(0..elements).map(|o| -at(o)).collect()],
        scalars: vec![0.5 + f64::from(parameter)],
    }
}

fn snapshot() -> Snapshot {
    let slices =
        vec![slice(0, 0, 0, 4), slice(0, 2, 8, 2), slice(1, 0, 0, 20_000), slice(1, 1, 20_000, 20_000)];
    Snapshot { version: 60, server: 2, slices }
}

/// A header of one tensor, and its bytes.
fn plaintext(metadata: &str, tensors: &str, bytes: usize) -> Vec<u8> {
    let header = format!("{{\"__metadata__\":{{{metadata}}},{tensors}}}");
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &vec![0; bytes]].concat()
}

const METADATA: &str = "\"format\":\"testudo checkpoint part, format 1\",\"job\":\"toy\",\"step\":\"60\",\"server\":\"2\",\"extra\":\"0\"";

fn tensor(name: &str, shape: &str, end: usize) -> String {
    format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}")
}

#[test]
fn a_part_holds_what_it_was_given_with_neighbours_joined() {
    let place = Place::new();
    let receipt = place.write(&snapshot());
    assert_eq!(receipt, place.receipt());
    let found = place.read(receipt).unwrap();
    let runs: Vec<(usize, usize, usize, usize)> =
        found.iter().map(|(r, _)| (r.parameter, r.kind, r.first, r.elements)).collect();
    assert_eq!(
        runs,
        [(0, 0, 0, 4), (0, 1, 0, 4), (0, 0, 8, 2), (0, 1, 8, 2), (1, 0, 0, 40_000), (1, 1, 0, 40_000)]
    );
    assert_eq!(found[2].1, [8.0, 9.0]);
    assert_eq!(found[4].1, (0..40_000).map(|i| i as f32 + 1e6).collect::<Vec<_>>());
    assert_eq!(found[5].1[39_999], -(39_999.0 + 1e6));
    assert!(!place.folder.path().join("part.tmp").exists());
    let clear = std::fs::read(place.path()).unwrap();
    assert!(clear.starts_with(b"age-encryption.org/v1\n"));
    assert!(!clear.windows(9).any(|bytes| bytes == b"fc1.weigh"), "nothing of it is readable");
}

#[test]
fn an_empty_part_is_one() {
    let place = Place::new();
    let receipt = place.write(&Snapshot { version: 60, server: 2, slices: Vec::new() });
    assert!(place.read(receipt).unwrap().is_empty());
}

/// Whatever is done to the file: against the manifest's hash, and against age alone.
#[test]
fn flipped_bits_and_cut_ends_are_refused() {
    let place = Place::new();
    let receipt = place.write(&snapshot());
    let whole = std::fs::read(place.path()).unwrap();
    let payload = whole.len() - (whole.len() % (65_536 + 16)) - (65_536 + 16);
    for at in (0..whole.len()).step_by(4001).chain(0..400).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(place.path(), bytes).unwrap();
        place.refused(receipt, "BLAKE3");
        // Were the manifest to say so, age and the header's checks would refuse it still.
        assert!(place.read(place.receipt()).is_err(), "byte {at}");
    }
    // age encrypts blocks of 64 KiB, with 16 bytes of tag each: cut at every one of their ends, too.
    let header = whole.windows(4).position(|w| w == b"\n---").unwrap();
    let header = header + whole[header + 1..].iter().position(|b| *b == b'\n').unwrap() + 2 + 16;
    let blocks = (0..).map(|n| header + n * (65_536 + 16)).take_while(|end| *end < whole.len());
    let mut cuts = 0;
    for end in blocks.chain([0, 1, 100, payload, whole.len() - 16, whole.len() - 1]) {
        std::fs::write(place.path(), &whole[..end]).unwrap();
        place.refused(receipt, "bytes, the manifest says");
        assert!(place.read(place.receipt()).is_err(), "cut at {end}");
        cuts += 1;
    }
    assert!(cuts > 8, "{cuts} blocks are too few to say anything");
    std::fs::write(place.path(), [&whole[..], &[0]].concat()).unwrap();
    assert!(place.read(place.receipt()).is_err(), "and nothing may follow");
}

#[test]
fn another_key_opens_nothing() {
    let place = Place::new();
    let receipt = place.write(&snapshot());
    let other = Place::new();
    let error =
        read(&place.path(), receipt, &other.identities, &place.frame, Holder::Server(2), &mut |_, _, _| {})
            .unwrap_err();
    assert!(
        matches!(error, CheckpointError::Key { .. }) && error.to_string().contains("--identity-file"),
        "{error}"
    );
}

#[test]
fn another_servers_jobs_or_steps_part_is_refused() {
    let place = Place::new();
    let receipt = place.write(&snapshot());
    let other = |frame: Frame, holder: Holder, part: &str| {
        let error =
            read(&place.path(), receipt, &place.identities, &frame, holder, &mut |_, _, _| {}).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    other(place.frame.clone(), Holder::Server(1), "server");
    other(place.frame.clone(), Holder::Worker(2), "worker");
    other(Frame { step: 61, ..place.frame.clone() }, Holder::Server(2), "step");
    other(Frame { job: "other".into(), ..place.frame.clone() }, Holder::Server(2), "job");
    other(
        Frame { kinds: vec![WEIGHTS.into()], ..place.frame.clone() },
        Holder::Server(2),
        "none of this job's",
    );
}

/// What one with the recipients' public keys could encrypt, if a manifest were to name it.
#[test]
fn hostile_headers_are_refused_before_anything_is_allocated() {
    let place = Place::new();
    let good = tensor("weights/fc1.weight@0", "[4]", 16);
    place.encrypt(&plaintext(METADATA, &good, 16));
    assert_eq!(place.read(place.receipt()).unwrap().len(), 1, "what is not hostile is taken");
    for length in [u64::MAX, 1 << 40, HEADER_MOST + 1, 100_000] {
        let receipt = place.encrypt(&[&length.to_le_bytes()[..], b"{}"].concat());
        place.refused(receipt, "header would have");
    }
    place.refused(place.encrypt(&[]), "");
    place.refused(place.encrypt(&plaintext(METADATA, &good, 17)), "more data");
    place.refused(place.encrypt(&plaintext(METADATA, &good, 15)), "");
    place.refused(place.encrypt(&plaintext("\"format\":\"x\"", &good, 16)), "format");
    let extra = METADATA.replace("\"extra\":\"0\"", "\"extra\":\"1\"");
    place.refused(place.encrypt(&plaintext(&extra, &good, 16)), "extra");
    for (name, shape, end, part) in [
        ("weights/../../etc/passwd@0", "[4]", 16, "none of this job's"),
        ("weights/fc1.weight", "[4]", 16, "none of this job's"),
        ("fc1.weight@0", "[4]", 16, "none of this job's"),
        ("variance/fc1.weight@0", "[4]", 16, "none of this job's"),
        ("weights/fc9.weight@0", "[4]", 16, "none of this job's"),
        ("weights/fc1.weight@-1", "[4]", 16, "none of this job's"),
        ("weights/fc1.weight@7", "[4]", 16, "beyond its parameter"),
        ("weights/fc1.weight@18446744073709551615", "[4]", 16, "beyond its parameter"),
        ("weights/fc1.weight@0", "[11]", 44, "beyond its parameter"),
        ("weights/fc1.weight@0", "[2,2]", 16, "another shape"),
        ("weights/fc1.weight@0", "[0]", 0, "beyond its parameter"),
        ("weights/fc1.weight@0", "[4]", 20, "no safetensors header"),
        ("weights/fc1.weight@0", "[9223372036854775807,8]", 16, "no safetensors header"),
    ] {
        place.refused(place.encrypt(&plaintext(METADATA, &tensor(name, shape, end), end)), part);
    }
    for (shape, end, part) in
        [("[1]", 4, "no safetensors header"), ("[2]", 16, "no f64"), ("[]", 8, "another shape")]
    {
        let wide = tensor("product/fc1.weight@0", shape, end).replace("F32", "F64");
        place.refused(place.encrypt(&plaintext(METADATA, &wide, end)), part);
    }
    place
        .refused(place.encrypt(&plaintext(METADATA, &tensor("product/fc1.weight@0", "[1]", 4), 4)), "no f64");
    let beyond = tensor("product/fc1.weight@10", "[1]", 8).replace("F32", "F64");
    place.refused(place.encrypt(&plaintext(METADATA, &beyond, 8)), "no element");
    let half = good.replace("F32", "F16").replace("16]", "8]");
    place.refused(place.encrypt(&plaintext(METADATA, &half, 8)), "not f32");
    let gap = good.replace("[0,16]", "[8,24]");
    place.refused(place.encrypt(&plaintext(METADATA, &gap, 24)), "no safetensors header");
}

/// age reads a header for as long as it goes on.
#[test]
fn an_age_header_without_end_is_not_begun() {
    let place = Place::new();
    let endless = [&b"age-encryption.org/v1\n"[..], &b"-> X25519 aaaa\nbbbb\n".repeat(100_000)].concat();
    std::fs::write(place.path(), endless).unwrap();
    place.refused(place.receipt(), "header does not end");
}

#[test]
fn links_are_not_followed() {
    let place = Place::new();
    let receipt = place.write(&snapshot());
    let elsewhere = place.folder.path().join("elsewhere");
    std::fs::rename(place.path(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, place.path()).unwrap();
    assert!(matches!(place.read(receipt).unwrap_err(), CheckpointError::Io { .. }));
}

/// A worker's part: what is in it is its own, and whole.
#[test]
fn residuals_are_read_as_they_were_written() {
    let place = Place::new();
    let shard = |shard: u32| ShardResiduals {
        shard,
        values: vec![vec![shard as f32; 10], (0..40_000).map(|at| at as f32 + shard as f32).collect()],
    };
    let snapshot = ResidualSnapshot { version: 60, shards: vec![shard(1), shard(4)] };
    let recipients = place.identities.recipients();
    let receipt = write_residuals(&Disk, &place.path(), &place.frame, (3, &snapshot), &recipients).unwrap();
    let found = |frame: &Frame, holder: Holder| {
        let (mut values, mut count) = (BTreeMap::<(usize, usize), Vec<f32>>::new(), 0);
        let mut take = |run: Run, _: usize, piece: &[f32]| {
            count += piece.len();
            values.entry((run.kind, run.parameter)).or_default().extend(piece);
        };
        read(&place.path(), receipt, &place.identities, frame, holder, &mut take)?;
        Ok::<_, CheckpointError>((values, count))
    };
    let frame = place.frame.of_residuals(&[1, 4]);
    let (values, count) = found(&frame, Holder::Worker(3)).unwrap();
    assert_eq!(count, 2 * 40_010);
    for (kind, shard) in [shard(1), shard(4)].into_iter().enumerate() {
        for (parameter, wanted) in shard.values.into_iter().enumerate() {
            assert_eq!(values[&(kind, parameter)], wanted);
        }
    }
    for (frame, holder, why) in [
        (place.frame.of_residuals(&[1]), Holder::Worker(3), "none of this job's"),
        (place.frame.of_residuals(&[1, 2]), Holder::Worker(3), "none of this job's"),
        (place.frame.clone(), Holder::Worker(3), "none of this job's"),
        (frame.clone(), Holder::Worker(1), "worker"),
        (frame, Holder::Server(3), "server"),
    ] {
        let error = found(&frame, holder).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    // Values for another model are not written.
    let other = ResidualSnapshot {
        version: 60,
        shards: vec![ShardResiduals { shard: 0, values: vec![vec![0.0; 10]] }],
    };
    assert!(write_residuals(&Disk, &place.path(), &place.frame, (3, &other), &recipients).is_err());
}

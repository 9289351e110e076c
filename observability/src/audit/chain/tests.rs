use serde_json::json;

use super::*;

struct Key;

impl Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        Ok(blake3::keyed_hash(&[7; 32], message).as_bytes().to_vec())
    }
}

/// A log of `count` records, each third one a signature, as lines without line feeds.
fn log(count: u64) -> (Vec<String>, Chain) {
    let mut chain = Chain::new();
    let lines = (0..count).map(|n| match n % 3 {
        2 => chain.sign(1000 + n, &Key),
        _ => chain.append(1000 + n, &json!({ "kind": "step", "body": { "n": n, "a": "x", "é\"": [n] } })),
    });
    let lines = lines.map(|line| line.unwrap().trim_end().to_owned()).collect();
    (lines, chain)
}

/// Where reading stops, if it does; kinds and signatures are checked as a reader does.
fn read(lines: &[impl AsRef<[u8]>]) -> Result<Chain, usize> {
    let mut chain = Chain::new();
    for (at, line) in lines.iter().enumerate() {
        let record = chain.follow(line.as_ref()).map_err(|_| at)?;
        if !["step", SIGNATURE].contains(&record.kind.as_str()) {
            return Err(at);
        }
        if record.kind == SIGNATURE {
            let Signature { signature } =
                serde_json::from_value(Value::Object(record.body)).map_err(|_| at)?;
            let message = signed_bytes(record.seq, &record.prev, record.at);
            if Key.sign(&message).unwrap() != signature.0 {
                return Err(at);
            }
        }
    }
    Ok(chain)
}

#[test]
fn what_is_written_is_read_back_with_the_same_head() {
    let (lines, written) = log(12);
    assert_eq!(read(&lines), Ok(written.clone()));
    assert_eq!(written.next(), 12);
    assert_eq!(written.head(), record_hash(lines[11].as_bytes()));
}

/// Invariant 1: every bit of every line, the last one being a signature's.
#[test]
fn every_flipped_bit_is_found() {
    let (lines, written) = log(6);
    for line in 0..lines.len() {
        for bit in 0..lines[line].len() * 8 {
            let mut bytes: Vec<Vec<u8>> = lines.iter().map(|l| l.as_bytes().to_vec()).collect();
            bytes[line][bit / 8] ^= 1 << (bit % 8);
            let found = read(&bytes);
            assert!(found.is_err(), "line {line}, bit {bit}");
            assert!(found.unwrap_err() <= line + 1, "line {line}, bit {bit}");
        }
    }
    assert_eq!(read(&lines), Ok(written));
}

/// Invariant 1: lines dropped, said twice, swapped.
#[test]
fn every_dropped_repeated_or_moved_line_is_found() {
    let (lines, written) = log(9);
    for at in 0..lines.len() {
        let mut dropped = lines.clone();
        dropped.remove(at);
        match read(&dropped) {
            Err(found) => assert_eq!(found, at),
            Ok(chain) => {
                assert_eq!(at, lines.len() - 1, "only the last can go unseen by who does not know the head");
                assert_ne!(chain.head(), written.head());
            }
        }
        let mut repeated = lines.clone();
        repeated.insert(at, lines[at].clone());
        assert_eq!(read(&repeated), Err(at + 1));
        for other in at + 1..lines.len() {
            let mut swapped = lines.clone();
            swapped.swap(at, other);
            assert_eq!(read(&swapped), Err(at));
        }
    }
}

/// Invariant 1: whoever rewrites a line and the rest of the chain still lacks the key.
#[test]
fn a_rewritten_chain_fails_at_its_first_signature() {
    let (lines, _) = log(6);
    let mut chain = Chain::new();
    let mut forged = vec![chain.append(1000, &json!({ "kind": "step", "body": { "n": 99 } })).unwrap()];
    for line in &lines[1..] {
        let Record { at, kind, body, .. } = serde_json::from_str(line).unwrap();
        forged.push(chain.append(at, &json!({ "kind": kind, "body": body })).unwrap());
    }
    let forged: Vec<&str> = forged.iter().map(|line| line.trim_end()).collect();
    assert_eq!(read(&forged), Err(2));
}

/// Invariant 2.
#[test]
fn a_record_has_one_spelling() {
    let (lines, _) = log(1);
    let good = &lines[0];
    for (from, to, why) in [
        ("{\"seq\"", "{ \"seq\"", "white space"),
        ("\"seq\":0", "\"seq\":0,\"seq\":0", "a member twice"),
        ("\"a\":\"x\"", "\"a\":\"y\",\"a\":\"x\"", "a member of the body twice"),
        ("\"a\":\"x\"", "\"a\":\"\\u0078\"", "an escape that is not needed"),
        ("\"kind\":", "\"more\":1,\"kind\":", "an unknown member"),
        ("\"prev\":\"0", "\"prev\":\"O", "a digit that is none"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(&bad, good, "{why}");
        assert!(Chain::new().follow(bad.as_bytes()).is_err(), "{why}");
    }
    assert!(Chain::new().follow(good.as_bytes()).is_ok());
}

/// Invariants 3 and 5.
#[test]
fn long_records_are_refused_and_times_do_not_run_backwards() {
    let mut chain = Chain::new();
    let long = "x".repeat(MAX_LINE);
    let refused = chain.append(1, &json!({ "kind": "test", "body": { "text": long } }));
    assert!(matches!(refused, Err(AuditError::TooLong(_))));
    assert!(matches!(chain.append(1, &json!({ "kind": "test" })), Err(AuditError::Form(_))));
    assert!(matches!(chain.append(1, &json!(["test"])), Err(AuditError::Form(_))));
    assert_eq!(chain, Chain::new(), "a refused record leaves nothing");
    assert_eq!(chain.follow(long.as_bytes()), Err(Broken::TooLong));

    let entry = json!({ "kind": "test", "body": {} });
    chain.append(50, &entry).unwrap();
    let line = chain.append(20, &entry).unwrap();
    let record: Record = serde_json::from_str(&line).unwrap();
    assert_eq!(record.at, 50, "a clock that was set back");
    let earlier = Record { seq: 2, prev: chain.head(), at: 49, ..record };
    let line = serde_json::to_vec(&earlier).unwrap();
    assert_eq!(chain.follow(&line), Err(Broken::Time));
}

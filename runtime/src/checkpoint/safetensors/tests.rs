//! What is written is read back bit for bit, by this crate, by the safetensors crate and by Python.

use std::process::Command;

use super::*;

fn metadata() -> Metadata {
    Metadata {
        job: "mnist \"quoted\" ä".into(),
        step: 4690,
        params_blake3: [0xab; 32],
        model: Some("{}".into()),
    }
}

fn values() -> Vec<f32> {
    vec![1.0, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX, 0.1, f32::NEG_INFINITY]
}

fn tensors(values: &[f32]) -> [Tensor<'_>; 4] {
    [
        Tensor { name: "fc2.weight", shape: &[2, 3], values },
        Tensor { name: "fc1.bias", shape: &[6], values },
        Tensor { name: "empty", shape: &[0, 7], values: &[] },
        Tensor { name: "scalar", shape: &[], values: &values[..1] },
    ]
}

/// Every name in `folder`, for seeing that nothing is left behind.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn tensors_and_metadata_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let values = values();
    let size = write(&path, &tensors(&values), &metadata()).unwrap();
    assert_eq!(size, fs::metadata(&path).unwrap().len());
    let back = read(&path).unwrap();
    let expected = [
        ("format", "testudo"),
        ("job", "mnist \"quoted\" ä"),
        ("model", "{}"),
        ("params_blake3", &"ab".repeat(32)),
        ("step", "4690"),
    ];
    assert_eq!(back.metadata, expected.map(|(key, value)| (key.to_string(), value.to_string())).into());
    let found: Vec<_> =
        back.tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.values.len())).collect();
    let expected: [(&str, &[usize], usize); 4] =
        [("empty", &[0, 7], 0), ("fc1.bias", &[6], 6), ("fc2.weight", &[2, 3], 6), ("scalar", &[], 1)];
    assert_eq!(found, expected);
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&back.tensors[1].values), bits(&values));
    assert_eq!(names(folder.path()), ["model.safetensors"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

/// Invariant 2.
#[test]
fn the_same_model_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let values = values();
    let mut turned = tensors(&values);
    turned.reverse();
    let written = [tensors(&values), turned].map(|tensors| {
        let path = folder.path().join("m");
        write(&path, &tensors, &metadata()).unwrap();
        fs::read(path).unwrap()
    });
    assert_eq!(written[0], written[1]);
    let length = u64::from_le_bytes(written[0][..8].try_into().unwrap());
    assert_eq!(length % 8, 0);
    assert!(written[0][8..].starts_with(br#"{"__metadata__":{"format":"testudo","job""#));
}

/// Invariant 1: a failure leaves what was there, and nothing else.
#[test]
fn failures_leave_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, "the old one").unwrap();
    let values = values();
    let wrong = [Tensor { name: "w", shape: &[7], values: &values }];
    assert!(matches!(write(&path, &wrong, &metadata()), Err(CheckpointError::Shape { .. })));
    let twice = [Tensor { name: "w", shape: &[6], values: &values }; 2];
    assert!(matches!(write(&path, &twice, &metadata()), Err(CheckpointError::Name { .. })));
    let reserved = [Tensor { name: "__metadata__", shape: &[6], values: &values }];
    assert!(matches!(write(&path, &reserved, &metadata()), Err(CheckpointError::Name { .. })));
    let overflowing = [Tensor { name: "w", shape: &[usize::MAX, 2], values: &values }];
    assert!(matches!(write(&path, &overflowing, &metadata()), Err(CheckpointError::Shape { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "the old one");
    assert_eq!(names(folder.path()), ["model.safetensors"]);

    let directory = folder.path().join("taken");
    fs::create_dir_all(directory.join("full")).unwrap();
    let error = write(&directory, &tensors(&values), &metadata()).unwrap_err();
    assert!(error.to_string().contains("taken"), "{error}");
    assert_eq!(names(folder.path()), ["model.safetensors", "taken"]);
    let error = write(&folder.path().join("no/where"), &tensors(&values), &metadata()).unwrap_err();
    assert!(error.to_string().contains("no/.where"), "{error}");

    write(&path, &tensors(&values), &metadata()).unwrap();
    assert_eq!(read(&path).unwrap().tensors.len(), 4);
}

/// Invariant 3.
#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    write(&path, &tensors(&values()), &metadata()).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        assert!(parse(&path, &whole[..length]).is_err(), "{length}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert!(parse(&path, &longer).is_err());
    for length in [u64::MAX, 1 << 40, 0] {
        let mut lying = whole.clone();
        lying[..8].copy_from_slice(&length.to_le_bytes());
        assert!(parse(&path, &lying).is_err());
    }
    let at = whole.windows(3).position(|three| three == b"F32").unwrap();
    let mut typed = whole.clone();
    typed[at..at + 3].copy_from_slice(b"I32");
    let error = parse(&path, &typed).unwrap_err();
    assert!(error.to_string().contains("only F32"), "{error}");
    assert!(read(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
}

const SCRIPT: &str = r#"
import json, sys
from safetensors import safe_open
with safe_open(sys.argv[1], framework="numpy") as f:
    tensors = {k: f.get_tensor(k) for k in f.keys()}
    print(json.dumps({
        "metadata": f.metadata(),
        "shapes": {k: list(t.shape) for k, t in tensors.items()},
        "bits": [int(b) for b in tensors["fc2.weight"].reshape(-1).view("uint32")],
    }))
"#;

/// With `TESTUDO_PYTHON` naming an interpreter that has safetensors and NumPy, that library reads the
/// file; with `TESTUDO_REQUIRE_PYTHON=1` its absence fails the test.
#[test]
fn python_reads_it() {
    let required = std::env::var("TESTUDO_REQUIRE_PYTHON").is_ok_and(|value| value == "1");
    let python = std::env::var("TESTUDO_PYTHON").ok().filter(|python| {
        let imports = Command::new(python).args(["-c", "import safetensors.numpy"]).output();
        imports.is_ok_and(|output| output.status.success())
    });
    let Some(python) = python else {
        assert!(
            !required,
            "TESTUDO_REQUIRE_PYTHON=1, but TESTUDO_PYTHON names no interpreter with safetensors"
        );
        eprintln!("skipped: set TESTUDO_PYTHON to an interpreter that has safetensors and NumPy");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let values = values();
    write(&path, &tensors(&values), &metadata()).unwrap();
    let output = Command::new(python).args(["-c", SCRIPT]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["metadata"]["job"], "mnist \"quoted\" ä");
    assert_eq!(found["metadata"]["step"], "4690");
    assert_eq!(
        found["shapes"],
        serde_json::json!({"empty": [0, 7], "fc1.bias": [6], "fc2.weight": [2, 3], "scalar": []})
    );
    let bits: Vec<_> = values.iter().map(|value| value.to_bits()).collect();
    assert_eq!(found["bits"], serde_json::json!(bits));
}

//! Attack class H, each case by itself: what is not exactly as signed is refused, and by name.

use std::os::unix::fs::symlink;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;

struct Model {
    folder: tempfile::TempDir,
    dir: PathBuf,
    key: SigningKey,
}

impl Model {
    /// A model of four files, signed.
    fn new() -> Model {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("model");
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        for (name, content) in [
            ("weights", "wwww"),
            ("sub/a", "aaaa"),
            ("sub.txt", "tttt"),
            ("n\u{e4}me \"<>&\u{1f600}", "nnnn"),
        ] {
            std::fs::write(dir.join(name), content).unwrap();
        }
        let model = Model { folder, dir, key: SigningKey::generate().unwrap() };
        sign(&model.dir, &model.signature(), &model.key).unwrap();
        model
    }

    fn signature(&self) -> PathBuf {
        self.dir.join(SIGNATURE_FILE)
    }

    fn verify(&self) -> Result<Verified, SigningError> {
        verify(&self.dir, &self.signature(), &self.key.public())
    }

    fn differences(&self) -> Vec<Difference> {
        match self.verify() {
            Err(SigningError::Differs { differences, .. }) => differences,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(&self) -> String {
        self.verify().unwrap_err().to_string()
    }

    fn bundle(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.signature()).unwrap()).unwrap()
    }

    fn payload(&self) -> Value {
        let payload = self.bundle()["dsseEnvelope"]["payload"].as_str().unwrap().to_owned();
        serde_json::from_slice(&STANDARD.decode(payload).unwrap()).unwrap()
    }

    /// Signs `payload`, whatever it says, with the right key.
    fn sign_payload(&self, payload: &str) {
        std::fs::write(self.signature(), bundle::seal(payload.as_bytes(), &self.key).unwrap()).unwrap();
    }

    fn sign_changed(&self, change: impl FnOnce(&mut Value)) {
        let mut payload = self.payload();
        change(&mut payload);
        self.sign_payload(&payload.to_string());
    }
}

/// What is done to a statement before it is signed.
type Change = fn(&mut Value);

fn name(text: &str) -> String {
    text.to_owned()
}

#[test]
fn what_was_signed_verifies_and_is_read() {
    let model = Model::new();
    let verified = model.verify().unwrap();
    let names: Vec<&str> = verified.manifest().files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["n\u{e4}me \"<>&\u{1f600}", "sub/a", "sub.txt", "weights"]);
    assert_eq!(verified.manifest().name, "model");
    assert_eq!(verified.read("weights", 4).unwrap(), b"wwww");
    assert!(verified.read("weights", 3).unwrap_err().to_string().contains("longer than 3"));
    assert!(verified.read("model.sig", 1 << 20).unwrap_err().to_string().contains("not among the signed"));
    // Invariant 4 of the module above.
    std::fs::write(model.dir.join("weights"), "wwwW").unwrap();
    assert!(verified.read("weights", 4).unwrap_err().to_string().contains("changed since"));
}

/// The members and their order, white space and escapes are the public tool's.
#[test]
fn the_payload_is_spelled_as_the_public_tool_spells_it() {
    let manifest = Manifest {
        name: name("m"),
        files: vec![(name("\u{e9}\u{1f600}\u{7f}"), [0xab; 32])],
        ignored: vec![name("model.sig")],
    };
    let digest = hex(&manifest.digest());
    let expected = format!(
        r#"{{
  "_type": "https://in-toto.io/Statement/v1",
  "subject": [
    {{
      "name": "m",
      "digest": {{
        "sha256": "{digest}"
      }}
    }}
  ],
  "predicateType": "https://model_signing/signature/v1.0",
  "predicate": {{
    "serialization": {{
      "method": "files",
      "hash_type": "sha256",
      "allow_symlinks": false,
      "ignore_paths": [
        "model.sig"
      ]
    }},
    "resources": [
      {{
        "name": "\u00e9\ud83d\ude00\u007f",
        "algorithm": "sha256",
        "digest": "{}"
      }}
    ]
  }}
}}"#,
        "ab".repeat(32)
    );
    let payload = manifest.to_payload().unwrap();
    assert_eq!(String::from_utf8(payload.clone()).unwrap(), expected);
    assert_eq!(Manifest::from_payload(&payload).unwrap(), manifest);
}

/// Invariant 1.
#[test]
fn changed_added_removed_and_renamed_files_are_named() {
    let model = Model::new();
    std::fs::write(model.dir.join("weights"), "wwwW").unwrap();
    assert_eq!(model.differences(), [Difference::Changed(name("weights"))]);
    assert!(model.refusal().contains("changed: \"weights\""));

    let model = Model::new();
    std::fs::write(model.dir.join("sub/\u{1b}[2Jnew"), "new").unwrap();
    assert_eq!(model.differences(), [Difference::Added(name("sub/\u{1b}[2Jnew"))]);
    assert!(!model.refusal().contains('\u{1b}'), "a name cannot forge a terminal's lines");

    let model = Model::new();
    std::fs::remove_file(model.dir.join("sub/a")).unwrap();
    assert_eq!(model.differences(), [Difference::Removed(name("sub/a"))]);

    let model = Model::new();
    std::fs::rename(model.dir.join("sub/a"), model.dir.join("sub/b")).unwrap();
    assert_eq!(model.differences(), [Difference::Renamed { from: name("sub/a"), to: name("sub/b") }]);

    let model = Model::new();
    std::fs::rename(model.dir.join("sub/a"), model.dir.join("kept")).unwrap();
    std::fs::rename(model.dir.join("weights"), model.dir.join("sub/a")).unwrap();
    std::fs::rename(model.dir.join("kept"), model.dir.join("weights")).unwrap();
    let swapped = [Difference::Changed(name("sub/a")), Difference::Changed(name("weights"))];
    assert_eq!(model.differences(), swapped);
}

/// Invariant 2.
#[test]
fn links_pipes_and_other_names_are_refused() {
    let model = Model::new();
    std::fs::rename(model.dir.join("weights"), model.folder.path().join("elsewhere")).unwrap();
    symlink("../elsewhere", model.dir.join("weights")).unwrap();
    assert!(model.refusal().contains("weights: is a symbolic link"));

    let model = Model::new();
    std::fs::rename(model.dir.join("sub"), model.folder.path().join("elsewhere")).unwrap();
    symlink("../elsewhere", model.dir.join("sub")).unwrap();
    assert!(model.refusal().contains("sub: is a symbolic link"));
    assert!(sign(&model.dir, &model.signature(), &model.key).is_err(), "nor is it signed");

    // Nor where it would be ignored.
    let model = Model::new();
    symlink("/etc", model.dir.join(".git")).unwrap();
    assert!(model.refusal().contains(".git: is a symbolic link"));

    let model = Model::new();
    let signature = model.folder.path().join("elsewhere");
    std::fs::rename(model.signature(), &signature).unwrap();
    symlink(&signature, model.signature()).unwrap();
    assert!(model.refusal().contains("is a symbolic link"));

    let model = Model::new();
    let pipe = std::process::Command::new("mkfifo").arg(model.dir.join("pipe")).status().unwrap();
    assert!(pipe.success() && model.refusal().contains("pipe: is neither"));

    let model = Model::new();
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"odd\xff");
    std::fs::write(model.dir.join(odd), "x").unwrap();
    assert!(model.refusal().contains("not UTF-8"));
}

#[test]
fn another_key_and_altered_signatures_are_refused() {
    let model = Model::new();
    let other = SigningKey::generate().unwrap().public();
    let refused = verify(&model.dir, &model.signature(), &other).unwrap_err();
    assert!(matches!(&refused, SigningError::OtherKey { given, .. } if *given == other.hint()), "{refused}");

    // Another's signature under our key's name.
    let model = Model::new();
    let mut bundle = model.bundle();
    bundle["verificationMaterial"]["publicKey"]["hint"] = json!(other.hint());
    std::fs::write(model.signature(), bundle.to_string()).unwrap();
    assert!(matches!(verify(&model.dir, &model.signature(), &other), Err(SigningError::Forged)));

    // The list was altered, the signature was not.
    let model = Model::new();
    let mut bundle = model.bundle();
    let payload = model.payload().to_string().replace("weights", "weightz");
    bundle["dsseEnvelope"]["payload"] = json!(STANDARD.encode(payload));
    std::fs::write(model.signature(), bundle.to_string()).unwrap();
    assert!(matches!(model.verify(), Err(SigningError::Forged)));
}

/// Invariant 3, in what is signed: even a statement that the right key signed must be of the form.
#[test]
fn names_that_leave_the_folder_and_statements_of_another_form_are_refused() {
    let model = Model::new();
    for hostile in
        ["../weights", "sub/../../weights", "/etc/passwd", "", ".", "sub//a", "./weights", "sub/", "a\0b"]
    {
        model.sign_changed(|payload| payload["predicate"]["resources"][3]["name"] = json!(hostile));
        assert!(model.refusal().contains("no plain path"), "{hostile:?}: {}", model.refusal());
        sign(&model.dir, &model.signature(), &model.key).unwrap();
        model
            .sign_changed(|payload| payload["predicate"]["serialization"]["ignore_paths"] = json!([hostile]));
        assert!(model.refusal().contains("no plain path"), "{hostile:?}: {}", model.refusal());
        sign(&model.dir, &model.signature(), &model.key).unwrap();
    }
    let changes: [(&str, Change); 14] = [
        ("_type", |p| p["_type"] = json!("https://in-toto.io/Statement/v0.1")),
        ("predicateType", |p| p["predicateType"] = json!("https://model_signing/Digests/v0.1")),
        ("subject has 2 items", |p| p["subject"] = json!([p["subject"][0], p["subject"][0]])),
        ("the subject's digest", |p| p["subject"][0]["digest"]["sha256"] = json!("00".repeat(32))),
        ("method", |p| p["predicate"]["serialization"]["method"] = json!("shards")),
        ("hash_type", |p| p["predicate"]["serialization"]["hash_type"] = json!("blake3")),
        ("algorithm", |p| p["predicate"]["resources"][0]["algorithm"] = json!("md5")),
        ("no SHA-256 in hex", |p| p["predicate"]["resources"][0]["digest"] = json!("AB".repeat(32))),
        ("no SHA-256 in hex", |p| p["predicate"]["resources"][0]["digest"] = json!("ab")),
        ("listed twice", |p| {
            let first = p["predicate"]["resources"][0].clone();
            p["predicate"]["resources"].as_array_mut().unwrap().push(first);
        }),
        ("both listed and ignored", |p| {
            p["predicate"]["serialization"]["ignore_paths"] = json!(["sub"]);
        }),
        ("lists no files", |p| p["predicate"]["resources"] = json!([])),
        ("not known", |p| p["more"] = json!(1)),
        ("neither true nor false", |p| p["predicate"]["serialization"]["allow_symlinks"] = json!("no")),
    ];
    for (why, change) in changes {
        sign(&model.dir, &model.signature(), &model.key).unwrap();
        model.sign_changed(change);
        assert!(model.refusal().contains(why), "{why}: {}", model.refusal());
    }
    sign(&model.dir, &model.signature(), &model.key).unwrap();
    model.sign_changed(|payload| payload["predicate"]["later"] = json!({"x": 1}));
    assert!(model.verify().is_ok(), "members that later versions add to the predicate are passed over");
}

/// Invariant 3, in the bundle.
#[test]
fn bundles_with_more_than_one_meaning_are_refused() {
    let model = Model::new();
    let text = std::fs::read_to_string(model.signature()).unwrap();
    let payload = model.payload().to_string();
    let changes: [(&str, String); 10] = [
        ("stands twice", text.replace(r#""keyid":"""#, r#""keyid":"","keyid":"""#)),
        ("stands twice", text.replacen('{', r#"{"mediaType":"x","#, 1)),
        ("mediaType", text.replace("bundle.v0.3", "bundle.v0.2")),
        ("payloadType", text.replace("in-toto+json", "in-toto")),
        (
            "signatures has 2 items",
            text.replace(r#""signatures":[{"#, r#""signatures":[{"sig":"AA==","keyid":""},{"#),
        ),
        ("signatures has 0 items", {
            let start = text.find(r#""signatures":["#).unwrap();
            format!(r#"{}"signatures":[]}}}}"#, &text[..start])
        }),
        ("transparency log", text.replace(r#""tlogEntries":[]"#, r#""tlogEntries":[{}]"#)),
        ("not known", text.replace(r#""tlogEntries""#, r#""certificate":{},"tlogEntries""#)),
        ("no hint", text.replace(r#""hint""#, r#""rawBytes""#)),
        ("trailing characters", format!("{text}{text}")),
    ];
    for (why, changed) in changes {
        assert_ne!(changed, text, "{why}");
        std::fs::write(model.signature(), changed).unwrap();
        assert!(model.refusal().contains(why), "{why}: {}", model.refusal());
    }
    // Base64 has one spelling.
    for spoil in [
        |b: &str| format!("{b}\n"),
        |b: &str| format!(" {b}"),
        |b: &str| format!("{b}="),
        |b: &str| b.replacen(|c: char| c.is_ascii_alphanumeric(), "-", 1),
    ] {
        let mut bundle: Value = serde_json::from_str(&text).unwrap();
        let payload = bundle["dsseEnvelope"]["payload"].as_str().unwrap();
        bundle["dsseEnvelope"]["payload"] = json!(spoil(payload));
        std::fs::write(model.signature(), bundle.to_string()).unwrap();
        assert!(model.refusal().contains("is not Base64"), "{}", model.refusal());
    }
    // A key that stands twice in what is signed.
    for doubled in [
        payload.replacen('{', r#"{"predicateType":"x","#, 1),
        payload.replacen(r#""algorithm":"sha256""#, r#""algorithm":"sha256","name":"y""#, 1),
    ] {
        model.sign_payload(&doubled);
        assert!(model.refusal().contains("stands twice"), "{}", model.refusal());
    }
}

#[test]
fn oversized_and_deep_bundles_are_refused_cheaply() {
    let model = Model::new();
    let file = std::fs::File::create(model.signature()).unwrap();
    // Sparse: a tebibyte costs nothing to write, and would cost all memory to read.
    file.set_len(1 << 40).unwrap();
    assert!(model.refusal().contains("longer than"));
    std::fs::write(model.signature(), "[".repeat(1 << 20)).unwrap();
    assert!(model.refusal().contains("nested deeper"));
    std::fs::write(model.signature(), "").unwrap();
    assert!(model.refusal().contains("malformed"));
    std::fs::remove_file(model.signature()).unwrap();
    assert!(model.refusal().contains("model.sig"));
}

#[test]
fn what_the_signer_ignored_is_told() {
    let model = Model::new();
    std::fs::create_dir(model.dir.join(".git")).unwrap();
    std::fs::write(model.dir.join(".git/config"), "x").unwrap();
    assert_eq!(model.verify().unwrap().uncovered(), [".git"]);
    // A name that only begins like an ignored one is not.
    std::fs::write(model.dir.join(".gitx"), "x").unwrap();
    assert_eq!(model.differences(), [Difference::Added(name(".gitx"))]);
}

/// Invariant 6, and where the signature may stand.
#[test]
fn a_signature_is_replaced_whole_and_may_stand_elsewhere() {
    let model = Model::new();
    let other = SigningKey::generate().unwrap();
    sign(&model.dir, &model.signature(), &other).unwrap();
    assert!(matches!(model.verify(), Err(SigningError::OtherKey { .. })));
    assert!(verify(&model.dir, &model.signature(), &other.public()).is_ok());
    assert!(sign(&model.dir, &model.folder.path().join("no/such"), &model.key).is_err());
    for place in [model.folder.path().join("outside.sig"), model.dir.join("sub/inside.sig")] {
        sign(&model.dir, &place, &model.key).unwrap();
        assert!(verify(&model.dir, &place, &model.key.public()).is_ok(), "{place:?}");
        std::fs::remove_file(place).unwrap();
    }
    let left: Vec<_> = std::fs::read_dir(&model.dir).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 5, "{left:?}");
    let empty = tempfile::tempdir().unwrap();
    assert!(sign(empty.path(), &empty.path().join("s"), &model.key).is_err(), "nothing to sign");
}

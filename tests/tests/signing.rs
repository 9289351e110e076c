//! Signed models between two programs: PyPI's `model_signing` accepts what `testudo sign` and a run leave, `testudo verify`
//! accepts what `model_signing` signs, and both sign the same statement. Ours refuses every case of attack class H; the public
//! tool lets four of them pass.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use testudo::signing::{SigningKey, bundle};
use testudo_tests::{files, process, python};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// A folder with a model, a key that `testudo sign --new-key` made, and the public tool.
struct Bench {
    folder: tempfile::TempDir,
    python: String,
}

impl Bench {
    fn new() -> Option<Bench> {
        let python = python::with("model_signing.verifying")?;
        let bench = Bench { folder: tempfile::tempdir().unwrap(), python };
        for key in ["key.pem", "other.pem"] {
            bench.testudo(&["sign", "--new-key", bench.at(key).to_str().unwrap()]).unwrap();
        }
        Some(bench)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A fresh model of four files under `name`.
    fn model(&self, name: &str) -> PathBuf {
        let dir = self.at(name);
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        // In one of the files, more than is read at once.
        let large: Vec<u8> = (0..600_000_u32).flat_map(u32::to_le_bytes).collect();
        for (file, content) in [
            ("weights.bin", &large[..]),
            ("sub/a", b"aaaa"),
            ("sub.txt", b"t"),
            ("n\u{e4}me \"<\u{1f600}", b"n"),
        ] {
            std::fs::write(dir.join(file), content).unwrap();
        }
        dir
    }

    /// A fresh model, signed by us.
    fn signed(&self, name: &str) -> PathBuf {
        let dir = self.model(name);
        let key = self.at("key.pem");
        self.testudo(&["sign", dir.to_str().unwrap(), "--key", key.to_str().unwrap()]).unwrap();
        dir
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let ended = process::run(program, arguments, self.folder.path());
        match ended.status.success() {
            true => Ok(ended.stdout),
            false => Err(format!("{}{}", ended.stdout, ended.stderr)),
        }
    }

    fn testudo(&self, arguments: &[&str]) -> Result<String, String> {
        self.run(PROGRAM, arguments)
    }

    fn theirs(&self, verb: &str, dir: &Path, key: [&str; 2]) -> Result<String, String> {
        let signature = dir.join("model.sig");
        let [option, key] = key;
        let key = self.at(key);
        let arguments = ["-m", "model_signing", verb, "key", dir.to_str().unwrap(), "--signature"];
        let more = [signature.to_str().unwrap(), option, key.to_str().unwrap()];
        self.run(&self.python, &[&arguments[..], &more].concat())
    }

    fn they_verify(&self, dir: &Path, key: &str) -> Result<String, String> {
        self.theirs("verify", dir, ["--public_key", key])
    }

    fn we_verify(&self, dir: &Path, key: &str) -> Result<String, String> {
        let key = self.at(key);
        self.testudo(&["verify", dir.to_str().unwrap(), "--public-key", key.to_str().unwrap()])
    }

    /// Has the right key sign what `change` makes of the statement.
    fn sign_changed(&self, dir: &Path, change: impl FnOnce(String) -> String) {
        let key = SigningKey::load(&self.at("key.pem")).unwrap();
        let payload = bundle::open(&bundle::read(&dir.join("model.sig")).unwrap(), &key.public()).unwrap();
        let changed = change(String::from_utf8(payload).unwrap());
        std::fs::write(dir.join("model.sig"), bundle::seal(changed.as_bytes(), &key).unwrap()).unwrap();
    }
}

#[test]
fn each_accepts_what_the_other_signs() {
    let Some(bench) = Bench::new() else { return };
    let ours = bench.signed("ours");
    bench.they_verify(&ours, "key.pub.pem").unwrap();
    assert!(bench.we_verify(&ours, "key.pub.pem").unwrap().starts_with("4 files"));

    let theirs = bench.model("theirs");
    // What the tool leaves out when it signs is left out when we verify, and said.
    std::fs::create_dir(theirs.join(".git")).unwrap();
    std::fs::write(theirs.join(".git/HEAD"), "x").unwrap();
    bench.theirs("sign", &theirs, ["--private_key", "key.pem"]).unwrap();
    bench.they_verify(&theirs, "key.pub.pem").unwrap();
    assert!(bench.we_verify(&theirs, "key.pub.pem").unwrap().starts_with("4 files"));
}

/// The names of an object's members, in the order in which they stand.
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Names, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        from.deserialize_map(Members)
    }
}

/// What the tool signs of a model and what we sign of it is one statement: the same members at every level with the same values,
/// those of the top level in the same order. Below it, the tool's own order changes from one signature to the next, and that
/// of the ignored paths too.
#[test]
fn the_statement_is_the_public_tools_own() {
    let Some(bench) = Bench::new() else { return };
    let dir = bench.signed("both");
    let key = SigningKey::load(&bench.at("key.pem")).unwrap().public();
    let signed = || {
        let bundle = bundle::read(&dir.join("model.sig")).unwrap();
        let payload = bundle::open(&bundle, &key).unwrap();
        let order: Names = serde_json::from_slice(&payload).unwrap();
        let mut statement: Value = serde_json::from_slice(&payload).unwrap();
        let ignored = statement["predicate"]["serialization"]["ignore_paths"].as_array_mut().unwrap();
        ignored.sort_by_key(Value::to_string);
        let bundle: Value = serde_json::from_slice(&bundle).unwrap();
        let members: Vec<String> = bundle.as_object().unwrap().keys().cloned().collect();
        (order.0, statement, members)
    };
    let ours = signed();
    std::fs::remove_file(dir.join("model.sig")).unwrap();
    bench.theirs("sign", &dir, ["--private_key", "key.pem"]).unwrap();
    assert_eq!(ours, signed());
    assert_eq!(ours.0, ["_type", "subject", "predicateType", "predicate"]);
}

/// What a case does to a signed model.
type Attack = fn(&Bench, &Path);

/// Ours refuses every case; the public tool accepts four, which `docs/models.md` names: ours is stricter in these, and in no other.
#[test]
fn ours_refuses_all_of_class_h_and_the_public_tool_all_but_four() {
    let Some(bench) = Bench::new() else { return };
    // What is done, what ours says of it, and whether the public tool refuses it too.
    let attacks: [(&str, Attack, &str, bool); 12] = [
        ("changed", |_, d| std::fs::write(d.join("sub/a"), "aaab").unwrap(), "changed: \"sub/a\"", true),
        ("added", |_, d| std::fs::write(d.join("sub/b"), "x").unwrap(), "added: \"sub/b\"", true),
        ("removed", |_, d| std::fs::remove_file(d.join("sub.txt")).unwrap(), "removed: \"sub.txt\"", true),
        (
            "renamed",
            |_, d| std::fs::rename(d.join("sub/a"), d.join("sub/c")).unwrap(),
            "renamed: \"sub/a\" to \"sub/c\"",
            true,
        ),
        (
            "linked",
            |bench, d| {
                std::fs::rename(d.join("sub/a"), bench.at("elsewhere")).unwrap();
                std::os::unix::fs::symlink(bench.at("elsewhere"), d.join("sub/a")).unwrap();
            },
            "sub/a: is a symbolic link",
            true,
        ),
        (
            "a folder linked",
            |bench, d| {
                std::fs::rename(d.join("sub"), bench.at("elsewhere-too")).unwrap();
                std::os::unix::fs::symlink(bench.at("elsewhere-too"), d.join("sub")).unwrap();
            },
            "sub: is a symbolic link",
            true,
        ),
        (
            "another's signature",
            |bench, d| {
                let other = bench.at("other.pem");
                bench.testudo(&["sign", d.to_str().unwrap(), "--key", other.to_str().unwrap()]).unwrap();
            },
            "signed with another key",
            true,
        ),
        (
            "../ in a name",
            |bench, d| {
                std::fs::write(bench.at("outside"), "aaaa").unwrap();
                std::fs::remove_file(d.join("sub/a")).unwrap();
                bench.sign_changed(d, |statement| statement.replace("\"sub/a\"", "\"../outside\""));
            },
            "\"../outside\" is no plain path",
            true,
        ),
        (
            "an ignored path with ../",
            |bench, d| bench.sign_changed(d, |statement| statement.replace("\".git\"", "\"../model\"")),
            "is no plain path",
            false,
        ),
        (
            "a key twice in the bundle",
            |_, d| {
                let text = std::fs::read_to_string(d.join("model.sig")).unwrap();
                let doubled = text.replacen('{', "{\"mediaType\":\"x\",", 1);
                std::fs::write(d.join("model.sig"), doubled).unwrap();
            },
            "the key \"mediaType\" stands twice",
            false,
        ),
        (
            "a key twice in the statement",
            |bench, d| {
                bench.sign_changed(d, |statement| {
                    statement.replacen("\"name\": \"sub/a\"", "\"name\": \"x\", \"name\": \"sub/a\"", 1)
                });
            },
            "the key \"name\" stands twice",
            false,
        ),
        (
            "an oversized bundle",
            |_, d| {
                let mut text = std::fs::read_to_string(d.join("model.sig")).unwrap();
                text.push_str(&" ".repeat(usize::try_from(bundle::BYTES_MOST).unwrap()));
                std::fs::write(d.join("model.sig"), text).unwrap();
            },
            "is longer than",
            false,
        ),
    ];
    for (number, (what, attack, says, they_refuse_too)) in attacks.into_iter().enumerate() {
        let dir = bench.signed(&format!("model-{number}"));
        bench.we_verify(&dir, "key.pub.pem").unwrap();
        attack(&bench, &dir);
        let ours = bench.we_verify(&dir, "key.pub.pem");
        let refusal = ours.err().unwrap_or_else(|| panic!("{what}: testudo accepts it"));
        assert!(refusal.contains(says), "{what}: {refusal}");
        let theirs = bench.they_verify(&dir, "key.pub.pem");
        assert_eq!(theirs.is_err(), they_refuse_too, "{what}: the public tool says {theirs:?}");
    }
}

/// A run signs its model, with a key of its own or the operator's.
/// `--json` of the command and of its refusal, for scripts.
#[test]
fn scripts_read_what_was_signed_and_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(at("model")).unwrap();
    for name in ["a", "b"] {
        std::fs::write(folder.path().join("model").join(name), name).unwrap();
    }
    let testudo = |arguments: &[&str]| process::run(PROGRAM, arguments, folder.path());
    let (model, key, public) = (at("model"), at("key.pem"), at("key.pub.pem"));
    let signed = testudo(&["sign", &model, "--new-key", &key, "--json"]).succeeded();
    assert_eq!(signed.stdout.lines().count(), 1, "{signed:?}");
    let told = signed.json();
    let signature = format!("{model}/model.sig");
    for (name, value) in
        [("new_key", &key), ("public_key", &public), ("dir", &model), ("signature", &signature)]
    {
        assert_eq!(told[name], **value, "{told}");
    }
    assert_eq!(told["files"], 2, "{told}");
    let verify = || testudo(&["verify", &model, "--public-key", &public, "--json"]);
    let good = verify().succeeded().json();
    assert_eq!(
        (&good["good"], &good["files"], &good["key"]),
        (&true.into(), &2.into(), &told["key"]),
        "{good}"
    );
    assert_eq!(good["uncovered"], serde_json::json!([]), "{good}");
    std::fs::write(folder.path().join("model/a"), "changed").unwrap();
    let bad = verify();
    assert_eq!((bad.code(), &bad.json()["good"]), (Some(1), &false.into()), "{bad:?}");
    assert!(bad.json()["problem"].as_str().unwrap().contains("changed: \"a\""), "{bad:?}");
}

#[test]
fn a_runs_model_is_signed() {
    let folder = tempfile::tempdir().unwrap();
    let job = files::write_job(folder.path());
    let at = |name: &str| folder.path().join(name);
    let run = |name: &str, more: &[&str]| -> Value {
        let run_dir = at(name);
        let arguments = ["run", job.to_str().unwrap(), "--set", "training.max_steps=3", "--json", "--quiet"];
        let arguments = [&arguments[..], &["--run-dir", run_dir.to_str().unwrap()], more].concat();
        process::run(PROGRAM, &arguments, &run_dir).succeeded().json()
    };
    let verify = |run: &str, key: &Path| {
        let model = at(run).join("checkpoint/final");
        let arguments = ["verify", model.to_str().unwrap(), "--public-key", key.to_str().unwrap()];
        process::run(PROGRAM, &arguments, folder.path())
    };

    let summary = run("own", &[]);
    let key = at("own/checkpoint/model.pub.pem");
    let said = verify("own", &key).succeeded().stdout;
    assert!(said.starts_with("1 file of") && said.contains(summary["model_key"].as_str().unwrap()), "{said}");

    // What is resumed is exported and signed anew, with another key, which replaces the first.
    let resume = ["run", "--resume", summary["run_dir"].as_str().unwrap(), "--json", "--quiet"];
    let resumed = process::run(PROGRAM, &resume, &at("own")).succeeded().json();
    assert_ne!(resumed["model_key"], summary["model_key"]);
    let said = verify("own", &key).succeeded().stdout;
    assert!(said.contains(resumed["model_key"].as_str().unwrap()), "{said}");

    let theirs = at("operator.pem");
    let made = process::run(PROGRAM, &["sign", "--new-key", theirs.to_str().unwrap()], folder.path());
    let _ = made.succeeded();
    let set = format!("checkpoint.sign_key=\"{}\"", theirs.display());
    run("operators", &["--set", &set]);
    let _ = verify("operators", &at("operator.pub.pem")).succeeded();
    assert!(!verify("operators", &key).status.success(), "not with the other run's key");

    if let Some(python) = python::with("model_signing.verifying") {
        let model = at("operators/checkpoint/final");
        let signature = model.join("model.sig");
        let arguments = ["-m", "model_signing", "verify", "key", model.to_str().unwrap(), "--signature"];
        let public = at("operator.pub.pem");
        let more = [signature.to_str().unwrap(), "--public_key", public.to_str().unwrap()];
        let _ = process::run(&python, &[&arguments[..], &more].concat(), folder.path()).succeeded();
    }

    let summary = run("none", &["--set", "checkpoint.export=false"]);
    assert!(summary["model_key"].is_null());
    assert!(!at("none/checkpoint/final/model.sig").exists() && !at("none/checkpoint/model.pub.pem").exists());

    // A key that others could read ends the run before it begins.
    std::fs::set_permissions(&theirs, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let arguments = ["run", job.to_str().unwrap(), "--quiet", "--set", &set, "--run-dir", "never"];
    let refused = process::run(PROGRAM, &arguments, folder.path());
    assert_eq!(refused.code(), Some(2));
    assert!(refused.stderr.contains("chmod 600"), "{}", refused.stderr);
}

//! `testudo sign --reported-by`: an operator signs what a worker wrote only if it is what the run's audit log reports.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::path::Path;

use testudo_tests::files::text;
use testudo_tests::place::Place;
use testudo_tests::process::{self, Ended};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

fn testudo(arguments: &[&str]) -> Ended {
    process::run(PROGRAM, arguments, Path::new("/no/mark"))
}

/// The final model alone, as it comes from the worker's machine.
fn fetched(run: &Path, name: &str) -> std::path::PathBuf {
    let folder = run.with_file_name(name);
    std::fs::create_dir(&folder).unwrap();
    let model = "model.safetensors";
    std::fs::copy(run.join("checkpoint/final").join(model), folder.join(model)).unwrap();
    folder
}

#[test]
fn only_the_model_that_the_audit_log_reports_is_signed() {
    let place = Place::small(PROGRAM);
    let _ = place.run("run", &["--set", "training.max_steps=12", "--quiet"]).succeeded();
    let _ = place.run("other", &["--set", "training.max_steps=11", "--quiet"]).succeeded();
    let (run, other) = (place.run_dir("run"), place.run_dir("other"));
    let (key, public) = (place.run_dir("key.pem"), place.run_dir("key.pub.pem"));
    let _ = testudo(&["sign", "--new-key", text(&key)]).succeeded();
    let sign = |model: &Path, more: &[&str]| {
        testudo(&[&["sign", text(model), "--key", text(&key), "--reported-by", text(&run)], more].concat())
    };
    let model = fetched(&run, "model");
    let _ = sign(&model, &[]).succeeded();
    let _ = testudo(&["verify", text(&model), "--public-key", text(&public)]).succeeded();
    // A signed job that lies elsewhere, as in a cluster that was started by hand, and the CA that somebody knows.
    let job = place.run_dir("small.job");
    std::fs::copy(run.join("job.signed"), &job).unwrap();
    let _ = sign(&model, &["--job", text(&job), "--ca", text(&run.join("identities/scheduler-0/ca.pem"))])
        .succeeded();

    let lie = fetched(&run, "lie");
    let mut bytes = std::fs::read(lie.join("model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(lie.join("model.safetensors"), bytes).unwrap();
    let steps_less = fetched(&other, "steps-less");
    for (model, more, why) in [
        (&lie, vec![], "is not the model that the scheduler reported"),
        (&steps_less, vec![], "is not the model that the scheduler reported"),
        (&model, vec!["--job", text(&place.file)], "is not the job that the audit log names"),
        (&model, vec!["--ca", text(&other.join("identities/scheduler-0/ca.pem"))], "not among those given"),
    ] {
        let refused = sign(model, &more);
        assert!(refused.code() == Some(1) && refused.stderr.contains(why), "{why}: {refused:?}");
    }
    // Nor is a key left behind that was made for it: the same command can be given again.
    let (new, its) = (place.run_dir("new.pem"), place.run_dir("new.pub.pem"));
    let sign =
        |model: &Path| testudo(&["sign", text(model), "--new-key", text(&new), "--reported-by", text(&run)]);
    assert_eq!(sign(&lie).code(), Some(1));
    assert!(!new.exists() && !its.exists());
    let _ = sign(&model).succeeded();
    assert!(new.exists() && its.exists());
    assert!(!lie.join("model.sig").exists() && !steps_less.join("model.sig").exists());
}

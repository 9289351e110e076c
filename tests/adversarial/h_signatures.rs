//! Class H, signatures: a run's own exported model, changed. `testudo verify` refuses each, says what is wrong, and changes
//! nothing. What the public tool makes of the same cases is in `tests/tests/signing.rs::ours_refuses_all_of_class_h_and_the_public_tool_all_but_four`.
//!
//! The attacker is who can write the model's folder; in two cases also who holds the key, and has it sign lies.

use std::path::Path;

use testudo::signing::{SigningKey, bundle};
use testudo_tests::files::text;
use testudo_tests::process;

use crate::PROGRAM;
use crate::artefacts::{Artefacts, Expected, another, flip};

fn model(run: &Path) -> std::path::PathBuf {
    run.join("checkpoint/final")
}

#[test]
fn class_h_signatures() {
    let keys = tempfile::tempdir().unwrap();
    let at = |name: &str| keys.path().join(name);
    for key in ["key.pem", "other.pem"] {
        let made = process::run(PROGRAM, &["sign", "--new-key", text(&at(key))], keys.path());
        let _ = made.succeeded();
    }
    let sign = format!("checkpoint.sign_key=\"{}\"", text(&at("key.pem")));
    let mut run = Artefacts::train(&["--set", "training.max_steps=3", "--set", &sign]);
    let public = at("key.pub.pem");
    let public = text(&public);
    let verify = ["verify", "DIR/checkpoint/final", "--public-key", public];
    run.case("nothing", |_| (), &[Expected(&verify, 0, &["1 file"])]);

    // Has the right key sign what `change` makes of the statement.
    let signed_anew = |run: &Path, change: &dyn Fn(String) -> String| {
        let key = SigningKey::load(&at("key.pem")).unwrap();
        let signature = model(run).join("model.sig");
        let payload = bundle::open(&bundle::read(&signature).unwrap(), &key.public()).unwrap();
        let changed = change(String::from_utf8(payload).unwrap());
        std::fs::write(signature, bundle::seal(changed.as_bytes(), &key).unwrap()).unwrap();
    };
    let weights = |run: &Path| model(run).join("model.safetensors");
    let mut refused = |what: &str, spoil: &dyn Fn(&Path), says: &str| {
        run.case(what, spoil, &[Expected(&verify, 1, &[says])]);
    };
    refused("changed", &|run| flip(&weights(run), 5_000), "changed: \"model.safetensors\"");
    refused("added", &|run| std::fs::write(model(run).join("more"), "x").unwrap(), "added: \"more\"");
    refused("removed", &|run| std::fs::remove_file(weights(run)).unwrap(), "removed: \"model.safetensors\"");
    refused(
        "renamed",
        &|run| std::fs::rename(weights(run), model(run).join("renamed")).unwrap(),
        "renamed: \"model.safetensors\" to \"renamed\"",
    );
    refused(
        "linked",
        &|run| {
            std::fs::rename(weights(run), run.join("elsewhere")).unwrap();
            std::os::unix::fs::symlink(run.join("elsewhere"), weights(run)).unwrap();
        },
        "is a symbolic link",
    );
    let broken = "the signature does not verify: it or what it signs was altered";
    for (what, after) in
        [("a letter of the signature", "\"sig\":\""), ("a letter of the statement", "\"payload\":\"")]
    {
        refused(what, &|run| another(&model(run).join("model.sig"), after, 40), broken);
    }
    refused("no signature", &|run| std::fs::remove_file(model(run).join("model.sig")).unwrap(), "model.sig");
    refused(
        "another's signature",
        &|run| {
            let (model, other) = (model(run), at("other.pem"));
            let arguments = ["sign", text(&model), "--key", text(&other)];
            let _ = process::run(PROGRAM, &arguments, run).succeeded();
        },
        "signed with another key",
    );
    refused(
        "../ in a name",
        &|run| signed_anew(run, &|s| s.replace("\"model.safetensors\"", "\"../model.safetensors\"")),
        "is no plain path",
    );
    refused(
        "a key twice in the statement",
        &|run| {
            signed_anew(run, &|s| {
                s.replacen(
                    "\"name\": \"model.safetensors\"",
                    "\"name\": \"x\", \"name\": \"model.safetensors\"",
                    1,
                )
            });
        },
        "stands twice",
    );
    refused(
        "a key twice in the bundle",
        &|run| {
            let signature = model(run).join("model.sig");
            let bundle = std::fs::read_to_string(&signature).unwrap();
            std::fs::write(signature, bundle.replacen('{', "{\"mediaType\":\"x\",", 1)).unwrap();
        },
        "stands twice",
    );
    refused(
        "an oversized bundle",
        &|run| {
            let signature = model(run).join("model.sig");
            let mut bundle = std::fs::read_to_string(&signature).unwrap();
            bundle.push_str(&" ".repeat(usize::try_from(bundle::BYTES_MOST).unwrap()));
            std::fs::write(signature, bundle).unwrap();
        },
        "is longer than",
    );
    run.finish();
}

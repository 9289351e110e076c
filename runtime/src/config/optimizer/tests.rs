//! The section as a user meets it.

use std::path::Path;

use super::super::keys::{Absent, Rule};
use super::super::tests::MINIMAL;
use super::super::{Config, ConfigErrors};
use super::*;

fn parse(section: &str, overrides: &[&str]) -> Result<Config, ConfigErrors> {
    Config::parse(&format!("{section}{MINIMAL}"), Path::new("/cluster/c.toml"), overrides)
}

/// The only problem, as it is shown.
fn refused(section: &str, overrides: &[&str]) -> String {
    let errors = parse(section, overrides).unwrap_err();
    assert_eq!(errors.problems.len(), 1, "{errors}");
    errors.to_string()
}

fn kinds() -> impl Iterator<Item = &'static str> {
    let Rule::Choice(kinds) = keys::find("optimizer.kind").unwrap().rule else {
        panic!("kinds are a choice")
    };
    kinds.iter().copied()
}

/// The table says of each kind that ships what its program says: which constants it has, and their defaults.
#[test]
fn kinds_are_the_programs_that_ship_with_their_constants() {
    let shipping: Vec<&str> = kinds().filter(|kind| *kind != OWN_PROGRAM).collect();
    assert_eq!(shipping, shipped::names().collect::<Vec<_>>());
    for kind in shipping {
        let config = parse("", &[&format!("optimizer.kind={kind}")]).unwrap();
        let spec = config.optimizer.spec();
        assert_eq!((spec.name.as_str(), spec.program.as_str()), (kind, shipped::text(kind).unwrap()));
        let program = spec.parse().unwrap();
        for constant in program.constants() {
            assert_eq!(
                spec.constants.get(&constant.name),
                Some(&constant.default),
                "{kind} {}",
                constant.name
            );
        }
        assert_eq!(spec.constants.len(), program.constants().len());
        for key in keys::all().filter(|key| key.is_constant()) {
            let has = program.constants().iter().find(|constant| constant.name == key.name());
            let said = key.applies.as_ref().unwrap().kinds.contains(&kind);
            assert_eq!(has.is_some(), said, "{} with {kind}", key.path);
            assert!(matches!(key.absent, Absent::Unset(_)), "{}: the default is the program's", key.path);
        }
    }
}

#[test]
fn constants_are_set_by_key_or_by_name() {
    let lars = "[optimizer]\nkind = \"lars\"\nmomentum = 0.8\n[optimizer.constants]\ntrust = 0.01\n";
    let spec = parse(lars, &["optimizer.weight_decay=0.5"]).unwrap().optimizer.spec();
    let expected = [("momentum", 0.8), ("trust", 0.01), ("weight_decay", 0.5)];
    assert_eq!(spec.constants, expected.map(|(name, value)| (name.to_owned(), value)).into());
    let set = parse(lars, &["optimizer.constants.trust=0.1"]).unwrap().optimizer;
    assert_eq!(set.constants["trust"], 0.1);
}

const OWN: &str = "[optimizer]
kind = \"program\"
learning_rate = 0.5
beta = 1
program = '''
constant momentum = 0.5 in [0, 2)
constant size = 3 in (0, inf)
state kept
kept = momentum * kept + g
w = w - lr * size * kept
'''
";

#[test]
fn a_program_of_ones_own_runs_as_it_stands() {
    let own = OWN.replace("beta = 1\n", "momentum = 1.5\n");
    let config = parse(&own, &["optimizer.constants.size=4"]).unwrap();
    let spec = config.optimizer.spec();
    assert_eq!(spec.name, "program");
    assert!(spec.program.starts_with("constant momentum") && spec.program.ends_with("kept\n"));
    assert_eq!(spec.compile().unwrap().constant("momentum"), Some(1.5), "its own interval holds");
    assert_eq!(spec.compile().unwrap().constant("size"), Some(4.0));
    let again = Config::parse(&config.to_toml().unwrap(), Path::new("/e/c.toml"), &[] as &[&str]).unwrap();
    assert_eq!(again, config);
}

/// Each thing that is wrong is said where it stands.
#[test]
fn what_is_wrong_is_said_with_its_place() {
    let good = OWN.replace("beta = 1\n", "");
    assert!(parse(&good, &[]).is_ok());
    for (what, with, expected) in [
        ("lr * size", "lr * siez", "/cluster/c.toml:9:14: `optimizer.program`: nothing is named \"siez\""),
        ("w = w", "w = where(w)", "/cluster/c.toml:9:5: `optimizer.program`: where takes 3 arguments, not 1"),
        ("learning_rate = 0.5\n", "", "`optimizer.learning_rate` is missing: a program of one's own"),
        (
            "'''\n\n",
            "'''\n[optimizer.constants]\nsiz = 1\n\n",
            "c.toml:12:7: `optimizer.constants.siz`: optimizer.kind = \"program\" has no constant \"siz\"; did you mean `optimizer.constants.size`?",
        ),
        (
            "'''\n\n",
            "'''\n[optimizer.constants]\nmomentum = 1\n\n",
            "has a key of its own: write it as `optimizer.momentum`",
        ),
        (
            "'''\n\n",
            "'''\n[optimizer.constants]\nsize = 0\n\n",
            "`optimizer.constants.size`: found the number 0; the program allows (0, inf), also as f32",
        ),
        (
            "program = '''",
            "beta2 = 0.9\nprogram = '''",
            "c.toml:4:9: `optimizer.beta2`: the program has no constant \"beta2\"; it has momentum, size",
        ),
        (
            "program = '''",
            "momentum = 2\nprogram = '''",
            "`optimizer.momentum`: found the number 2; the program allows [0, 2)",
        ),
        ("program = '''", "momentum = nan\nprogram = '''", "allowed: a number"),
        (
            "kind = \"program\"",
            "kind = \"adam\"",
            "`optimizer.program` means nothing with optimizer.kind = \"adam\"",
        ),
        ("momentum * kept", "momentum * kept * \\u0041", "c.toml:4:11: `optimizer.program`: "),
    ] {
        // An escape is one only in a string of the other kind.
        let own = if with.contains('\\') { good.replace("'''", "\"\"\"") } else { good.clone() };
        let own = format!("{own}\n").replace(what, with);
        let message = refused(&own, &[]);
        assert!(message.contains(expected), "{expected:?} is missing in\n{message}");
    }
    let escaped = format!("{good}\n").replace("'''", "\"\"\"").replace("size * kept", "size * \\u0041");
    assert!(
        refused(&escaped, &[])
            .contains("in the program's own text, line 5, column 21: nothing is named \"A\"")
    );
    let overridden = refused(&good, &["optimizer.program=w = 3"]);
    assert!(
        overridden.contains(
            "--set optimizer.program=w = 3: `optimizer.program`: in the program's own text, line 1"
        )
    );
    let long = refused(&good.replace("state kept", &format!("state kept #{}", "x".repeat(5000))), &[]);
    assert!(long.contains("at most 4096 bytes"), "{long}");
    let shipping = refused("[optimizer]\nkind = \"ftrl\"\nweight_decay = 0.1\n", &[]);
    assert!(
        shipping.contains("`optimizer.weight_decay` means nothing with optimizer.kind = \"ftrl\""),
        "{shipping}"
    );
    let rho = refused("[optimizer]\nkind = \"adadelta\"\n", &["optimizer.constants.rh=0.9"]);
    assert!(rho.contains("did you mean `optimizer.constants.rho`?"), "{rho}");
    assert!(refused("[optimizer]\nkind = \"sgd\"\nrho = 0.9\n", &[]).contains("unknown key `optimizer.rho`"));
    assert!(
        refused("[optimizer]\nkind = \"program\"\nlearning_rate = 1\n", &[])
            .contains("`optimizer.program` is missing")
    );
}

#[test]
fn parameters_without_decay_are_named_by_pattern() {
    let adamw = "[optimizer]\nkind = \"adamw\"\nno_decay = [\"*.bias\", \"fc1.*\"]\n";
    let spec = parse(adamw, &[]).unwrap().optimizer.spec();
    assert_eq!(spec.no_decay, ["*.bias", "fc1.*"]);
    let typo = refused(adamw, &["optimizer.no_decay=[\"*.bais\"]"]);
    assert!(typo.contains("no parameter of this model is called \"*.bais\"; they are fc1.weight"), "{typo}");
    assert_eq!(spec.validate(), Ok(()));
    let empty = refused(adamw, &["optimizer.no_decay=[\"\"]"]);
    assert!(empty.contains("`optimizer.no_decay[0]`") && empty.contains("it is empty"), "{empty}");
    assert!(refused(adamw, &["optimizer.kind=ftrl"]).contains("`optimizer.no_decay` means nothing"));
    let own = OWN.replace("beta = 1\n", "no_decay = [\"*\"]\n");
    assert!(
        refused(&own, &[]).contains("`optimizer.no_decay`: the optimizer has no constant \"weight_decay\"")
    );
}

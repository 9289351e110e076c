//! Two of seven workers flip signs and scale by ten, on MNIST, under every rule: the short form of the table in `docs/aggregation.md`.
//! One epoch of a smaller network stands for five of a larger; the bounds are what that leaves room for.

use testudo_tests::outvoted::{End, train};

/// One hidden layer of 64 instead of two of 512, and 238 steps of 252 examples.
const SHORT: [&str; 2] = ["model.hidden=[64]", "training.epochs=1"];

/// What every rule keeps. Measured when this was written: 0.905 (centred clipping) to 0.948 (multi-Krum).
const BOUND: f64 = 0.90;

const RULES: [&[&str]; 7] = [
    &["training.aggregation=\"median\""],
    &["training.aggregation=\"trimmed_mean\""],
    &["training.aggregation=\"krum\""],
    &["training.aggregation=\"multi_krum\""],
    &["training.aggregation=\"geometric_median\""],
    &["training.aggregation=\"centred_clipping\"", "training.clip_radius=1"],
    &["training.aggregation=\"norm_bound\"", "training.norm_bound=1"],
];

#[test]
fn under_every_rule_mnist_is_learnt_although_two_of_seven_lie() {
    for rule in RULES {
        let set = [&SHORT[..], &["training.hostile_workers=2"], rule].concat();
        let end = train(&set, |_, _, _| ()).unwrap();
        println!("{rule:?}: {end:?}");
        assert!(matches!(end, End::Accuracy(accuracy) if accuracy >= BOUND), "{rule:?}: {end:?}");
    }
}

/// Under the mean they decide: so the bound above means something.
#[test]
fn under_the_mean_nothing_is_learnt() {
    let end = train(&SHORT, |_, _, _| ()).unwrap();
    println!("{end:?}");
    assert!(
        matches!(end, End::Diverged(_)) || matches!(end, End::Accuracy(accuracy) if accuracy < 0.2),
        "{end:?}"
    );
}

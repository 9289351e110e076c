//! Single layers against what PyTorch makes of them (`tests/fixtures/generate_layers.py`, in `f64`). What is dropped is what our random
//! source says: PyTorch was given that mask.

use serde_json::Value;

use super::*;
use crate::{Place, Precision};

fn cases(layer: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../../../tests/fixtures/layers.json")).unwrap();
    let cases = all[layer].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn size(case: &Value, key: &str) -> usize {
    usize::try_from(case[key].as_u64().unwrap()).unwrap()
}

fn shard(case: &Value) -> Shard {
    let side = |at: usize| usize::try_from(case["image"][at].as_u64().unwrap()).unwrap();
    Shard::new(Image { channels: side(0), height: side(1), width: side(2) }, size(case, "examples"))
}

fn place(case: &Value) -> Place {
    let number = |key: &str| case[key].as_u64().unwrap();
    Place { seed: number("seed"), step: number("step"), first: number("first") }
}

/// Numbers are those that are stored under `key`.
fn compare(case: &Value, key: &str, found: &[f32]) {
    let expected = case[key].as_array().unwrap();
    assert_eq!(found.len(), expected.len(), "{key}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (found, expected) = (f64::from(*found), expected.as_f64().unwrap());
        assert!(
            (found - expected).abs() < 2e-5 * (1.0 + expected.abs()),
            "{key} at {at}: {found}, not {expected}"
        );
    }
}

fn rate(case: &Value) -> f32 {
    case["rate"].as_f64().unwrap() as f32
}

#[test]
fn batch_norms_are_pytorchs() {
    for case in cases("batch_norm") {
        let shard = shard(&case);
        let (x, dy) = (pattern(shard.elements(), 1), pattern(shard.elements(), 90));
        let weight: Vec<f32> = pattern(shard.image.channels, 2).iter().map(|weight| weight + 1.0).collect();
        let bias = pattern(shard.image.channels, 3);
        let (done, parts) = batch_norm(shard, &x, [&weight, &bias], &dy);
        compare(&case, "y", &done.y);
        for (key, gradient) in ["dx", "dweight", "dbias"].iter().zip(&done.gradients) {
            compare(&case, key, gradient);
        }
        // A shard's part is its own statistics, times its examples.
        for (key, part) in ["mean", "variance"].iter().zip(parts) {
            let own: Vec<f32> = part.iter().map(|part| part / shard.panels.examples() as f32).collect();
            compare(&case, key, &own);
        }
    }
}

#[test]
fn pools_are_pytorchs() {
    for case in cases("pool") {
        let shard = shard(&case);
        let layer = Pool::new(shard.image, size(&case, "size"), size(&case, "stride")).unwrap();
        let x = pattern(shard.elements(), 1);
        let dy = pattern(shard.panels.examples() * layer.output().features(), 90);
        let done = pool(layer, case["kind"] == "greatest", shard, &x, &dy);
        compare(&case, "y", &done.y);
        compare(&case, "dx", &done.gradients[0]);
    }
}

#[test]
fn convolutions_are_pytorchs() {
    for case in cases("convolution") {
        let shard = shard(&case);
        let [outputs, kernel, stride, padding] =
            ["outputs", "kernel", "stride", "padding"].map(|key| size(&case, key));
        let layer = Convolution::new(shard.image, outputs, kernel, stride, padding).unwrap();
        let (x, weight) = (pattern(shard.elements(), 1), pattern(layer.weight_elements(), 2));
        let bias = pattern(outputs, 3);
        let bias = (case["bias"] == true).then_some(&bias[..]);
        let dy = pattern(shard.panels.examples() * layer.output().features(), 90);
        let done = convolution(&layer, shard, &x, &weight, bias, &dy);
        compare(&case, "y", &done.y);
        for (key, gradient) in ["dx", "dweight"].iter().zip(&done.gradients) {
            compare(&case, key, gradient);
        }
    }
}

#[test]
fn dropout_is_pytorchs_under_our_mask() {
    for case in cases("dropout") {
        let [examples, positions, features, site] =
            ["examples", "positions", "features", "site"].map(|key| size(&case, key));
        let panels = Panels::new(examples * positions);
        let through = |index: usize| {
            let rows = pattern(examples * positions * features, index);
            let mut values = vec![f32::NAN; panels.elements(features)];
            panels.fill(&rows, features, &mut values);
            Dropout::new(rate(&case), positions).apply(panels, features, place(&case), site, &mut values);
            let mut rows = vec![f32::NAN; rows.len()];
            panels.empty(&values, features, &mut rows);
            rows
        };
        let y = through(1);
        let dropped = y.iter().filter(|value| **value == 0.0).count();
        assert!(dropped > y.len() / 6 && dropped < y.len() / 2, "{dropped} of {}", y.len());
        compare(&case, "y", &y);
        compare(&case, "dx", &through(90));
    }
}

#[test]
fn attention_with_dropout_is_pytorchs_under_our_mask() {
    for case in cases("attention_dropout") {
        let [examples, positions, heads, size, site] =
            ["examples", "positions", "heads", "size", "site"].map(|key| size(&case, key));
        let attention = Attention { heads, size, precision: Precision::F32 };
        let (tokens, width) = (examples * positions, heads * size);
        let panels = Panels::new(tokens);
        let spread = |index: usize, features: usize| {
            let mut values = vec![f32::NAN; panels.elements(features)];
            panels.fill(&pattern(tokens * features, index), features, &mut values);
            values
        };
        let rows = |values: &[f32], features: usize| {
            let mut rows = vec![f32::NAN; tokens * features];
            panels.empty(values, features, &mut rows);
            rows
        };
        let drops = Drops::new(rate(&case), [heads, positions, site], place(&case));
        assert!(drops.is_some());
        let (qkv, dy) = (spread(1, 3 * width), spread(90, width));
        let mut out = vec![f32::NAN; panels.elements(width)];
        let mut gradient = vec![f32::NAN; panels.elements(3 * width)];
        let mut kept = vec![f32::NAN; tokens * heads];
        let mut scratch = AttentionScratch::new(attention, positions, examples).unwrap();
        attention.forward(panels, positions, drops, &qkv, &mut out, &mut kept, &mut scratch);
        let done = (&out[..], &kept[..]);
        attention.backward(panels, positions, drops, &qkv, done, &dy, &mut gradient, &mut scratch);
        compare(&case, "y", &rows(&out, width));
        compare(&case, "dx", &rows(&gradient, 3 * width));
    }
}

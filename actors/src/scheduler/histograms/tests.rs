use testudo_kernels::{Initial, Shape};

use super::*;
use crate::histogram::BUCKETS;
use crate::placement::SliceId;

fn parameter(name: &str, elements: usize, update: Update) -> ParameterSpec {
    let shape = Shape::new(&[elements]).unwrap();
    ParameterSpec { name: name.into(), shape, initial: Initial::Uniform { bound: 0.5 }, update }
}

fn slice(parameter: u32, index: u32, elements: usize, server: u32) -> Slice {
    Slice { id: SliceId { parameter, index }, first: 0, elements, server }
}

/// Of `w`, three values are on server 0 and one on server 1, where the statistics are, too.
fn collector() -> Collector {
    let parameters =
        [parameter("w", 4, Update::Learn), parameter("mean", 1, Update::Average { momentum: 0.1 })];
    Collector::new(&parameters, &[slice(0, 0, 2, 0), slice(0, 1, 1, 1), slice(0, 2, 1, 0), slice(1, 0, 1, 1)])
}

fn histogram(values: &[f32]) -> Histogram {
    let mut tally = Tally::default();
    tally.count(values.iter().copied());
    tally.histogram()
}

fn tensor(parameter: u32, gradient: &[f32], values: &[f32]) -> TensorHistograms {
    let gradient = (!gradient.is_empty()).then(|| histogram(gradient));
    TensorHistograms { parameter, gradient, values: histogram(values) }
}

fn told(version: u64, tensors: &[TensorHistograms]) -> Histograms {
    Histograms { version, tensors: tensors.to_vec() }
}

/// What server 0 has to tell.
fn of_the_first(version: u64) -> Histograms {
    told(version, &[tensor(0, &[1.0, 2.0, -1.0], &[3.0, 4.0, 6.0])])
}

/// What server 1 has to tell.
fn of_the_second(version: u64) -> Histograms {
    told(version, &[tensor(0, &[0.0], &[5.0]), tensor(1, &[], &[7.0])])
}

/// Name, how many, smallest and greatest.
fn seen(whole: &[TensorSpread]) -> Vec<(&str, u64, f32, f32)> {
    whole.iter().map(|t| (t.name.as_str(), t.values.count, t.values.min, t.values.max)).collect()
}

const WHOLE: [(&str, u64, f32, f32); 2] = [("w", 4, 3.0, 6.0), ("mean", 1, 7.0, 7.0)];

/// Invariant 1.
#[test]
fn a_version_is_whole_when_every_value_was_told() {
    let mut collector = collector();
    let Histograms { tensors, .. } = of_the_second(10);
    assert_eq!(collector.add(1, told(10, &tensors[..1]), 9), Ok(None));
    assert_eq!(collector.add(0, of_the_first(10), 9), Ok(None));
    let whole = collector.add(1, told(10, &tensors[1..]), 10).unwrap().unwrap();
    assert_eq!(seen(&whole), WHOLE);
    let gradient = whole[0].gradient.as_ref().unwrap();
    assert_eq!((gradient.count, gradient.min, gradient.sum), (4, -1.0, 2.0));
    assert_eq!(whole[1].gradient, None);
    // Whatever comes of it afterwards, or of one before.
    for version in [10, 9] {
        assert_eq!(collector.add(0, of_the_first(version), 10), Ok(None));
        assert_eq!(collector.add(1, of_the_second(version), 10), Ok(None));
    }
    assert!(collector.told.values().all(BTreeMap::is_empty));
}

/// Invariant 2.
#[test]
fn what_cannot_be_is_refused_and_what_was_told_changes_nothing() {
    let mut collector = collector();
    let mut wrong = tensor(0, &[1.0], &[1.0]);
    wrong.values.count = 9;
    for (what, bad) in [
        ("no such tensor", tensor(2, &[], &[1.0])),
        ("no gradient", tensor(0, &[], &[1.0])),
        ("a gradient of what has none", tensor(1, &[1.0], &[1.0])),
        ("a gradient of other values", tensor(0, &[1.0, 2.0], &[1.0])),
        ("counts that do not fit", wrong),
        ("more than it keeps", tensor(0, &[1.0; 2], &[1.0; 2])),
        ("less than it keeps", tensor(1, &[], &[])),
    ] {
        assert!(collector.add(1, told(3, &[bad]), 3).is_err(), "{what}");
    }
    assert!(collector.add(0, told(3, &[tensor(1, &[], &[1.0])]), 3).is_err(), "another server keeps that");
    assert!(collector.add(2, told(3, &[]), 3).is_err(), "a server that keeps nothing");
    assert!(collector.told.is_empty());
    assert_eq!(collector.add(0, of_the_first(3), 3), Ok(None));
    let other = tensor(0, &[9.0; 3], &[9.0; 3]);
    assert_eq!(collector.add(0, told(3, &[other]), 3), Ok(None), "it said something else before");
    let whole = collector.add(1, of_the_second(3), 3).unwrap().unwrap();
    assert_eq!(seen(&whole), WHOLE);
}

/// Invariant 2: who speaks first cannot speak for another.
#[test]
fn a_liar_who_comes_first_lies_in_his_own_slices_alone() {
    let mut collector = collector();
    let anothers = tensor(0, &[99.0; 3], &[99.0; 3]);
    assert!(collector.add(1, told(10, &[anothers]), 9).is_err());
    let all = tensor(0, &[99.0; 4], &[99.0; 4]);
    assert!(collector.add(1, told(10, &[all]), 9).is_err());
    let own = told(10, &[tensor(0, &[-99.0], &[-99.0]), tensor(1, &[], &[8.0])]);
    for _ in 0..9 {
        assert_eq!(collector.add(1, own.clone(), 9), Ok(None));
    }
    let whole = collector.add(0, of_the_first(10), 9).unwrap().unwrap();
    assert_eq!(seen(&whole), [("w", 4, -99.0, 6.0), ("mean", 1, 8.0, 8.0)]);
    assert_eq!(whole[0].values, histogram(&[-99.0, 3.0, 4.0, 6.0]));
    assert_eq!(whole[0].gradient, Some(histogram(&[-99.0, 1.0, 2.0, -1.0])));
}

/// Invariant 3: those of another server, and those of the same one, of the past as of the future.
#[test]
fn versions_of_the_future_do_not_suppress_the_present() {
    let flood = |collector: &mut Collector, done: u64| {
        for version in (done + 2..=done + NEAR).rev().chain(done - NEAR..done) {
            assert_eq!(collector.add(1, of_the_second(version), done), Ok(None));
        }
        assert!(collector.told[&1].len() <= OPEN);
    };
    let mut honest_first = collector();
    assert_eq!(honest_first.add(0, of_the_first(21), 20), Ok(None));
    flood(&mut honest_first, 20);
    assert!(honest_first.told[&0].contains_key(&21), "another's words take no room from it");
    let whole = honest_first.add(1, of_the_second(21), 20).unwrap().unwrap();
    assert_eq!(seen(&whole), WHOLE);
    let mut liar_first = collector();
    for done in 20..40 {
        flood(&mut liar_first, done);
        assert_eq!(liar_first.add(1, of_the_second(done + 1), done), Ok(None));
        let whole = liar_first.add(0, of_the_first(done + 1), done).unwrap().unwrap();
        assert_eq!(seen(&whole), WHOLE, "after {done} steps");
    }
}

/// Invariants 1 and 3.
#[test]
fn what_is_never_whole_is_forgotten() {
    let mut collector = collector();
    for version in 1..40 {
        assert_eq!(collector.add(1, of_the_second(version), version), Ok(None));
    }
    assert_eq!(collector.told[&1].keys().copied().collect::<Vec<_>>(), [36, 37, 38, 39]);
    assert_eq!(collector.add(1, of_the_second(u64::MAX), 39), Ok(None));
    assert_eq!(collector.told[&1].len(), OPEN, "training is not near it");
}

/// Invariant 4: every bucket that may hold some does, in as many versions as servers may tell of, and one of them is handed on.
#[test]
fn the_fullest_words_take_no_more_than_is_set_aside() {
    let spread = |elements: u64| {
        let held = u64::from(BUCKETS).min(elements);
        let rest = elements - (held - 1);
        let buckets: Vec<(u16, u64)> =
            (0..held as u16).map(|bucket| (bucket, if bucket == 0 { rest } else { 1 })).collect();
        Histogram { count: elements, not_finite: 0, min: 0.0, max: 0.0, sum: 0.0, squares: 0.0, buckets }
    };
    let elements = [5000, 1000, 100, 2];
    let names = ["a", "b", "c", "d"];
    let parameters: Vec<ParameterSpec> =
        names.iter().zip(elements).map(|(name, elements)| parameter(name, elements, Update::Learn)).collect();
    let servers = 2_u32;
    let slices: Vec<Slice> = (0_u32..)
        .zip(elements)
        .flat_map(|(parameter, elements)| {
            (0..servers).map(move |server| slice(parameter, server, elements / servers as usize, server))
        })
        .collect();
    let words = |version: u64| {
        let of = |parameter: u32, elements: usize| {
            let values = spread((elements / servers as usize) as u64);
            TensorHistograms { parameter, gradient: Some(values.clone()), values }
        };
        let tensors = (0_u32..).zip(elements).map(|(parameter, elements)| of(parameter, elements));
        Histograms { version, tensors: tensors.collect() }
    };
    let mut collector = Collector::new(&parameters, &slices);
    let counted = allocation_counter::measure(|| {
        for version in 10..=15 {
            collector.add(0, words(version), 10).unwrap();
            if version > 12 {
                collector.add(1, words(version + 3), 10).unwrap();
            }
        }
        assert!(collector.told.values().all(|versions| !versions.is_empty() && versions.len() <= OPEN));
        assert_eq!(collector.add(1, words(10), 10).map(|whole| whole.map(|w| w.len())), Ok(Some(4)));
    });
    let most = histogram_bytes(elements.map(|elements| (elements as u64, u64::from(servers))));
    assert!(counted.bytes_max <= most, "{counted:?}, of {most}");
    assert!(counted.bytes_max > most / 4, "{counted:?}, of {most}");
}

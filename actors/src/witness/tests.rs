use proptest::prelude::*;
use testudo_kernels::{Codec, Initial, ModelSpec, OptimizerSpec, Schedule, Shape, Update};

use super::*;
use crate::job::{Checkpoints, DataSpec, Determinism, Evaluation};

fn parameters() -> Vec<ParameterSpec> {
    let of = |name: &str, elements: usize| ParameterSpec {
        name: name.into(),
        shape: Shape::new(&[elements]).unwrap(),
        initial: Initial::Uniform { bound: 0.5 },
        update: Update::Learn,
    };
    vec![of("a", 1000), of("b", 70), of("c", 333)]
}

fn map(servers: u32, slice_bytes: u32) -> SliceMap {
    let servers: Vec<u32> = (0..servers).collect();
    SliceMap::new(&[1000, 70, 333], slice_bytes, &servers).unwrap()
}

fn job(rate: f64, shards: u32) -> Arc<JobSpec> {
    Arc::new(JobSpec {
        format: crate::job::FORMAT,
        name: "j".into(),
        trust_domain: "t".into(),
        workers: 2,
        servers: 3,
        elastic: Default::default(),
        model: ModelSpec::Custom {
            name: "m@1".into(),
            inputs: 1,
            classes: 2,
            targets: 1,
            parameters: parameters(),
        },
        precision: testudo_kernels::Precision::F32,
        optimizer: OptimizerSpec::shipped("momentum").unwrap().with("weight_decay", 0.01),
        learning_rate: 0.1,
        schedule: Schedule::Constant,
        seed: 5,
        epochs: 9,
        batch_size: 8,
        logical_shards: shards,
        aggregation: testudo_kernels::Aggregation::Mean,
        clip_norm: None,
        max_steps: None,
        evaluation: Evaluation::default(),
        data: DataSpec { train_examples: 64, test_examples: 1, blake3: [0; 32] },
        slice_bytes: 400,
        codecs: crate::Codecs::default(),
        determinism: Determinism::Strict,
        heartbeat_ms: 1,
        heartbeat_timeout_ms: 2,
        export: false,
        checkpoints: Checkpoints::default(),
        audit: crate::job::Audit { hash_every: 0, countersign_every: 0 },
        witness_rate: rate,
        resume: None,
    })
}

/// Values that differ with step, node and place.
fn gradient(step: u64, node: Node, elements: usize) -> Vec<f32> {
    (0..elements)
        .map(|e| ((step * 31 + u64::from(node.first) * 7 + e as u64) % 23) as f32 * 0.125 - 1.0)
        .collect()
}

/// One place where everything is computed, as servers do, and the chosen values of it.
struct Servers {
    math: SliceMath,
    store: Arc<Store>,
    choice: Choice,
    whole: SliceMap,
}

impl Servers {
    fn new(job: &Arc<JobSpec>, key: &Key) -> Servers {
        let store = Arc::new(Store::default());
        let whole = map(1, 1 << 20);
        let slices = whole.slices().to_vec();
        let canonical = SumOrder::Canonical;
        let mut math =
            SliceMath::new(0, Arc::clone(job), parameters(), slices, Arc::clone(&store), canonical).unwrap();
        math.initialise().unwrap();
        Servers { math, store, choice: Choice::new(key, &map(3, 400), job.witness_rate, Codec::F32), whole }
    }

    fn chosen(&self, of: impl Fn(usize) -> Vec<f32>) -> Vec<f32> {
        let mut out = vec![0.0; self.choice.elements()];
        (0..3).for_each(|parameter| self.choice.gather(parameter, &of(parameter), &mut out));
        out
    }

    fn given(&self) -> Vec<f32> {
        self.chosen(|p| self.store.current(self.whole.of_parameter(p)[0].id).unwrap().1.to_vec())
    }

    /// The chosen values of one contribution.
    fn contribution(&self, step: u64, node: Node) -> Vec<f32> {
        self.chosen(|p| gradient(step, node, self.whole.of_parameter(p)[0].elements))
    }

    fn take(&mut self, step: u64, nodes: &[Node]) {
        for node in nodes {
            for slice in self.whole.slices() {
                let values = gradient(step, *node, slice.elements);
                let _ = self
                    .math
                    .contribute(Contribution { slice: slice.id, step, node: *node, values })
                    .unwrap();
            }
        }
    }
}

fn witness(job: &Arc<JobSpec>, key: &Key) -> Witness {
    Witness::new(job, &map(3, 400), &parameters(), key, None).unwrap()
}

const NODES: [Node; 3] =
    [Node { first: 0, leaves: 2 }, Node { first: 2, leaves: 1 }, Node { first: 3, leaves: 1 }];

/// Invariants 1 and 5.
#[test]
fn the_choice_is_the_keys_alone_spread_over_servers_and_bounded() {
    let (one, other) = (Key::new().unwrap(), Key::new().unwrap());
    assert_eq!(format!("{one:?}"), "Key(..)");
    let map = map(3, 400);
    assert_eq!(Choice::new(&one, &map, 0.1, Codec::F32), Choice::new(&one, &map, 0.1, Codec::F32));
    assert_ne!(Choice::new(&one, &map, 0.5, Codec::F32), Choice::new(&other, &map, 0.5, Codec::F32));
    assert!(
        !format!("{:?}", Choice::new(&one, &map, 0.1, Codec::F32)).contains("first"),
        "no place in a log"
    );
    assert_eq!(Choice::new(&one, &map, 0.0, Codec::F32).elements(), 0);
    assert_eq!(Choice::new(&one, &map, 1.0, Codec::F32).elements(), 1403);
    for server in 0..3 {
        assert!(
            Choice::new(&one, &map, 1e-9, Codec::F32).of_server(server) > 0,
            "of every server one block at least"
        );
    }
    let large = SliceMap::new(&[10_000_000], 1 << 20, &[0, 1]).unwrap();
    // Of a key that is always the same: by chance, one in a hundred chooses fewer or more.
    let few = Choice::new(&Key::known([3; 32]), &large, 0.001, Codec::F32);
    assert!((8_000..12_000).contains(&few.elements()), "{}", few.elements());
    let most = Choice::new(&one, &large, 1.0, Codec::F32);
    assert!(most.elements() <= MOST && most.elements() > MOST - BLOCK);
    for block in most.blocks() {
        let slice = large.of_parameter(0).iter().find(|s| s.first <= block.first).is_some();
        assert!(slice && block.elements <= BLOCK);
    }
}

/// Invariants 2 and 3: what is right is fine, in whatever order it is told; and one wrong bit is named, with whom it is of.
#[test]
fn what_is_right_is_fine_and_one_wrong_bit_is_named() {
    let (key, job) = (Key::known([3; 32]), job(1.0, 4));
    let mut servers = Servers::new(&job, &key);
    let mut witness = witness(&job, &key);
    assert_eq!(witness.given(0, 0, servers.given()), Heard::Fine);
    for step in 0..5 {
        for node in NODES {
            assert_eq!(witness.contributed(step, node, servers.contribution(step, node)), Heard::Fine);
        }
        servers.take(step, &NODES);
        assert_eq!(witness.version(), step + 1);
        assert_eq!(witness.given(1, step + 1, servers.given()), Heard::Fine);
    }
    let map = map(3, 400);
    for place in [0, 700, 1069, 1402] {
        let mut wrong = servers.given();
        wrong[place] = f32::from_bits(wrong[place].to_bits() ^ 1);
        let Heard::Wrong(finding) = witness.given(1, 5, wrong.clone()) else { panic!("it is not seen") };
        let (parameter, element) = match place {
            0..1000 => (0, place),
            1000..1070 => (1, place - 1000),
            _ => (2, place - 1070),
        };
        let slice = map.of_parameter(parameter).iter().rev().find(|s| s.first <= element).unwrap();
        assert_eq!((finding.server, finding.slice, finding.element), (slice.server, slice.id, element));
        assert_eq!((finding.step, finding.worker, finding.differ), (Some(5), 1, 1));
        assert_eq!(finding.found.to_bits(), wrong[place].to_bits());
        let text = finding.to_string();
        let name = ["a", "b", "c"][parameter];
        for part in
            [format!("server/{}", slice.server), format!("of {name} "), "step 5".into(), "worker/1".into()]
        {
            assert!(text.contains(&part), "{part} is missing in {text}");
        }
    }
    // The version before is still known; one that is gone was compared before.
    assert_eq!(witness.given(0, 3, vec![0.0; 1403]), Heard::Fine);
    let Heard::Wrong(finding) = witness.given(0, 4, vec![0.0; 1403]) else { panic!("it is not seen") };
    assert_eq!(finding.step, Some(4));
}

/// What training begins with is the seed's.
#[test]
fn servers_that_begin_with_other_values_are_named() {
    let (key, job) = (Key::known([4; 32]), job(1.0, 4));
    let mut given = Servers::new(&job, &key).given();
    given[1200] += 1.0;
    let Heard::Wrong(finding) = witness(&job, &key).given(0, 0, given) else { panic!("it is not seen") };
    assert_eq!((finding.step, finding.parameter.as_str()), (None, "c"));
    assert!(finding.to_string().contains("did not begin with the job's parameters"), "{finding}");
}

/// A contribution that is not finite is refused by servers as well: no server is accused of it, and it is no loss.
#[test]
fn what_is_not_finite_has_diverged() {
    let (key, job) = (Key::known([5; 32]), job(1.0, 4));
    let mut witness = witness(&job, &key);
    let heard = witness.contributed(0, NODES[0], vec![f32::NAN; 1403]);
    assert!(matches!(heard, Heard::Diverged(_)), "{heard:?}");
}

proptest! {
    /// Invariant 3 of the arithmetic: any order, twice told, early or late, cut finer: the bits of servers, and no accusation.
    #[test]
    fn any_order_is_one_computation(seed in any::<u64>(), rate in 0.01f64..1.0) {
        let (key, job) = (Key::known([seed as u8; 32]), job(rate, 4));
        let mut servers = Servers::new(&job, &key);
        let mut witness = witness(&job, &key);
        let mut random = seed;
        let mut next = move |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        let mut letters: Vec<(u64, Option<Node>, Vec<f32>)> = vec![(0, None, servers.given())];
        for step in 0..4 {
            for node in NODES {
                letters.push((step, Some(node), servers.contribution(step, node)));
                if next(3) == 0 {
                    letters.push((step, Some(node), servers.contribution(step, node)));
                }
            }
            servers.take(step, &NODES);
            letters.push((step + 1, None, servers.given()));
        }
        while !letters.is_empty() {
            let (version, node, values) = letters.swap_remove(next(letters.len()));
            let heard = match node {
                Some(node) => witness.contributed(version, node, values),
                None => witness.given(0, version, values),
            };
            prop_assert_eq!(heard, Heard::Fine);
        }
        prop_assert_eq!(witness.version(), 4);
        let mut wrong = servers.given();
        let at = next(wrong.len());
        wrong[at] += 1.0;
        prop_assert!(matches!(witness.given(0, 4, wrong), Heard::Wrong(_)));
    }
}

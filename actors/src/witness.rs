//! Witnessing: part of every server's updates is computed a second time, by the scheduler, while the run goes on.
//!
//! When training begins, the scheduler draws blocks of values among all parameters by a key from the operating system's random
//! source ([`Choice`]), and tells the key to the workers and to nobody else. For these values, workers tell it what they tell
//! the servers, their contributions, and what the servers gave them, each version; [`Witness`] begins where the job begins, adds
//! and updates with the servers' own arithmetic, and compares. So nothing that it rests on comes from a server.
//!
//! Invariants, cited by the tests:
//! 1. **A server cannot foresee** which of its values are witnessed, nor learn it: neither the key nor anything that follows
//!    from it is ever sent to a server.
//! 2. **What differs is named**: server, slice, step, element, and the worker that was given it. What every server did right
//!    is never named.
//! 3. **No bit of training depends on it**, whatever is chosen, and nothing waits for it.
//! 4. **It never guesses.** Where a contribution was not told (a worker died with it), witnessing ends, and is said to have.
//!    A worker that lives and does not tell what it reports is lost by its name.
//!    What it believes servers in is what whole gradients are weighed by, where a rule does that ([`Witness::weighed`]).
//! 5. Memory is bounded: at most [`MOST`] values are chosen, and contributions are kept for the steps that are leased alone.
//!
//! Where versions are given out in a lossy codec, what workers decode is compared: a wrong update that is lost in its rounding is named
//! when it shows. Residuals of error feedback that are lost with a worker end witnessing (invariant 4).
//!
//! It believes workers, as servers do: one that tells the scheduler other gradients than it tells a server makes an honest
//! server be named. Who of the two is right can be decided by computing the step again ([`crate::replay`]).

mod choice;

use std::collections::BTreeMap;
use std::sync::Arc;

use testudo_kernels::ParameterSpec;
use testudo_kernels::robust::weigh::Weights;

pub use choice::{BLOCK, Choice, Key, MOST};

use crate::audit::{Entry, Hex};
use crate::checkpoint::PartSource;
use crate::job::JobSpec;
use crate::placement::{SliceId, SliceMap};
use crate::server::{Contribution, MathError, SliceMath, Store, SumOrder};
use crate::tree::Node;

/// A server gave a worker something else than the contributions make.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The server.
    pub server: u32,
    /// The slice.
    pub slice: SliceId,
    /// The parameter's name.
    pub parameter: String,
    /// The first element of the parameter that differs.
    pub element: usize,
    /// How many witnessed values of that server differ.
    pub differ: usize,
    /// Of how many.
    pub of: usize,
    /// The step, from 1 as `testudo replay` counts them, whose update is wrong; `None` for the values that training begins with.
    pub step: Option<u64>,
    /// What it should be.
    pub right: f32,
    /// What it is.
    pub found: f32,
    /// The worker that was given it.
    pub worker: u32,
    /// The block of witnessed elements that it is in: the first of the parameter, and how many.
    pub block: (usize, usize),
    /// BLAKE3 of what the block should be, as little-endian f32.
    pub right_blake3: [u8; 32],
    /// BLAKE3 of what the worker was given.
    pub found_blake3: [u8; 32],
}

impl Finding {
    /// What the audit log tells of it.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry::Finding {
            server: format!("server/{}", self.server),
            parameter: self.parameter.clone(),
            slice: self.slice.index,
            first: self.block.0 as u64,
            elements: self.block.1 as u64,
            step: self.step,
            right_blake3: Hex(self.right_blake3),
            found_blake3: Hex(self.found_blake3),
            worker: format!("worker/{}", self.worker),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Finding { server, slice, parameter, element, differ, of, step, right, found, worker, .. } = self;
        match step {
            Some(step) => write!(f, "server/{server} applied a wrong update in step {step}")?,
            None => write!(f, "server/{server} did not begin with the job's parameters")?,
        }
        write!(
            f,
            ": element {element} of {parameter} (slice {}) is {found:e}, should be {right:e}; {differ} of the {of} values \
             witnessed there differ, as given to worker/{worker}; `testudo replay` shows whether the server or that worker lies",
            slice.index
        )
    }
}

/// What came of hearing a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// Nothing is amiss so far.
    Fine,
    /// A server is found to have been wrong.
    Wrong(Box<Finding>),
    /// Training has diverged with what was told, as it must have at the servers; how.
    Diverged(String),
    /// Witnessing cannot go on (invariant 4); why.
    Lost(String),
}

impl From<MathError> for Heard {
    fn from(error: MathError) -> Heard {
        match error {
            MathError::NotFinite(_) | MathError::Diverged { .. } => Heard::Diverged(error.to_string()),
            MathError::Optimizer(_)
            | MathError::Incomplete(_)
            | MathError::Codec(_)
            | MathError::Aggregation(_)
            | MathError::NoRule(_)
            | MathError::Rule { .. }
            | MathError::Restored(_)
            | MathError::Order(_)
            | MathError::Weights(_)
            | MathError::Device(_)
            | MathError::Unknown(_) => Heard::Lost(error.to_string()),
        }
    }
}

/// The second computation of what was chosen.
#[derive(Debug)]
pub struct Witness {
    map: SliceMap,
    names: Vec<String>,
    choice: Choice,
    math: SliceMath,
    store: Arc<Store>,
    first: u64,
    version: u64,
    /// Whether all of the step under way is there, and waits for its weights.
    held: bool,
    /// Nodes of the step under way that are summed.
    summed: Vec<Node>,
    /// Contributions to steps that are not under way yet.
    early: BTreeMap<u64, Vec<(Node, Vec<f32>)>>,
    /// Weights of steps that are not computed yet, where whole gradients are weighed.
    weights: BTreeMap<u64, Weights>,
    /// What workers were given of versions that are not computed yet.
    given: BTreeMap<u64, Vec<(u32, Vec<f32>)>>,
}

impl Witness {
    /// The witness of `job`, whose parameters are `parameters`, for what `key` chooses. A job that resumes begins with what
    /// `source` holds.
    ///
    /// # Errors
    /// The text is for the operator.
    pub fn new(
        job: &Arc<JobSpec>,
        map: &SliceMap,
        parameters: &[ParameterSpec],
        key: &Key,
        source: Option<&mut dyn PartSource>,
    ) -> Result<Witness, String> {
        let choice = Choice::new(key, map, job.witness_rate, job.codecs.pull);
        let store = Arc::new(Store::new(job.codecs.pull));
        let blocks = choice.blocks().to_vec();
        // What is witnessed is nobody's checkpoint, and no part of the parameters' hash.
        let (checkpoints, audit) =
            (crate::Checkpoints::default(), crate::Audit { hash_every: 0, countersign_every: 0 });
        let alone = Arc::new(JobSpec { checkpoints, audit, ..(**job).clone() });
        let mut math = SliceMath::new(
            0,
            Arc::clone(&alone),
            parameters.to_vec(),
            blocks.iter().copied(),
            Arc::clone(&store),
            SumOrder::Canonical,
        )
        .map_err(|e| e.to_string())?;
        match source {
            None => math.initialise().map_err(|e| e.to_string())?,
            Some(source) => {
                let restored = source.load(&alone, &blocks).map_err(|e| e.to_string())?;
                math.restore(restored).map_err(|e| e.to_string())?;
            }
        }
        Ok(Witness {
            map: map.clone(),
            names: parameters.iter().map(|p| p.name.clone()).collect(),
            choice,
            math,
            store,
            first: job.first_step(),
            version: job.first_step(),
            held: false,
            summed: Vec::new(),
            early: BTreeMap::new(),
            weights: BTreeMap::new(),
            given: BTreeMap::new(),
        })
    }

    /// How many values are witnessed.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.choice.elements()
    }

    /// The version that is computed: the steps whose every contribution was told.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A worker tells its contribution to `step`, for a node that it holds: the chosen values, in the order of the choice.
    pub fn contributed(&mut self, step: u64, node: Node, values: Vec<f32>) -> Heard {
        if step > self.version {
            let early = self.early.entry(step).or_default();
            if !early.iter().any(|(held, _)| held.covers(&node)) {
                early.push((node, values));
            }
            return Heard::Fine;
        }
        // What is summed already was told by a former holder of the same shards: equal, or cut finer.
        if step < self.version || self.summed.iter().any(|held| held.covers(&node)) {
            return Heard::Fine;
        }
        match self.sum(step, node, &values) {
            Ok(false) => Heard::Fine,
            Ok(true) => self.go_on(),
            Err(error) => error.into(),
        }
    }

    /// A worker tells what it was given of `version`.
    pub fn given(&mut self, worker: u32, version: u64, values: Vec<f32>) -> Heard {
        if version > self.version {
            let given = self.given.entry(version).or_default();
            if !given.iter().any(|(of, _)| *of == worker) {
                given.push((worker, values));
            }
            return Heard::Fine;
        }
        self.compare(worker, version, &values)
    }

    /// A step's whole gradients are weighed: by what servers post of all slices, since nobody else has them. So where that is done,
    /// a server that lies there misleads the witness with everybody.
    pub fn weighed(&mut self, step: u64, weights: Weights) -> Heard {
        if step < self.version {
            return Heard::Fine;
        }
        self.weights.insert(step, weights);
        match self.combine() {
            Ok(false) => Heard::Fine,
            Ok(true) => self.go_on(),
            Err(error) => error.into(),
        }
    }

    /// Combines the step under way if all of it is there, its weights too; whether that completes it.
    fn combine(&mut self) -> Result<bool, MathError> {
        self.held |= self.math.poll_products().is_some();
        let Some(weights) = self.weights.get(&self.version).filter(|_| self.held) else { return Ok(false) };
        self.math.combine(self.version, weights)?;
        self.held = false;
        self.weights.remove(&self.version);
        Ok(true)
    }

    /// Adds a contribution to the step under way; whether that completes it.
    fn sum(&mut self, step: u64, node: Node, values: &[f32]) -> Result<bool, MathError> {
        self.summed.push(node);
        let (mut at, mut complete) = (0, false);
        for block in self.choice.blocks() {
            let part = values.get(at..at + block.elements).unwrap_or(&[]).to_vec();
            at += block.elements;
            let contribution = Contribution { slice: block.id, step, node, values: part };
            complete |= self.math.contribute(contribution)?.is_some();
        }
        Ok(complete || self.combine()?)
    }

    /// A step is complete: what waited for that is looked at, and so for every step that completes on the way.
    fn go_on(&mut self) -> Heard {
        loop {
            self.version += 1;
            self.summed.clear();
            for (worker, values) in self.given.remove(&self.version).unwrap_or_default() {
                let heard = self.compare(worker, self.version, &values);
                if heard != Heard::Fine {
                    return heard;
                }
            }
            let mut complete = false;
            for (node, values) in self.early.remove(&self.version).unwrap_or_default() {
                match self.sum(self.version, node, &values) {
                    Ok(whole) => complete |= whole,
                    Err(error) => return error.into(),
                }
            }
            if !complete {
                return Heard::Fine;
            }
        }
    }

    /// Bits are compared, not numbers. A version that is gone was compared when others were given it.
    fn compare(&self, worker: u32, version: u64, values: &[f32]) -> Heard {
        let mut first: Option<Finding> = None;
        let mut at = 0;
        for block in self.choice.blocks() {
            let given = values.get(at..at + block.elements).unwrap_or(&[]);
            at += block.elements;
            let Ok((bytes, _)) = self.store.read(block.id, version) else { return Heard::Fine };
            // What a worker is given is what it decodes, of a block as of the slice that it is in.
            let mut right = vec![0.0; block.elements];
            if let Err(error) = self.store.codec().decode(&bytes, &mut right) {
                return MathError::from(error).into();
            }
            let differs = |place: &usize| {
                right.get(*place).map(|v| v.to_bits()) != given.get(*place).map(|v| v.to_bits())
            };
            let wrong: Vec<usize> = (0..block.elements).filter(differs).collect();
            match &mut first {
                Some(finding) if finding.server == block.server => finding.differ += wrong.len(),
                Some(_) => {}
                None => {
                    let Some(place) = wrong.first().copied() else { continue };
                    let element = block.first + place;
                    let parameter = block.id.parameter as usize;
                    let within =
                        |s: &&crate::placement::Slice| (s.first..s.first + s.elements).contains(&element);
                    let slice =
                        self.map.of_parameter(parameter).iter().find(within).map_or(block.id, |s| s.id);
                    first = Some(Finding {
                        server: block.server,
                        slice,
                        parameter: self.names.get(parameter).cloned().unwrap_or_default(),
                        element,
                        differ: wrong.len(),
                        of: self.choice.of_server(block.server),
                        step: (version > self.first).then_some(version),
                        right: right.get(place).copied().unwrap_or_default(),
                        found: given.get(place).copied().unwrap_or_default(),
                        worker,
                        block: (block.first, block.elements),
                        right_blake3: hash(&right),
                        found_blake3: hash(given),
                    });
                }
            }
        }
        first.map_or(Heard::Fine, |finding| Heard::Wrong(Box::new(finding)))
    }
}

fn hash(values: &[f32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for value in values {
        hasher.update(&value.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests;

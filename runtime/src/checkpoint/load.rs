//! Reading a checkpoint's values, whichever parts they lie in.
//!
//! Every parameter must be there whole, each value once, over all parts together, even where only some are wanted: a
//! checkpoint with a hole is not one.

use std::collections::BTreeMap;

use testudo_actors::checkpoint::{PartSource, RestoredSlice, ShardResiduals};
use testudo_actors::placement::{Slice, SliceId};
use testudo_actors::{JobSpec, Resume};

use super::CheckpointError;
use super::keys::Identities;
use super::layout::Layout;
use super::manifest::{Hex, Manifest, ResidualEntry, read_small};
use super::part::{self, Frame, Holder, Run, Scalar};

/// One parameter of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedParameter {
    /// Its name.
    pub name: String,
    /// Its values.
    pub weights: Vec<f32>,
    /// The optimizer's state, in the order of its names.
    pub state: Vec<Vec<f32>>,
    /// The numbers that it keeps, likewise; none of a parameter without elements.
    pub scalars: Vec<f64>,
}

/// Every parameter of `manifest`'s checkpoint, in the order of `frame`. The manifest must have been checked; its parts are
/// checked here.
///
/// # Errors
/// [`CheckpointError`] when any part is not what it should be.
pub fn load_all(
    layout: &Layout,
    manifest: &Manifest,
    identities: &Identities,
    frame: &Frame,
) -> Result<Vec<LoadedParameter>, CheckpointError> {
    let whole = |(parameter, (_, elements)): (usize, &(String, usize))| Slice {
        id: SliceId { parameter: u32::try_from(parameter).unwrap_or(u32::MAX), index: 0 },
        first: 0,
        elements: *elements,
        server: 0,
    };
    let wanted: Vec<Slice> = frame.parameters.iter().enumerate().map(whole).collect();
    let slices = load(layout, manifest, identities, frame, &wanted)?;
    let named = frame.parameters.iter().zip(slices);
    Ok(named
        .map(|((name, _), slice)| LoadedParameter {
            name: name.clone(),
            weights: slice.weights,
            state: slice.state,
            scalars: slice.scalars,
        })
        .collect())
}

/// The slices in `wanted`, in that order, out of the parts of `manifest`'s checkpoint.
///
/// # Errors
/// As [`load_all`].
pub fn load(
    layout: &Layout,
    manifest: &Manifest,
    identities: &Identities,
    frame: &Frame,
    wanted: &[Slice],
) -> Result<Vec<RestoredSlice>, CheckpointError> {
    let kinds = frame.kinds.len();
    let empty = |slice: &Slice| RestoredSlice {
        id: slice.id,
        weights: vec![0.0; slice.elements],
        state: vec![vec![0.0; slice.elements]; kinds.saturating_sub(1)],
        scalars: Vec::new(),
    };
    let mut restored: Vec<RestoredSlice> = wanted.iter().map(empty).collect();
    // By parameter, in the order of their first elements: where a run's values go is looked up, not searched for.
    let mut by_parameter: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, slice) in wanted.iter().enumerate() {
        by_parameter.entry(slice.id.parameter as usize).or_default().push(at);
    }
    let first_of = |at: &usize| wanted.get(*at).map_or(0, |s| s.first);
    for places in by_parameter.values_mut() {
        places.sort_by_key(first_of);
    }
    let (mut seen, mut numbers) = (Vec::new(), Vec::new());
    for entry in &manifest.parts {
        let path = layout.part(manifest.step, entry.server);
        let mut take = |run: Run, done: usize, values: &[f32]| {
            let places = by_parameter.get(&run.parameter).map_or(&[][..], Vec::as_slice);
            let (first, end) = (run.first + done, run.first + done + values.len());
            let begin =
                places.partition_point(|at| wanted.get(*at).is_some_and(|s| s.first + s.elements <= first));
            for at in places.get(begin..).unwrap_or(&[]) {
                let (Some(slice), Some(target)) = (wanted.get(*at), restored.get_mut(*at)) else { continue };
                if slice.first >= end {
                    break;
                }
                let target = match run.kind {
                    0 => Some(&mut target.weights),
                    state => target.state.get_mut(state - 1),
                };
                let (from, to) = (slice.first.max(first), (slice.first + slice.elements).min(end));
                let source = values.get(from - first..to - first);
                if let (Some(target), Some(source)) =
                    (target.and_then(|t| t.get_mut(from - slice.first..to - slice.first)), source)
                {
                    target.copy_from_slice(source);
                }
            }
        };
        let holder = Holder::Server(entry.server);
        let (runs, scalars) = part::read(&path, entry.receipt(), identities, frame, holder, &mut take)?;
        seen.extend(runs);
        numbers.extend(scalars);
    }
    let damaged = |reason| CheckpointError::damaged(&layout.step(manifest.step), reason);
    tiles(frame, seen).map_err(damaged)?;
    let scalars = scalars(frame, &numbers).map_err(damaged)?;
    for slice in &mut restored {
        slice.scalars = scalars.get(slice.id.parameter as usize).cloned().unwrap_or_default();
    }
    Ok(restored)
}

/// The residuals of the logical shards in `wanted`, in that order, out of those parts of `manifest`'s checkpoint that hold any.
/// `frame` is the checkpoint's. Nothing is set aside for a shard before its part's header has shown that it is there whole.
///
/// # Errors
/// As [`load_all`], and [`CheckpointError::Damaged`] when the residuals of a shard are in no part.
pub fn residuals(
    layout: &Layout,
    manifest: &Manifest,
    identities: &Identities,
    frame: &Frame,
    wanted: &[u32],
) -> Result<Vec<ShardResiduals>, CheckpointError> {
    let mut found: BTreeMap<u32, Vec<Vec<f32>>> = BTreeMap::new();
    let is_wanted = |shard: &u32| wanted.contains(shard);
    for entry in manifest.residuals.iter().filter(|entry| entry.shards.iter().any(is_wanted)) {
        let mut take = |run: Run, done: usize, piece: &[f32]| {
            let Some(shard) = entry.shards.get(run.kind).filter(|shard| is_wanted(shard)) else { return };
            let values = found.entry(*shard).or_insert_with(|| vec![Vec::new(); frame.parameters.len()]);
            let Some(values) = values.get_mut(run.parameter) else { return };
            values.resize(frame.parameters.get(run.parameter).map_or(0, |(_, elements)| *elements), 0.0);
            let first = run.first + done;
            if let Some(target) = values.get_mut(first..first + piece.len()) {
                target.copy_from_slice(piece);
            }
        };
        read_residuals(layout, manifest, identities, frame, entry, &mut take)?;
    }
    let of = |shard: &u32| match found.remove(shard) {
        Some(values) => Ok(ShardResiduals { shard: *shard, values }),
        None => {
            let reason = format!("the residuals of logical shard {shard} are not there");
            Err(CheckpointError::damaged(&layout.step(manifest.step), reason))
        }
    };
    wanted.iter().map(of).collect()
}

/// Reads a worker's part, and checks that all it is said to hold is there, each value once.
///
/// # Errors
/// As [`load_all`].
pub fn read_residuals(
    layout: &Layout,
    manifest: &Manifest,
    identities: &Identities,
    frame: &Frame,
    entry: &ResidualEntry,
    take: &mut dyn FnMut(Run, usize, &[f32]),
) -> Result<(), CheckpointError> {
    let path = layout.residuals(manifest.step, entry.worker);
    let (frame, holder) = (frame.of_residuals(&entry.shards), Holder::Worker(entry.worker));
    let (runs, _) = part::read(&path, entry.receipt(), identities, &frame, holder, take)?;
    tiles(&frame, runs).map_err(|reason| CheckpointError::damaged(&path, reason))
}

/// Whether the runs cover every kind of every parameter, each element once.
fn tiles(frame: &Frame, mut runs: Vec<Run>) -> Result<(), String> {
    runs.sort();
    let mut runs = runs.into_iter().peekable();
    for (parameter, (name, elements)) in frame.parameters.iter().enumerate() {
        for (kind, kind_name) in frame.kinds.iter().enumerate() {
            let mut next = 0;
            while let Some(run) = runs.next_if(|run| (run.parameter, run.kind) == (parameter, kind)) {
                if run.first != next {
                    return Err(format!("{kind_name} of {name} overlap or lack elements at {next}"));
                }
                next += run.elements;
            }
            if next != *elements {
                return Err(format!("{kind_name} of {name} end at element {next} of {elements}"));
            }
        }
    }
    Ok(())
}

/// The optimizer's numbers of each parameter that has elements: each is there, and the same wherever it stands.
fn scalars(frame: &Frame, found: &[Scalar]) -> Result<Vec<Vec<f64>>, String> {
    let mut all = vec![vec![None; frame.scalars.len()]; frame.parameters.len()];
    for Scalar { parameter, scalar, value } in found {
        let Some(place) = all.get_mut(*parameter).and_then(|of| of.get_mut(*scalar)) else { continue };
        if place.replace(*value).is_some_and(|other: f64| other.to_bits() != value.to_bits()) {
            let (name, of) = (frame.scalars.get(*scalar), frame.parameters.get(*parameter).map(|p| &p.0));
            return Err(format!("{name:?} of {of:?} is not the same in all parts"));
        }
    }
    let whole = |((name, elements), numbers): (&(String, usize), Vec<Option<f64>>)| match elements {
        0 => Ok(Vec::new()),
        _ => numbers
            .into_iter()
            .collect::<Option<Vec<f64>>>()
            .ok_or_else(|| format!("a number of the optimizer's for {name} is missing")),
    };
    frame.parameters.iter().zip(all).map(whole).collect()
}

/// Where a node of a resumed run gets what it begins with.
#[derive(Debug)]
pub struct Source {
    layout: Layout,
    identities: Identities,
    resume: Resume,
}

impl Source {
    /// The checkpoint that `resume` names, under `layout`, opened with `identities`.
    #[must_use]
    pub fn new(layout: Layout, identities: Identities, resume: Resume) -> Source {
        Source { layout, identities, resume }
    }

    /// The manifest is the one whose hash the operator signed with the job, so it needs no other word.
    fn manifest(&self) -> Result<Manifest, CheckpointError> {
        let path = self.layout.manifest(self.resume.step);
        let bytes = read_small(&path)?;
        if blake3::hash(&bytes) != blake3::Hash::from_bytes(self.resume.manifest_blake3) {
            let reason = format!("the job resumes from manifest {}", Hex(self.resume.manifest_blake3));
            return Err(CheckpointError::damaged(&path, reason));
        }
        Manifest::parse(&path, &bytes, self.resume.step)
    }
}

impl PartSource for Source {
    fn load(
        &mut self,
        job: &JobSpec,
        wanted: &[Slice],
    ) -> Result<Vec<RestoredSlice>, testudo_actors::CheckpointError> {
        let manifest = self.manifest()?;
        let frame = Frame::new(job, self.resume.step)?;
        Ok(load(&self.layout, &manifest, &self.identities, &frame, wanted)?)
    }

    fn residuals(
        &mut self,
        job: &JobSpec,
        shards: &[u32],
    ) -> Result<Vec<ShardResiduals>, testudo_actors::CheckpointError> {
        let manifest = self.manifest()?;
        let frame = Frame::new(job, self.resume.step)?;
        Ok(residuals(&self.layout, &manifest, &self.identities, &frame, shards)?)
    }
}

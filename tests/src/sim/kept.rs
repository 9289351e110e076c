//! What a simulated cluster resumes from: snapshots that servers kept, cut and placed in any other way.

use testudo_actors::checkpoint::{
    PartSource, ResidualSnapshot, RestoredSlice, ShardResiduals, SliceSnapshot, Snapshot,
};
use testudo_actors::placement::Slice;
use testudo_actors::{CheckpointError, JobSpec};

/// What servers kept at one step, as a source.
#[derive(Clone, Debug)]
pub struct Kept(pub Vec<Snapshot>);

impl PartSource for Kept {
    fn load(&mut self, _: &JobSpec, wanted: &[Slice]) -> Result<Vec<RestoredSlice>, CheckpointError> {
        Ok(restored(&self.0, wanted))
    }
}

/// The same, with what workers kept.
#[derive(Clone, Debug)]
pub struct KeptResiduals(pub Vec<Snapshot>, pub Vec<ResidualSnapshot>);

impl PartSource for KeptResiduals {
    fn load(&mut self, _: &JobSpec, wanted: &[Slice]) -> Result<Vec<RestoredSlice>, CheckpointError> {
        Ok(restored(&self.0, wanted))
    }

    fn residuals(&mut self, _: &JobSpec, shards: &[u32]) -> Result<Vec<ShardResiduals>, CheckpointError> {
        let of = |shard: &u32| self.1.iter().flat_map(|kept| &kept.shards).find(|kept| kept.shard == *shard);
        let missing = || CheckpointError("a shard is missing".into());
        shards.iter().map(|shard| of(shard).cloned().ok_or_else(missing)).collect()
    }
}

/// The slices in `wanted` out of snapshots whose slices may be cut and placed in any other way.
pub(super) fn restored(snapshots: &[Snapshot], wanted: &[Slice]) -> Vec<RestoredSlice> {
    let cut = |slice: &Slice| {
        let of_this = |kept: &&SliceSnapshot| kept.slice.id.parameter == slice.id.parameter;
        let any = snapshots.iter().flat_map(|s| &s.slices).find(of_this);
        let (state_tensors, scalars) = any.map_or((0, Vec::new()), |s| (s.state.len(), s.scalars.clone()));
        let mut restored = RestoredSlice {
            id: slice.id,
            weights: vec![f32::NAN; slice.elements],
            state: vec![vec![f32::NAN; slice.elements]; state_tensors],
            scalars,
        };
        for kept in snapshots.iter().flat_map(|s| &s.slices) {
            if kept.slice.id.parameter != slice.id.parameter {
                continue;
            }
            for at in slice.first..slice.first + slice.elements {
                if let Some(from) =
                    at.checked_sub(kept.slice.first).filter(|from| *from < kept.slice.elements)
                {
                    restored.weights[at - slice.first] = kept.weights[from];
                    for (state, kept) in restored.state.iter_mut().zip(&kept.state) {
                        state[at - slice.first] = kept[from];
                    }
                }
            }
        }
        restored
    };
    wanted.iter().map(cut).collect()
}

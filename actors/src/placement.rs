//! Cutting tensors into slices, and choosing each slice's server.
//!
//! Servers are chosen by rendezvous hashing with bounded loads: a slice goes to the server with the highest hash of
//! (slice, server) among those that stay within an eighth of the mean number of bytes (Thaler and Ravishankar 1998;
//! Mirrokni, Thorup and Zadimoghaddam 2018). Adding a server moves about its own share and little else, and
//! few large slices still spread evenly, which plain rendezvous hashing does not promise.
//!
//! 1. The slices of a parameter tile it, in order; an empty tensor has none.
//! 2. Placement never changes a value: only sums over whole slices of one position are formed.
//! 3. The slices of a parameter that is updated as a whole are on one server.

use serde::{Deserialize, Serialize};
use testudo_kernels::ParameterSpec;

use crate::job::JobSpec;

/// A slice's name: the parameter's place in the model, and the slice's place in the parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SliceId {
    /// The parameter, in the model's order.
    pub parameter: u32,
    /// The slice within the parameter.
    pub index: u32,
}

impl std::fmt::Display for SliceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "parameter {} slice {}", self.parameter, self.index)
    }
}

/// Where a slice lies and who keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its name.
    pub id: SliceId,
    /// Its first element in the parameter, row-major.
    pub first: usize,
    /// How many elements it holds; at least 1.
    pub elements: usize,
    /// The index of the server that keeps it.
    pub server: u32,
}

/// All slices of a model, on the servers of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceMap {
    slices: Vec<Slice>,
    /// Where each parameter's slices begin in `slices`; one more entry than parameters.
    starts: Vec<usize>,
    /// Whether parameters are updated as a whole.
    whole: bool,
}

/// Slices of a model at most: 16 TiB of parameters in slices of 1 MiB, and a few gigabytes of tables.
pub const MOST_SLICES: usize = 1 << 24;

/// A model or job that cannot be cut or placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Slices of less than one value.
    #[error("transport.slice_bytes is {0}: at least 4 bytes, one f32 value, are needed")]
    SliceTooSmall(u32),
    /// More slices than nodes keep tables of.
    #[error(
        "the model needs more than {MOST_SLICES} slices: raise transport.slice_bytes, or train a smaller model"
    )]
    TooManySlices,
    /// Nowhere to put them.
    #[error("there is no server to place parameters on")]
    NoServers,
}

impl SliceMap {
    /// How `parameters`, the model's, lie on the servers of `job`.
    ///
    /// # Errors
    /// [`PlacementError`] when they cannot.
    pub fn of(job: &JobSpec, parameters: &[ParameterSpec]) -> Result<SliceMap, PlacementError> {
        let elements: Vec<usize> = parameters.iter().map(|p| p.shape.elements()).collect();
        let servers: Vec<u32> = (0..job.servers).collect();
        SliceMap::cut(&elements, job.slice_bytes, &servers, job.updates_whole_tensors())
    }

    /// Cuts parameters of the given numbers of elements into slices of at most `slice_bytes` of f32 and places them
    /// on `servers`, each slice by itself.
    ///
    /// # Errors
    /// [`PlacementError`] when that cannot be done.
    pub fn new(elements: &[usize], slice_bytes: u32, servers: &[u32]) -> Result<SliceMap, PlacementError> {
        SliceMap::cut(elements, slice_bytes, servers, false)
    }

    /// As [`new`](SliceMap::new); if `whole`, with all of a parameter's slices on one server.
    ///
    /// # Errors
    /// As [`new`](SliceMap::new).
    pub fn cut(
        elements: &[usize],
        slice_bytes: u32,
        servers: &[u32],
        whole: bool,
    ) -> Result<SliceMap, PlacementError> {
        let most = (slice_bytes / 4) as usize;
        if most == 0 {
            return Err(PlacementError::SliceTooSmall(slice_bytes));
        }
        let Some(first_server) = servers.first() else { return Err(PlacementError::NoServers) };
        // Before anything is set aside for them.
        let all = elements.iter().fold(0_usize, |sum, count| sum.saturating_add(count.div_ceil(most)));
        if all > MOST_SLICES {
            return Err(PlacementError::TooManySlices);
        }
        let mut slices = Vec::new();
        let mut starts = vec![0];
        for (parameter, count) in elements.iter().enumerate() {
            let parameter = u32::try_from(parameter).map_err(|_| PlacementError::TooManySlices)?;
            for (index, first) in (0..*count).step_by(most).enumerate() {
                let index = u32::try_from(index).map_err(|_| PlacementError::TooManySlices)?;
                let id = SliceId { parameter, index };
                slices.push(Slice { id, first, elements: most.min(count - first), server: *first_server });
            }
            starts.push(slices.len());
        }
        let together = |a: &Slice, b: &Slice| whole && a.id.parameter == b.id.parameter;
        place(slices.chunk_by_mut(together).collect(), servers);
        Ok(SliceMap { slices, starts, whole })
    }

    /// Whether each parameter's slices are on one server, and updated together.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Every slice, in the model's order.
    #[must_use]
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// The slices of one parameter, in order; empty for an unknown parameter.
    #[must_use]
    pub fn of_parameter(&self, parameter: usize) -> &[Slice] {
        match (self.starts.get(parameter), self.starts.get(parameter + 1)) {
            (Some(first), Some(end)) => self.slices.get(*first..*end).unwrap_or(&[]),
            _ => &[],
        }
    }

    /// The slice of that name; `None` if the model has no such slice.
    #[must_use]
    pub fn slice(&self, id: SliceId) -> Option<&Slice> {
        self.position(id).and_then(|at| self.slices.get(at))
    }

    /// The place of that slice in [`slices`](SliceMap::slices).
    #[must_use]
    pub fn position(&self, id: SliceId) -> Option<usize> {
        let first = *self.starts.get(id.parameter as usize)?;
        let end = *self.starts.get(id.parameter as usize + 1)?;
        let at = first.checked_add(id.index as usize)?;
        (at < end).then_some(at)
    }

    /// The slices that `server` keeps, in the model's order.
    pub fn of_server(&self, server: u32) -> impl Iterator<Item = &Slice> {
        self.slices.iter().filter(move |s| s.server == server)
    }
}

/// A well-mixed number for (slice, server): SplitMix64's finalizer (Steele, Lea and Flood 2014), twice.
fn score(id: SliceId, server: u32) -> u64 {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let slice =
        mix((u64::from(id.parameter) << 32 | u64::from(id.index)).wrapping_add(0x9e37_79b9_7f4a_7c15));
    mix(slice ^ u64::from(server).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Gives each of `parts` a server; the slices of a part stay together.
fn place(mut parts: Vec<&mut [Slice]>, servers: &[u32]) {
    let elements = |part: &[Slice]| part.iter().map(|s| s.elements).sum::<usize>();
    let total: usize = parts.iter().map(|part| elements(part)).sum();
    let mean = total.div_ceil(servers.len());
    let bound = mean + mean / 8;
    let mut load = vec![0usize; servers.len()];
    // The largest first: small ones then fill what is left, and a part's choice depends on few others.
    parts.sort_by_key(|part| (std::cmp::Reverse(elements(part)), part.first().map(|s| s.id)));
    for part in parts {
        let (Some(id), size) = (part.first().map(|s| s.id), elements(part)) else { continue };
        let within = |at: &usize| load[*at] + size <= bound;
        let chosen = (0..servers.len())
            .filter(within)
            .max_by_key(|at| score(id, servers[*at]))
            .or_else(|| (0..servers.len()).min_by_key(|at| (load[*at], score(id, servers[*at]))));
        if let Some(at) = chosen {
            load[at] += size;
            part.iter_mut().for_each(|slice| slice.server = servers[at]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn servers(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    /// semantics.md, line 7.
    #[test]
    fn edges() {
        let lens = |elements: &[usize], bytes| -> Vec<usize> {
            SliceMap::new(elements, bytes, &[0]).unwrap().slices().iter().map(|s| s.elements).collect()
        };
        assert_eq!(lens(&[3], 16), [3]);
        assert_eq!(lens(&[4], 16), [4]);
        assert_eq!(lens(&[5], 16), [4, 1]);
        assert_eq!(lens(&[0, 2, 0], 16), [2]);
        assert_eq!(lens(&[], 16), [] as [usize; 0]);
        assert_eq!(SliceMap::new(&[1], 3, &[0]), Err(PlacementError::SliceTooSmall(3)));
        assert_eq!(SliceMap::new(&[1], 4, &[]), Err(PlacementError::NoServers));
        let few = SliceMap::new(&[2], 4, &servers(5)).unwrap();
        assert_eq!(few.slices().len(), 2);
        assert_ne!(few.slices()[0].server, few.slices()[1].server);
    }

    /// semantics.md, line 7: a million small tensors.
    #[test]
    fn a_million_small_tensors_spread_evenly() {
        let map = SliceMap::new(&vec![3; 1_000_000], 1 << 20, &servers(3)).unwrap();
        for server in 0..3 {
            let share = map.of_server(server).count();
            assert!((290_000..=376_000).contains(&share), "server {server} keeps {share}");
        }
    }

    #[test]
    fn the_mnist_network_is_balanced_over_two() {
        let map = SliceMap::new(&[784 * 512, 512, 512 * 512, 512, 5120, 10], 1 << 20, &servers(2)).unwrap();
        let load = |server| map.of_server(server).map(|s| s.elements).sum::<usize>();
        assert!(load(0).abs_diff(load(1)) < 669_706 / 4, "{} and {}", load(0), load(1));
    }

    #[test]
    fn adding_a_server_moves_about_its_share() {
        let elements = vec![1000; 3000];
        let before = SliceMap::new(&elements, 4000, &servers(4)).unwrap();
        let after = SliceMap::new(&elements, 4000, &servers(5)).unwrap();
        let moved = before.slices().iter().zip(after.slices()).filter(|(a, b)| a.server != b.server).count();
        assert!(moved < 3000 * 2 / 5, "{moved} of 3000 moved; a fifth is the least");
    }

    /// Invariant 3: whatever is cut, and as evenly as parameters allow.
    #[test]
    fn a_parameter_that_is_updated_as_a_whole_has_one_server() {
        let elements = [100, 7, 0, 100, 50, 50, 33];
        for bytes in [4, 64, 4000] {
            let map = SliceMap::cut(&elements, bytes, &servers(3), true).unwrap();
            let apart = SliceMap::new(&elements, bytes, &servers(3)).unwrap();
            let cuts = |map: &SliceMap| map.slices().iter().map(|s| (s.id, s.first)).collect::<Vec<_>>();
            assert_eq!(cuts(&map), cuts(&apart));
            for parameter in 0..elements.len() {
                let slices = map.of_parameter(parameter);
                assert!(slices.iter().all(|slice| slice.server == slices[0].server));
            }
            let load = |server| map.of_server(server).map(|s| s.elements).sum::<usize>();
            assert!((0..3).all(|server| (100..=150).contains(&load(server))), "{:?}", [0, 1, 2].map(load));
        }
    }

    proptest! {
        /// Invariant 1.
        #[test]
        fn slices_tile_their_parameters(elements in prop::collection::vec(0usize..50, 0..20), words in 1u32..20, n in 1u32..6) {
            let map = SliceMap::new(&elements, words * 4, &servers(n)).unwrap();
            for (parameter, count) in elements.iter().enumerate() {
                let mut next = 0;
                for (index, slice) in map.of_parameter(parameter).iter().enumerate() {
                    prop_assert_eq!(slice.id, SliceId { parameter: parameter as u32, index: index as u32 });
                    prop_assert_eq!(map.slice(slice.id), Some(slice));
                    prop_assert_eq!(slice.first, next);
                    prop_assert!(slice.elements > 0 && slice.elements <= words as usize && slice.server < n);
                    next += slice.elements;
                }
                prop_assert_eq!(next, *count);
                prop_assert_eq!(map.slice(SliceId { parameter: parameter as u32, index: u32::MAX }), None);
            }
        }
    }
}

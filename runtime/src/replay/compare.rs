//! What differs between values as recorded and values as computed: parameters, and who kept them.

use std::collections::BTreeMap;

use serde::Serialize;
use testudo_actors::JobSpec;
use testudo_actors::placement::SliceMap;
use testudo_actors::replay::ReplayedParameter;

use crate::checkpoint::load::LoadedParameter;

/// How one parameter's values of one kind differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The parameter's name.
    pub parameter: String,
    /// Which of its values: `weights`, or one of the optimizer's.
    pub kind: String,
    /// How many elements differ.
    pub elements: usize,
    /// How many there are.
    pub of: usize,
    /// The first that differs.
    pub first: usize,
    /// The servers that kept slices which differ, and which of the parameter's slices those are; empty where it is not known
    /// who kept what.
    pub servers: BTreeMap<u32, Vec<u32>>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Difference { parameter, kind, elements, of, first, .. } = self;
        write!(f, "{parameter}: {elements} of {of} {kind} differ, the first at {first}")?;
        for (server, slices) in &self.servers {
            let plural = if slices.len() == 1 { "" } else { "s" };
            let shown: Vec<String> = slices.iter().take(SLICES_SHOWN).map(ToString::to_string).collect();
            let more = if slices.len() > SLICES_SHOWN { ", ..." } else { "" };
            write!(f, "; server {server} kept slice{plural} {}{more}", shown.join(", "))?;
        }
        Ok(())
    }
}

/// Slices that a message names.
const SLICES_SHOWN: usize = 8;

/// Who keeps what.
#[derive(Debug)]
pub struct Placement(SliceMap);

impl Placement {
    /// As the servers of `job` keep it; `None` for a job that cannot be placed.
    #[must_use]
    pub fn of(job: &JobSpec) -> Option<Placement> {
        SliceMap::of(job, &job.model.parameters().ok()?).ok().map(Placement)
    }
}

/// What differs, parameter by parameter, in the kinds and the optimizer's numbers that are recorded. Bits are compared.
#[must_use]
pub fn differences(
    computed: &[ReplayedParameter],
    recorded: &[LoadedParameter],
    kinds: &[String],
    numbers: &[String],
    placement: Option<&Placement>,
) -> Vec<Difference> {
    let mut all = Vec::new();
    for (at, ours) in computed.iter().enumerate() {
        let theirs = recorded.get(at);
        for (place, kind) in kinds.iter().enumerate() {
            let nothing = &Vec::new();
            let ours_of = kind_of(&ours.weights, &ours.state, place).unwrap_or(nothing);
            let theirs_of = theirs.and_then(|p| kind_of(&p.weights, &p.state, place)).unwrap_or(nothing);
            let differs: Vec<usize> = (0..ours_of.len())
                .filter(|i| theirs_of.get(*i).map(|v| v.to_bits()) != ours_of.get(*i).map(|v| v.to_bits()))
                .collect();
            let Some(first) = differs.first().copied() else { continue };
            all.push(Difference {
                parameter: ours.name.clone(),
                kind: kind.clone(),
                elements: differs.len(),
                of: ours_of.len(),
                first,
                servers: placement.map(|p| servers(&p.0, at, &differs)).unwrap_or_default(),
            });
        }
        all.extend(scalars(at, ours, theirs, numbers, placement));
    }
    all
}

/// Which of the optimizer's numbers of the parameter at `at` differ. Whoever kept a part of it kept its numbers.
fn scalars(
    at: usize,
    ours: &ReplayedParameter,
    theirs: Option<&LoadedParameter>,
    names: &[String],
    placement: Option<&Placement>,
) -> Vec<Difference> {
    let keepers = || {
        let elements: Vec<usize> = (0..ours.weights.len()).collect();
        placement.map(|p| servers(&p.0, at, &elements)).unwrap_or_default()
    };
    let bits = |numbers: &[f64], place: usize| numbers.get(place).map(|value| value.to_bits());
    let differs =
        |place: &usize| theirs.and_then(|p| bits(&p.scalars, *place)) != bits(&ours.scalars, *place);
    let difference = |name: &String| Difference {
        parameter: ours.name.clone(),
        kind: name.clone(),
        elements: 1,
        of: 1,
        first: 0,
        servers: keepers(),
    };
    (0..names.len()).filter(differs).filter_map(|place| names.get(place)).map(difference).collect()
}

fn kind_of<'a>(weights: &'a Vec<f32>, state: &'a [Vec<f32>], place: usize) -> Option<&'a Vec<f32>> {
    match place {
        0 => Some(weights),
        place => state.get(place - 1),
    }
}

/// Which servers keep the elements `differs` (in ascending order) of a parameter, and in which slices.
fn servers(map: &SliceMap, parameter: usize, differs: &[usize]) -> BTreeMap<u32, Vec<u32>> {
    let mut found: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for slice in map.of_parameter(parameter) {
        let begin = differs.partition_point(|element| *element < slice.first);
        if differs.get(begin).is_some_and(|element| *element < slice.first + slice.elements) {
            found.entry(slice.server).or_default().push(slice.id.index);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_to_the_slice() {
        let map = SliceMap::new(&[10], 16, &[0, 1, 2]).unwrap();
        let ours = ReplayedParameter {
            name: "w".into(),
            weights: vec![0.5; 10],
            state: vec![vec![0.0; 10]],
            scalars: vec![0.5],
        };
        let mut theirs = LoadedParameter {
            name: "w".into(),
            weights: vec![0.5; 10],
            state: vec![vec![0.0; 10]],
            scalars: vec![0.5],
        };
        let kinds = ["weights".to_owned(), "velocity".to_owned()];
        let placement = Placement(map.clone());
        let find = |theirs: &LoadedParameter| {
            differences(
                std::slice::from_ref(&ours),
                std::slice::from_ref(theirs),
                &kinds,
                &["product".to_owned()],
                Some(&placement),
            )
        };
        assert_eq!(find(&theirs), []);
        theirs.weights[9] = 0.25;
        // The same number, other bits.
        theirs.state[0][4] = -0.0;
        let found = find(&theirs);
        let server = |index: usize| map.of_parameter(0)[index].server;
        let expected = [("weights", 9, server(2), 2), ("velocity", 4, server(1), 1)];
        assert_eq!(found.len(), 2);
        for (difference, (kind, first, server, slice)) in found.iter().zip(expected) {
            assert_eq!((difference.kind.as_str(), difference.first, difference.elements), (kind, first, 1));
            assert_eq!(difference.servers, BTreeMap::from([(server, vec![slice])]));
        }
        assert!(found[0].to_string().contains("w: 1 of 10 weights differ, the first at 9"), "{}", found[0]);
        theirs.scalars[0] = f64::from_bits(0.5f64.to_bits() + 1);
        let found = find(&theirs);
        assert_eq!((found.len(), found[2].kind.as_str(), found[2].servers.len()), (3, "product", 3));
        theirs.weights.truncate(3);
        assert_eq!(find(&theirs)[0].elements, 7, "what is not there differs");
    }
}

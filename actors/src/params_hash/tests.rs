use proptest::prelude::*;

use super::*;
use crate::checkpoint::{NamedTensor, params_blake3};
use crate::placement::SliceMap;

/// Values that differ everywhere.
fn values(elements: &[usize]) -> Vec<Vec<f32>> {
    let mut next = 0u32;
    let mut value = || {
        next = next.wrapping_mul(2_654_435_761).wrapping_add(12345);
        f32::from_bits(next >> 2)
    };
    elements.iter().map(|count| (0..*count).map(|_| value()).collect()).collect()
}

/// Names whose order is not the model's.
fn name(at: usize) -> String {
    format!("{}{}", ["w", "b", "a", "z", "m"][at % 5], at)
}

/// The hash by pieces, and the hash of the whole.
fn both(elements: &[usize], slice_bytes: u32) -> (Result<[u8; 32], PieceError>, [u8; 32]) {
    let values = values(elements);
    let names: Vec<String> = (0..elements.len()).map(name).collect();
    let map = SliceMap::new(elements, slice_bytes, &[0, 1]).unwrap();
    let stream = Stream::new(names.iter().map(String::as_str).zip(elements.iter().copied()));
    let mut pieces = BTreeMap::new();
    // From the last to the first: the order is not theirs to choose.
    for slice in map.slices().iter().rev() {
        let range = stream.range(slice).unwrap();
        let tensor = &values[slice.id.parameter as usize][slice.first..slice.first + slice.elements];
        let piece = range.piece(slice.id, bytemuck::cast_slice(tensor));
        assert!(range.admits(&piece));
        assert!(piece.edges.len() < 2 * CHUNK as usize && piece.nodes.len() < 128, "invariant 3");
        pieces.insert(range.start, (range, piece));
    }
    let tensors: Vec<NamedTensor<'_>> =
        values.iter().zip(&names).map(|(values, name)| NamedTensor { name, dims: &[], values }).collect();
    (combine(&pieces, &stream), params_blake3(&tensors))
}

/// Invariant 1, at every size around a boundary of the tree.
#[test]
fn sizes_around_every_boundary_give_the_hash_of_the_whole() {
    for chunks in [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33] {
        for apart in [-1i64, 0, 1] {
            let elements = chunks * 256 + apart;
            let Ok(elements) = usize::try_from(elements) else { continue };
            for slice_bytes in [4, 1020, 1024, 1028, 2048, 4096, 5000, 1 << 20] {
                if elements > 0 && (slice_bytes > 4 || elements < 2000) {
                    let (pieces, whole) = both(&[elements], slice_bytes);
                    assert_eq!(pieces, Ok(whole), "{elements} elements in slices of {slice_bytes}");
                }
            }
        }
    }
}

proptest! {
    /// Invariant 1.
    #[test]
    fn any_tensors_in_any_slices_give_the_hash_of_the_whole(
        elements in prop::collection::vec(1usize..3000, 1..6),
        quarter in 1u32..2000,
    ) {
        let (pieces, whole) = both(&elements, quarter * 4);
        prop_assert_eq!(pieces, Ok(whole));
    }
}

/// Invariant 2.
#[test]
fn pieces_that_are_missing_or_of_another_form_are_refused() {
    let (elements, stream) = ([3000], Stream::new([("w", 3000)]));
    let map = SliceMap::new(&elements, 4000, &[0]).unwrap();
    let bytes = vec![7; 12_000];
    let mut pieces = BTreeMap::new();
    for slice in map.slices() {
        let range = stream.range(slice).unwrap();
        let own = &bytes[range.start as usize..range.end as usize];
        pieces.insert(range.start, (range, range.piece(slice.id, own)));
    }
    assert_eq!(combine(&pieces, &stream), Ok(*blake3::hash(&bytes).as_bytes()));
    for start in pieces.keys() {
        let mut missing = pieces.clone();
        missing.remove(start);
        assert!(matches!(combine(&missing, &stream), Err(PieceError::Gap { .. })));
        for change in 0..4 {
            let mut other = pieces.clone();
            let (_, piece) = other.get_mut(start).unwrap();
            match change {
                0 => piece.edges.push(0),
                1 => drop(piece.edges.pop()),
                2 => piece.nodes.push([0; 32]),
                _ => drop(piece.nodes.pop()),
            }
            let found = combine(&other, &stream);
            assert!(matches!(found, Err(PieceError::Form(_))) || other == pieces, "{found:?}");
        }
    }
}

//! The innermost loops: a tile of `R` rows by `V` vectors, each element's chain in a register from k's start to its end.

use pulp::Simd;

/// A tile of results in registers.
pub(super) type Tile<S, const R: usize, const V: usize> = [[<S as Simd>::f32s; V]; R];

/// `tile[r] = fma(rows[r * stride + k], columns[k], tile[r])` for k ascending over all columns.
#[inline(always)]
pub(super) fn by_rows<S: Simd, const R: usize, const V: usize>(
    simd: S,
    rows: &[f32],
    stride: usize,
    columns: &[[S::f32s; V]],
    mut tile: Tile<S, R, V>,
) -> Tile<S, R, V> {
    // Slices of one length, so that the loop is free of bounds checks.
    let depth = columns.len();
    let mut factors: [&[f32]; R] = [&[]; R];
    for (r, factors) in factors.iter_mut().enumerate() {
        let Some(row) = rows.get(r * stride..).and_then(|rows| rows.get(..depth)) else { return tile };
        *factors = row;
    }
    for k in 0..depth {
        let column = columns[k];
        for r in 0..R {
            let factor = simd.splat_f32s(factors[r][k]);
            for v in 0..V {
                tile[r][v] = simd.mul_add_f32s(factor, column[v], tile[r][v]);
            }
        }
    }
    tile
}

/// The same, where `rows[r][k]` is element `first + r` of the kth run of `stride` elements of `matrix`.
#[inline(always)]
pub(super) fn by_columns<S: Simd, const R: usize, const V: usize>(
    simd: S,
    matrix: &[f32],
    stride: usize,
    first: usize,
    columns: &[[S::f32s; V]],
    mut tile: Tile<S, R, V>,
) -> Tile<S, R, V> {
    for (run, column) in matrix.chunks_exact(stride).zip(columns) {
        let Some(factors) = run.get(first..).and_then(|run| run.first_chunk::<R>()) else { return tile };
        for r in 0..R {
            let factor = simd.splat_f32s(factors[r]);
            for v in 0..V {
                tile[r][v] = simd.mul_add_f32s(factor, column[v], tile[r][v]);
            }
        }
    }
    tile
}

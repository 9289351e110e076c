//! The innermost loops: a tile of `R` rows by `V` vectors, each element's chain in a register from k's start to its end.

use pulp::Simd;

/// A tile of results in registers.
pub(crate) type Tile<S, const R: usize, const V: usize> = [[<S as Simd>::f32s; V]; R];

/// `tile[r] = fma(rows[r * stride + k], columns[k], tile[r])` for k ascending over all columns.
#[inline(always)]
pub(crate) fn by_rows<S: Simd, const R: usize, const V: usize>(
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
pub(crate) fn by_columns<S: Simd, const R: usize, const V: usize>(
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

/// Reads back a tile that [`store`] has written.
#[inline(always)]
pub(crate) fn load<S: Simd, const R: usize, const V: usize>(
    simd: S,
    from: &[f32],
    stride: usize,
    used: usize,
) -> Tile<S, R, V> {
    let mut tile = [[simd.splat_f32s(0.0); V]; R];
    for (r, sums) in tile.iter_mut().enumerate() {
        let Some(from) = from.get(r * stride..).and_then(|from| from.get(..used)) else { break };
        let (whole, part) = S::as_simd_f32s(from);
        if let Some(from) = whole.first_chunk::<V>() {
            *sums = *from;
            continue;
        }
        for (sum, from) in sums.iter_mut().zip(whole) {
            *sum = *from;
        }
        if let (false, Some(sum)) = (part.is_empty(), sums.get_mut(whole.len())) {
            *sum = simd.partial_load_f32s(part);
        }
    }
    tile
}

/// Writes a tile to rows of `used` numbers, `stride` apart; `used` may end within a vector.
#[inline(always)]
pub(crate) fn store<S: Simd, const R: usize, const V: usize>(
    simd: S,
    tile: Tile<S, R, V>,
    out: &mut [f32],
    stride: usize,
    used: usize,
) {
    for (r, sums) in tile.iter().enumerate() {
        let Some(out) = out.get_mut(r * stride..).and_then(|out| out.get_mut(..used)) else { return };
        let (whole, part) = S::as_mut_simd_f32s(out);
        if let Some(out) = whole.first_chunk_mut::<V>() {
            *out = *sums;
            continue;
        }
        for (out, sum) in whole.iter_mut().zip(sums) {
            *out = *sum;
        }
        if let (false, Some(sum)) = (part.is_empty(), sums.get(whole.len())) {
            simd.partial_store_f32s(part, *sum);
        }
    }
}

/// `0..end` in ranges of `step`, the last one shorter.
#[inline(always)]
pub(crate) fn steps(end: usize, step: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..end).step_by(step).map(move |start| start..end.min(start + step))
}

#[inline(always)]
pub(crate) fn vectors<S: Simd, const V: usize>(x: &[f32]) -> &[[S::f32s; V]] {
    S::as_simd_f32s(x).0.as_chunks().0
}

#[inline(always)]
pub(crate) fn vectors_mut<S: Simd, const V: usize>(x: &mut [f32]) -> &mut [[S::f32s; V]] {
    S::as_mut_simd_f32s(x).0.as_chunks_mut().0
}

/// Runs a body for tiles of `rows` rows, `V` vectors wide: `R` is a constant of the body, `r` the tile's first row. What
/// is left over goes in tiles half as high, and so on.
///
/// Tiles four vectors wide are four rows high: with six, sums, columns and factors are more than the 32 registers that there are,
/// and what convolutions have around the loop leaves the compiler no way to order them so that they fit.
#[rustfmt::skip] // rustfmt indents the inner macro further at every run
macro_rules! tall_tiles {
    ($vectors:ident, $rows:expr, |$R:ident, $r:ident| $body:block) => {{
        let mut $r = 0;
        macro_rules! run {
            ($height:literal) => {{
                const $R: usize = $height;
                while $r + $R <= $rows {
                    $body
                    $r += $R;
                }
            }};
        }
        if $vectors == 1 {
            run!(8);
        } else if $vectors == 2 {
            run!(6);
        }
        run!(4);
        run!(2);
        run!(1);
    }};
}
pub(crate) use tall_tiles;

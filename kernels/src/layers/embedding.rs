//! Embedding: a row of a table for each token, and a row of another for its position (Radford et al., 2019).
//!
//! Invariants:
//! 1. `x = table[token] + positions[position]`, one addition an element.
//! 2. The gradient of a table's row starts at what is there (the output layer's gradient, where the table is tied to it)
//!    and takes one addition for each token that names it, in ascending order of (example, position). A position's
//!    gradient starts at +0 and runs over the examples.

/// Fills `rows`, row-major [tokens, width]. Tokens are integers below the table's rows.
pub(crate) fn embed(tokens: &[f32], table: &[f32], positions: &[f32], width: usize, rows: &mut [f32]) {
    let places = positions.chunks_exact(width).cycle();
    for ((token, place), row) in tokens.iter().zip(places).zip(rows.chunks_exact_mut(width)) {
        let from = *token as usize * width;
        let Some(table) = table.get(from..from + width) else { return };
        for ((value, of_token), of_place) in row.iter_mut().zip(table).zip(place) {
            *value = of_token + of_place;
        }
    }
}

/// Adds the gradient of `rows` to the table's.
pub(crate) fn add_to_table(tokens: &[f32], gradient: &[f32], width: usize, table: &mut [f32]) {
    for (token, row) in tokens.iter().zip(gradient.chunks_exact(width)) {
        let from = *token as usize * width;
        let Some(table) = table.get_mut(from..from + width) else { return };
        for (sum, value) in table.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

/// Sets the positions' gradient, of which `positions` holds some number of rows: as many as an example has tokens.
pub(crate) fn positions_gradient(gradient: &[f32], positions: &mut [f32]) {
    positions.fill(0.0);
    for example in gradient.chunks_exact(positions.len().max(1)) {
        for (sum, value) in positions.iter_mut().zip(example) {
            *sum += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two examples of three tokens, one token in both and twice in one.
    #[test]
    fn rows_are_looked_up_and_gradients_scattered() {
        let table = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let positions = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
        let tokens = [3.0, 0.0, 3.0, 1.0, 3.0, 2.0];
        let mut rows = [0.0; 12];
        embed(&tokens, &table, &positions, 2, &mut rows);
        assert_eq!(rows[..6], [7.0 + 0.1, 8.0 + 0.2, 1.0 + 0.3, 2.0 + 0.4, 7.0 + 0.5, 8.0 + 0.6]);
        let gradient = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0];
        let mut sums = [0.5; 8];
        add_to_table(&tokens, &gradient, 2, &mut sums);
        assert_eq!(sums, [4.5, 8.5, 64.5, 128.5, 1024.5, 2048.5, 273.5, 546.5]);
        let mut of_places = [f32::NAN; 6];
        positions_gradient(&gradient, &mut of_places);
        assert_eq!(of_places, [65.0, 130.0, 260.0, 520.0, 1040.0, 2080.0]);
    }
}

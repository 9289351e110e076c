//! The examples that a worker trains and evaluates on.

use std::sync::Arc;

/// The training set and the test set of a job.
pub type TrainAndTest = (Arc<dyn Dataset>, Arc<dyn Dataset>);

/// Examples of one shape, each with its labels. Implementations are shared between threads and never change.
pub trait Dataset: Send + Sync {
    /// How many examples there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers in one example's input.
    fn input_elements(&self) -> usize;

    /// Labels of one example: 1 for a classifier's, one for each position of a sequence.
    fn targets(&self) -> usize {
        1
    }

    /// Writes example `index` (below [`len`](Dataset::len)) into `input` (exactly
    /// [`input_elements`](Dataset::input_elements) long) and its labels into `labels` (exactly
    /// [`targets`](Dataset::targets) long).
    fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]);

    /// BLAKE3 over the content: what a signed job knows the set by. Reads every example once, unless the set keeps a hash of its
    /// own.
    fn blake3(&self) -> [u8; 32] {
        let (mut hasher, width, targets) = (blake3::Hasher::new(), self.input_elements(), self.targets());
        for size in [self.len(), width, targets] {
            hasher.update(&(size as u64).to_le_bytes());
        }
        let (mut input, mut labels) = (vec![0.0; width], vec![0; targets]);
        for index in 0..self.len() {
            self.fill(index, &mut input, &mut labels);
            hasher.update(bytemuck::cast_slice(&input)).update(bytemuck::cast_slice(&labels));
        }
        *hasher.finalize().as_bytes()
    }
}

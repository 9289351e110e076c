//! A model of one's own: softmax regression on squares and products of a point's coordinates, with gradients written by hand.
//!
//!     cargo run -p testudo-examples --bin own_model

use testudo::kernels::math::{exp, ln};
use testudo::{Batch, Initial, Job, Loss, Model, ModelError, ParameterSpec, Shape, Update};
use testudo_examples::{RINGS, Rings};

/// 1, x, y, xx, yy, xy.
const FEATURES: usize = 6;

/// Its one parameter is `weight`, classes x features. It is the servers' to keep: what is here is a description.
struct Quadratic(Vec<ParameterSpec>);

impl Quadratic {
    fn new() -> Result<Quadratic, ModelError> {
        let shape = Shape::new(&[RINGS, FEATURES]).map_err(|error| ModelError::Own(error.to_string()))?;
        let (name, initial, update) = ("weight".into(), Initial::Zeros, Update::Learn);
        Ok(Quadratic(vec![ParameterSpec { name, shape, initial, update }]))
    }

    /// An example's features and the classes' probabilities.
    fn forward(weight: &[f32], point: &[f32]) -> ([f32; FEATURES], [f32; RINGS]) {
        let (x, y) = (point[0], point[1]);
        let features = [1.0, x, y, x * x, y * y, x * y];
        let mut p = [0.0; RINGS];
        for (p, row) in p.iter_mut().zip(weight.chunks_exact(FEATURES)) {
            *p = row.iter().zip(features).fold(0.0, |sum: f32, (w, f)| w.mul_add(f, sum));
        }
        let most = p.iter().copied().fold(f32::MIN, f32::max);
        p = p.map(|z| exp(z - most));
        let sum: f32 = p.iter().sum();
        (features, p.map(|p| p / sum))
    }

    /// Losses, and what `each` makes of every example: its features, probabilities and label.
    fn pass(
        weight: &[f32],
        batch: Batch<'_>,
        mut each: impl FnMut([f32; FEATURES], [f32; RINGS], usize),
    ) -> Loss {
        let mut loss = Loss::default();
        for (point, label) in batch.inputs.chunks_exact(2).zip(batch.labels) {
            let (features, p) = Quadratic::forward(weight, point);
            let best = (0..RINGS).fold(0, |best, class| if p[class] > p[best] { class } else { best });
            loss.loss_sum -= f64::from(ln(p[*label as usize].max(1e-30)));
            loss.correct += u32::from(best == *label as usize);
            loss.examples += 1;
            each(features, p, *label as usize);
        }
        loss
    }
}

impl Model for Quadratic {
    fn parameters(&self) -> &[ParameterSpec] {
        &self.0
    }
    fn input_elements(&self) -> usize {
        2
    }
    fn classes(&self) -> usize {
        RINGS
    }
    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        let mut gradient = [0.0; RINGS * FEATURES];
        let loss = Quadratic::pass(parameters[0], batch, |features, p, label| {
            for (class, row) in gradient.chunks_exact_mut(FEATURES).enumerate() {
                let error = p[class] - if class == label { 1.0 } else { 0.0 };
                row.iter_mut().zip(features).for_each(|(g, f)| *g = error.mul_add(f, *g));
            }
        });
        ready(0, &gradient); // sums over the examples, not means
        Ok(loss)
    }
    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        Ok(Quadratic::pass(parameters[0], batch, |_, _, _| {}))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let job = Job::builder().name("quadratic").own_model("quadratic@1", |_| Ok(Box::new(Quadratic::new()?)));
    let job = job.data(Rings { seed: 1, examples: 1500 }, Rings { seed: 2, examples: 300 });
    let trained = job.optimizer("adam").learning_rate(0.1).workers(2).epochs(20).batch_size(100).run()?;
    println!("test accuracy {:.3}", trained.finished.test_accuracy);
    println!("parameters {}", trained.params_blake3());
    Ok(())
}

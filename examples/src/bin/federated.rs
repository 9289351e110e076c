//! Federated averaging across three owners of data, one of whom lies. Each owner trains by itself on a batch of its own for some steps; what
//! travels is by how much its parameters changed, and servers take the median (McMahan et al., "Communication-Efficient Learning of
//! Deep Networks from Decentralized Data", AISTATS 2017; the median: Yin et al., ICML 2018). No owner's examples leave its worker.
//!
//!     cargo run -p testudo-examples --bin federated

use std::sync::Arc;

use testudo::{Aggregation, Batch, Job, Loss, Model, ModelError, ParameterSpec, TrainAndTest};
use testudo_examples::{Rings, network};

/// Takes steps of its own on a batch, and hands over how far they went.
struct LocalSteps {
    inner: Box<dyn Model>,
    steps: usize,
    learning_rate: f32,
    /// What it says of how far it went, times the truth: 1 for the honest.
    says: f32,
}

impl Model for LocalSteps {
    fn parameters(&self) -> &[ParameterSpec] {
        self.inner.parameters()
    }
    fn input_elements(&self) -> usize {
        self.inner.input_elements()
    }
    fn classes(&self) -> usize {
        self.inner.classes()
    }
    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        let mut own: Vec<Vec<f32>> = parameters.iter().map(|values| values.to_vec()).collect();
        let (examples, mut first) = (batch.labels.len() as f32, None);
        for _ in 0..self.steps {
            let mut gradients = vec![Vec::new(); own.len()];
            let lent: Vec<&[f32]> = own.iter().map(Vec::as_slice).collect();
            let loss =
                self.inner.gradients(&lent, batch, &mut |index, sum| gradients[index] = sum.to_vec())?;
            first.get_or_insert(loss);
            for (values, sums) in own.iter_mut().zip(&gradients) {
                values
                    .iter_mut()
                    .zip(sums)
                    .for_each(|(value, sum)| *value -= self.learning_rate * sum / examples);
            }
        }
        // Servers divide by the examples and subtract: before - (before - after) is after.
        for (index, (before, after)) in parameters.iter().zip(&own).enumerate().rev() {
            let moved: Vec<f32> = before
                .iter()
                .zip(after)
                .map(|(before, after)| self.says * (before - after) * examples)
                .collect();
            ready(index, &moved);
        }
        Ok(first.unwrap_or_default())
    }
    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        self.inner.evaluate(parameters, batch)
    }
}

/// Each owner's own examples; all are tested on the same.
fn owner(index: u32) -> TrainAndTest {
    let own = Rings { seed: u64::from(index), examples: 900 };
    (Arc::new(own), Arc::new(Rings { seed: 100, examples: 300 }))
}

fn train(rule: Aggregation) -> Result<f64, Box<dyn std::error::Error>> {
    let job = Job::builder().name("federated").data_of(owner).own_model("local-steps@1", |setup| {
        let inner = network().build(setup.max_examples)?;
        let says = if setup.worker == 2 { -3.0 } else { 1.0 };
        Ok(Box::new(LocalSteps { inner, steps: 5, learning_rate: 0.1, says }))
    });
    let job = job
        .workers(3)
        .logical_shards(3)
        .servers(2)
        .batch_size(300)
        .epochs(60)
        .optimizer("sgd")
        .learning_rate(1.0);
    Ok(job.aggregation(rule).run()?.finished.test_accuracy)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match train(Aggregation::Mean) {
        Ok(accuracy) => println!("accuracy under the mean {accuracy:.3}"),
        Err(why) => println!("under the mean the liar decides: {why}"),
    }
    println!("accuracy under the median {:.3}", train(Aggregation::Median { hostile: 1 })?);
    Ok(())
}

//! A candle model trained without rewriting it: candle computes forward and backward passes, servers keep and update the parameters.
//!
//!     cargo run -p testudo-examples --features candle --bin candle

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{Linear, Module, VarBuilder, VarMap, linear, loss};
use testudo::{Batch, Initial, Job, Loss, Model, ModelError, ParameterSpec, Shape, Update};
use testudo_examples::{RINGS, Rings};

struct Net {
    hidden: Linear,
    output: Linear,
}

impl Net {
    fn new(vb: VarBuilder<'_>) -> candle_core::Result<Net> {
        Ok(Net { hidden: linear(2, 64, vb.pp("hidden"))?, output: linear(64, RINGS, vb.pp("output"))? })
    }
}

impl Module for Net {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.output.forward(&self.hidden.forward(x)?.relu()?)
    }
}

/// Any candle module with the variables that it was built from, sorted by name.
struct Candle<N> {
    net: N,
    vars: Vec<Var>,
    parameters: Vec<ParameterSpec>,
}

fn own(error: impl std::fmt::Display) -> ModelError {
    ModelError::Own(error.to_string())
}

impl<N: Module> Candle<N> {
    fn new(build: impl FnOnce(VarBuilder<'_>) -> candle_core::Result<N>) -> candle_core::Result<Candle<N>> {
        let map = VarMap::new();
        let net = build(VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu))?;
        let vars = map.data().lock().map(|vars| vars.clone()).unwrap_or_default();
        let mut named: Vec<(String, Var)> = vars.into_iter().collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let describe = |(name, var): &(String, Var)| {
            let shape = Shape::new(var.dims()).map_err(candle_core::Error::wrap)?;
            let bound = 1.0 / (var.dims().last().copied().unwrap_or(1) as f32).sqrt();
            let initial = Initial::Uniform { bound };
            Ok(ParameterSpec { name: name.clone(), shape, initial, update: Update::Learn })
        };
        let parameters = named.iter().map(describe).collect::<candle_core::Result<_>>()?;
        Ok(Candle { net, vars: named.into_iter().map(|(_, var)| var).collect(), parameters })
    }

    fn logits(&self, parameters: &[&[f32]], inputs: &[f32]) -> candle_core::Result<Tensor> {
        for (var, values) in self.vars.iter().zip(parameters.iter().copied()) {
            var.set(&Tensor::from_slice(values, var.dims(), &Device::Cpu)?)?;
        }
        self.net.forward(&Tensor::from_slice(inputs, (inputs.len() / 2, 2), &Device::Cpu)?)
    }

    /// The summed loss of a batch, for its gradients, and what is told of it.
    fn loss(&self, parameters: &[&[f32]], batch: Batch<'_>) -> candle_core::Result<(Tensor, Loss)> {
        let (examples, logits) = (batch.labels.len(), self.logits(parameters, batch.inputs)?);
        let labels = Tensor::from_slice(batch.labels, examples, &Device::Cpu)?;
        let sum = (loss::cross_entropy(&logits, &labels)? * examples as f64)?;
        let right = logits.argmax(D::Minus1)?.eq(&labels)?.to_dtype(DType::F32)?.sum_all()?;
        let (loss_sum, correct) = (f64::from(sum.to_scalar::<f32>()?), right.to_scalar::<f32>()? as u32);
        Ok((sum, Loss { loss_sum, correct, examples: examples as u32 }))
    }
}

#[rustfmt::skip]
impl<N: Module + Send> Model for Candle<N> {
    fn parameters(&self) -> &[ParameterSpec] { &self.parameters }
    fn input_elements(&self) -> usize { 2 }
    fn classes(&self) -> usize { RINGS }
    fn gradients(&mut self, parameters: &[&[f32]], batch: Batch<'_>, ready: &mut dyn FnMut(usize, &[f32])) -> Result<Loss, ModelError> {
        let (sum, told) = self.loss(parameters, batch).map_err(own)?;
        let gradients = sum.backward().map_err(own)?;
        for (index, var) in self.vars.iter().enumerate().rev() {
            let gradient = gradients.get(var).ok_or_else(|| own("a variable is not used"))?;
            ready(index, &gradient.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(own)?);
        }
        Ok(told)
    }
    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        self.loss(parameters, batch).map(|(_, told)| told).map_err(own)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let job = Job::builder().name("candle").workers(2).servers(2).logical_shards(2);
    let job = job.own_model("candle-net@1", |_| Ok(Box::new(Candle::new(Net::new).map_err(own)?)));
    let job = job.data(Rings { seed: 1, examples: 1500 }, Rings { seed: 2, examples: 300 }).optimizer("adam");
    let trained = job.learning_rate(0.02).epochs(20).batch_size(100).run()?;
    println!("test accuracy {:.3}", trained.finished.test_accuracy);
    Ok(())
}

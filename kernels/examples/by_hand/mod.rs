//! The shipped updates as loops written by hand: what programs are measured against (`slice_speed`), and whose bits they keep
//! (`tests/by_hand.rs`). Nothing that trains runs them.

#![allow(dead_code)] // each of the two that include this uses a part

mod adam;
mod lion;
mod normed;
mod scaled;
mod sgd;

/// As the crate's own: a function whose body is compiled for each instruction set, the best of which is chosen when it runs.
macro_rules! vectorized {
    ($($(#[$attribute:meta])* $visibility:vis fn $name:ident<'a>($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$attribute])*
        $visibility fn $name<'a>($($argument: $type),*) {
            struct Kernel<'a> {
                $($argument: $type,)*
                lifetime: std::marker::PhantomData<&'a ()>,
            }
            impl<'a> pulp::WithSimd for Kernel<'a> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) {
                    let Self { $($argument,)* lifetime: _ } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Kernel { $($argument,)* lifetime: std::marker::PhantomData })
        }
    )*};
}
use vectorized;

/// One of the updates, with its settings.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum ByHand {
    Sgd { weight_decay: f64 },
    Momentum { momentum: f64, weight_decay: f64 },
    Nesterov { momentum: f64, weight_decay: f64 },
    Adam { beta1: f64, beta2: f64, epsilon: f64, weight_decay: f64 },
    AdamW { beta1: f64, beta2: f64, epsilon: f64, weight_decay: f64 },
    RmsProp { alpha: f64, epsilon: f64, weight_decay: f64 },
    Adagrad { rate_decay: f64, epsilon: f64, weight_decay: f64 },
    Adadelta { rho: f64, epsilon: f64, weight_decay: f64 },
    Ftrl { beta: f64, lambda1: f64, lambda2: f64 },
    Lion { beta1: f64, beta2: f64, weight_decay: f64 },
    NAdam { beta1: f64, beta2: f64, epsilon: f64, weight_decay: f64, momentum_decay: f64 },
    Lamb { beta1: f64, beta2: f64, epsilon: f64, weight_decay: f64 },
    Lars { momentum: f64, weight_decay: f64, trust: f64 },
}

impl ByHand {
    /// All of them, as the programs' defaults have it, by the programs' names.
    pub(crate) fn all() -> [(&'static str, ByHand); 13] {
        let (momentum, weight_decay) = (0.9, 0.0);
        let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
        [
            ("sgd", ByHand::Sgd { weight_decay }),
            ("momentum", ByHand::Momentum { momentum, weight_decay }),
            ("nesterov", ByHand::Nesterov { momentum, weight_decay }),
            ("adam", ByHand::Adam { beta1, beta2, epsilon, weight_decay }),
            ("adamw", ByHand::AdamW { beta1, beta2, epsilon, weight_decay: 0.01 }),
            ("rmsprop", ByHand::RmsProp { alpha: 0.99, epsilon, weight_decay }),
            ("adagrad", ByHand::Adagrad { rate_decay: 0.0, epsilon: 1e-10, weight_decay }),
            ("adadelta", ByHand::Adadelta { rho: 0.9, epsilon: 1e-6, weight_decay }),
            ("ftrl", ByHand::Ftrl { beta: 1.0, lambda1: 0.0, lambda2: 0.0 }),
            ("lion", ByHand::Lion { beta1, beta2: 0.99, weight_decay }),
            ("nadam", ByHand::NAdam { beta1, beta2, epsilon, weight_decay, momentum_decay: 0.004 }),
            ("lamb", ByHand::Lamb { beta1, beta2, epsilon: 1e-6, weight_decay: 0.01 }),
            ("lars", ByHand::Lars { momentum, weight_decay, trust: 0.001 }),
        ]
    }

    /// How many state tensors it keeps.
    pub(crate) fn states(self) -> usize {
        match self {
            ByHand::Sgd { .. } => 0,
            ByHand::Momentum { .. }
            | ByHand::Nesterov { .. }
            | ByHand::RmsProp { .. }
            | ByHand::Adagrad { .. }
            | ByHand::Lion { .. }
            | ByHand::Lars { .. } => 1,
            ByHand::Adam { .. } | ByHand::AdamW { .. } | ByHand::Adadelta { .. } | ByHand::Ftrl { .. } => 2,
            ByHand::NAdam { .. } | ByHand::Lamb { .. } => 2,
        }
    }

    /// One step, from 1, on a slice, which is the whole tensor. On entry `out` holds the gradient sum, on return the new weights.
    /// `product` is NAdam's product of momenta, 1 at first.
    #[allow(clippy::too_many_arguments)] // one update's inputs, as programs have them
    pub(crate) fn update(
        self,
        step: u64,
        rate: f64,
        divisor: f32,
        weights: &[f32],
        out: &mut [f32],
        state: &mut [Vec<f32>],
        product: &mut f64,
    ) {
        let descent = |momentum, decay| [-rate as f32, momentum as f32, decay as f32, divisor];
        match (self, state) {
            (ByHand::Sgd { weight_decay }, _) => {
                sgd::plain(-rate as f32, weight_decay as f32, divisor, weights, out);
            }
            (ByHand::Momentum { momentum, weight_decay }, [velocity, ..]) => {
                sgd::momentum(descent(momentum, weight_decay), weights, out, velocity);
            }
            (ByHand::Nesterov { momentum, weight_decay }, [velocity, ..]) => {
                sgd::nesterov(descent(momentum, weight_decay), weights, out, velocity);
            }
            (ByHand::Adam { beta1, beta2, epsilon, weight_decay }, [mean, variance, ..]) => {
                let scalars = adam::Scalars::new(step, rate, [beta1, beta2, epsilon], divisor);
                adam::update(scalars, 1.0, weight_decay as f32, weights, out, mean, variance);
            }
            (ByHand::AdamW { beta1, beta2, epsilon, weight_decay }, [mean, variance, ..]) => {
                let scalars = adam::Scalars::new(step, rate, [beta1, beta2, epsilon], divisor);
                let keep = (1.0 - rate * weight_decay) as f32;
                adam::update(scalars, keep, 0.0, weights, out, mean, variance);
            }
            (ByHand::RmsProp { alpha, epsilon, weight_decay }, [square, ..]) => {
                let scalars = [-rate, weight_decay, alpha, 1.0 - alpha, epsilon].map(|scalar| scalar as f32);
                scaled::rmsprop(with(scalars, divisor), weights, out, square);
            }
            (ByHand::Adagrad { rate_decay, epsilon, weight_decay }, [squares, ..]) => {
                let rate = rate / (1.0 + (step as f64 - 1.0) * rate_decay);
                let scalars = [-rate as f32, weight_decay as f32, epsilon as f32, divisor];
                scaled::adagrad(scalars, weights, out, squares);
            }
            (ByHand::Adadelta { rho, epsilon, weight_decay }, [square, delta, ..]) => {
                let scalars = [-rate, weight_decay, rho, 1.0 - rho, epsilon].map(|scalar| scalar as f32);
                scaled::adadelta(with(scalars, divisor), weights, out, square, delta);
            }
            (ByHand::Ftrl { beta, lambda1, lambda2 }, [z, n, ..]) => {
                let [rate, beta, lambda1, lambda2] =
                    [rate, beta, lambda1, lambda2].map(|scalar| scalar as f32);
                scaled::ftrl([rate, beta, lambda1, lambda2, divisor], weights, out, z, n);
            }
            (ByHand::Lion { beta1, beta2, weight_decay }, [mean, ..]) => {
                let [beta1, beta2] = [beta1, beta2].map(|beta| [beta as f32, (1.0 - beta) as f32]);
                let (minus_rate, decay) = (-rate as f32, weight_decay as f32);
                lion::update(lion::Scalars { minus_rate, decay, beta1, beta2, divisor }, weights, out, mean);
            }
            (ByHand::NAdam { beta1, beta2, epsilon, weight_decay, momentum_decay }, [mean, variance, ..]) => {
                let constants = [beta1, beta2, epsilon, weight_decay, momentum_decay];
                let scalars = adam::Ahead::new(step, rate, constants, divisor, product);
                adam::ahead(scalars, weights, out, mean, variance);
            }
            (ByHand::Lamb { beta1, beta2, epsilon, weight_decay }, [mean, variance, ..]) => {
                let scalars = normed::Lamb {
                    beta1: [beta1, 1.0 - beta1].map(|beta| beta as f32),
                    beta2: [beta2, 1.0 - beta2].map(|beta| beta as f32),
                    corrections: [beta1, beta2].map(|beta| (1.0 - power(beta, step)) as f32),
                    epsilon: epsilon as f32,
                    decay: weight_decay as f32,
                    divisor,
                };
                let mut sums = [0.0; 2];
                normed::lamb_direction(scalars, weights, out, mean, variance, &mut sums);
                let [norm, of_direction] = sums.map(f64::sqrt);
                let ratio = if norm > 0.0 && of_direction > 0.0 { norm / of_direction } else { 1.0 };
                normed::lamb_step(-(rate * ratio) as f32, weights, out);
            }
            (ByHand::Lars { momentum, weight_decay, trust }, [velocity, ..]) => {
                let mut sums = [0.0; 2];
                normed::lars_norms(divisor, weights, out, &mut sums);
                let [norm, of_gradient] = sums.map(f64::sqrt);
                let ratio = trust * norm / (of_gradient + weight_decay * norm);
                let scale = if norm > 0.0 && of_gradient > 0.0 { ratio } else { 1.0 };
                let scalars = [momentum, rate * scale, weight_decay].map(|scalar| scalar as f32);
                let [momentum, rate, decay] = scalars;
                normed::lars_step([momentum, rate, decay, divisor], weights, out, velocity);
            }
            (_, few) => unreachable!("{} state tensors", few.len()),
        }
    }
}

fn with(scalars: [f32; 5], divisor: f32) -> [f32; 6] {
    let [a, b, c, d, e] = scalars;
    [a, b, c, d, e, divisor]
}

/// 1 or -1, or `x` itself if that is a zero or NaN.
#[inline(always)]
fn sign(x: f32) -> f32 {
    let sign = if x < 0.0 { -1.0 } else { x };
    if x > 0.0 { 1.0 } else { sign }
}

/// `base` to the power of `exponent`: factors of the exponent's bits, from the lowest up.
fn power(base: f64, mut exponent: u64) -> f64 {
    let (mut product, mut square) = (1.0, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            product *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    product
}

//! Copying a softmax regression through its answers (Tramer et al., <https://arxiv.org/abs/1609.02943>), over real HTTPS.
//!
//! The attacker knows the model's kind and nothing else, and asks what it likes. Its arithmetic is its own, in `f64`. Training
//! and queries are functions of fixed seeds, and kernels give the same bits everywhere, so these figures are the same on every
//! machine; `docs/serving.md` quotes them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use testudo::serve::{Budget, Digits, Options, Output};
use testudo_kernels::optimizer::{Slice, StepInputs};
use testudo_kernels::{Batch, ModelSpec, OptimizerSpec, Philox, Purpose};
use testudo_tests::https::{Answer, Client};
use testudo_tests::served::Site;
use testudo_tests::{process, python};
use testudo_transport::pki::{write_public, write_secret};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/extract.py");

const INPUTS: usize = 32;
const CLASSES: usize = 5;
/// Rows that the equations need: each gives a class's weights and its bias one equation.
const NEEDED: usize = INPUTS + 1;

type Rows = Vec<Vec<f64>>;

fn normal(seed: u64, count: usize) -> Vec<f32> {
    let draws = Philox::new(seed, Purpose::Noise, 0, 0);
    (0..count.div_ceil(4)).flat_map(|block| draws.normal(block as u32)).take(count).collect()
}

/// A softmax regression that was trained: on examples around one centre for each class.
fn train() -> (ModelSpec, Vec<Vec<f32>>) {
    const EXAMPLES: usize = 2000;
    let spec = ModelSpec::Mlp { inputs: INPUTS, hidden: vec![], classes: CLASSES };
    let centres = normal(1, CLASSES * INPUTS);
    let mut inputs = normal(2, EXAMPLES * INPUTS);
    let labels: Vec<u32> = (0..EXAMPLES as u32).map(|e| e % CLASSES as u32).collect();
    for (row, label) in inputs.chunks_mut(INPUTS).zip(&labels) {
        for (value, centre) in row.iter_mut().zip(&centres[*label as usize * INPUTS..]) {
            *value += 0.5 * centre;
        }
    }
    let momentum = OptimizerSpec::shipped("momentum").unwrap().with("weight_decay", 1e-3);
    let mut optimizer = momentum.compile().unwrap();
    let mut model = spec.build(EXAMPLES).unwrap();
    let mut parameters = vec![vec![0.0; CLASSES * INPUTS], vec![0.0; CLASSES]];
    let mut states: Vec<Vec<Vec<f32>>> =
        parameters.iter().map(|values| vec![vec![0.0; values.len()]]).collect();
    let mut right = 0;
    for step in 1..=300 {
        let slices: Vec<&[f32]> = parameters.iter().map(Vec::as_slice).collect();
        let mut gradients = vec![Vec::new(); 2];
        let batch = Batch::new(&inputs, &labels);
        right = model.gradients(&slices, batch, &mut |i, g| gradients[i] = g.to_vec()).unwrap().correct;
        for ((values, mut slice), state) in parameters.iter_mut().zip(gradients).zip(&mut states) {
            let inputs = StepInputs { step, learning_rate: 0.3, divisor: EXAMPLES as f32 };
            let of = Slice { weights: values, gradient_to_weights: &mut slice, state };
            optimizer.update(inputs, of, &mut []).unwrap();
            *values = slice;
        }
    }
    assert!(right as usize > EXAMPLES * 8 / 10, "a model that is worth copying: {right} of {EXAMPLES}");
    (spec, parameters)
}

/// What an attacker can know of the weights: each class's, and its bias, less the mean over the classes, as softmax does not
/// change when all classes' grow alike.
fn centred(mut weights: Rows) -> Rows {
    for column in 0..NEEDED {
        let mean = weights.iter().map(|row| row[column]).sum::<f64>() / CLASSES as f64;
        weights.iter_mut().for_each(|row| row[column] -= mean);
    }
    weights
}

fn truth(parameters: &[Vec<f32>]) -> Rows {
    let rows = parameters[0].chunks(INPUTS).zip(&parameters[1]);
    centred(rows.map(|(row, bias)| row.iter().chain([bias]).map(|v| f64::from(*v)).collect()).collect())
}

fn relative_error(found: &[Vec<f64>], truth: &[Vec<f64>]) -> f64 {
    let square = |rows: &mut dyn Iterator<Item = f64>| rows.map(|v| v * v).sum::<f64>().sqrt();
    let pairs = found.iter().flatten().zip(truth.iter().flatten());
    square(&mut pairs.map(|(a, b)| a - b)) / square(&mut truth.iter().flatten().copied())
}

/// Rows that an attacker draws.
fn queries(count: usize) -> Rows {
    normal(7, count * INPUTS).chunks(INPUTS).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
}

/// What the server answers, as far as it answers; and the code with which it stops.
fn ask<T>(client: &Client, rows: &[Vec<f64>], read: impl Fn(&Answer) -> Vec<T>) -> (Vec<T>, String) {
    let mut answers = Vec::new();
    for row in rows {
        let answer = client.predict(&[row]);
        match answer.status {
            200 => answers.extend(read(&answer)),
            _ => return (answers, answer.code()),
        }
    }
    (answers, String::new())
}

fn probabilities(client: &Client, rows: &[Vec<f64>]) -> (Rows, String) {
    ask(client, rows, Answer::probabilities)
}

/// Log-odds are linear: `ln p[c] - ln p[0] = (w[c] - w[0]) x + b[c] - b[0]`, and `NEEDED` rows make a square system. What was
/// rounded to nothing is taken for `nothing`.
fn solve_equations(rows: &[Vec<f64>], answers: &[Vec<f64>], nothing: f64) -> Rows {
    let mut system: Rows = rows
        .iter()
        .zip(answers)
        .map(|(x, p)| {
            let log = |c: usize| p[c].max(nothing).ln();
            let odds = (0..CLASSES).map(|c| log(c) - log(0));
            x.iter().copied().chain([1.0]).chain(odds).collect()
        })
        .collect();
    eliminate(&mut system);
    centred((0..CLASSES).map(|c| system.iter().map(|row| row[NEEDED + c]).collect()).collect())
}

/// Gauss and Jordan, with pivots: what stands right of the square is replaced by the solutions.
fn eliminate(system: &mut [Vec<f64>]) {
    for column in 0..system.len() {
        let pivot = (column..system.len())
            .max_by(|a, b| system[*a][column].abs().total_cmp(&system[*b][column].abs()));
        system.swap(column, pivot.unwrap());
        let scale = system[column][column];
        system[column].iter_mut().for_each(|value| *value /= scale);
        let row = system[column].clone();
        for (other, values) in system.iter_mut().enumerate() {
            let factor = values[column];
            if other != column && factor != 0.0 {
                values.iter_mut().zip(&row).for_each(|(value, pivot)| *value -= factor * pivot);
            }
        }
    }
}

/// Retraining: a softmax regression fitted to the answers by gradient descent, with `decay` against overfitting.
fn retrain(rows: &[Vec<f64>], answers: &[Vec<f64>], decay: f64) -> Rows {
    let mut weights = vec![vec![0.0; NEEDED]; CLASSES];
    let mut velocity = weights.clone();
    for _ in 0..3000 {
        let mut gradient = vec![vec![0.0; NEEDED]; CLASSES];
        for (x, target) in rows.iter().zip(answers) {
            let x = || x.iter().chain([&1.0]);
            let logits = weights.iter().map(|w| w.iter().zip(x()).map(|(w, x)| w * x).sum::<f64>());
            let e: Vec<f64> = logits.map(f64::exp).collect();
            let (sum, total) = (e.iter().sum::<f64>(), target.iter().sum::<f64>());
            for ((gradient, e), target) in gradient.iter_mut().zip(&e).zip(target) {
                let slope = (e / sum - target / total) / rows.len() as f64;
                gradient.iter_mut().zip(x()).for_each(|(g, x)| *g += slope * x);
            }
        }
        for ((w, v), g) in
            weights.iter_mut().flatten().zip(velocity.iter_mut().flatten()).zip(gradient.iter().flatten())
        {
            *v = 0.9 * *v + g + decay * *w;
            *w -= 0.5 * *v;
        }
    }
    centred(weights)
}

/// The attacker's best of several guesses: it is judged as if it knew which one that is.
fn best(truth: &[Vec<f64>], guesses: impl Iterator<Item = Rows>) -> f64 {
    guesses.map(|guess| relative_error(&guess, truth)).fold(f64::INFINITY, f64::min)
}

/// With answers in units of `digit`: of what was rounded to nothing, several parts of one are tried.
fn best_solution(truth: &[Vec<f64>], rows: &[Vec<f64>], answers: &[Vec<f64>], digit: f64) -> f64 {
    best(truth, [0.05, 0.1, 0.25, 0.5].into_iter().map(|part| solve_equations(rows, answers, part * digit)))
}

fn best_fit(truth: &[Vec<f64>], rows: &[Vec<f64>], answers: &[Vec<f64>]) -> f64 {
    best(truth, [0.0, 1e-4, 1e-3].into_iter().map(|decay| retrain(&rows[..answers.len()], answers, decay)))
}

/// `found`, made larger or smaller so that it comes nearest to `truth`.
fn scaled(found: Rows, truth: &[Vec<f64>]) -> Rows {
    let dot = |a: &[Vec<f64>], b: &[Vec<f64>]| {
        a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| a * b).sum::<f64>()
    };
    let scale = dot(&found, truth) / dot(&found, &found);
    found.into_iter().map(|row| row.into_iter().map(|v| v * scale).collect()).collect()
}

struct Victim {
    site: Site,
    truth: Rows,
}

impl Victim {
    fn new() -> Victim {
        let (spec, parameters) = train();
        Victim { site: Site::new(&spec, &parameters), truth: truth(&parameters) }
    }

    /// Runs `attack` against a server with these options, as a client that has a token.
    fn under<T>(&self, options: &Options, attack: impl FnOnce(&Client) -> T) -> T {
        let token = self.site.token("eve");
        let running = self.site.serve(options).unwrap();
        attack(&running.client().with_token(&token))
    }

    fn unlimited(&self) -> Options {
        let mut options = self.site.options();
        (options.limits.budget, options.limits.rate) = (Some(Budget::Unlimited), 1_000_000);
        options
    }
}

/// At full precision, as many rows as the equations need give the weights. At the defaults, the same rows do not; and with
/// them the budget is spent, long before the ten times as many rows that retraining would like.
#[test]
fn equations_give_a_model_away_at_full_precision_and_not_at_the_defaults() {
    let victim = Victim::new();
    let rows = queries(10 * NEEDED);
    let needed = &rows[..NEEDED];
    let full = Options { output: Output::Probabilities(Digits::Full), ..victim.unlimited() };
    let error = victim.under(&full, |client| {
        let (answers, stopped) = probabilities(client, needed);
        assert_eq!((answers.len(), stopped.as_str()), (NEEDED, ""));
        relative_error(&solve_equations(needed, &answers, 0.0), &victim.truth)
    });
    println!("full precision, {NEEDED} rows, equations: relative error {error:.1e}");
    assert!(error < 1e-3, "{error}");

    let (solved, fitted) = victim.under(&victim.site.options(), |client| {
        let (answers, stopped) = probabilities(client, &rows);
        assert_eq!((answers.len(), stopped.as_str()), (NEEDED, "budget_spent"));
        // And it stays so.
        assert_eq!(client.predict(&rows[..1]).code(), "budget_spent");
        (best_solution(&victim.truth, needed, &answers, 0.01), best_fit(&victim.truth, &rows, &answers))
    });
    println!(
        "two digits, {NEEDED} rows: equations {solved:.2}, retraining {fitted:.2}; then the budget is spent"
    );
    assert!(solved > 0.2 && fitted > 0.2, "{solved} {fitted}");
}

/// What rounding alone does not stop, and so what the budget is for: the documents say this in as many words.
#[test]
fn without_a_budget_rounding_is_no_wall() {
    let victim = Victim::new();
    let rows = queries(10 * NEEDED);
    let unit = |at: usize| (0..INPUTS).map(|i| f64::from(u8::from(i + 1 == at))).collect();
    let units: Rows = (0..NEEDED).map(unit).collect();
    let fits = victim.under(&victim.unlimited(), |client| {
        let (answers, _) = probabilities(client, &rows);
        let (chosen, _) = probabilities(client, &units);
        let chosen = best_solution(&victim.truth, &units, &chosen, 0.01);
        println!("two digits, {NEEDED} rows, one input at a time: equations {chosen:.2}");
        assert!((0.02..0.3).contains(&chosen), "{chosen}");
        [2, 5, 10].map(|times| {
            let error = best_fit(&victim.truth, &rows, &answers[..times * NEEDED]);
            println!("two digits, {times} times the rows, retraining: {error:.3}");
            error
        })
    });
    assert!(fits[2] < 0.05 && fits[2] <= fits[0], "{fits:?}");

    let coarse = Options { output: Output::Probabilities(Digits::Rounded(1)), ..victim.unlimited() };
    let error = victim
        .under(&coarse, |client| best_solution(&victim.truth, &units, &probabilities(client, &units).0, 0.1));
    println!("one digit, {NEEDED} rows, one input at a time: equations {error:.2}");
    assert!(error > 0.5, "{error}");

    let labels = Options { output: Output::Labels, ..victim.unlimited() };
    let error = victim.under(&labels, |client| {
        let (labels, _) = ask(client, &rows, Answer::labels);
        let answers = labels
            .iter()
            .map(|label| (0..CLASSES).map(|c| f64::from(u8::from(c as u64 == *label))).collect());
        let answers: Rows = answers.collect();
        // Labels do not say how sure the model is; the attacker is judged as if it had been told.
        let fits = [1e-4, 1e-3, 1e-2].map(|decay| scaled(retrain(&rows, &answers, decay), &victim.truth));
        best(&victim.truth, fits.into_iter())
    });
    println!("labels alone, ten times the rows, retraining: {error:.2}");
    assert!(error > 0.2, "{error}");
}

/// Python's own HTTPS and NumPy, which know nothing of this code: they are answered by token and by certificate, find the
/// same weights, and get no further than TLS 1.3.
#[test]
fn python_is_served_and_finds_the_same_weights() {
    let Some(python) = python::with("numpy, ssl") else { return };
    let victim = Victim::new();
    let site = &victim.site;
    let options = Options {
        output: Output::Probabilities(Digits::Full),
        client_ca: Some(site.at("ca.pem")),
        ..victim.unlimited()
    };
    let token = site.token("mallory");
    let running = site.serve(&options).unwrap();
    let (port, ca) = (running.address.port().to_string(), site.at("ca.pem"));
    let ask = |more: &[&str]| {
        let arguments = [&[SCRIPT, &port, ca.to_str().unwrap()], more].concat();
        process::run(&python, &arguments, site.path()).succeeded().stdout
    };
    let found: Rows = serde_json::from_str(&ask(&[&token, &INPUTS.to_string()])).unwrap();
    let error = relative_error(&found, &victim.truth);
    assert!(error < 1e-3, "{error}");

    let (chain, key) = site.certified_pem(&["spiffe://t/job/j/actor/python"]);
    let (cert_file, key_file) = (site.at("python.pem"), site.at("python-key.pem"));
    write_public(&cert_file, chain.as_bytes()).unwrap();
    write_secret(&key_file, key.as_bytes()).unwrap();
    let answer = ask(&[cert_file.to_str().unwrap(), key_file.to_str().unwrap()]);
    assert!(answer.contains("\"probabilities\""), "{answer}");

    let versions = ask(&[]);
    let lines: Vec<&str> = versions.lines().collect();
    let [new, old] = lines[..] else { panic!("{versions}") };
    assert_eq!(new, "TLSv1_3 {\"status\":\"up\"}");
    assert!(old.starts_with("TLSv1_2 refused"), "{old}");
}

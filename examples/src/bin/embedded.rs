//! A whole cluster in this process: three workers and two servers learn to tell rings apart, over sessions with MACs.
//!
//!     cargo run -p testudo-examples --bin embedded

use testudo::{Job, Report};
use testudo_examples::{Rings, network};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let running = Job::builder()
        .name("rings")
        .model(network())
        .data(Rings { seed: 1, examples: 3000 }, Rings { seed: 2, examples: 600 })
        .optimizer("adam")
        .learning_rate(0.01)
        .workers(3)
        .servers(2)
        .logical_shards(6)
        .batch_size(150)
        .epochs(15)
        .evaluate_every(100)
        .start()?;
    for report in running.reports() {
        match report {
            Report::Step(step) if step.step % 50 == 0 => {
                println!("step {:>3}  loss {:.3}", step.step, step.loss)
            }
            Report::Evaluated(found) => println!("step {:>3}  accuracy {:.3}", found.step, found.accuracy),
            _ => {}
        }
    }
    let trained = running.wait()?;
    println!("{} steps, test accuracy {:.3}", trained.finished.steps, trained.finished.test_accuracy);
    // The same for any number of workers and servers, and for the same job in processes.
    println!("parameters {}", trained.params_blake3());
    for parameter in &trained.parameters {
        println!("  {} {:?}", parameter.name, parameter.dims);
    }
    Ok(())
}

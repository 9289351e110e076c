//! An actor of one's own: it collects a job's evaluations, tells whoever asks which was best, and streams what it has to a listener.
//!     cargo run -p testudo-examples --bin own_actor

use std::time::Duration;

use serde::{Deserialize, Serialize};
use testudo::actor::{Actor, Context, Flow, Flows, Grants, Handle, Message, OwnActor, Trouble, Who};
use testudo::{Job, Report};
use testudo_examples::{Rings, network};

/// What an evaluation found.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Validation {
    step: u64,
    loss: f64,
    accuracy: f64,
}

impl Message for Validation {
    const KIND: u8 = 128;
    const NAME: &'static str = "validation";
    const MOST: u32 = 32;
    type Answer = ();
}

/// Which evaluation was best?
#[derive(Serialize, Deserialize)]
struct Best;

impl Message for Best {
    const KIND: u8 = 129;
    const NAME: &'static str = "best";
    type Answer = Validation;
}

/// All evaluations so far, one by one.
#[derive(Serialize, Deserialize)]
struct Curve;

impl Message for Curve {
    const KIND: u8 = 130;
    const NAME: &'static str = "curve";
    type Answer = Validation;
}

#[derive(Default)]
struct Collector(Vec<Validation>);

impl Actor for Collector {}

impl Handle<Validation> for Collector {
    fn handle(&mut self, found: Validation, _: &Context<'_>) -> Result<(), Trouble> {
        self.0.push(found);
        Ok(())
    }
}

impl Handle<Best> for Collector {
    fn handle(&mut self, _: Best, _: &Context<'_>) -> Result<Validation, Trouble> {
        let best = self.0.iter().min_by(|a, b| a.loss.total_cmp(&b.loss));
        best.cloned().ok_or_else(|| Trouble::Refused("nothing is evaluated yet".into()))
    }
}

impl Flows<Curve> for Collector {
    fn open(&mut self, _: Curve, mut flow: Flow<Curve>, _: &Context<'_>) -> Result<(), Trouble> {
        let all = self.0.clone();
        std::thread::spawn(move || {
            all.into_iter().all(|found| flow.send_blocking(found).is_ok()).then(|| flow.finish())
        });
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (driver, collector) = ([Who::actor("driver")], [Who::actor("collector")]);
    let grants = Grants::none().allow::<Validation>(&driver, &collector)?;
    let grants = grants.allow::<Best>(&driver, &collector)?.allow::<Curve>(&driver, &collector)?;
    let job = Job::builder().name("watched").model(network()).grants(grants).evaluate_every(20);
    let job = job.data(Rings { seed: 1, examples: 1500 }, Rings { seed: 2, examples: 300 });
    let running = job.optimizer("adam").learning_rate(0.01).batch_size(150).epochs(15).start()?;
    let actors = running.actors();
    let own = OwnActor::new(Collector::default).hears::<Validation>().hears::<Best>().flows::<Curve>();
    let actor = actors.start("collector", own)?;
    let remote = actors.caller("driver")?.to(actor.id(), actor.address());
    for report in running.reports() {
        if let Report::Evaluated(on) = report {
            remote.tell_blocking(&Validation { step: on.step, loss: on.loss, accuracy: on.accuracy })?;
        }
    }
    running.wait()?;
    let best = remote.ask_blocking(&Best, Duration::from_secs(10))?;
    let mut curve = remote.subscribe_blocking(&Curve)?;
    while let Some(found) = curve.next_blocking()? {
        println!("step {:>3}  loss {:.3}  accuracy {:.3}", found.step, found.loss, found.accuracy);
    }
    println!("best at step {}: accuracy {:.3}", best.step, best.accuracy);
    Ok(actor.stop()?)
}

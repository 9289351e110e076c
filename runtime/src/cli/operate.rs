//! `testudo status`, `pause`, `resume`, `stop` and `scale`: an operator and the scheduler of a run, over the transport that nodes use.
//!
//! A run is named by its directory, where its address and an operator's identity are, or by the two options that say the same
//! of a cluster. Who may command is decided by the identity shown, in the handshake; there is no other way in.

use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use testudo_actors::link::Network;
use testudo_actors::message::Outcome;
use testudo_actors::operator::{Answered, Line, OperatorError};
use testudo_transport::{Endpoint, Identity, Role, SpiffeId, TransportConfig};

use crate::cli::node::heed_crl;
use crate::config::Config;
use crate::control::Control;
use crate::error::{Failure, Status};
use crate::node::transport;
use crate::process::user;
use crate::report::status;
use crate::rundir::RunDir;
use crate::say::say;

/// Which run an operator means, and who the operator is.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// The directory of a run on this machine; it says where the scheduler is and holds an operator's identity
    pub(super) run_dir: Option<PathBuf>,
    /// The folder with the operator's ca.pem, cert.pem and key.pem [default: the run directory's]
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// Where the scheduler is [default: the run directory's, or cluster.scheduler]
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) scheduler: Option<String>,
    /// The cluster file, for cluster.scheduler and the settings of the network
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Stay root, if this is root, instead of going on as the run's user
    #[arg(long)]
    allow_root: bool,
}

/// `testudo status`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo status runs/mnist-20261123T081613Z
  testudo status runs/mnist-20261123T081613Z --watch --every 5
  testudo status --scheduler 10.0.0.1:4800 --identity identities/operator-0 --json")]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    target: Target,
    /// Go on until the run ends
    #[arg(long)]
    watch: bool,
    /// Seconds between two reports with --watch
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    every: f64,
    /// Print one JSON object for each report
    #[arg(long)]
    json: bool,
}

/// `testudo pause`, `resume` and `stop`
#[derive(Debug, Args)]
pub(crate) struct CommandArguments {
    #[command(flatten)]
    target: Target,
    /// Print one JSON object on the last line of standard output: scheduler, which says what it did
    #[arg(long)]
    json: bool,
}

/// `testudo scale`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo scale runs/mnist-20261123T081613Z --workers 4")]
pub(crate) struct ScaleArguments {
    #[command(flatten)]
    target: Target,
    /// How many workers the run goes on with, up to cluster.max_workers
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// Print one JSON object on the last line of standard output: workers, and scheduler, which says what it did
    #[arg(long)]
    json: bool,
}

pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.02..=86_400.0).contains(&number) => Ok(number),
        _ => Err("a number from 0.02 to 86400 is needed".into()),
    }
}

/// What an operator commands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Pause,
    Resume,
    Stop,
}

pub(super) fn operate(arguments: &CommandArguments, operation: Operation) -> Result<(), Failure> {
    let Found::Scheduler(site) = arguments.target.find()? else {
        return Err(over(&arguments.target));
    };
    let answer = site.run(async |line| match operation {
        Operation::Pause => line.pause().await,
        Operation::Resume => line.resume().await,
        Operation::Stop => line.stop().await,
    })?;
    answered(answer, arguments.json.then(|| json!({})))
}

pub(super) fn scale(arguments: &ScaleArguments) -> Result<(), Failure> {
    let Found::Scheduler(site) = arguments.target.find()? else {
        return Err(over(&arguments.target));
    };
    let answer = site.run(async |line| line.scale(arguments.workers).await)?;
    answered(answer, arguments.json.then(|| json!({ "workers": arguments.workers })))
}

/// Prints what the scheduler did, for a program beside what `object` holds already; or fails with why it did nothing.
pub(super) fn answered(answer: Answered, object: Option<Value>) -> Result<(), Failure> {
    match (answer, object) {
        (Ok(done), Some(mut object)) => {
            object["scheduler"] = done.into();
            say!("{object}");
            Ok(())
        }
        (Ok(done), None) => {
            say!("{done}");
            Ok(())
        }
        (Err(message), _) => Err(Failure { message, status: Status::Refused }),
    }
}

pub(super) fn over(target: &Target) -> Failure {
    let dir = target.run_dir.as_deref().unwrap_or(std::path::Path::new("."));
    let message = format!("no run goes on in {}: it has not begun, or is over", dir.display());
    Failure { message, status: Status::Unreachable }
}

pub(super) fn status(arguments: &StatusArguments) -> Result<(), Failure> {
    let site = match arguments.target.find()? {
        Found::Scheduler(site) => site,
        Found::Summary(text) => return summary(&text, arguments.json),
        Found::Nothing => return Err(over(&arguments.target)),
    };
    let job = site.identity.id().job().to_owned();
    let every_ms = (arguments.every * 1e3) as u32;
    let screen = arguments.watch && !arguments.json && std::io::stdout().is_terminal();
    site.enter(async |line| {
        let (commands, mut reports) = line.follow(every_ms, true).await.map_err(unreachable)?;
        loop {
            let report = reports.next().await.map_err(unreachable)?;
            let text = match arguments.json {
                true => format!("{}\n", status::json(&job, &report)),
                false => status::table(&job, &report),
            };
            // Cursor home, and whatever was below is cleared.
            let (before, after) = if screen { ("\x1b[H\x1b[2J", "") } else { ("", "") };
            let mut out = std::io::stdout().lock();
            write!(out, "{before}{text}{after}").and_then(|()| out.flush()).map_err(Failure::failed)?;
            match report.outcome {
                Some(Outcome::Failed(reason) | Outcome::ServerLost(reason)) if arguments.watch => {
                    return Err(Failure::failed(reason));
                }
                None if arguments.watch => {}
                _ => {
                    commands.close();
                    return Ok(());
                }
            }
        }
    })
}

pub(super) fn summary(text: &str, json: bool) -> Result<(), Failure> {
    let summary: serde_json::Value = serde_json::from_str(text).map_err(Failure::failed)?;
    if json {
        say!("{}", serde_json::json!({ "state": "finished", "summary": summary }));
    } else {
        say!("the run is over: step {}, test accuracy {}", summary["steps"], summary["test_accuracy"]);
    }
    Ok(())
}

pub(super) fn unreachable(error: OperatorError) -> Failure {
    let status = match error {
        OperatorError::Unreachable { .. } => Status::Unreachable,
        _ => Status::Failed,
    };
    Failure { message: error.to_string(), status }
}

/// What a target leads to.
#[derive(Debug)]
pub(super) enum Found {
    Scheduler(Box<Site>),
    /// The summary of a run that is over.
    Summary(String),
    Nothing,
}

/// A scheduler, and who talks to it.
#[derive(Debug)]
pub(super) struct Site {
    address: String,
    scheduler: SpiffeId,
    pub(super) identity: Identity,
    config: Option<Config>,
}

impl Target {
    pub(super) fn find(&self) -> Result<Found, Failure> {
        Ok(self.find_and(|_, _| Ok(()))?.0)
    }

    /// What this leads to, and what `first` makes of it while files of root and of the run's user alike can be read.
    pub(super) fn find_and<T>(
        &self,
        first: impl FnOnce(Option<&RunDir>, &Identity) -> Result<T, Failure>,
    ) -> Result<(Found, Option<T>), Failure> {
        let run = self.run_dir.as_deref().map(RunDir::open).transpose().map_err(Failure::misconfigured)?;
        let config = match (&self.config, &run) {
            (Some(file), _) => Some(file.clone()),
            (None, Some(run)) => Some(run.cluster_file()).filter(|file| file.exists()),
            (None, None) => None,
        };
        let owner = run.as_ref().and_then(|run| run.owner().ok());
        let config = config
            .map(|file| Config::load::<&str>(&file, &[]))
            .transpose()
            .map_err(Failure::misconfigured)?;
        // What the run left behind is its user's; and whoever commands has no more need to be root than it.
        let user = match (owner, &config) {
            (Some(owner @ 1..), _) => owner.to_string(),
            (_, Some(config)) => config.security.run_as.clone(),
            _ => user::NOBODY.to_owned(),
        };
        let user = user::plan(&user, self.allow_root).map_err(Failure::misconfigured)?;
        if let Some(user) = &user {
            testudo_transport::pki::trust_owner(user.uid());
        }
        let control = match &run {
            Some(run) if self.scheduler.is_none() => match Control::read(run)? {
                Some(control) => Some(control),
                None => {
                    let over = match std::fs::read_to_string(run.summary()) {
                        Ok(text) => Found::Summary(text),
                        Err(_) => Found::Nothing,
                    };
                    return Ok((over, None));
                }
            },
            _ => None,
        };
        let told = config.as_ref().and_then(|c| c.cluster.scheduler.clone());
        let address = self.scheduler.clone().or(control.map(|c| c.scheduler)).or(told);
        let address = address.ok_or_else(|| {
            Failure::misconfigured(
                "which run? name its directory, or give --scheduler HOST:PORT and --identity DIR",
            )
        })?;
        let identity = match (&self.identity, &run) {
            (Some(dir), _) => Identity::load(dir),
            (None, Some(run)) => Identity::load(&run.identity(Role::Operator.as_str(), 0)),
            (None, None) => {
                return Err(Failure::misconfigured(
                    "who commands? give the folder of an operator's identity with --identity",
                ));
            }
        }
        .map_err(Failure::misconfigured)?;
        let id = identity.id();
        if id.role() != Role::Operator {
            return Err(Failure::misconfigured(format!(
                "the identity given is that of {}: only an operator commands",
                id.short()
            )));
        }
        let scheduler = SpiffeId::new(id.trust_domain(), id.job(), Role::Scheduler, "0")
            .map_err(Failure::misconfigured)?;
        if let Some(config) = &config {
            heed_crl(config, &identity)?;
        }
        let first = first(run.as_ref(), &identity)?;
        if let Some(user) = user {
            user.take_over().map_err(Failure::misconfigured)?;
        }
        Ok((Found::Scheduler(Box::new(Site { address, scheduler, identity, config })), Some(first)))
    }
}

impl Site {
    /// Asks one thing.
    pub(super) fn run(
        &self,
        ask: impl AsyncFnOnce(&mut Line) -> Result<Answered, OperatorError>,
    ) -> Result<Answered, Failure> {
        self.enter(async |mut line| {
            let answer = ask(&mut line).await.map_err(unreachable)?;
            line.close();
            Ok(answer)
        })
    }

    /// Does something on a line to the scheduler.
    pub(super) fn enter<T>(&self, act: impl AsyncFnOnce(Line) -> Result<T, Failure>) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::failed(format!("no threads could be started: {e}")))?;
        runtime.block_on(async {
            let network = self.network().await?;
            let line = Line::dial(&network, &self.address, &self.scheduler).await.map_err(unreachable)?;
            let result = act(line).await;
            network.close("done").await;
            result
        })
    }

    async fn network(&self) -> Result<Network, Failure> {
        let listen = SocketAddr::new(self.local_ip().await?, 0);
        let transport = match &self.config {
            Some(config) => transport(config, Role::Operator, listen, 0),
            None => TransportConfig { listen, accepts: false, ..TransportConfig::default() },
        };
        // What operators say and hear is as large whatever the size of slices.
        let slice_bytes = self.config.as_ref().map_or(1 << 20, |c| c.transport.slice_bytes);
        let policy = testudo_actors::policy::policy(slice_bytes).map_err(Failure::failed)?;
        let endpoint = Endpoint::bind(&transport, self.identity.clone(), Arc::new(policy));
        Ok(Network::Quic(endpoint.map_err(Failure::failed)?))
    }

    /// The address of this machine from which the scheduler is reached: no other is bound.
    async fn local_ip(&self) -> Result<IpAddr, Failure> {
        let lost = |why: String| Failure {
            message: format!("the scheduler at {} cannot be reached: {why}", self.address),
            status: Status::Unreachable,
        };
        let mut addresses = tokio::net::lookup_host(&self.address).await.map_err(|e| lost(e.to_string()))?;
        let remote = addresses.next().ok_or_else(|| lost("the name has no address".into()))?;
        let any = match remote.is_ipv4() {
            true => SocketAddr::from(([0, 0, 0, 0], 0)),
            false => SocketAddr::from(([0_u16; 8], 0)),
        };
        // A connected UDP socket sends nothing and hears nobody else; it only asks for the route.
        let route = UdpSocket::bind(any).and_then(|socket| {
            socket.connect(remote)?;
            socket.local_addr()
        });
        Ok(route.map_err(|e| lost(e.to_string()))?.ip())
    }
}

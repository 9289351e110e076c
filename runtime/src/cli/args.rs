//! What the command line takes.

use std::num::NonZeroU32;
use std::path::PathBuf;

use super::replay::ReplayArguments;
use super::sign::SignArguments;
use super::verify::VerifyArguments;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::audit::AuditArguments;
use super::operate::{CommandArguments, ScaleArguments, StatusArguments};
use super::pki::enrol::{InstallArguments, IssueArguments, RenewArguments, RequestArguments};
use super::pki::join::{JoinArguments, ServeArguments, TokenArguments};
use crate::cli::checkpoint::CheckpointArguments;

/// Distributed training where the network is not trusted.
#[derive(Debug, Parser)]
#[command(
    name = "testudo",
    version,
    about = "Distributed training where the network is not trusted",
    after_help = super::reference::overview()
)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a commented cluster file, which can be run as it stands
    Init(super::init::InitArguments),
    /// Train: start a whole cluster on this machine, follow it, and leave a model behind
    Run(RunArguments),
    /// Run one node of a cluster whose scheduler is at cluster.scheduler
    Node(NodeArguments),
    /// Run one node on this host for a launcher on another machine
    #[command(hide = true)]
    Hosted(super::hosted::HostedArguments),
    /// Make and show the identities of a job
    Pki(PkiArguments),
    /// Sign a cluster file as an operator, for a cluster that is started node by node
    Job(JobArguments),
    /// Write a cluster file out for Slurm, as a batch script, or for Kubernetes, as manifests
    Deploy(super::deploy::DeployArguments),
    /// Show how a run is doing, node by node
    Status(StatusArguments),
    /// Watch a run on a terminal: loss, throughput, nodes, queues, credits and refusals
    Top(super::top::TopArguments),
    /// Let the steps under way end and begin no other until `testudo resume`
    #[command(after_help = "Examples:
  testudo pause runs/mnist-20261123T081613Z
  testudo pause --scheduler 10.0.0.1:4800 --identity identities/operator-0")]
    Pause(CommandArguments),
    /// Let steps begin again
    #[command(after_help = "Examples:
  testudo resume runs/mnist-20261123T081613Z
  testudo resume --scheduler 10.0.0.1:4800 --identity identities/operator-0")]
    Resume(CommandArguments),
    /// End a run in order, with a model of the steps that were taken
    #[command(after_help = "Examples:
  testudo stop runs/mnist-20261123T081613Z
  testudo stop --config cluster.toml --identity identities/operator-0")]
    Stop(CommandArguments),
    /// Go on with more workers, or fewer
    Scale(ScaleArguments),
    /// Take nodes' certificates back, at once, in a run that goes on
    Revoke(super::revoke::RunRevokeArguments),
    /// List, check, open, export and delete the training checkpoints of a run
    Checkpoint(CheckpointArguments),
    /// Compute a step of a run again, and confirm or refute what the run recorded of it
    Replay(ReplayArguments),
    /// Check and show the audit log of a run
    Audit(AuditArguments),
    /// Sign a model: its folder's files, into DIR/model.sig
    Sign(SignArguments),
    /// Check that a model is what was signed, and by whom
    Verify(VerifyArguments),
    /// Answer clients' requests for predictions of a signed model, over HTTPS
    Serve(Box<super::serve::ServeArguments>),
    /// Continue a text with a signed model of bytes, onto standard output
    Sample(super::sample::SampleArguments),
    /// Name everything that is wrong with a cluster's directory and with this machine
    Doctor(super::doctor::DoctorArguments),
    /// Measure this build on this machine
    Bench(BenchArguments),
    /// Print a script with which a shell completes this command's line
    Completions(super::completions::CompletionsArguments),
    /// Write manual pages, one for each command
    Man(super::manual::ManArguments),
}

/// `testudo run`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo run examples/mnist.toml
  testudo run examples/mnist.toml --workers 4 --set training.epochs=1 --json
  testudo run --resume runs/mnist-20261123T081613Z --workers 8")]
pub(crate) struct RunArguments {
    /// The cluster file
    #[arg(required_unless_present = "resume")]
    pub(crate) file: Option<PathBuf>,
    /// Go on with the run in this directory from its newest checkpoint, with its cluster file; --workers, --servers and
    /// --set still apply
    #[arg(long, value_name = "RUN_DIR", conflicts_with_all = ["file", "run_dir"])]
    pub(crate) resume: Option<PathBuf>,
    /// Go on from the checkpoint at this step instead; newer ones are put aside
    #[arg(long, value_name = "N", requires = "resume")]
    pub(crate) step: Option<u64>,
    /// The age identity that opens the checkpoint, if checkpoint.recipients names others than the run's own key
    #[arg(long, value_name = "FILE", requires = "resume")]
    pub(crate) identity_file: Option<PathBuf>,
    /// Workers, instead of cluster.workers
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<u32>,
    /// Servers, instead of cluster.servers
    #[arg(long, value_name = "N")]
    pub(crate) servers: Option<u32>,
    /// Override a key of the cluster file, for instance training.epochs=1 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The run directory, which must not exist [default: output.dir/JOB-TIME]
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Stay root, if this is root, instead of going on as security.run_as
    #[arg(long)]
    pub(crate) allow_root: bool,
    /// Print no progress and no summary
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Show the run in a browser: serve a page on 127.0.0.1, at PORT or one that the system chooses, and print the link that opens
    /// it, once
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    pub(crate) dashboard: Option<u16>,
    /// Print one JSON object on the last line of standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// Roles of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeRole {
    /// Leases the work and follows the steps
    Scheduler,
    /// Keeps parameters
    Server,
    /// Computes gradients
    Worker,
    /// A server and a worker in one process: what they have for each other crosses no network (cluster.placement =
    /// "colocated")
    Peer,
}

/// `testudo node`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo node --role scheduler --config cluster.toml --identity identities/scheduler-0
  testudo node --role worker --index 3 --config cluster.toml --identity identities/worker-3 --log worker-3.log")]
pub(crate) struct NodeArguments {
    /// What this node is
    #[arg(long, env = "DMLC_ROLE")]
    pub(crate) role: NodeRole,
    /// Which one of its role, from 0 [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) index: Option<u32>,
    /// The cluster file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The folder with this node's ca.pem, cert.pem and key.pem [default: security.ca, .cert and .key]; a peer's server's
    #[arg(long, value_name = "DIR")]
    pub(crate) identity: Option<PathBuf>,
    /// The folder with the same files of a peer's worker
    #[arg(long, value_name = "DIR", requires = "identity")]
    pub(crate) worker_identity: Option<PathBuf>,
    /// Where the scheduler is, instead of cluster.scheduler
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) scheduler: Option<String>,
    /// Bind the address at which this machine reaches the scheduler instead of network.listen; a scheduler, the address
    /// at which it is reached
    #[arg(long)]
    pub(crate) listen_by_scheduler: bool,
    /// The signed job, for a scheduler [default: the cluster file with the ending .job]
    #[arg(long, value_name = "FILE")]
    pub(crate) job: Option<PathBuf>,
    /// Where the scheduler writes metrics.jsonl and a worker writes the final model [default: the cluster file's folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// The age identity that opens the checkpoint which the job resumes from, for a server [default: the run
    /// directory's checkpoint/key.txt]
    #[arg(long, value_name = "FILE")]
    pub(crate) identity_file: Option<PathBuf>,
    /// The folder with the key that signs the audit log, for a scheduler: an identity of role actor, name audit [default: the
    /// run directory's identities/audit, if there is one]
    #[arg(long, value_name = "DIR")]
    pub(crate) audit_identity: Option<PathBuf>,
    /// Write what the run came to into this file, as `testudo run` writes summary.json, for a scheduler; it is empty until the run
    /// has ended in order
    #[arg(long, value_name = "FILE")]
    pub(crate) summary: Option<PathBuf>,
    /// Write the log to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Stay root, if this is root, instead of going on as security.run_as
    #[arg(long)]
    pub(crate) allow_root: bool,
    /// Take what the launcher hands over by the socket that is standard input, and end when that does: no node outlives its
    /// launcher
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
}

/// `testudo pki`
#[derive(Debug, Args)]
pub(crate) struct PkiArguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: PkiCommand,
}

/// The commands of `testudo pki`.
#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make the certificate authority of a job
    #[command(after_help = "Examples:
  testudo pki init ca --job mnist")]
    Init {
        /// The folder to put it in, which must not hold one yet
        dir: PathBuf,
        /// The job's name, as job.name in the cluster file
        #[arg(long, default_value = "job")]
        job: String,
        /// The trust domain, as job.trust_domain in the cluster file
        #[arg(long, default_value = "testudo.local")]
        trust_domain: String,
        /// Days until it expires
        #[arg(long, default_value_t = 365)]
        days: u32,
        /// Print one JSON object on the last line of standard output: ca, job, trust_domain, not_after
        #[arg(long)]
        json: bool,
    },
    /// On a node: make its key, and a request to have it certified
    Request(RequestArguments),
    /// On the CA's machine: grant a request
    Issue(IssueArguments),
    /// On a node: put what was issued beside its key, once it has been checked
    Install(InstallArguments),
    /// On a node: ask for the next certificate while this one is good
    Renew(RenewArguments),
    /// On the CA's machine: make a token with which one node can join, once
    Token(TokenArguments),
    /// On the CA's machine: answer nodes that have tokens, until interrupted
    Serve(ServeArguments),
    /// On a node: make its key, and have it certified by a token
    Join(JoinArguments),
    /// Take certificates back: write the CA's next list of revoked certificates, with these in it
    Revoke(super::revoke::RevokeArguments),
    /// Write the CA's next list of revoked certificates, with those of the last one, before that ends
    Crl(super::revoke::CrlArguments),
    /// Show a certificate or request, every one in a folder, or what a CA issued
    #[command(after_help = "Examples:
  testudo pki show runs/mnist-20261123T081613Z/identities/worker-0
  testudo pki show ca --json")]
    Show {
        /// A PEM file, a folder of them, or a CA's folder
        path: PathBuf,
        /// Print one JSON object on the last line
        #[arg(long)]
        json: bool,
    },
}

/// `testudo job`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo job cluster.toml --identity identities/operator-0
  testudo job --signed cluster.job --resume runs/1 --identity identities/operator-0 --out resumed.job")]
pub(crate) struct JobArguments {
    /// The cluster file
    #[arg(required_unless_present = "signed")]
    pub(crate) file: Option<PathBuf>,
    /// Sign the job in this file again, as it stands, instead of what a cluster file and the data say
    #[arg(long, value_name = "FILE", requires = "resume", conflicts_with_all = ["file", "set"])]
    pub(crate) signed: Option<PathBuf>,
    /// Sign the job so that it goes on from the newest checkpoint in this run directory, which must have been signed under the
    /// operator's own CA; one whose parts are damaged is passed over
    #[arg(long, value_name = "RUN_DIR")]
    pub(crate) resume: Option<PathBuf>,
    /// Go on from the checkpoint at this step instead; newer ones are put aside when the job begins
    #[arg(long, value_name = "N", requires = "resume")]
    pub(crate) step: Option<u64>,
    /// The age identity that opens the checkpoint [default: the run directory's checkpoint/key.txt]
    #[arg(long, value_name = "FILE", requires = "resume")]
    pub(crate) identity_file: Option<PathBuf>,
    /// Go on from no checkpoint whose signer is on this list of revoked certificates [default: what security.crl of a cluster file names]
    #[arg(long, value_name = "FILE", requires = "resume")]
    pub(crate) crl: Option<PathBuf>,
    /// The operator's folder with ca.pem, cert.pem and key.pem
    #[arg(long, value_name = "DIR")]
    pub(crate) identity: PathBuf,
    /// Where to write the signed job [default: the cluster file with the ending .job, or the file that --signed names]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Override a key of the cluster file (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print one JSON object on the last line of standard output: job, operator, out, blake3, and with --resume resumed_from_step
    #[arg(long)]
    pub(crate) json: bool,
}

/// `testudo bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

/// The benchmarks.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// One way over loopback between two processes, every message authenticated, encrypted and MACed
    #[command(after_help = "Examples:
  testudo bench transport
  testudo bench transport --message-bytes 65536 --json")]
    Transport {
        /// Bytes of a message's payload
        #[arg(long, default_value_t = 1 << 20)]
        message_bytes: usize,
        /// Mebibytes of one measurement
        #[arg(long, default_value_t = 1024)]
        mib: u64,
        /// Measurements, of which the median counts
        #[arg(long, default_value_t = 5)]
        repeat: u32,
        /// Print one JSON object on the last line
        #[arg(long)]
        json: bool,
        /// The receiving half of this benchmark
        #[arg(long, hide = true)]
        receive: Option<PathBuf>,
    },
    /// Kernels on a GPU: each one's bandwidth as a share of a copy's within the GPU's memory
    #[command(after_help = "Examples:
  testudo bench kernels --gpu 0")]
    Kernels {
        /// The GPU's number, as the driver counts from 0
        #[arg(long, default_value_t = 0)]
        gpu: u32,
        /// Mebibytes of a tensor
        #[arg(long, default_value_t = 256)]
        mib: u32,
        /// What another framework took for the same gradient steps on the same card: the file that tests/peers/torch_eager.py writes
        #[arg(long, value_name = "FILE")]
        peer: Option<PathBuf>,
        /// Print one JSON object on the last line
        #[arg(long)]
        json: bool,
    },
    /// Steps of training on MNIST: samples a second, and what accuracy they reach
    #[command(after_help = "Examples:
  testudo bench train --model mlp
  testudo bench train --model cnn --workers 4 --json")]
    Train {
        /// The network
        #[arg(long)]
        model: crate::bench::train::Network,
        /// Examples of a step and worker
        #[arg(long, default_value = "64")]
        batch: NonZeroU32,
        /// Workers, each a logical shard of the batch
        #[arg(long, default_value = "2")]
        workers: NonZeroU32,
        /// Steps that are measured
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
        steps: u64,
        /// How it travels
        #[command(flatten)]
        wire: crate::bench::Wire,
        /// The folder with MNIST's four files
        #[arg(long, value_name = "DIR", default_value = "examples/data/mnist")]
        data: PathBuf,
        /// Print one JSON object on the last line
        #[arg(long)]
        json: bool,
    },
    /// A node of a benchmark's cluster
    #[command(hide = true)]
    Node(NodeArguments),
    /// Rounds of the real actors: every worker pushes, the servers sum, every worker pulls
    #[command(after_help = "Examples:
  testudo bench pushpull
  testudo bench pushpull --workers 4 --placement colocated --json")]
    Pushpull {
        /// Workers
        #[arg(long, default_value_t = 2)]
        workers: u32,
        /// Servers [default: 1, or as many as workers if they are colocated]
        #[arg(long)]
        servers: Option<u32>,
        /// How it travels
        #[command(flatten)]
        wire: crate::bench::Wire,
        /// Mebibytes of f32 that each worker pushes and pulls in a round
        #[arg(long, default_value_t = 256)]
        mib: u32,
        /// Rounds that are measured
        #[arg(long, default_value_t = 15)]
        rounds: u64,
        /// Print one JSON object on the last line
        #[arg(long)]
        json: bool,
    },
}

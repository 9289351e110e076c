//! One way over loopback between two processes; TLS 1.3, and a MAC on every message.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use testudo_transport::bench::{Figures, Plan, policy, receive, send};
use testudo_transport::{Endpoint, Identity, JobCa, Role, SpiffeId, TransportConfig};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::error::Failure;
use crate::process::Program;
use crate::rundir::timestamp;
use crate::say::{note, say};

/// Long enough for any measurement.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// The medians of one measurement.
struct Measured {
    gb_per_second: f64,
    sender: f64,
    receiver: f64,
}

/// Measures `repeat` times and prints the medians; with `receive` set, is the receiving process instead.
///
/// # Errors
/// When a process cannot be started or the connection fails.
pub fn run(
    message_bytes: usize,
    mib: u64,
    repeat: u32,
    json: bool,
    receiving: Option<&Path>,
) -> Result<(), Failure> {
    let bytes = mib << 20;
    let messages = (bytes / message_bytes.max(1) as u64).max(1) as usize;
    let plan = Plan { message_bytes, messages, ..Plan::default() };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no threads could be started: {e}")))?;
    if let Some(identity) = receiving {
        return runtime.block_on(receiver(identity, &plan));
    }
    let mut all = Vec::new();
    for nth in 0..repeat.max(1) {
        let measured = runtime.block_on(sender(&plan))?;
        note!(
            "{}/{repeat}: {:.3} GB/s, CPU ns a byte: sender {:.2}, receiver {:.2}",
            nth + 1,
            measured.gb_per_second,
            measured.sender,
            measured.receiver
        );
        all.push(measured);
    }
    let middle = Measured {
        gb_per_second: median(all.iter().map(|m| m.gb_per_second)),
        sender: median(all.iter().map(|m| m.sender)),
        receiver: median(all.iter().map(|m| m.receiver)),
    };
    say!(
        "transport, {message_bytes} byte messages one way, mutual TLS 1.3 and BLAKE3 MAC: median {:.3} GB/s, \
         {:.2} ns CPU a byte (sender {:.2}, receiver {:.2})",
        middle.gb_per_second,
        middle.sender + middle.receiver,
        middle.sender,
        middle.receiver
    );
    if json {
        let object = serde_json::json!({
            "gb_per_second": middle.gb_per_second,
            "sender_cpu_ns_per_byte": middle.sender,
            "receiver_cpu_ns_per_byte": middle.receiver,
            "message_bytes": message_bytes,
            "repeat": repeat,
        });
        say!("{object}");
    }
    Ok(())
}

/// The middle value, or the mean of the two middle ones; 0 of nothing.
#[must_use]
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    match sorted.len() % 2 {
        1 => upper,
        _ => f64::midpoint(sorted.get((sorted.len() / 2).wrapping_sub(1)).copied().unwrap_or(upper), upper),
    }
}

fn endpoint(identity: Identity) -> Result<Endpoint, Failure> {
    let policy = policy().map_err(Failure::failed)?;
    Endpoint::bind(&TransportConfig::default(), identity, policy).map_err(Failure::failed)
}

async fn receiver(identity: &Path, plan: &Plan) -> Result<(), Failure> {
    crate::launch::local::end_with_parent();
    let endpoint = endpoint(Identity::load(identity).map_err(Failure::failed)?)?;
    say!("listening {}", endpoint.local_addr());
    let figures = receive(&endpoint, plan).await.map_err(Failure::failed)?;
    say!("{}", serde_json::to_string(&figures).map_err(Failure::failed)?);
    Ok(())
}

async fn sender(plan: &Plan) -> Result<Measured, Failure> {
    let ca = JobCa::create("bench.local", "bench", VALIDITY).map_err(Failure::failed)?;
    let id = |role| SpiffeId::new("bench.local", "bench", role, "0").map_err(Failure::failed);
    let (server, worker) = (id(Role::Server)?, id(Role::Worker)?);
    let scratch = Scratch::new()?;
    let folder = scratch.path().join("server");
    ca.issue(&server, VALIDITY).and_then(|i| i.save(&folder)).map_err(Failure::failed)?;
    let mib = (plan.messages as u64 * plan.message_bytes as u64) >> 20;
    let mut child = Command::new(Program::default().path())
        .args(["bench", "transport", "--message-bytes", &plan.message_bytes.to_string()])
        .args(["--mib", &mib.to_string(), "--receive"])
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::failed)?;
    let ended = || Failure::failed("the receiving process ended early");
    let mut lines = BufReader::new(child.stdout.take().ok_or_else(ended)?).lines();
    let first = lines.next_line().await.map_err(Failure::failed)?.ok_or_else(ended)?;
    let address = first.strip_prefix("listening ").and_then(|a| a.parse().ok()).ok_or_else(ended)?;
    let endpoint = endpoint(ca.issue(&worker, VALIDITY).map_err(Failure::failed)?)?;
    let sent = send(&endpoint, address, &server, plan).await.map_err(Failure::failed)?;
    endpoint.close(0, "done");
    let line = lines.next_line().await.map_err(Failure::failed)?.ok_or_else(ended)?;
    let received: Figures = serde_json::from_str(&line).map_err(Failure::failed)?;
    let _ = child.wait().await;
    Ok(Measured {
        gb_per_second: received.gigabytes_per_second,
        sender: sent.cpu_nanoseconds_per_byte,
        receiver: received.cpu_nanoseconds_per_byte,
    })
}

/// A folder of its own for the identities of a measurement, gone with everything in it when this is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it, for this user alone.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Scratch, Failure> {
        let name = format!("testudo-bench-{}-{}", std::process::id(), timestamp(SystemTime::now()));
        let dir = std::env::temp_dir().join(name);
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&dir)
            .map_err(|e| Failure::file(&dir, "cannot be made", e))?;
        Ok(Scratch(dir))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

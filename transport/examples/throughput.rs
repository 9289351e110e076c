//! One-way throughput between two processes over loopback, both sides' figures as JSON on the last line.
//!
//! usage: throughput [message_bytes=1048576] [messages=1024] [streams=1] [rounds=4] [mtu=65000] [threads=1]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testudo_transport::bench::{self, Figures, Plan};
use testudo_transport::{Endpoint, Identity, JobCa, Role, SpiffeId, TransportConfig};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Long enough for any measurement.
const VALIDITY: Duration = Duration::from_secs(3600);

struct Options {
    plan: Plan,
    config: TransportConfig,
    threads: usize,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((role, rest)) if role == "receive" => receive(rest),
        Some((role, rest)) if role == "send" => send(rest),
        _ => measure(&arguments),
    }
}

fn measure(settings: &[String]) -> Result<()> {
    read_options(settings)?;
    let directory = tempfile::tempdir()?;
    let ca = JobCa::create("testudo.local", "bench", VALIDITY)?;
    for role in [Role::Server, Role::Worker] {
        ca.issue(&node(role)?, VALIDITY)?.save(&directory.path().join(role.as_str()))?;
    }
    let mut receiver = start("receive", &[&path(directory.path(), Role::Server)], settings)?;
    let mut lines = BufReader::new(receiver.stdout.take().ok_or("no output")?).lines();
    let address = lines.next().ok_or("the receiver did not start")??;
    let sender = start("send", &[&path(directory.path(), Role::Worker), &address], settings)?;
    let sent = sender.wait_with_output()?;
    let sent: Figures = serde_json::from_slice(&sent.stdout)?;
    let received: Figures = serde_json::from_str(&lines.next().ok_or("the receiver said nothing")??)?;
    receiver.wait()?;

    let cpu = sent.cpu_nanoseconds_per_byte + received.cpu_nanoseconds_per_byte;
    println!(
        "best {:.2} GB/s, mean {:.2} GB/s, {cpu:.2} ns CPU a byte (sender {:.2}, receiver {:.2}), mtu {}, \
         {} of {} packets lost",
        received.best_gigabytes_per_second,
        received.gigabytes_per_second,
        sent.cpu_nanoseconds_per_byte,
        received.cpu_nanoseconds_per_byte,
        sent.mtu,
        sent.packets_lost,
        sent.packets_sent
    );
    println!("{}", serde_json::json!({ "sender": sent, "receiver": received }));
    Ok(())
}

fn receive(arguments: &[String]) -> Result<()> {
    let [directory, settings @ ..] = arguments else { return Err("receive DIRECTORY".into()) };
    let options = read_options(settings)?;
    runtime(options.threads)?.block_on(async {
        let endpoint =
            Endpoint::bind(&options.config, Identity::load(directory.as_ref())?, bench::policy()?)?;
        println!("{}", endpoint.local_addr());
        std::io::stdout().flush()?;
        let figures = bench::receive(&endpoint, &options.plan).await?;
        println!("{}", serde_json::to_string(&figures)?);
        Ok(())
    })
}

fn send(arguments: &[String]) -> Result<()> {
    let [directory, address, settings @ ..] = arguments else { return Err("send DIRECTORY ADDRESS".into()) };
    let options = read_options(settings)?;
    runtime(options.threads)?.block_on(async {
        let endpoint =
            Endpoint::bind(&options.config, Identity::load(directory.as_ref())?, bench::policy()?)?;
        let expect = node(Role::Server)?;
        let figures = bench::send(&endpoint, address.parse()?, &expect, &options.plan).await?;
        println!("{}", serde_json::to_string(&figures)?);
        Ok(())
    })
}

fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    Ok(builder.worker_threads(threads).enable_all().build()?)
}

fn start(role: &str, arguments: &[&str], settings: &[String]) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    Ok(command.arg(role).args(arguments).args(settings).stdout(Stdio::piped()).spawn()?)
}

fn node(role: Role) -> Result<SpiffeId> {
    Ok(SpiffeId::new("testudo.local", "bench", role, "0")?)
}

fn path(directory: &Path, role: Role) -> String {
    directory.join(role.as_str()).display().to_string()
}

fn read_options(settings: &[String]) -> Result<Options> {
    let mut options = Options { plan: Plan::default(), config: TransportConfig::default(), threads: 1 };
    for setting in settings {
        let (key, value) = setting.split_once('=').ok_or("settings are key=value")?;
        match key {
            "message_bytes" => options.plan.message_bytes = value.parse()?,
            "messages" => options.plan.messages = value.parse()?,
            "streams" => options.plan.streams = value.parse()?,
            "rounds" => options.plan.rounds = value.parse()?,
            "mtu" => options.config.mtu = value.parse()?,
            "threads" => options.threads = value.parse()?,
            "credit" => options.config.data_credit.bytes = value.parse()?,
            "socket_buffer" => options.config.socket_buffer = value.parse()?,
            _ => return Err(format!("no setting {key}").into()),
        }
    }
    Ok(options)
}

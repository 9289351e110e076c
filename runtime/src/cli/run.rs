//! `testudo run`: a whole cluster on this machine, from the cluster file to a model.

use std::io::{IsTerminal, Stderr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use testudo_actors::JobSpec;
use testudo_actors::message::{Finished, Phase, StatusReport};
use testudo_observability::{Environment, Source};
use testudo_transport::pki::is_ours;

use crate::checkpoint::keys::KeyFile;
use crate::checkpoint::safetensors::Metadata;
use crate::cli::args::RunArguments;
use crate::cli::naming::Naming;
use crate::cli::restart::Restarts;
use crate::cli::resume;
use crate::config::{Checkpoint, Config};
use crate::dashboard::{Dashboard, Door, Ending};
use crate::data::Data;
use crate::device;
use crate::error::{self, Failure};
use crate::launch::local::Inputs;
use crate::launch::ssh::Hosts;
use crate::process::paths::Needs;
use crate::process::{Program, Protections, calls, collector, confine, user};
use crate::report::metrics;
use crate::report::plot::{Heading, loss_svg};
use crate::report::progress::{Progress, Status, Style};
use crate::report::summary::Summary;
use crate::run::{Completed, Watcher};
use crate::rundir::{RunDir, in_words};
use crate::say::{note, say};
use crate::signing::{SigningKey, export};
use crate::{job, node, run as training};

pub(super) fn run(arguments: &RunArguments) -> Result<(), Failure> {
    let style =
        Style::choose(arguments.quiet, std::io::stderr().is_terminal(), |name| std::env::var(name).ok());
    let mut display = Display {
        progress: Progress::new(std::io::stderr(), style),
        training: None,
        stalled: None,
        bytes: false,
        dashboard: None,
    };
    let former = arguments.resume.as_deref().map(resume::open).transpose()?;
    let file = match &former {
        Some(run_dir) => run_dir.cluster_file(),
        None => arguments.file.clone().unwrap_or_default(),
    };
    let naming = Naming::of(former.as_ref(), &arguments.set)?;
    let config =
        naming.read(|| Config::load(&file, &overrides(arguments)))?.map_err(Failure::misconfigured)?;
    if config.security.files.is_some() {
        return Err(Failure::misconfigured(
            "security.ca, security.cert and security.key are for `testudo node`: `testudo run` makes identities of its own, \
             for this run alone; remove them from the cluster file",
        ));
    }
    if config.security.crl.is_some() {
        return Err(Failure::misconfigured(
            "security.crl is for `testudo node`: `testudo run` makes a CA of its own, which no other list is of; remove it from \
             the cluster file",
        ));
    }
    // Whom the run goes on as. Until then, inputs are opened and read, and nothing else is.
    let user = super::user(&config, arguments.allow_root)?;
    display.bytes = config.data.bits_per_byte(0.0).is_some();
    let data_path = config.data.path();
    let files = naming.open("data.path", data_path, || node::data_files(&config))?;
    let data = Data::read(&config, &files).map_err(Failure::misconfigured)?;
    let mut spec = job::spec(&config, data.spec());
    drop(data);
    spec.validate().map_err(Failure::misconfigured)?;
    let opening = arguments.identity_file.as_deref().map(KeyFile::open).transpose();
    let opening = opening.map_err(Failure::misconfigured)?;
    // Read before anything is started: a key that cannot be used is no reason to lose a day of training.
    let key = match &config.checkpoint {
        Checkpoint { export: false, .. } => None,
        Checkpoint { sign_key: Some(path), .. } => {
            Some(naming.open("checkpoint.sign_key", path, || SigningKey::load(path))?)
        }
        Checkpoint { sign_key: None, .. } => Some(SigningKey::generate().map_err(Failure::misconfigured)?),
    };
    let free = user::try_as(user.as_ref(), || node::check_addresses(&config));
    free.map_err(Failure::misconfigured)?.map_err(Failure::misconfigured)?;
    let devices = user::try_as(user.as_ref(), || device::look(&config));
    let devices = devices.map_err(Failure::misconfigured)??;
    let told = config.telemetry.environment();
    // Hosts have none of this process's variables.
    let of_file = config.ssh.as_ref().map(|_| config.telemetry.settings()).unwrap_or_default();
    let of_file = Environment::default().with_settings(of_file);
    let mut plaintext = told.plaintext();
    let on_hosts = of_file.plaintext();
    plaintext.extend(on_hosts.into_iter().filter(|line| !told.plaintext().contains(line)));
    // What a variable names, whoever gives this command names.
    let read = |source: &Source| match source.key() {
        Some(key) => naming.open(key, source.path(), || source.read(is_ours)),
        None => source.read(is_ours).map_err(Failure::misconfigured),
    };
    let (told, of_file) = (told.open_for_others(read)?, of_file.open_for_others(read)?);
    let held = collector::hold(&told.opened)
        .map_err(|e| Failure::failed(format!("certificates cannot be held in memory: {e}")))?;
    let hosts = Hosts::find(&config, user.as_ref(), of_file.opened)?;
    // Bound while this process may still bind.
    let door = arguments.dashboard.map(|port| {
        Door::open(port).map_err(|e| {
            Failure::misconfigured(format!("--dashboard: port {port} of 127.0.0.1 cannot be had: {e}"))
        })
    });
    let door = door.transpose()?;
    let program = Program::open(user.as_ref())
        .map_err(|e| Failure::failed(format!("this program cannot start nodes: {e}")))?;
    let run_dir = match (former, &arguments.run_dir) {
        (Some(run_dir), _) => Ok(run_dir),
        (None, Some(dir)) => RunDir::create(dir).and_then(RunDir::hold),
        (None, None) => RunDir::create_default(&config.output.dir, &config.job.name, SystemTime::now())
            .and_then(RunDir::hold),
    };
    let run_dir = run_dir.map_err(Failure::misconfigured)?;
    super::settle(&run_dir, user.as_ref(), naming.is_mine().then(|| inputs(&config)))?;
    confine(calls::Role::Launcher, needs(&config, &run_dir, &program, hosts.as_ref(), &told));
    let _lock = run_dir.lock().map_err(Failure::misconfigured)?;
    // A launcher that was killed left its link, which leads nowhere now.
    match std::fs::remove_file(run_dir.dashboard()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::file(&run_dir.dashboard(), "a former link cannot be removed", e));
        }
        _ => {}
    }
    if arguments.resume.is_some() {
        resume::check_audit_log(&run_dir, arguments.step, &[], &mut display)?;
        let opening = opening.as_ref().map(KeyFile::identities);
        spec.resume = Some(resume::from(&run_dir, &spec, arguments.step, opening)?);
        spec.validate().map_err(Failure::misconfigured)?;
    }
    if let Some(resume) = &spec.resume {
        resume::make_ready(&run_dir, resume, &spec, &mut display)?;
    }
    let (workers, servers) = (spec.workers, spec.servers);
    display.progress.note(&format!(
        "{}: {workers} worker{}, {servers} server{}, {}",
        config.job.name,
        plural(workers),
        plural(servers),
        run_dir.path().display()
    ));
    display.progress.note(&Protections::read().to_string());
    devices.iter().chain(&plaintext).for_each(|line| display.progress.note(line));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no threads could be started: {e}")))?;
    let opened = opening.as_ref().map(|opening| opening.identities().clone());
    let inputs = Inputs {
        data: Some(Arc::new(files)),
        key: opening.map(Arc::new),
        collector: held.map(Arc::new),
        residuals: spec.codecs.push.feeds_back(),
        program,
        allow_root: arguments.allow_root,
        hosts: hosts.map(Arc::new),
    };
    if let Some(door) = door {
        display.dashboard = Some(show(door, &config, &run_dir)?);
    }
    let mut restarts = Restarts::new(&run_dir, config.cluster.supervision.restarts, opened);
    let result = loop {
        let ended = runtime.block_on(training::run(&config, &spec, &run_dir, inputs.clone(), &mut display));
        let failure = match ended {
            Ok(completed) => break Ok(completed),
            Err(failure) => failure,
        };
        let (next, wait) = match restarts.go_on(failure, &spec, &mut display) {
            Ok(next) => next,
            Err(failure) => break Err(failure),
        };
        if let Err(failure) = runtime.block_on(training::pause(wait)) {
            break Err(failure);
        }
        spec = next;
    };
    display.progress.finish();
    let left = result
        .map_err(|failure| resume::with_advice(failure, &run_dir))
        .and_then(|completed| leave(&config, &spec, &run_dir, &completed, key.as_ref()));
    if let Some(dashboard) = display.dashboard.take() {
        dashboard.end(ending(&left));
    }
    let summary = left?;
    if !arguments.quiet {
        note!("\n{}", summary.table(style.color));
        resume::advise(&spec, &summary);
    }
    if arguments.json {
        say!("{}", summary.to_json_line().map_err(Failure::failed)?);
    }
    Ok(())
}

/// What the launcher still opens: all of the run directory, the program that it starts nodes of, and what starts them on hosts.
fn needs(
    config: &Config,
    run_dir: &RunDir,
    program: &Program,
    hosts: Option<&Hosts>,
    told: &Environment,
) -> Needs {
    // What nodes do, the launcher may: they inherit its confinement.
    Needs {
        read: Hosts::reads(config).iter().map(|path| path.as_path().into()).collect(),
        write: vec![run_dir.reach(run_dir.path()).as_path().into()],
        start: Some(program.clone()),
        devices: device::files_of_all(config),
        programs: hosts.map(|hosts| hosts.program().to_owned()).into_iter().collect(),
        tcp: told.exports() || hosts.is_some(),
        listen: super::node::ports(told, config),
    }
}

/// The inputs that the cluster file names.
fn inputs(config: &Config) -> Vec<PathBuf> {
    let telemetry = &config.telemetry;
    let others = [
        &config.checkpoint.sign_key,
        &telemetry.certificate,
        &telemetry.client_certificate,
        &telemetry.client_key,
    ];
    std::iter::once(config.data.path().to_owned()).chain(others.into_iter().flatten().cloned()).collect()
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// `--workers` and `--servers` come after every `--set`, so the explicit option wins.
fn overrides(arguments: &RunArguments) -> Vec<String> {
    let mut all = arguments.set.clone();
    all.extend(arguments.workers.map(|n| format!("cluster.workers={n}")));
    all.extend(arguments.servers.map(|n| format!("cluster.servers={n}")));
    all
}

/// Serves the run's page, and says where.
fn show(door: Door, config: &Config, run_dir: &RunDir) -> Result<Dashboard, Failure> {
    let dashboard = Dashboard::start(door, &config.job.name, run_dir)
        .map_err(|e| Failure::failed(format!("--dashboard: the page cannot be served: {e}")))?;
    // Also of a quiet run: who asked for the page needs its link.
    note!(
        "dashboard: {} (opens once; then another is in {})",
        dashboard.link(),
        in_words(&run_dir.dashboard().display().to_string())
    );
    Ok(dashboard)
}

/// How the run ended, as its page says it.
fn ending(left: &Result<Summary, Failure>) -> Ending {
    match left {
        Ok(summary) => Ending {
            how: if summary.stopped_early { "stopped" } else { "finished" },
            text: "The model and all figures are in the run's directory.".into(),
            summary: serde_json::to_value(summary).ok(),
        },
        Err(Failure { message, status }) => Ending {
            how: if *status == error::Status::Interrupted { "interrupted" } else { "failed" },
            text: in_words(message),
            summary: None,
        },
    }
}

/// Leaves what the run has come to in its directory.
fn leave(
    config: &Config,
    spec: &JobSpec,
    run_dir: &RunDir,
    completed: &Completed,
    key: Option<&SigningKey>,
) -> Result<Summary, Failure> {
    let mut summary = leave_results(config, spec, run_dir, completed)?;
    if let Some(key) = key {
        summary.model_key = Some(sign_model(spec, run_dir, &completed.finished, key)?);
    }
    let path = run_dir.summary();
    summary.write(&path).map_err(|e| Failure::file(&path, "cannot be written", e))?;
    Ok(summary)
}

fn leave_results(
    config: &Config,
    spec: &JobSpec,
    run_dir: &RunDir,
    completed: &Completed,
) -> Result<Summary, Failure> {
    let head = completed.audit_head.map(|head| head.to_string());
    let seconds = completed.wall_seconds;
    let summary = Summary::of(config, spec, run_dir.path(), &completed.finished, seconds, head);
    let records = metrics::read(&run_dir.metrics()).map_err(Failure::failed)?;
    let Summary { test_accuracy, bits_per_byte, workers, servers, .. } = summary;
    let heading = Heading { job: &config.job.name, test_accuracy, bits_per_byte, workers, servers };
    let plot = run_dir.loss_plot();
    let evaluations = metrics::read(&run_dir.evaluations()).map_err(Failure::failed)?;
    std::fs::write(&plot, loss_svg(&records, &evaluations, &heading))
        .map_err(|e| Failure::file(&plot, "cannot be written", e))?;
    Ok(summary)
}

/// Signs the exported model, and leaves the public key in the run directory. Returns the key's hint.
fn sign_model(
    spec: &JobSpec,
    run_dir: &RunDir,
    finished: &Finished,
    key: &SigningKey,
) -> Result<String, Failure> {
    let metadata = Metadata {
        job: spec.name.clone(),
        step: finished.steps,
        params_blake3: finished.params_blake3,
        model: job::description(&spec.model),
    };
    export::sign(&run_dir.checkpoint_final(), &spec.model, &metadata, key).map_err(Failure::failed)?;
    // A run that was resumed has the key of its last end here.
    key.public().replace(&run_dir.model_key()).map_err(Failure::failed)?;
    Ok(key.public().hint())
}

/// Shows the scheduler's reports.
struct Display {
    progress: Progress<Stderr>,
    /// When training began, as far as this process saw.
    training: Option<Instant>,
    /// What it waits for, as it was last shown.
    stalled: Option<String>,
    /// Whether what is predicted is a text's bytes.
    bytes: bool,
    /// The run's page, if it has one.
    dashboard: Option<Dashboard>,
}

impl Watcher for Display {
    fn report(&mut self, report: &StatusReport) {
        if let Some(dashboard) = &self.dashboard {
            dashboard.report(report);
        }
        if report.stalled != self.stalled {
            if let Some(stalled) = &report.stalled {
                self.progress.note(&format!("no progress: {stalled}"));
            }
            self.stalled.clone_from(&report.stalled);
        }
        if report.phase != Phase::Training {
            return;
        }
        let begun = *self.training.get_or_insert_with(Instant::now);
        let Some(loss) = report.loss else { return };
        self.progress.update(&Status {
            step: report.steps_done,
            total_steps: report.steps,
            epoch: report.epoch + 1,
            epochs: report.epochs,
            loss,
            bytes: self.bytes,
            test_accuracy: report.evaluated.map(|found| found.accuracy),
            samples_per_second: report.samples_per_second,
            elapsed_seconds: begun.elapsed().as_secs_f64(),
        });
    }

    fn notice(&mut self, text: &str) {
        let text = in_words(text);
        self.progress.note(&text);
        if let Some(dashboard) = &self.dashboard {
            dashboard.notice(&text);
        }
    }

    fn wants_nodes(&self) -> bool {
        self.dashboard.is_some()
    }
}

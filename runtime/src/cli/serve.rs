//! `testudo serve`: predictions of a signed model over HTTPS.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use testudo_observability as observability;
use testudo_transport::Identity;
use testudo_transport::pki::{CERT_FILE, KEY_FILE, is_ours, trust_owner};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

use crate::error::Failure;
use crate::process::{RunAs, user};
use crate::say::{note, say};
use crate::serve::options::{Budget, DIGITS_MOST};
use crate::serve::token::{self, Tokens};
use crate::serve::{Digits, Limits, Options, Output, Trust, confine, make_state, prepare};
use crate::signing::{PublicKey, SIGNATURE_FILE};

/// What answers say of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Say {
    /// The label, and each class's probability
    Probabilities,
    /// The label alone
    Labels,
}

/// `testudo serve`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo serve model --new-token alice
  testudo serve model --listen 127.0.0.1:8443 --public-key release.pub.pem --cert cert.pem --key key.pem")]
#[command(group(ArgGroup::new("trust").args(["public_key", "allow_unsigned"])))]
pub(crate) struct ServeArguments {
    /// The model's folder, as `testudo run` exports it into checkpoint/final
    dir: PathBuf,
    /// The address to listen on, for instance 127.0.0.1:8443
    #[arg(long, value_name = "ADDR", required_unless_present = "new_token")]
    listen: Option<SocketAddr>,
    /// The key that the model must be signed with
    #[arg(long, value_name = "PUB.pem")]
    public_key: Option<PathBuf>,
    /// Where the signature is [default: MODEL_DIR/model.sig]
    #[arg(long, value_name = "FILE", requires = "public_key")]
    signature: Option<PathBuf>,
    /// Serve whatever is in the folder, whoever put it there
    #[arg(long)]
    allow_unsigned: bool,
    /// The server's certificate chain, in PEM
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "identity")]
    cert: Option<PathBuf>,
    /// The certificate's private key, in PEM, readable by its owner alone
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// A folder with cert.pem and key.pem of `testudo pki`, instead of --cert and --key
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// Clients may show a certificate of this CA
    #[arg(long, value_name = "CA.pem")]
    client_ca: Option<PathBuf>,
    /// Lists of certificates that this CA has revoked; read again whenever the file changes
    #[arg(long, value_name = "CRL.pem", requires = "client_ca")]
    client_crl: Option<PathBuf>,
    /// The file of clients' tokens [default: tokens in the state's folder, if it is there]
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Make a token for a client, print it, and serve nothing; one that the client had is no longer good
    #[arg(long, value_name = "NAME", conflicts_with = "listen")]
    new_token: Option<String>,
    /// The folder for tokens and for what each client has had [default: MODEL_DIR with the ending .serve]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Whom to go on as before anything is listened on, if this is root: a name or a number
    #[arg(long, value_name = "USER", default_value = user::NOBODY)]
    run_as: String,
    /// Stay root, if this is root
    #[arg(long)]
    allow_root: bool,
    /// What answers say
    #[arg(long, value_enum, default_value_t = Say::Probabilities)]
    output: Say,
    /// Digits that probabilities are rounded to, 1 to 6, or full
    #[arg(long, value_name = "N", default_value = "2", value_parser = digits)]
    digits: Digits,
    /// Rows that a client may ever ask for, or unlimited [default: the model's inputs and one more]
    #[arg(long, value_name = "ROWS", value_parser = budget)]
    budget: Option<Budget>,
    /// Rows that a client may ask for in a second
    #[arg(long, value_name = "ROWS", default_value_t = Limits::default().rate)]
    rate: u32,
    /// Rows in one request
    #[arg(long, value_name = "ROWS", default_value_t = Limits::default().rows)]
    max_rows: usize,
    /// Bytes of a request's body [default: what the largest good request needs]
    #[arg(long, value_name = "BYTES")]
    max_body: Option<usize>,
    /// Connections, of clients and of anybody else
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    max_connections: usize,
    /// Connections of one address on which no client is known yet
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections_per_address)]
    max_connections_per_address: usize,
    /// Requests under way, of all clients
    #[arg(long, value_name = "N", default_value_t = Limits::default().requests)]
    max_requests: usize,
    /// Requests under way, of one client
    #[arg(long, value_name = "N", default_value_t = Limits::default().requests_per_client)]
    max_requests_per_client: usize,
    /// Seconds for a handshake, for a request's head and for its body
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
}

fn digits(text: &str) -> Result<Digits, String> {
    match text {
        "full" => Ok(Digits::Full),
        _ => match text.parse() {
            Ok(digits) if (1..=DIGITS_MOST).contains(&digits) => Ok(Digits::Rounded(digits)),
            _ => Err(format!("a number from 1 to {DIGITS_MOST}, or full, is needed")),
        },
    }
}

fn budget(text: &str) -> Result<Budget, String> {
    match text {
        "unlimited" => Ok(Budget::Unlimited),
        _ => {
            text.parse().map(Budget::Rows).map_err(|_| "a number of rows, or unlimited, is needed".to_owned())
        }
    }
}

pub(super) fn serve(arguments: &ServeArguments) -> Result<(), Failure> {
    let state = match &arguments.state {
        Some(state) => state.clone(),
        None => beside(&arguments.dir)?,
    };
    let user = user::plan(&arguments.run_as, arguments.allow_root).map_err(Failure::misconfigured)?;
    if let Some(user) = &user {
        trust_owner(user.uid());
    }
    let tokens = arguments.tokens.clone().unwrap_or_else(|| token::default_path(&state));
    if let Some(name) = &arguments.new_token {
        if arguments.tokens.is_none() {
            make_state(&state).map_err(Failure::misconfigured)?;
        }
        note!("a token for {name}; only its hash is kept, in {}:", tokens.display());
        let tell = |token: &str| {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{token}").and_then(|()| out.flush())
        };
        return Tokens::create_told(&tokens, name, tell).map_err(Failure::misconfigured);
    }
    let options = arguments.options(state, tokens, user)?;
    let told = observability::Environment::from_process().open(is_ours).map_err(Failure::misconfigured)?;
    confine(&options).map_err(Failure::misconfigured)?;
    let log = observability::Options::new("serve").with_stderr(LevelFilter::INFO);
    let guard = observability::init_with(log, &told).map_err(Failure::misconfigured)?;
    if matches!(options.trust, Trust::Unsigned) {
        tracing::warn!(
            "--allow-unsigned: NOBODY'S SIGNATURE IS CHECKED; whoever can write the model's folder chooses the answers"
        );
    }
    let prepared = prepare(&options).map_err(Failure::misconfigured)?;
    prepared.observe(&guard.meter());
    say!("listening https://{}", prepared.address());
    tracing::info!("{}", crate::process::Protections::read());
    tracing::info!("serving {}: {}", options.dir.display(), prepared.describe());
    prepared
        .run(async {
            told_to_stop().await;
            tracing::info!("told to stop: requests under way are answered first");
        })
        .map_err(Failure::failed)
}

async fn told_to_stop() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be caught");
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// The folder beside the model's: nothing may be added to a folder that is signed.
fn beside(dir: &Path) -> Result<PathBuf, Failure> {
    let dir =
        dir.canonicalize().map_err(|why| Failure::misconfigured(format!("{}: {why}", dir.display())))?;
    match dir.file_name() {
        Some(name) => {
            let mut name = name.to_owned();
            name.push(".serve");
            Ok(dir.with_file_name(name))
        }
        None => Err(Failure::misconfigured(format!(
            "{}: give a folder for the state with --state",
            dir.display()
        ))),
    }
}

impl ServeArguments {
    fn options(&self, state: PathBuf, tokens: PathBuf, user: Option<RunAs>) -> Result<Options, Failure> {
        let Some(listen) = self.listen else { return Err(Failure::misconfigured("--listen is needed")) };
        let trust = match &self.public_key {
            Some(path) => Trust::Signed {
                key: PublicKey::load(path).map_err(Failure::misconfigured)?,
                signature: self.signature.clone().unwrap_or_else(|| self.dir.join(SIGNATURE_FILE)),
            },
            None if self.allow_unsigned => Trust::Unsigned,
            None => {
                return Err(Failure::misconfigured(
                    "whose signature must the model have? Give the signer's public key with --public-key (a run leaves its \
                     own in RUN_DIR/checkpoint/model.pub.pem), or --allow-unsigned to serve whatever is in the folder",
                ));
            }
        };
        let (cert, key) = match (&self.cert, &self.key, &self.identity) {
            (Some(cert), Some(key), _) => (cert.clone(), key.clone()),
            (_, _, Some(identity)) => {
                Identity::load(identity).map_err(Failure::misconfigured)?;
                (identity.join(CERT_FILE), identity.join(KEY_FILE))
            }
            _ => {
                return Err(Failure::misconfigured(
                    "a certificate is needed: --cert FILE --key FILE, or --identity DIR of `testudo pki`",
                ));
            }
        };
        let has_tokens = self.tokens.is_some() || tokens.symlink_metadata().is_ok();
        if !has_tokens && self.client_ca.is_none() {
            return Err(Failure::misconfigured(format!(
                "nobody could ask: no client has a token (`testudo serve {} --new-token NAME` makes one), and no \
                 --client-ca is given",
                self.dir.display()
            )));
        }
        Ok(Options {
            dir: self.dir.clone(),
            trust,
            listen,
            cert,
            key,
            tokens: has_tokens.then_some(tokens),
            client_ca: self.client_ca.clone(),
            client_crl: self.client_crl.clone(),
            state,
            user,
            output: match self.output {
                Say::Probabilities => Output::Probabilities(self.digits),
                Say::Labels => Output::Labels,
            },
            limits: Limits {
                rows: self.max_rows,
                body: self.max_body,
                rate: self.rate,
                budget: self.budget,
                connections: self.max_connections,
                connections_per_address: self.max_connections_per_address,
                requests: self.max_requests,
                requests_per_client: self.max_requests_per_client,
                patience: Duration::from_secs(self.patience),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        serve: ServeArguments,
    }

    /// Every option goes where it belongs.
    #[test]
    fn options_are_what_the_command_line_says() {
        let line = "serve model --listen 127.0.0.1:8443 --allow-unsigned --cert c.pem --key k.pem --client-ca ca.pem \
                    --client-crl crl.pem --tokens t --state s --output labels --digits 3 --budget 11 --rate 12 --max-rows 13 \
                    --max-body 14 --max-connections 15 --max-connections-per-address 16 --max-requests 17 \
                    --max-requests-per-client 18 --patience 19";
        let arguments = Command::try_parse_from(line.split_whitespace()).unwrap().serve;
        let options = arguments.options("s".into(), "t".into(), None).unwrap();
        assert_eq!(options.dir, Path::new("model"));
        assert_eq!(options.listen, "127.0.0.1:8443".parse().unwrap());
        assert!(matches!(options.trust, Trust::Unsigned) && options.user.is_none());
        assert_eq!([&options.cert, &options.key], [Path::new("c.pem"), Path::new("k.pem")]);
        assert_eq!(options.client_ca.as_deref(), Some(Path::new("ca.pem")));
        assert_eq!(options.client_crl.as_deref(), Some(Path::new("crl.pem")));
        assert_eq!((options.tokens.as_deref(), &*options.state), (Some(Path::new("t")), Path::new("s")));
        assert_eq!(options.output, Output::Labels);
        let expected = Limits {
            budget: Some(Budget::Rows(11)),
            rate: 12,
            rows: 13,
            body: Some(14),
            connections: 15,
            connections_per_address: 16,
            requests: 17,
            requests_per_client: 18,
            patience: Duration::from_secs(19),
        };
        assert_eq!(options.limits, expected);

        let line =
            "serve model --listen 127.0.0.1:8443 --allow-unsigned --cert c --key k --client-ca ca --digits 3";
        let arguments = Command::try_parse_from(line.split_whitespace()).unwrap().serve;
        let options = arguments.options("s".into(), "no such file".into(), None).unwrap();
        assert_eq!(options.output, Output::Probabilities(Digits::Rounded(3)));
        assert_eq!((options.tokens, options.limits), (None, Limits::default()));
    }
}

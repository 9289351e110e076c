//! HTTP/1.1 over TLS: paths, authentication, the order of checks, and the end.
//!
//! The order is cheapest first, and nothing of a request is kept before its client is known: client, its places, a row of
//! its rate, the server's places, media type, length, body (within a time), form, rate, budget, arithmetic. From the form
//! on, it is work for threads of its own, which no connection waits for.

use std::any::Any;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::dev::Extensions;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::http::header::{CACHE_CONTROL, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::rt::System;
use actix_web::rt::net::TcpStream;
use actix_web::rt::time::timeout;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use tokio::sync::Semaphore;

use super::ServeError;
use super::answer;
use super::budget::Ledger;
use super::certificate::Certificate;
use super::client::{ClientId, Clients, Rate, Turn};
use super::counts::Counts;
use super::model::Loaded;
use super::options::{Limits, Options, Output};
use super::predict::Engine;
use super::refusal::{Refusal, Told};
use super::request;
use super::state::StateDir;
use super::stranger::{Stranger, Strangers};
use super::tls;
use super::token::Tokens;
use crate::process::RunAs;

/// How long requests under way may take once the server is to end.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// How long an idle connection is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Threads for connections: TLS is their work, predictions have threads of their own.
const WORKERS: usize = 2;
/// A client that is refused gets so long to notice.
const DISCONNECT: Duration = Duration::from_secs(1);
const JSON: &str = "application/json";

/// What all connections share.
#[derive(Clone)]
pub(super) struct Shared(Arc<Inner>);

struct Inner {
    engine: Engine,
    output: Output,
    limits: Limits,
    body_bytes: usize,
    tokens: Tokens,
    clients: Arc<Clients>,
    ledger: Option<Ledger>,
    places: Arc<Semaphore>,
    threads: Semaphore,
    told: Told,
    counts: Arc<Counts>,
    state: StateDir,
    certificate: Arc<Certificate>,
}

impl Shared {
    pub(super) fn new(
        options: &Options,
        model: Loaded,
        state: StateDir,
        certificate: Arc<Certificate>,
    ) -> Result<Shared, ServeError> {
        let limits = options.limits.clone();
        let engine = Engine::new(model, limits.rows)?;
        let tokens = match &options.tokens {
            Some(path) => Tokens::load(path)?,
            None => Tokens::default(),
        };
        if tokens.is_empty() && options.client_ca.is_none() {
            return Err(ServeError::Option("no client has a token, so nobody could ask".to_owned()));
        }
        let rows = limits.budget_rows(engine.features());
        let ledger = rows.map(|rows| Ledger::open(&state.file("budgets"), rows)).transpose()?;
        let per_second = f64::from(limits.rate);
        let rate = Rate { per_second, burst: per_second.max(limits.rows as f64) };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Shared(Arc::new(Inner {
            output: options.output,
            body_bytes: limits.body_bytes(engine.features()),
            engine,
            tokens,
            clients: Arc::new(Clients::new(rate, limits.requests_per_client)),
            ledger,
            places: Arc::new(Semaphore::new(limits.requests)),
            threads: Semaphore::new(threads),
            limits,
            told: Told::default(),
            counts: Arc::default(),
            state,
            certificate,
        })))
    }

    /// Gives what is kept between runs to the user that the server goes on as.
    pub(super) fn hand_over(&self, user: &RunAs) -> Result<(), ServeError> {
        self.0.state.hand_over(user)
    }

    /// Writes budgets as they really are. To be called at the end.
    pub(super) fn settle(&self) -> Result<(), ServeError> {
        self.0.ledger.as_ref().map_or(Ok(()), Ledger::settle)
    }

    /// What is counted of clients.
    pub(super) fn counts(&self) -> &Arc<Counts> {
        &self.0.counts
    }

    /// A line for a person: what is served, to whom, within which limits.
    pub(super) fn describe(&self) -> String {
        let inner = &self.0;
        let budget = match &inner.ledger {
            Some(ledger) => format!("{} rows", ledger.limit()),
            None => "unlimited".to_owned(),
        };
        format!(
            "{} inputs, {} classes, {:?}; {} clients with tokens; a client: {} rows/s, budget {budget}; a request: {} rows, {} bytes",
            inner.engine.features(),
            inner.engine.classes(),
            inner.output,
            inner.tokens.len(),
            inner.limits.rate,
            inner.limits.rows,
            inner.body_bytes,
        )
    }
}

/// Serves until `stop` is ready, or the server's threads fail.
pub(super) fn run(
    listener: TcpListener,
    tls: rustls::ServerConfig,
    shared: Shared,
    stop: impl Future<Output = ()> + 'static,
) -> std::io::Result<()> {
    let limits = shared.0.limits.clone();
    let strangers = Arc::new(Strangers::new(limits.connections_per_address));
    let counts = Arc::clone(&shared.0.counts);
    System::new().block_on(async move {
        let server =
            HttpServer::new(move || App::new().app_data(web::Data::new(shared.clone())).configure(routes))
                .workers(WORKERS)
                .worker_max_blocking_threads(std::thread::available_parallelism().map_or(1, usize::from))
                .max_connections(limits.connections.div_ceil(WORKERS))
                .max_connection_rate(limits.connections.div_ceil(WORKERS))
                .keep_alive(KEEP_ALIVE)
                .tcp_nodelay(true)
                .tls_handshake_timeout(limits.patience)
                .client_request_timeout(limits.patience)
                .client_disconnect_timeout(DISCONNECT)
                .shutdown_timeout(GRACE.as_secs())
                .disable_signals()
                .on_connect(move |connection, data| remember_client(&strangers, &counts, connection, data))
                .listen_rustls_0_23(listener, tls)?
                .run();
        let handle = server.handle();
        actix_web::rt::spawn(async move {
            stop.await;
            handle.stop(true).await;
        });
        server.await
    })
}

/// Keeps with a connection who its certificate, which the handshake has checked, says the client is. A connection without
/// one, from an address that has enough of them, ends here.
fn remember_client(strangers: &Arc<Strangers>, counts: &Counts, connection: &dyn Any, data: &mut Extensions) {
    let Some(stream) = connection.downcast_ref::<TlsStream<TcpStream>>() else { return };
    let (socket, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    if let Some(client) = leaf.and_then(|leaf| tls::client_of(leaf)) {
        data.insert(client);
        return;
    }
    match socket.peer_addr().ok().and_then(|peer| strangers.enter(peer.ip())) {
        Some(stranger) => drop(data.insert(stranger)),
        // A socket that cannot be shut down any more has ended by itself.
        None => {
            counts.close();
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }
}

fn routes(config: &mut web::ServiceConfig) {
    let get = |path: &str, state: fn(&Shared) -> Result<&'static str, Refusal>| {
        web::resource(path)
            .route(web::get().to(move |request, shared| health(request, shared, state)))
            .default_service(web::to(|request, shared| wrong_method(request, shared, "GET")))
    };
    config
        .service(
            web::resource("/v1/predict")
                .route(web::post().to(predict))
                .default_service(web::to(|request, shared| wrong_method(request, shared, "POST"))),
        )
        .service(get("/healthz", |_| Ok("up")))
        .service(get("/readyz", Shared::ready))
        .default_service(web::to(not_found));
}

async fn health(
    request: HttpRequest,
    shared: web::Data<Shared>,
    state: fn(&Shared) -> Result<&'static str, Refusal>,
) -> HttpResponse {
    let word = match state(&shared) {
        Ok(word) => word,
        Err(refusal) => return shared.refuse(&request, None, &refusal),
    };
    let mut response = HttpResponse::Ok();
    if shared.client(&request).is_none() {
        // Whoever asks nothing else needs no connection that is kept: they are for clients.
        response.force_close();
    }
    response.content_type(JSON).body(format!("{{\"status\":\"{word}\"}}"))
}

async fn wrong_method(
    request: HttpRequest,
    shared: web::Data<Shared>,
    allowed: &'static str,
) -> HttpResponse {
    shared.refuse(&request, None, &Refusal::Method { allowed })
}

async fn not_found(request: HttpRequest, shared: web::Data<Shared>) -> HttpResponse {
    shared.refuse(&request, None, &Refusal::NotFound)
}

async fn predict(request: HttpRequest, body: web::Payload, shared: web::Data<Shared>) -> HttpResponse {
    let Some(client) = shared.client(&request) else {
        return shared.refuse(&request, None, &Refusal::Unauthenticated);
    };
    match shared.answer(&client, request.headers(), body).await {
        Ok(text) => {
            HttpResponse::Ok().content_type(JSON).insert_header((CACHE_CONTROL, "no-store")).body(text)
        }
        Err(refusal) => shared.refuse(&request, Some(&client), &refusal),
    }
}

impl Shared {
    /// The model is loaded before the first connection is taken, so what can go missing is a certificate that is valid.
    fn ready(&self) -> Result<&'static str, Refusal> {
        self.0.certificate.check(SystemTime::now()).map(|()| "ready").map_err(Refusal::NotReady)
    }

    /// Who asks: by token if one is shown, however wrong, and else by certificate.
    fn client(&self, request: &HttpRequest) -> Option<ClientId> {
        let mut shown = request.headers().get_all(AUTHORIZATION);
        match (shown.next(), shown.next()) {
            (None, _) => request.conn_data::<ClientId>().cloned(),
            (Some(value), None) => {
                let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
                let client = self.0.tokens.client(token);
                let client = client.filter(|_| scheme.eq_ignore_ascii_case(b"Bearer "))?;
                if let Some(stranger) = request.conn_data::<Stranger>() {
                    stranger.is_known();
                }
                Some(client)
            }
            (Some(_), Some(_)) => None,
        }
    }

    async fn answer(
        &self,
        client: &ClientId,
        headers: &HeaderMap,
        body: web::Payload,
    ) -> Result<String, Refusal> {
        let inner = &self.0;
        let turn = inner.clients.enter(client, Instant::now())?;
        turn.check(Instant::now())?;
        let place = Arc::clone(&inner.places).try_acquire_owned().map_err(|_| Refusal::Busy)?;
        // What is refused costs a row of the rate too, so that it cannot be had any faster.
        let body = match self.read(headers, body).await {
            Ok(body) => body,
            Err(refusal) => return Err(turn.charge(1, Instant::now()).err().unwrap_or(refusal)),
        };
        let _thread = inner.threads.acquire().await.map_err(|_| Refusal::Internal)?;
        let shared = self.clone();
        // The request's places go along: a client that hangs up does not free them before the work is done.
        let work = move || {
            let answer = shared.compute(&turn, &body);
            drop((turn, place));
            answer
        };
        web::block(work).await.map_err(|_| Refusal::Internal)?
    }

    async fn read(&self, headers: &HeaderMap, body: web::Payload) -> Result<web::Bytes, Refusal> {
        let inner = &self.0;
        if !is_plain_json(headers) {
            return Err(Refusal::MediaType);
        }
        let most = inner.body_bytes;
        let announced =
            headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > most) {
            return Err(Refusal::TooLarge { most });
        }
        let patience = inner.limits.patience;
        match timeout(patience, body.to_bytes_limited(most)).await {
            Err(_) => Err(Refusal::Slow { seconds: patience.as_secs() }),
            Ok(Err(_)) => Err(Refusal::TooLarge { most }),
            Ok(Ok(Err(why))) => Err(Refusal::Malformed(format!("the body broke off: {why}"))),
            Ok(Ok(Ok(body))) => Ok(body),
        }
    }

    fn compute(&self, turn: &Turn, body: &[u8]) -> Result<String, Refusal> {
        let inner = &self.0;
        let rows = request::decode(body, inner.engine.features(), inner.limits.rows);
        turn.charge(rows.as_ref().map_or(1, |rows| rows.count), Instant::now())?;
        let rows = rows?;
        let left = match &inner.ledger {
            Some(ledger) => Some(ledger.take(turn.id(), rows.count as u64)?),
            None => None,
        };
        let probabilities = inner.engine.run(&rows)?;
        inner.counts.answer(rows.count);
        answer::encode(&probabilities, inner.engine.classes(), inner.output, left)
    }

    fn refuse(&self, request: &HttpRequest, client: Option<&ClientId>, refusal: &Refusal) -> HttpResponse {
        self.0.counts.refuse(refusal.kind());
        if let Some(untold) = self.0.told.count(refusal.code(), Instant::now()) {
            let client = client.map_or("none", ClientId::as_str);
            let peer = request.peer_addr();
            tracing::warn!(code = refusal.code(), client, ?peer, untold, "refused: {refusal}");
        }
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::build(status);
        response.content_type(JSON);
        if let Some(seconds) = refusal.retry_after() {
            response.insert_header((RETRY_AFTER, seconds));
        }
        match refusal {
            Refusal::Unauthenticated => drop(response.insert_header((WWW_AUTHENTICATE, "Bearer"))),
            Refusal::Method { allowed } => drop(response.insert_header((ALLOW, *allowed))),
            _ => {}
        }
        if refusal.before_body() {
            // What is left of the body is not worth reading.
            response.force_close();
        }
        response.body(refusal.to_json())
    }
}

fn is_plain_json(headers: &HeaderMap) -> bool {
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    media.eq_ignore_ascii_case(JSON) && !headers.contains_key(CONTENT_ENCODING)
}

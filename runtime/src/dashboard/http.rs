//! The page's routes: what everybody of this machine may have, what takes a session, and what is refused.

use std::any::Any;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, COOKIE, RETRY_AFTER, SET_COOKIE};
use actix_web::middleware::{DefaultHeaders, Next, from_fn};
use actix_web::rt::System;
use actix_web::rt::net::TcpStream;
use actix_web::rt::time::timeout;
use actix_web::{App, Error, HttpRequest, HttpResponse, HttpServer, web};
use tokio::sync::{Semaphore, oneshot};

use super::access::{Access, Exchange, TOKEN_MOST};
use super::feed::{Feed, Seen};
use super::guard::{Here, OPEN};
use super::stream::Events;

/// Connections of anybody on this machine; more of them wait.
const CONNECTIONS: usize = 64;
/// Pages that follow the run at once.
pub(super) const STREAMS: usize = 8;
/// Seconds after which a page for which there is no stream asks again.
const ASK_AGAIN: u64 = 10;
/// How long an idle connection is kept, and how long a request may take to arrive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(5);
const DISCONNECT: Duration = Duration::from_secs(1);

const COOKIE_NAME: &str = "testudo_dashboard";

/// Nothing is loaded, run or asked for but what is served here, and no other site's page frames this one.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                                       img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// A file of the page: its name, its type, its text.
type Asset = (&'static str, &'static str, &'static str);

const OPENING: Asset = ("open", HTML, include_str!("page/open.html"));
/// What everybody may have: it tells nothing of the run.
const PUBLIC: [Asset; 3] = [
    ("open.js", SCRIPT, include_str!("page/open.js")),
    ("style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];
const PAGE: [Asset; 6] = [
    ("", HTML, include_str!("page/index.html")),
    ("dashboard.js", SCRIPT, include_str!("page/dashboard.js")),
    ("charts.js", SCRIPT, include_str!("page/charts.js")),
    ("nodes.js", SCRIPT, include_str!("page/nodes.js")),
    ("timeline.js", SCRIPT, include_str!("page/timeline.js")),
    ("words.js", SCRIPT, include_str!("page/words.js")),
];

/// What all connections share.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    here: Here,
    access: Access,
    feed: Arc<Feed>,
    streams: Arc<Semaphore>,
}

/// A connection, so that it can be ended.
struct Socket(Arc<OwnedFd>);

impl Shared {
    pub(super) fn new(address: SocketAddr, access: Access, feed: Arc<Feed>) -> Shared {
        let here = Here::at(address.port());
        Shared(Arc::new(Inner { here, access, feed, streams: Arc::new(Semaphore::new(STREAMS)) }))
    }

    /// Whether any page follows the run.
    pub(super) fn is_watched(&self) -> bool {
        self.0.streams.available_permits() < STREAMS
    }

    fn has_session(&self, request: &HttpRequest) -> bool {
        let cookies =
            request.headers().get_all(COOKIE).flat_map(|value| value.as_bytes().split(|b| *b == b';'));
        let mut ours = cookies.filter_map(|cookie| {
            cookie.trim_ascii().strip_prefix(COOKIE_NAME.as_bytes())?.strip_prefix(b"=")
        });
        ours.any(|cookie| self.0.access.holds(cookie))
    }
}

/// Serves until `stop` is ready, or its sender is gone.
pub(super) fn run(listener: TcpListener, shared: Shared, stop: oneshot::Receiver<()>) -> std::io::Result<()> {
    System::new().block_on(async move {
        let server = HttpServer::new(move || {
            let place = format!("/{}", shared.0.access.place());
            App::new()
                .app_data(web::Data::new(shared.clone()))
                .wrap(from_fn(guard))
                .wrap(headers())
                .configure(|config| routes(config, &place))
        })
        .workers(1)
        .max_connections(CONNECTIONS)
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(PATIENCE)
        .client_disconnect_timeout(DISCONNECT)
        .shutdown_timeout(DISCONNECT.as_secs())
        .tcp_nodelay(true)
        .disable_signals()
        .on_connect(remember)
        .listen(listener)?
        .run();
        let handle = server.handle();
        actix_web::rt::spawn(async move {
            let _ = stop.await;
            handle.stop(true).await;
        });
        server.await
    })
}

fn remember(connection: &dyn Any, data: &mut Extensions) {
    let stream = connection.downcast_ref::<TcpStream>();
    if let Some(socket) = stream.and_then(|stream| stream.as_fd().try_clone_to_owned().ok()) {
        data.insert(Socket(Arc::new(socket)));
    }
}

fn headers() -> DefaultHeaders {
    [
        ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
    ]
    .into_iter()
    .fold(DefaultHeaders::new(), DefaultHeaders::add)
}

/// Before anything else is looked at.
async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let judged = match request.app_data::<web::Data<Shared>>() {
        Some(shared) => shared.0.here.judge(request.method(), request.uri(), request.headers()),
        None => return Ok(request.into_response(refusal(StatusCode::INTERNAL_SERVER_ERROR, "no page"))),
    };
    match judged {
        Ok(()) => next.call(request).await.map(ServiceResponse::map_into_boxed_body),
        Err(why) => Ok(request.into_response(refusal(StatusCode::FORBIDDEN, &why.to_string()))),
    }
}

fn routes(config: &mut web::ServiceConfig, place: &str) {
    let public = |path: &str, asset: Asset| {
        web::resource(path)
            .route(web::get().to(move || async move { give(asset) }))
            .default_service(web::to(|| wrong_method("GET")))
    };
    config.service(public("/", OPENING)).service(public(OPEN, OPENING));
    for asset in PUBLIC {
        config.service(public(&format!("/{}", asset.0), asset));
    }
    config.service(
        web::resource("/session")
            .route(web::post().to(exchange))
            .default_service(web::to(|| wrong_method("POST"))),
    );
    let mut page = web::scope(place);
    for asset in PAGE {
        page = page.service(private(asset.0, move |_, _| give(asset)));
    }
    page = page.service(private("events", events)).service(private("state", state));
    config.service(page).default_service(web::to(not_found));
}

/// A resource of the page, for who has a session.
fn private(
    name: &str,
    answer: impl Fn(&HttpRequest, &Shared) -> HttpResponse + Copy + 'static,
) -> actix_web::Resource {
    let answer = move |request: HttpRequest, shared: web::Data<Shared>| async move {
        match shared.has_session(&request) {
            true => answer(&request, shared.get_ref()),
            false => refusal(
                StatusCode::UNAUTHORIZED,
                "open the link that `testudo run --dashboard` printed; if that was used already, another is in dashboard.url \
                 in the run's directory",
            ),
        }
    };
    web::resource(format!("/{name}"))
        .route(web::get().to(answer))
        .default_service(web::to(|| wrong_method("GET")))
}

fn give((_, kind, text): Asset) -> HttpResponse {
    HttpResponse::Ok().content_type(kind).body(text)
}

fn events(request: &HttpRequest, shared: &Shared) -> HttpResponse {
    let Ok(place) = Arc::clone(&shared.0.streams).try_acquire_owned() else {
        let mut busy = HttpResponse::ServiceUnavailable();
        busy.insert_header((RETRY_AFTER, ASK_AGAIN)).content_type(TEXT);
        return busy.body(format!("{STREAMS} pages follow this run already: close one\n"));
    };
    let socket = request.conn_data::<Socket>().map(|socket| Arc::clone(&socket.0));
    HttpResponse::Ok().content_type("text/event-stream").body(Events::of(
        Arc::clone(&shared.0.feed),
        socket,
        place,
    ))
}

/// The same as an event's data, once: all that there is.
fn state(_: &HttpRequest, shared: &Shared) -> HttpResponse {
    let state = shared.0.feed.event(&mut Seen::default());
    HttpResponse::Ok().content_type("application/json").body(state.to_string())
}

async fn exchange(body: web::Payload, shared: web::Data<Shared>) -> HttpResponse {
    let token = match timeout(PATIENCE, body.to_bytes_limited(TOKEN_MOST)).await {
        Ok(Ok(Ok(token))) => token,
        Ok(Ok(Err(_))) => return refusal(StatusCode::BAD_REQUEST, "the body broke off"),
        Ok(Err(_)) => return refusal(StatusCode::PAYLOAD_TOO_LARGE, "that is longer than any link's token"),
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
    };
    match shared.0.access.exchange(&token) {
        Exchange::Opened(cookie) => {
            let to = format!("/{}/", shared.0.access.place());
            let cookie = format!("{COOKIE_NAME}={}; Path={to}; HttpOnly; SameSite=Strict", *cookie);
            HttpResponse::Ok().insert_header((SET_COOKIE, cookie)).content_type(TEXT).body(to)
        }
        Exchange::Used => refusal(
            StatusCode::FORBIDDEN,
            "this link was used already, and opens the page once; another is in dashboard.url in the run's directory",
        ),
        Exchange::Unknown => refusal(
            StatusCode::FORBIDDEN,
            "this is no link of this run; one is in dashboard.url in the run's directory, while the run goes on",
        ),
    }
}

async fn wrong_method(allowed: &'static str) -> HttpResponse {
    let mut response = HttpResponse::MethodNotAllowed();
    response.insert_header((ALLOW, allowed)).content_type(TEXT).body(format!("{allowed} alone\n"))
}

async fn not_found() -> HttpResponse {
    refusal(StatusCode::NOT_FOUND, "there is no such page")
}

fn refusal(status: StatusCode, why: &str) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    // What is left of a body is not worth reading.
    response.force_close();
    response.content_type(TEXT).body(format!("{why}\n"))
}

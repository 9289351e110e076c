//! `testudo serve` from outside, over real HTTPS: who gets an answer, what it says, and what is refused how.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use testudo::serve::{Digits, Options, Output, Trust};
use testudo_kernels::ModelSpec;
use testudo_tests::https::{self, Client};
use testudo_tests::process::{self, Signal};
use testudo_tests::serve_process::Server;
use testudo_tests::served::{Running, Site, regression, roomy, site, start};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

fn softmax(x: [f64; 2]) -> Vec<f64> {
    let e: Vec<f64> = [x[0], x[1] + 0.5, -x[0] - x[1] - 0.5].iter().map(|z| z.exp()).collect();
    e.iter().map(|v| v / e.iter().sum::<f64>()).collect()
}

#[test]
fn predictions_are_the_models_rounded_as_configured() {
    let site = site();
    let rows = [[0.5, -1.0], [2.0, 3.0], [0.0, 0.0]];
    for (output, within) in [
        (Output::default(), 0.005_000_1),
        (Output::Probabilities(Digits::Rounded(4)), 0.000_050_1),
        (Output::Probabilities(Digits::Full), 1e-6),
    ] {
        let (_running, client) = start(&site, &Options { output, ..roomy(&site) });
        let answer = client.predict(&rows);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.contains("cache-control: no-store"), "{answer:?}");
        for (row, found) in rows.iter().zip(answer.probabilities()) {
            for (found, right) in found.iter().zip(softmax(*row)) {
                assert!((found - right).abs() <= within, "{output:?}: {found} for {right}");
            }
        }
        assert_eq!(answer.labels(), [0, 1, 1]);
        if output == Output::default() {
            assert_eq!(
                client.predict(&rows[..1]).json()["predictions"][0].to_string(),
                "{\"label\":0,\"probabilities\":[0.51,0.19,0.31]}"
            );
        }
    }
    let (_running, client) = start(&site, &Options { output: Output::Labels, ..roomy(&site) });
    let answer = client.predict(&rows);
    assert!(
        answer.body.starts_with("{\"predictions\":[{\"label\":0},{\"label\":1},{\"label\":1}]"),
        "{answer:?}"
    );
}

#[test]
fn nobody_is_served_without_a_token_that_is_known() {
    let site = site();
    let (running, alice) = start(&site, &roomy(&site));
    let rows = [[0.0, 0.0]];
    assert_eq!(alice.predict(&rows).status, 200);
    let nobody = running.client();
    let refused = nobody.predict(&rows);
    assert_eq!((refused.status, refused.code().as_str()), (401, "unauthenticated"));
    assert!(refused.head.contains("www-authenticate: bearer") && !refused.body.contains("0."), "{refused:?}");
    let good = alice.head("POST", "/v1/predict", 2, "");
    let good = good.lines().find_map(|line| line.strip_prefix("Authorization: Bearer ")).unwrap();
    for header in [
        "Authorization: Bearer".to_owned(),
        "Authorization: Bearer tstd_".to_owned(),
        format!("Authorization: Bearer {}", &good[..good.len() - 1]),
        format!("Authorization: Bearer {good}x"),
        format!("Authorization: Basic {good}"),
        format!("Authorization: {good}"),
        // Two answers to who asks are none.
        format!("Authorization: Bearer {good}\r\nAuthorization: Bearer {good}"),
        format!("X-Token: {good}"),
    ] {
        let body = "{\"inputs\":[[0,0]]}";
        let head = nobody.head("POST", "/v1/predict", body.len(), &format!("{header}\r\n"));
        let answer = nobody.send(format!("{head}{body}").as_bytes()).unwrap();
        assert_eq!(answer.status, 401, "{header}");
    }
    // A body is not waited for, nor read, before the client is known.
    let head = nobody.head("POST", "/v1/predict", 1 << 40, "");
    assert_eq!(nobody.send(head.as_bytes()).unwrap().status, 401);
}

#[test]
fn what_is_not_a_good_request_is_refused_by_name() {
    let site = site();
    let mut options = roomy(&site);
    options.limits.rows = 3;
    let (_running, client) = start(&site, &options);
    for (body, status, code) in [
        ("", 400, "malformed"),
        ("{\"inputs\":[[0,NaN]]}", 400, "malformed"),
        ("{\"inputs\":[[0,1e400]]}", 400, "malformed"),
        ("{\"inputs\":[[0,1e39]]}", 422, "not_finite"),
        ("{\"inputs\":[[-3e38,-3e38]]}", 422, "overflow"),
        ("{\"inputs\":[[0]]}", 422, "wrong_shape"),
        ("{\"inputs\":[[0,0,0]]}", 422, "wrong_shape"),
        ("{\"inputs\":[]}", 422, "no_rows"),
        ("{\"inputs\":[[0,0],[0,0],[0,0],[0,0]]}", 422, "too_many_rows"),
        ("{\"inputs\":[[0,0]],\"digits\":\"full\"}", 400, "malformed"),
    ] {
        let answer = client.post(body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}: {answer:?}");
    }
    let long = format!("{{\"inputs\":[[0,{}0]]}}", " ".repeat(options.limits.body_bytes(2)));
    assert_eq!(client.post(&long).code(), "too_large");
    // The same without a length that could be believed.
    let chunked = client.head("POST", "/v1/predict", 0, "Transfer-Encoding: chunked\r\n");
    let chunked = chunked.replace("Content-Length: 0\r\n", "");
    let chunk = format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    assert_eq!(client.send(format!("{chunked}{chunk}").as_bytes()).unwrap().code(), "too_large");
    let announced = client.head("POST", "/v1/predict", usize::MAX, "");
    assert_eq!(client.send(announced.as_bytes()).unwrap().code(), "too_large");
    for (more, status) in [("Content-Encoding: gzip\r\n", 415), ("", 200)] {
        let body = "{\"inputs\":[[0,0]]}";
        let head = client.head("POST", "/v1/predict", body.len(), more);
        assert_eq!(client.send(format!("{head}{body}").as_bytes()).unwrap().status, status);
    }
    for (method, path, status, code) in [
        ("GET", "/v1/predict", 405, "wrong_method"),
        ("POST", "/healthz", 405, "wrong_method"),
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/predict/", 404, "not_found"),
        ("GET", "/../model.safetensors", 404, "not_found"),
    ] {
        let answer = client.request(method, path, "").unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path}");
    }
    assert_eq!(client.predict(&[[0.0, 0.0]]).status, 200, "the server is as it was");
}

#[test]
fn health_needs_no_client_and_tells_nothing() {
    let site = site();
    let (running, _) = start(&site, &roomy(&site));
    let nobody = running.client();
    let said = |path| nobody.request("GET", path, "").unwrap();
    assert_eq!((said("/healthz").status, said("/healthz").body.as_str()), (200, "{\"status\":\"up\"}"));
    assert_eq!((said("/readyz").status, said("/readyz").body.as_str()), (200, "{\"status\":\"ready\"}"));
}

#[test]
fn tls_1_2_is_refused() {
    let site = site();
    let (running, client) = start(&site, &roomy(&site));
    assert_eq!(client.predict(&[[0.0, 0.0]]).status, 200);
    let old = Client::build(running.address, &site.root(), None, &rustls::version::TLS12);
    let why = old.request("GET", "/healthz", "").unwrap_err().to_string();
    assert!(why.contains("ProtocolVersion"), "{why}");
}

#[test]
fn a_client_that_asks_too_fast_is_told_when_to_ask_again() {
    let site = site();
    let mut options = roomy(&site);
    (options.limits.rate, options.limits.rows) = (1, 64);
    let (running, alice) = start(&site, &options);
    let rows = [[0.0, 0.0]; 64];
    assert_eq!(alice.predict(&rows).status, 200, "a burst of one request's rows");
    let refused = alice.predict(&rows);
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate"), "{refused:?}");
    let after = refused.head.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!((1..=64).contains(&after.trim().parse::<u64>().unwrap()), "{refused:?}");
    // Refused rows come off no budget.
    let left = |answer: &https::Answer| answer.json()["budget_left"].as_u64();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(left(&alice.predict(&rows[..1])), Some(100_000 - 65));
    running.stop();
    // Another client has a rate of its own.
    let bob = site.token("bob");
    let running = site.serve(&options).unwrap();
    assert_eq!(left(&running.client().with_token(&bob).predict(&rows)), Some(100_000 - 64));
}

/// What every held request says, of which only the first byte is sent.
const HELD: &str = "{\"inputs\":[[0,0]]}";

/// A request whose body does not come; of a server that may have had enough of waiting.
fn hold(client: &Client) -> std::io::Result<https::Connection> {
    let mut connection = client.connect();
    connection.write_all(client.head("POST", "/v1/predict", HELD.len(), "").as_bytes())?;
    connection.write_all(&HELD.as_bytes()[..1])?;
    connection.flush()?;
    Ok(connection)
}

/// A request that has the one place of its client: others of the same client are refused.
fn hold_the_place(client: &Client) -> https::Connection {
    let deadline = Instant::now() + process::DEADLINE;
    loop {
        let held = hold(client).unwrap();
        // Whichever of two requests comes first has the place; that this one has not is seen by its being answered.
        while !is_answered(&held) {
            if client.predict(&[[0.0, 0.0]]).code() == "client_busy" && !is_answered(&held) {
                return held;
            }
            assert!(Instant::now() < deadline, "it never had the place");
        }
    }
}

fn is_answered(connection: &https::Connection) -> bool {
    connection.sock.set_nonblocking(true).unwrap();
    let peeked = connection.sock.peek(&mut [0]);
    connection.sock.set_nonblocking(false).unwrap();
    peeked.is_ok()
}

/// Asks until it is not refused.
fn ask(client: &Client) {
    let deadline = Instant::now() + process::DEADLINE;
    while client.predict(&[[0.0, 0.0]]).status != 200 {
        assert!(Instant::now() < deadline, "never answered");
    }
}

/// What slow clients hold is counted, for each of them and in all; nobody else waits for it.
#[test]
fn requests_under_way_are_counted_for_each_client_and_in_all() {
    let site = site();
    let mut options = roomy(&site);
    (options.limits.requests, options.limits.requests_per_client) = (2, 1);
    options.limits.patience = 2 * process::DEADLINE;
    let tokens = ["alice", "bob", "carol"].map(|name| site.token(name));
    let running = site.serve(&options).unwrap();
    let [alice, bob, carol] = tokens.map(|token| running.client().with_token(&token));
    let first = hold_the_place(&alice);
    assert_eq!(bob.predict(&[[0.0, 0.0]]).status, 200, "one client's slowness is not another's");
    let second = hold_the_place(&bob);
    let refused = carol.predict(&[[0.0, 0.0]]);
    assert_eq!((refused.status, refused.code().as_str()), (503, "busy"));
    assert!(refused.head.contains("retry-after: 1"), "{refused:?}");
    drop((first, second));
    ask(&alice);
    ask(&carol);
}

#[test]
fn nobody_is_waited_for_beyond_the_servers_patience() {
    let site = site();
    let mut options = roomy(&site);
    options.limits.patience = Duration::from_secs(1);
    let (running, alice) = start(&site, &options);
    // Whoever is too slow with the handshake, or with the head, is told less: that may be this machine.
    let deadline = Instant::now() + process::DEADLINE;
    let too_slow = || https::read(&mut hold(&alice)?);
    while !too_slow().is_ok_and(|answer| answer.body.contains("\"too_slow\"")) {
        assert!(Instant::now() < deadline, "a body is waited for");
    }
    // A head that does not end, and a handshake that does not begin.
    let mut silent = running.client().connect();
    let _ = silent.write_all(b"POST /v1/predict HTTP/1.1\r\nHost: ").and_then(|()| silent.flush());
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    let mut mute = std::net::TcpStream::connect(running.address).unwrap();
    mute.set_read_timeout(Some(process::DEADLINE)).unwrap();
    assert_eq!(mute.read_to_end(&mut Vec::new()).unwrap(), 0);
}

/// Invariant 1 of `serve`: whatever is wrong with a model, nothing listens.
#[test]
fn a_model_that_is_not_what_was_signed_is_not_served() {
    let (spec, parameters) = regression();
    let refused = |what: &str, change: &dyn Fn(&Site), said: &str| {
        let site = site();
        let _ = site.token("alice");
        change(&site);
        let why = site.serve(&site.options()).map(|_| ()).unwrap_err().to_string();
        assert!(why.contains(said), "{what}: {why}");
        // Told to serve it all the same, it does, if it is a model at all.
        site.serve(&Options { trust: Trust::Unsigned, ..site.options() })
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    let file = |site: &Site| site.at("model/model.safetensors");
    let mut other = parameters.clone();
    other[0][0] = 7.0;
    refused("changed", &|site| site.write_model(&spec, &other), "changed").unwrap();
    refused("added", &|site| std::fs::write(site.at("model/x"), "x").unwrap(), "added").unwrap();
    refused("unsigned", &|site| std::fs::remove_file(site.at("model/model.sig")).unwrap(), "model.sig")
        .unwrap();
    let other_key = |site: &Site| {
        std::fs::remove_file(site.at("key.pem")).unwrap();
        testudo::signing::SigningKey::create(&site.at("more.pem")).unwrap();
        std::fs::rename(site.at("more.pem"), site.at("key.pem")).unwrap();
        site.sign();
    };
    refused("another key", &other_key, "another key").unwrap();
    let flipped = |site: &Site| {
        let mut bytes = std::fs::read(file(site)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file(site), bytes).unwrap();
    };
    let why = refused("a flipped bit", &flipped, "changed").unwrap_err();
    assert!(why.contains("params_blake3"), "{why}");
    // Signed, and no model.
    let signed = |change: &dyn Fn(&Site)| {
        let site = site();
        change(&site);
        site.sign();
        let _ = site.token("alice");
        site.serve(&site.options()).map(|_| ()).unwrap_err().to_string()
    };
    let nan = signed(&|site| site.write_model(&spec, &[vec![f32::NAN; 6], parameters[1].clone()]));
    assert!(nan.contains("not finite"), "{nan}");
    for (hidden, said) in [(vec![3], "missing"), (vec![usize::MAX], "served"), (vec![1; 5000], "layers")] {
        let other = ModelSpec::Mlp { inputs: 2, hidden, classes: 3 };
        let why = signed(&|site| site.write_model_as(&other, &spec, &parameters));
        assert!(why.contains(said), "{why}");
    }
    let fewer = ModelSpec::Mlp { inputs: 2, hidden: vec![], classes: 2 };
    let why = signed(&|site| site.write_model_as(&spec, &fewer, &[vec![0.0; 4], vec![0.0; 2]]));
    assert!(why.contains("has the shape"), "{why}");
    let empty = signed(&|site| std::fs::write(file(site), "").unwrap());
    assert!(empty.starts_with("the model is not served"), "{empty}");
}

/// Invariant 2 of `serve`, with certificates: alone they are asked for in the handshake, beside tokens either will do.
#[test]
fn clients_with_certificates_are_who_these_say() {
    let site = site();
    let mut options = site.options();
    options.client_ca = Some(site.at("ca.pem"));
    let foreign = Site::new(&regression().0, &regression().1);
    let row = [[0.0, 0.0]];
    let name = "spiffe://t/job/j/actor/alice";
    let both = options.clone();
    options.tokens = None;
    let running = site.serve(&options).unwrap();
    let shows = |running: &Running, certified| {
        Client::build(running.address, &site.root(), Some(certified), &rustls::version::TLS13)
    };
    let healthy = |client: &Client| client.request("GET", "/healthz", "").map(|answer| answer.status).ok();
    assert_eq!(healthy(&running.client()), None, "no certificate, no connection");
    assert_eq!(healthy(&shows(&running, foreign.certified(&[name]))), None, "another CA's");
    let left = |client: &Client| client.predict(&row).json()["budget_left"].as_u64();
    assert_eq!(left(&shows(&running, site.certified(&[name]))), Some(2));
    // The same name under another key is the same client; another name, or none under another key, is another.
    assert_eq!(left(&shows(&running, site.certified(&[name]))), Some(1));
    assert_eq!(left(&shows(&running, site.certified(&["spiffe://t/job/j/actor/bob"]))), Some(2));
    let nameless = site.certified(&[]);
    assert_eq!(left(&shows(&running, (nameless.0.clone(), nameless.1.clone_key()))), Some(2));
    assert_eq!(left(&shows(&running, nameless)), Some(1));
    assert_eq!(left(&shows(&running, site.certified(&[]))), Some(2));
    running.stop();

    let token = site.token("carol");
    let running = site.serve(&both).unwrap();
    let nobody = running.client();
    assert_eq!((healthy(&nobody), nobody.predict(&row).status), (Some(200), 401));
    assert_eq!(healthy(&shows(&running, foreign.certified(&[name]))), None, "a bad certificate is not none");
    let alice = shows(&running, site.certified(&[name]));
    assert_eq!(left(&alice), Some(0), "budgets of certificates outlive the server too");
    assert_eq!(left(&nobody.with_token(&token)), Some(2));
    assert_eq!(left(&alice.with_token(&token)), Some(1), "a token that is shown counts");
    assert_eq!(alice.with_token("tstd_x").predict(&row).status, 401, "also one that is wrong");
}

/// A list that changes while the server runs counts from the next handshake on; one that cannot be used lets nobody in.
#[test]
fn revoked_clients_are_turned_away_and_bad_lists_let_nobody_in() {
    let site = site();
    let list = site.at("crl.pem");
    let put = |text: &str| {
        // In another file's place, as whoever publishes lists should do it.
        let new = site.at("crl.new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::rename(&new, &list).unwrap();
    };
    let mut options = site.options();
    (options.client_ca, options.client_crl) = (Some(site.at("ca.pem")), Some(list.clone()));
    options.tokens = None;
    let refused = |options: &Options| site.serve(options).map(|_| ()).unwrap_err().to_string();
    assert!(refused(&options).contains("crl.pem"), "no list at all");
    put(&site.revoked(&[], 4000));
    let running = site.serve(&options).unwrap();
    let [alice, bob] = [1, 2].map(|serial| {
        Client::build(running.address, &site.root(), Some(site.certified_as(serial)), &rustls::version::TLS13)
    });
    let let_in = || [&alice, &bob].map(|client| client.request("GET", "/healthz", "").is_ok());
    assert_eq!(let_in(), [true, true]);
    put(&site.revoked(&[1], 4000));
    assert_eq!(let_in(), [false, true]);
    put(&site.revoked(&[], 2021));
    assert_eq!(let_in(), [false, false], "past its time");
    put(&Site::new(&regression().0, &regression().1).revoked(&[], 4000));
    assert_eq!(let_in(), [false, false], "another CA's");
    put("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    assert_eq!(let_in(), [false, false], "no list");
    std::fs::remove_file(&list).unwrap();
    assert_eq!(let_in(), [false, false], "gone");
    put(&site.revoked(&[2], 4000));
    assert_eq!(let_in(), [true, false]);
}

/// Invariant 3 of `serve`: by default a client gets as many rows as the model has inputs and one more, whatever it does and
/// however often the server is started; after a crash, no more.
#[test]
fn a_budget_outlives_the_server_and_its_crash() {
    let site = site();
    let alice = site.token("alice");
    let running = site.serve(&site.options()).unwrap();
    let client = running.client().with_token(&alice);
    let row = [[0.0, 0.0]; 4];
    assert_eq!(client.predict(&row[..1]).json()["budget_left"], 2);
    let refused = client.predict(&row[..3]);
    assert_eq!((refused.status, refused.code().as_str()), (403, "budget_spent"));
    assert!(refused.body.contains("2 rows left"), "{refused:?}");
    // What is refused, for whatever reason, costs nothing.
    assert_eq!(client.post("{\"inputs\":[[0]]}").status, 422);
    let Err(why) = site.serve(&site.options()).map(|_| ()) else { panic!("two servers would give twice") };
    assert!(why.to_string().contains("another server"), "{why}");
    running.stop();
    // A new token for the same client, and another start.
    let alice = site.token("alice");
    let bob = site.token("bob");
    let running = site.serve(&site.options()).unwrap();
    let client = running.client().with_token(&alice);
    assert_eq!(client.predict(&row[..2]).json()["budget_left"], 0);
    assert_eq!(client.predict(&row[..1]).code(), "budget_spent");
    assert_eq!(running.client().with_token(&bob).predict(&row[..3]).json()["budget_left"], 0);
    running.stop();

    let at = |name: &str| site.at(name).to_str().unwrap().to_owned();
    let (dir, cert, key, public, state) =
        (at("model"), at("cert.pem"), at("server.pem"), at("key.pub.pem"), at("state"));
    let serve = ["serve", &dir, "--listen", "127.0.0.1:0", "--cert", &cert, "--key", &key, "--public-key"];
    let serve = [&serve[..], &[&public, "--state", &state, "--budget", "1003"]].concat();
    let mut used = 3;
    for _ in 0..3 {
        let mut server = Server::start(PROGRAM, &serve);
        let client = Client::new(server.address(), &site.root()).with_token(&alice);
        let mut answered = None;
        for _ in 0..7 {
            answered = client.predict(&row[..1]).json()["budget_left"].as_u64();
        }
        let left = answered.unwrap();
        used += 7;
        assert!(left <= 1003 - used, "a crash gained {} rows", left - (1003 - used));
        assert!(left + 3 * 62 >= 1003 - used, "a crash cost more than a block");
        server.signal(Signal::KILL);
        server.wait();
    }
}

/// The command line: a token is made, the address is printed, and SIGTERM lets a request under way be answered.
#[test]
fn the_command_serves_and_ends_in_order() {
    let site = site();
    let at = |name: &str| site.at(name).to_str().unwrap().to_owned();
    let refused = |arguments: &[&str]| {
        let ended = process::run(PROGRAM, arguments, site.path());
        assert_eq!(ended.code(), Some(2), "{ended:#?}");
        ended.stderr
    };
    let (dir, cert, key, public) = (at("model"), at("cert.pem"), at("server.pem"), at("key.pub.pem"));
    let serve = ["serve", &dir, "--listen", "127.0.0.1:0", "--cert", &cert, "--key", &key];
    assert!(refused(&serve).contains("--public-key"));
    let signed = [&serve[..], &["--public-key", &public]].concat();
    assert!(refused(&signed).contains("--new-token"));
    let made = process::run(PROGRAM, &["serve", &dir, "--new-token", "alice"], site.path()).succeeded();
    let token = made.stdout.trim().to_owned();
    assert!(site.at("model.serve/tokens").is_file(), "beside the model, which is signed");
    assert!(refused(&[&signed[..], &["--digits", "7"]].concat()).contains("full"));

    let single = ["--budget", "100000", "--max-requests-per-client", "1"];
    let mut server = Server::start(PROGRAM, &[&signed[..], &single].concat());
    let client = Client::new(server.address(), &site.root()).with_token(&token);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    assert!(!users.split_whitespace().any(|user| user == "0"), "it serves as root: {users}");
    let mut under_way = hold_the_place(&client);
    server.signal(Signal::TERM);
    under_way.write_all(&HELD.as_bytes()[1..]).unwrap();
    under_way.flush().unwrap();
    let answer = https::read(&mut under_way).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let (status, log) = server.wait();
    assert!(status.success() && log.contains("told to stop"), "{log}");
    assert!(!log.contains(&token), "the token is in no log");
    let used = 100_000 - answer.json()["budget_left"].as_u64().unwrap();
    let budgets = std::fs::read_to_string(site.at("model.serve/budgets")).unwrap();
    let line = format!("\"token:alice\": {used}\n");
    assert!(budgets.contains(&line), "what was used, and no block beyond it: {budgets}");
    // An unsigned model is served only loudly.
    std::fs::remove_file(site.at("model/model.sig")).unwrap();
    assert!(refused(&signed).contains("model.sig"));
}

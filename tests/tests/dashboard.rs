//! `testudo run --dashboard`: who is shown the run, and what everybody else is told. The page in a browser: `dashboard_page.rs`.

#[path = "common/steered.rs"]
mod steered;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use steered::{Place, STEPS, operate};
use testudo_tests::process::{self, Started, assert_nothing_left, steps};

/// Far beyond what an answer takes.
const DEADLINE: Duration = Duration::from_secs(60);

const EVALUATED: [&str; 4] = ["--set", STEPS, "--set", "training.evaluate_every=20"];

/// A link of a run, and the sessions that were had.
#[derive(Clone)]
struct Page {
    host: String,
    token: String,
    /// The page's own path, once it was opened, and its cookie.
    place: String,
    cookie: String,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Page {
    /// As soon as the run in `dir` has a link.
    fn of(run: &mut Started) -> Page {
        let link = run.until("a link", |dir| std::fs::read_to_string(dir.join("dashboard.url")).ok());
        let (address, token) = link.trim_end().split_once("/open#").unwrap();
        let host = address.strip_prefix("http://").unwrap().to_owned();
        Page { host, token: token.to_owned(), place: String::new(), cookie: String::new() }
    }

    /// The same, once the link has been used.
    fn opened(run: &mut Started) -> Page {
        let page = Page::of(run);
        let answer = page.exchange(&page.token, &page.same_origin());
        assert_eq!(answer.status, 200, "{}", answer.body);
        let cookie = answer.header("set-cookie").split(';').next().unwrap().to_owned();
        Page { place: answer.body, cookie, ..page }
    }

    fn same_origin(&self) -> String {
        format!("Host: {0}\r\nOrigin: http://{0}\r\nSec-Fetch-Site: same-origin\r\n", self.host)
    }

    fn with_cookie(&self) -> String {
        format!("Host: {}\r\nCookie: other=1; {}\r\n", self.host, self.cookie)
    }

    fn exchange(&self, token: &str, headers: &str) -> Answer {
        self.send(&format!(
            "POST /session HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n{token}",
            token.len()
        ))
    }

    fn get(&self, path: &str, headers: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\n{headers}\r\n"))
    }

    /// Of the page's own path.
    fn own(&self, name: &str) -> Answer {
        self.get(&format!("{}{name}", self.place), &self.with_cookie())
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.own("state").body).unwrap()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.host).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn send(&self, request: &str) -> Answer {
        let (head, rest) = request.split_once("\r\n\r\n").unwrap();
        let request = format!("{head}\r\nConnection: close\r\n\r\n{rest}");
        in_time(|| {
            let mut stream = self.connect();
            // Who is refused by the head alone may be hung up on with the rest on its way, and has the answer all the same.
            let sent = stream.write_all(request.as_bytes());
            let mut bytes = Vec::new();
            let read = stream.read_to_end(&mut bytes);
            let text = String::from_utf8(bytes).unwrap();
            let (head, body) = text
                .split_once("\r\n\r\n")
                .unwrap_or_else(|| panic!("no answer: {text}, {sent:?}, {read:?}"));
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            (status, Answer { status, head: head.to_owned(), body: body.to_owned() })
        })
        .1
    }

    /// A stream of events: its status, and what comes behind its first line.
    fn events(&self) -> (u16, BufReader<TcpStream>) {
        let request = format!("GET {}events HTTP/1.1\r\n{}\r\n", self.place, self.with_cookie());
        in_time(|| {
            let mut stream = self.connect();
            let sent = stream.write_all(request.as_bytes());
            let mut lines = BufReader::new(stream);
            let mut first = String::new();
            let read = lines.read_line(&mut first);
            let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
            (status.unwrap_or_else(|| panic!("no answer: {first}, {sent:?}, {read:?}")), lines)
        })
    }
}

/// What `ask` comes to when its request arrives in time: the page waits for one for five seconds, in which this machine may stand still,
/// and has done nothing for whom it tells so.
fn in_time<T>(ask: impl FnMut() -> (u16, T)) -> (u16, T) {
    const TOO_SLOW: u16 = 408;
    std::iter::repeat_with(ask)
        .take(10)
        .find(|(status, _)| *status != TOO_SLOW)
        .expect("it never was in time")
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let mut all = self.head.lines().filter_map(|line| line.split_once(": "));
        all.find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

/// The next event of a stream, or the end of it.
fn event(lines: &mut impl std::io::BufRead) -> Option<Value> {
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if let Some(data) = line.strip_prefix("data: ") {
            return Some(serde_json::from_str(data).unwrap());
        }
        line.clear();
    }
    None
}

/// Every file of the run's directory that holds `secret`.
fn holding(dir: &Path, secret: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains(secret) {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    found
}

/// Invariants 1 to 4 of `dashboard.rs`: a link opens the page once, its session reads it, and everybody else is refused.
#[test]
fn a_link_opens_the_page_once_and_nobody_else_is_told_anything() {
    let place = Place::new();
    let (mut run, dir) = place.start("run", &[&EVALUATED[..], &["--dashboard"]].concat());
    run.until_steps(5);
    let page = Page::of(&mut run);
    let here = format!("Host: {}\r\n", page.host);
    let port = page.host.rsplit(':').next().unwrap();

    // What everybody may have tells nothing of the run, and loads nothing from elsewhere.
    let opening = page.get("/open", &format!("{here}Sec-Fetch-Site: cross-site\r\n"));
    assert_eq!(opening.status, 200);
    assert!(!opening.body.contains("small") && opening.body.contains("/open.js"));
    for answer in [&opening, &page.get("/nothing", &here), &page.get("/open", "Host: rebound.example\r\n")] {
        let policy = answer.header("content-security-policy");
        for part in
            ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"]
        {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        assert_eq!(answer.header("cache-control"), "no-store");
    }

    // Tokens that are none, and requests that this machine's user did not make. None of them uses the link up.
    let origin = format!("Origin: http://{}\r\n", page.host);
    for (headers, token) in [
        (here.clone(), page.token.as_str()),
        (format!("{here}Origin: https://evil.example\r\n"), &page.token),
        (format!("{here}{origin}Sec-Fetch-Site: cross-site\r\n"), &page.token),
        (format!("Host: rebound.example:{port}\r\n{origin}"), &page.token),
        (format!("Host: rebound.example:{port}\r\nOrigin: http://rebound.example:{port}\r\n"), &page.token),
        (page.same_origin(), &page.token[1..]),
        (page.same_origin(), ""),
    ] {
        let answer = page.exchange(token, &headers);
        assert_eq!((answer.status, answer.header("set-cookie")), (403, ""), "{headers}{}", answer.body);
    }
    assert_eq!(page.exchange(&"x".repeat(1 << 16), &page.same_origin()).status, 413);
    assert_eq!(page.get("/session", &here).status, 405);

    let answer = page.exchange(&page.token, &page.same_origin());
    assert_eq!(answer.status, 200, "{}", answer.body);
    let cookie = answer.header("set-cookie");
    let (value, flags) = cookie.split_once("; ").unwrap();
    assert_eq!(flags, format!("Path={}; HttpOnly; SameSite=Strict", answer.body));
    let opened = Page { place: answer.body.clone(), cookie: value.to_owned(), ..page.clone() };
    let again = page.exchange(&page.token, &page.same_origin());
    assert_eq!(again.status, 403);
    assert!(again.body.contains("used already") && again.body.contains("dashboard.url"), "{}", again.body);

    // With the session, everything; without it, nothing.
    let names = ["", "dashboard.js", "charts.js", "nodes.js", "timeline.js", "words.js", "state"];
    for name in names {
        assert_eq!(opened.own(name).status, 200, "{name}");
    }
    let secret = opened.cookie.split_once('=').unwrap().1;
    for wrong in ["", &format!("Cookie: {}x\r\n", opened.cookie), &format!("Cookie: other={secret}\r\n")] {
        for name in names.iter().chain(&["events"]) {
            let answer = page.get(&format!("{}{name}", opened.place), &format!("{here}{wrong}"));
            assert_eq!(answer.status, 401, "{name} {wrong}");
            assert!(
                answer.body.contains("dashboard.url") && !answer.body.contains("small"),
                "{}",
                answer.body
            );
        }
    }
    let state = format!("{}state", opened.place);
    let cookie = format!("Cookie: {}\r\n", opened.cookie);
    for (headers, status) in [
        (format!("Host: rebound.example:{port}\r\n{cookie}"), 403),
        (format!("{here}{cookie}Sec-Fetch-Site: cross-site\r\n"), 403),
        (format!("{here}{cookie}Sec-Fetch-Site: same-site\r\n"), 403),
        (format!("{here}{cookie}Origin: null\r\n"), 403),
        (format!("Host: localhost:{port}\r\n{cookie}Sec-Fetch-Site: same-origin\r\n"), 200),
    ] {
        assert_eq!(page.get(&state, &headers).status, status, "{headers}");
    }
    assert_eq!(opened.get("/other/state", &opened.with_cookie()).status, 404);
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let asked = opened.send(&format!("{method} {state} HTTP/1.1\r\n{}{cookie}\r\n", page.same_origin()));
        assert_eq!(asked.status, 405, "{method}: there is nothing to change");
    }

    // Another link is in the run's directory, for its owner alone, and it is as good as the first.
    let file = dir.join("dashboard.url");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let second = Page::opened(&mut run);
    assert!(second.token != page.token && second.cookie != opened.cookie);
    assert_eq!((second.own("state").status, opened.own("state").status), (200, 200));
    for node in process::nodes(&dir).iter().map(|node| node.pid).chain([run.pid()]) {
        for what in ["cmdline", "environ"] {
            let told = std::fs::read(format!("/proc/{node}/{what}")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&told).contains(&page.token), "{what} of {node}");
        }
    }

    operate("stop", &dir, &[]).succeeded().stdout.clear();
    let ended = run.wait().succeeded();
    let printed = format!("dashboard: http://{}/open#{} (opens once", page.host, page.token);
    assert!(ended.stderr.contains(&printed), "printed, although the run is a quiet one: {}", ended.stderr);
    assert!(!ended.stdout.contains(&page.token) && !file.exists());
    for secret in [&page.token, &second.token, opened.cookie.split_once('=').unwrap().1] {
        assert_eq!(holding(&dir, secret), [""; 0]);
    }
    assert_nothing_left(&dir);
}

/// Invariants 5 and 6: streams are bounded, one that is not read holds nothing up, and all are told how the run ended.
#[test]
fn events_follow_the_run_to_its_end_and_wait_for_nobody() {
    let place = Place::new();
    let (mut run, dir) = place.start("run", &[&EVALUATED[..], &["--dashboard"]].concat());
    let page = Page::opened(&mut run);
    run.until_steps(30);
    let (status, mut events) = page.events();
    assert_eq!(status, 200);
    // The first event is all that there is; the next ones have what came since.
    let first = event(&mut events).unwrap();
    assert_eq!((&first["job"], &first["curves"]["whole"]), (&json!("small"), &json!(true)));
    let steps_of = |event: &Value| {
        let points = event["curves"]["points"].as_array().unwrap().clone();
        points.iter().map(|point| point[0].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let mut seen = steps_of(&first);
    let mut later = first;
    let told = |event: &Value, who: &str| event["timeline"][who].as_array().map_or(0, Vec::len);
    while seen.len() < 60 || told(&later, "servers") < 2 || later["curves"]["tests"] == json!([]) {
        later = event(&mut events).unwrap();
        // Points that have been merged since come anew.
        if later["curves"]["whole"] == true {
            seen.clear();
        }
        seen.extend(steps_of(&later));
    }
    let stride = later["curves"]["stride"].as_u64().unwrap();
    assert!(seen.iter().copied().eq((1..=seen.len() as u64).map(|n| n * stride)), "each once: {seen:?}");
    let nodes = later["status"]["nodes"].as_array().unwrap();
    let names: Vec<&str> = nodes.iter().map(|node| node["node"].as_str().unwrap()).collect();
    assert_eq!(names, ["server/0", "server/1", "worker/0", "worker/1"]);
    let workers = later["timeline"]["workers"].as_array().unwrap();
    assert_eq!(
        workers.iter().map(|w| w["node"].as_str().unwrap()).collect::<Vec<_>>(),
        ["worker/0", "worker/1"]
    );
    assert!(workers.iter().all(|w| w["compute_us"].as_u64().unwrap() > 0), "{workers:?}");
    let servers = later["timeline"]["servers"].as_array().unwrap();
    assert_eq!(
        servers.iter().map(|s| s["node"].as_str().unwrap()).collect::<Vec<_>>(),
        ["server/0", "server/1"],
        "of the step that all workers told of"
    );
    for (node, moments) in workers
        .iter()
        .map(|worker| (worker, ["ready_at_us", "began_at_us", "ended_at_us"]))
        .chain(servers.iter().map(|server| (server, ["first_at_us", "last_at_us", "done_at_us"])))
    {
        let moments = moments.map(|moment| node[moment].as_i64().unwrap());
        assert!(moments.is_sorted(), "{node}");
    }
    run.until("a server that says what it spent", |_| {
        let nodes = page.state()["status"]["nodes"].as_array().unwrap().clone();
        nodes.iter().any(|n| n["load"]["busy_us"].as_u64().unwrap() > 0).then_some(())
    });

    // There are seven more, none of which is ever read, and no ninth.
    let mut unread: Vec<_> = (0..7).map(|_| page.events()).collect();
    assert!(unread.iter().all(|(status, _)| *status == 200));
    assert_eq!(page.events().0, 503);
    drop(unread.pop());
    run.until("a place that is free again", |_| (page.events().0 == 200).then_some(()));
    let before = steps(&dir);
    run.until_steps(before + 200);

    operate("stop", &dir, &[]).succeeded().stdout.clear();
    let last = std::iter::from_fn(|| event(&mut events)).last().unwrap();
    let summary = run.wait().succeeded().json();
    assert_eq!(last["ending"]["how"], "stopped", "{}", last["ending"]);
    assert_eq!(last["ending"]["summary"]["params_blake3"], summary["params_blake3"]);
    assert_eq!(last["status"]["step"], summary["steps"]);
    assert_nothing_left(&dir);
}

/// How a run failed is told before its process ends.
#[test]
fn a_run_that_fails_says_so_to_those_who_watch() {
    let place = Place::new();
    let options = ["--dashboard", "--set", STEPS, "--set", "cluster.restarts=0"];
    let (mut run, dir) = place.start("run", &options);
    let page = Page::opened(&mut run);
    run.until_steps(3);
    let (_, mut events) = page.events();
    event(&mut events).unwrap();
    process::send(run.node("server", 1).pid, process::Signal::KILL);
    let last = std::iter::from_fn(|| event(&mut events)).last().unwrap();
    let ended = run.wait();
    assert_eq!((ended.code(), &last["ending"]["how"]), (Some(1), &json!("failed")), "{ended:#?}");
    assert!(last["ending"]["text"].as_str().unwrap().contains("server/1"), "{}", last["ending"]);
    assert!(!dir.join("dashboard.url").exists());
}

/// A port that is taken, or is no port, is found before anything is started.
#[test]
fn a_port_that_cannot_be_had_ends_the_start() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("--dashboard={}", taken.local_addr().unwrap().port());
    let (run, dir) = place.start("run", &[&port]);
    let ended = run.wait();
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("--dashboard: port") && !dir.exists(), "{}", ended.stderr);
    let (run, _) = place.start("run", &["--dashboard=65536"]);
    assert_eq!(run.wait().code(), Some(2));
}

//! The page of `testudo run --dashboard` in headless Chromium.

#[path = "common/steered.rs"]
mod steered;

use serde_json::{Value, json};
use steered::{FOR_STRANGERS, Place, STEPS, operate, strangers};
use testudo_tests::attacker::Attacker;
use testudo_tests::chromium::Browser;
use testudo_tests::live::until;
use testudo_tests::process::Started;

const OPTIONS: [&str; 5] = ["--dashboard", "--set", STEPS, "--set", "training.evaluate_every=20"];

/// The link of a run, as soon as it has one: up to its token, and the token.
fn link(run: &mut Started) -> (String, String) {
    let link = run.until("a link", |dir| std::fs::read_to_string(dir.join("dashboard.url")).ok());
    let (address, token) = link.trim_end().split_once("/open#").unwrap();
    (address.to_owned(), token.to_owned())
}

/// The page itself, in a browser: it shows the run, by keyboard too, asks for nothing elsewhere, and stays when the run is over.
#[test]
fn a_browser_shows_the_run_and_asks_for_nothing_elsewhere() {
    let place = Place::new();
    let (mut run, dir) = place.start("run", &OPTIONS);
    run.until_steps(30);
    let (host, token) = link(&mut run);
    let Some(mut browser) = Browser::open(&format!("{host}/open#{token}")) else { return };
    browser.until("document.querySelectorAll('#timeline .bar').length >= 4");
    browser.until("document.querySelectorAll('#chart-accuracy .canvas .mark').length > 0");
    browser.until("document.querySelectorAll('#nodes tbody tr').length === 5");
    let seen = browser.look();
    let number =
        |path: &str| seen.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {seen}"));
    for (curve, least) in [("loss", 20), ("accuracy", 1), ("rate", 20), ("bytes", 20)] {
        assert!(number(&format!("/points/{curve}")) >= least, "{curve}: {seen}");
    }
    let names: Vec<&str> =
        seen["nodes"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
    assert_eq!(names, ["scheduler/0", "server/0", "server/1", "worker/0", "worker/1"]);
    assert!(number("/stages") >= 8, "three stages of each worker, two of each server: {seen}");
    for (bar, stages) in [(0, ["wait", "compute", "send"]), (3, ["from", "collect", "update"])] {
        let bar = seen["bars"][bar].as_str().unwrap();
        assert!(stages.iter().all(|stage| bar.contains(stage)), "{seen}");
    }
    let address = seen["address"].as_str().unwrap();
    assert!(address.len() == 24 && !address.contains(&token), "{address}");
    assert_eq!(seen["cookies"], "", "no script can read the session's");

    // By keyboard: to the first curve, and along it.
    browser.ask("run", "document.querySelector('#chart-loss .canvas').focus()");
    // A run that has gone far has points that stand for more steps than one, and may come to that between two looks.
    let first = "fetch('state').then((answer) => answer.json()).then((state) => state.curves.points[0][0])";
    until("the first point to be spoken of", || {
        browser.ask("keys", json!(["Home"]));
        let spoken = browser.look();
        let step = browser.ask("run", first);
        spoken["spoken"].as_str().unwrap().contains(&format!("(step {step})")).then_some(())
    });
    for (width, height, scheme) in [(1280, 800, "dark"), (400, 800, "light")] {
        browser.ask("size", json!([width, height, scheme]));
        assert_eq!(browser.look()["wider"], 0, "nothing is cut off at {width}");
    }
    let seen = browser.look();
    let requests = seen["requests"].as_array().unwrap();
    let here = format!("{host}/");
    assert!(requests.len() >= 8, "{requests:?}");
    assert!(requests.iter().all(|url| url.as_str().unwrap().starts_with(&here)), "{requests:?}");
    assert_eq!((&seen["blocked"], &seen["errors"]), (&json!([]), &json!([])), "{seen}");

    operate("stop", &dir, &[]).succeeded().stdout.clear();
    browser.until("document.querySelector('#state').textContent === 'stopped'");
    run.wait().succeeded().stdout.clear();
    let last = browser.look();
    assert!(last["banner"].as_str().unwrap().contains("stopped in order"), "{last}");
    assert!(last.pointer("/points/loss").unwrap().as_u64() > Some(20), "what was shown stays: {last}");
    assert_eq!(last["errors"], json!([]), "it asks for nothing that is gone: {last}");

    // What would be blocked is blocked, and is noticed.
    assert_eq!(browser.ask("trip", json!({})), json!({ "tripped": false }));
    let blocked = browser.look()["blocked"].to_string();
    for what in ["style-src", "script-src", "img-src"] {
        assert!(blocked.contains(what), "{what}: {blocked}");
    }
}

/// A browser that would run what others say, if anything of it became markup: marks and attributes that need no quotes, and
/// characters that no text has.
const HOSTILE: &str =
    "<img src=x onerror=window.tripped=1><script>window.tripped=1<_script>'\"&lt;\u{7}\u{1b}[31m\u{202e}end";

/// `event` with hostile text at the end of every text in it.
fn hostile(event: Value) -> Value {
    match event {
        Value::String(text) => format!("{text}{HOSTILE}").into(),
        Value::Array(all) => all.into_iter().map(hostile).collect(),
        Value::Object(all) => all.into_iter().map(|(name, value)| (name, hostile(value))).collect(),
        other => other,
    }
}

/// Invariant 7 of `dashboard.rs`: what the run's directory is called, and whatever is said in every place that has a text, is shown as it
/// stands.
#[test]
fn what_others_say_is_text_in_the_page() {
    let place = Place::new();
    let name = format!("run{HOSTILE}");
    let (mut run, dir) = place.start(&name, &OPTIONS);
    run.until_steps(30);
    let (host, token) = link(&mut run);
    let Some(mut browser) = Browser::open(&format!("{host}/open#{token}")) else { return };
    // A real event, and what is made of it here.
    browser.until("document.querySelectorAll('#nodes tbody tr').length === 5");
    browser.until("document.querySelectorAll('#timeline .bar').length >= 2");
    let shown = |browser: &mut Browser, selector: &str| {
        browser
            .ask("run", format!("document.querySelector('{selector}').textContent"))
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(shown(&mut browser, "#place"), dir.display().to_string());
    let mut event = browser.ask("run", "fetch('state').then((answer) => answer.json())");
    event["status"]["stalled"] = json!("server/0");
    event["status"]["nodes"][0]["waiting"] = json!("fc1.weight");
    event["notices"] = json!([{ "number": 1, "at": 1, "text": "worker/1 ended" }]);
    let mut ended = event.clone();
    ended["ending"] = json!({ "how": "failed", "text": "server/0 ended", "summary": null });
    browser.ask("play", json!([hostile(event)]));
    browser.until("document.querySelector('#state').textContent.startsWith('not connected')");
    let waits = shown(&mut browser, "#nodes tbody tr:nth-child(2) td");
    assert!(waits.contains("waits: fc1.weight<img") && waits.ends_with(HOSTILE), "{waits}");
    browser.ask("play", json!([hostile(ended)]));
    browser.until("document.querySelector('#state').textContent.startsWith('failed<img')");
    for (selector, begins) in [
        ("title", ""),
        ("#job", "small<img"),
        ("#place", dir.to_str().unwrap()),
        ("#banner", "The run is over. server/0 ended<img"),
        ("#notices li", ""),
        ("#nodes tbody tr:nth-child(2) th", "server/0<img"),
        ("#timeline .bar .name", "worker/0<img"),
    ] {
        let text = shown(&mut browser, selector);
        assert!(text.starts_with(begins) && text.contains(HOSTILE), "{selector}: {text}");
    }
    let made = browser.ask("run", "document.querySelectorAll('img, script:not([src]), [onerror]').length");
    let tripped = browser.ask("run", "typeof window.tripped");
    assert_eq!((made, tripped), (json!(0), json!("undefined")));
    let seen = browser.look();
    assert_eq!((&seen["blocked"], &seen["errors"]), (&json!([]), &json!([])), "{seen}");
    operate("stop", &dir, &[]).succeeded().stdout.clear();
    run.wait().succeeded().stdout.clear();
}

/// The timeline has a bar for each node of the step, whose stages stand where they were, on one scale.
#[test]
fn bars_stand_where_their_moments_are() {
    let place = Place::new();
    let (mut run, dir) = place.start("run", &OPTIONS);
    run.until_steps(5);
    let (host, token) = link(&mut run);
    let Some(mut browser) = Browser::open(&format!("{host}/open#{token}")) else { return };
    browser.until("document.querySelectorAll('#nodes tbody tr').length === 5");
    let mut event = browser.ask("run", "fetch('state').then((answer) => answer.json())");
    let worker = |index: u32, ready: i64, began: i64, ended: i64| {
        json!({
            "node": format!("worker/{index}"), "wait_us": 500, "compute_us": 1, "send_us": 1_000,
            "ready_at_us": ready, "began_at_us": began, "ended_at_us": ended,
        })
    };
    event["timeline"] = json!({
        "step": 1_234,
        "duration_us": 9_000,
        "workers": [worker(0, -500, 1_000, 5_000), worker(1, 2_000, 2_500, 9_000)],
        "servers": [{ "node": "server/0", "first_at_us": 4_000, "last_at_us": 8_500, "done_at_us": 8_510 }],
    });
    browser.ask("play", json!([event]));
    browser.until("document.querySelector('#timeline-said').textContent.startsWith('Step 1,234,')");
    let rects = "[...document.querySelectorAll('#timeline .bar')].map((bar) => [...bar.querySelectorAll('rect')].map((rect) => \
                 [rect.getAttribute('class'), rect.getAttribute('x'), rect.getAttribute('width')].join(' ')))";
    // From a millisecond before the step was opened to nine after.
    assert_eq!(
        browser.ask("run", rects),
        json!([
            ["stage wait 0% 5%", "stage compute 20% 30%", "stage send 50% 10%"],
            ["stage wait 25% 5%", "stage compute 35% 55%", "stage send 90% 10%"],
            ["stage collect 50% 45%", "stage update 95% 0.3%"],
        ])
    );
    let seen = browser.look();
    assert_eq!(seen["bars"][0], "worker/0from -1.00: wait 0.50 · compute 3.00 · send 1.00 ms", "{seen}");
    operate("stop", &dir, &[]).succeeded().stdout.clear();
    run.wait().succeeded().stdout.clear();
}

/// Strangers at the door are counted in the page, by reason and by who refused them.
#[test]
fn who_is_refused_is_counted_in_the_page() {
    let Some(attacker) = Attacker::start() else { return };
    let place = Place::new();
    let (mut run, dir) = place.start("run", &[&OPTIONS[..], &FOR_STRANGERS].concat());
    run.until_steps(5);
    let (host, token) = link(&mut run);
    let Some(mut browser) = Browser::open(&format!("{host}/open#{token}")) else { return };
    browser.until("document.querySelectorAll('#nodes tbody tr').length === 5");
    assert_eq!(browser.look()["refusals"], json!([]));
    strangers(&attacker, &dir, 3);
    browser.until("document.querySelector('#refused').textContent === '3'");
    let seen = browser.look();
    let what = "handshakes that failed: certificate, identity, protocol, deadline";
    assert_eq!(seen["refusals"], json!([[what, "3", "scheduler/0"]]), "{seen}");
    assert_eq!(seen["nodes"][0][7], "3", "{seen}");
    operate("stop", &dir, &[]).succeeded().stdout.clear();
    run.wait().succeeded().stdout.clear();
}

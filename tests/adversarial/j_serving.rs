//! Class J, serving: what a client that would steal or break a model asks of `testudo serve`, and what it gets.
//!
//! The attacker is an HTTPS client made by hand (`tests/src/https.rs`). All of `tests/tests/serving.rs` is about the same; the
//! extraction of a model by as many queries as its equations need is measured there, where there is one.

use testudo::serve::{Budget, Options, Trust};
use testudo_kernels::ModelSpec;
use testudo_tests::served::Site;

/// Two inputs, three classes.
fn site() -> Site {
    let spec = ModelSpec::Mlp { inputs: 2, hidden: vec![], classes: 3 };
    Site::new(&spec, &[vec![1.0, 0.0, 0.0, 1.0, -1.0, -1.0], vec![0.0, 0.5, -0.5]])
}

/// Options under which neither rate nor budget end a case.
fn roomy(site: &Site) -> Options {
    let mut options = site.options();
    options.limits.budget = Some(Budget::Rows(100_000));
    options.limits.rate = 100_000;
    options
}

#[test]
fn class_j_precision_is_what_the_operator_allows() {
    let site = site();
    let token = site.token("mallory");
    let running = site.serve(&roomy(&site)).unwrap();
    let client = running.client().with_token(&token);
    let rows: Vec<[f64; 2]> = (0..20_i32).map(|n| [f64::from(n) / 7.0, f64::from(n * n) / 90.0]).collect();
    for row in &rows {
        for probability in client.predict(&[*row]).probabilities().concat() {
            let hundredths = probability * 100.0;
            assert!((hundredths - hundredths.round()).abs() < 1e-9, "{probability} has more than two digits");
        }
    }
    // A client cannot ask for more.
    let more = client.post("{\"inputs\":[[0,0]],\"digits\":\"full\"}");
    assert_eq!((more.status, more.code().as_str()), (400, "malformed"));
}

#[test]
fn class_j_a_budget_ends_what_a_client_may_ask() {
    let site = site();
    let (mallory, alice) = (site.token("mallory"), site.token("alice"));
    let mut options = roomy(&site);
    options.limits.budget = Some(Budget::Rows(5));
    let running = site.serve(&options).unwrap();
    let client = running.client().with_token(&mallory);
    for _ in 0..5 {
        assert_eq!(client.predict(&[[0.1, 0.2]]).status, 200);
    }
    for rows in [vec![[0.1, 0.2]], vec![[0.1, 0.2]; 4]] {
        let refused = client.predict(&rows);
        assert!((400..500).contains(&refused.status) && refused.code().contains("budget"), "{refused:?}");
    }
    // Nor by calling the server anew: it is what the client may ever ask.
    running.stop();
    let running = site.serve(&options).unwrap();
    let refused = running.client().with_token(&mallory).predict(&[[0.1, 0.2]]);
    assert!(refused.code().contains("budget"), "{refused:?}");
    let other = running.client().with_token(&alice).predict(&[[0.1, 0.2]]);
    assert_eq!(other.status, 200, "the others have theirs: {other:?}");
}

#[test]
fn class_j_hostile_input_is_refused_by_name() {
    let site = site();
    let token = site.token("mallory");
    let mut options = roomy(&site);
    options.limits.rows = 3;
    let running = site.serve(&options).unwrap();
    let client = running.client().with_token(&token);
    for (body, status, code) in [
        ("{\"inputs\":[[0,NaN]]}", 400, "malformed"),
        ("{\"inputs\":[[0,Infinity]]}", 400, "malformed"),
        ("{\"inputs\":[[0,1e39]]}", 422, "not_finite"),
        ("{\"inputs\":[[-3e38,-3e38]]}", 422, "overflow"),
        ("{\"inputs\":[[0,0,0]]}", 422, "wrong_shape"),
        ("{\"inputs\":[[0,0],[0,0],[0,0],[0,0]]}", 422, "too_many_rows"),
    ] {
        let answer = client.post(body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}: {answer:?}");
    }
    let deep = "[".repeat(20_000);
    assert!((400..500).contains(&client.post(&deep).status), "nesting without end");
    let long = format!("{{\"inputs\":[[0,{}0]]}}", " ".repeat(options.limits.body_bytes(2)));
    assert_eq!(client.post(&long).code(), "too_large");
    let announced = client.head("POST", "/v1/predict", usize::MAX, "");
    assert_eq!(client.send(announced.as_bytes()).unwrap().code(), "too_large");
    assert_eq!(client.predict(&[[0.0, 0.0]]).status, 200, "the server is as it was");
}

#[test]
fn class_j_an_unsigned_model_is_not_served() {
    for name in ["model.sig", "model.safetensors"] {
        let site = site();
        let _ = site.token("alice");
        std::fs::remove_file(site.at("model").join(name)).unwrap();
        let why = site.serve(&site.options()).map(|_| ()).unwrap_err().to_string();
        assert!(why.contains("model"), "{name}: {why}");
    }
    // Unless it is told to.
    let site = site();
    let _ = site.token("alice");
    std::fs::remove_file(site.at("model/model.sig")).unwrap();
    let told = Options { trust: Trust::Unsigned, ..site.options() };
    assert!(site.serve(&told).is_ok());
}

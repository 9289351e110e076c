use super::*;

fn with_endpoint(url: &str) -> Environment {
    Environment { endpoint: Some(url.to_string()), ..Environment::default() }
}

fn exporter(words: &str) -> Export {
    Export { exporter: Some(words.into()), ..Export::default() }
}

/// Invariant 1 of the module above.
#[test]
fn nothing_is_exported_unless_asked() {
    for signal in Signal::ALL {
        let asked = |environment: Environment| environment.url(signal).unwrap().is_some();
        assert!(!asked(Environment::default()));
        assert!(!asked(Environment { sdk_disabled: Some("TRUE".into()), ..with_endpoint("http://c:4318") }));
        assert!(asked(Environment { sdk_disabled: Some("false".into()), ..with_endpoint("http://c:4318") }));
    }
    let alone = Environment {
        metrics: exporter("zipkin"),
        traces: Export { protocol: Some("http/json".into()), ..Export::default() },
        interval: Some("1".into()),
        ..Environment::default()
    };
    assert!(!alone.exports() && alone.scraped_at().unwrap().is_none(), "what is not ours refuses no start");
    for none in ["none", "prometheus", "none,prometheus"] {
        let traces = Environment { metrics: exporter(none), ..with_endpoint("http://c:4318") };
        assert_eq!(traces.url(Signal::Metrics).unwrap(), None);
        assert_eq!(traces.url(Signal::Traces).unwrap().as_deref(), Some("http://c:4318/v1/traces"));
    }
    let both = Environment { metrics: exporter("otlp, prometheus"), ..with_endpoint("http://c:4318") };
    assert_eq!(both.url(Signal::Metrics).unwrap().as_deref(), Some("http://c:4318/v1/metrics"));
}

#[test]
fn urls_follow_the_otlp_specification() {
    let url = |environment: Environment| environment.url(Signal::Traces).unwrap().unwrap();
    assert_eq!(url(with_endpoint("http://c:4318")), "http://c:4318/v1/traces");
    assert_eq!(url(with_endpoint("http://c:4318/")), "http://c:4318/v1/traces");
    assert_eq!(url(with_endpoint("https://c:4318")), "https://c:4318/v1/traces");
    assert_eq!(url(with_endpoint("http://c:4318/otel")), "http://c:4318/otel/v1/traces");
    let own = Export { endpoint: Some("http://t:9/custom".into()), ..Export::default() };
    let both = Environment { traces: own.clone(), ..with_endpoint("http://c:4318") };
    assert_eq!(both.url(Signal::Metrics).unwrap().as_deref(), Some("http://c:4318/v1/metrics"));
    assert_eq!(both.url(Signal::Logs).unwrap().as_deref(), Some("http://c:4318/v1/logs"));
    assert_eq!(url(both), "http://t:9/custom");
    let alone = Environment { metrics: own, ..Environment::default() };
    assert_eq!(alone.url(Signal::Metrics).unwrap().as_deref(), Some("http://t:9/custom"));
    assert_eq!(alone.url(Signal::Traces).unwrap(), None);
}

#[test]
fn over_grpc_a_url_is_taken_as_it_is() {
    let grpc = Export { protocol: Some(" grpc ".into()), ..Export::default() };
    let environment = Environment { logs: grpc, ..with_endpoint("http://c:4317") };
    assert_eq!(environment.protocol(Signal::Logs).unwrap(), Protocol::Grpc);
    assert_eq!(environment.url(Signal::Logs).unwrap().as_deref(), Some("http://c:4317"));
    assert_eq!(environment.url(Signal::Traces).unwrap().as_deref(), Some("http://c:4317/v1/traces"));
}

#[test]
fn what_cannot_be_served_is_refused() {
    let refused = |export: Export| {
        let environment = Environment { metrics: export, ..with_endpoint("http://c:4317") };
        environment.url(Signal::Metrics).unwrap_err().to_string()
    };
    let json = refused(Export { protocol: Some("http/json".into()), ..Export::default() });
    assert!(json.contains("http/protobuf") && json.contains("grpc"), "{json}");
    let other = refused(exporter("otlp,zipkin"));
    assert!(other.contains("OTEL_METRICS_EXPORTER") && other.contains("zipkin"), "{other}");
    let spans = Environment { traces: exporter("prometheus"), ..with_endpoint("http://c:4317") };
    assert!(spans.url(Signal::Traces).is_err(), "spans are not scraped");
    for url in ["c:4318", "ftp://c", "HTTPS//c"] {
        let error = with_endpoint(url).url(Signal::Traces).unwrap_err().to_string();
        assert!(error.contains(url) && error.contains("https://"), "{error}");
    }
}

#[test]
fn a_timeout_is_a_signals_own() {
    let said = |text: &str| Export { timeout: Some(text.into()), ..Export::default() };
    let both = Environment { traces: said(" 250 "), metrics: said("soon"), ..Environment::default() };
    assert_eq!(both.timeout(Signal::Traces), Duration::from_millis(250));
    assert_eq!(both.timeout(Signal::Metrics), TIMEOUT);
    assert_eq!(Environment::default().timeout(Signal::Traces), TIMEOUT);
}

#[test]
fn an_interval_is_milliseconds_and_not_too_few() {
    let every = |text: &str| Environment { interval: Some(text.into()), ..Environment::default() }.interval();
    assert_eq!(Environment::default().interval().unwrap(), DEFAULT_INTERVAL);
    assert_eq!(every(" 100 ").unwrap(), SHORTEST_INTERVAL);
    for wrong in ["0", "99", "-1", "1s", "1.5", "18446744073709551616"] {
        let error = every(wrong).unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("OTEL_METRIC_EXPORT_INTERVAL"), "{error}");
    }
}

#[test]
fn a_sampler_is_one_step_in_so_many() {
    let every = |sampler: &str, argument: Option<&str>| {
        let sampler_argument = argument.map(str::to_owned);
        Environment { sampler: Some(sampler.into()), sampler_argument, ..Environment::default() }
            .sample_every()
    };
    assert_eq!(Environment::default().sample_every().unwrap(), DEFAULT_SAMPLE_EVERY);
    for on in ["always_on", "parentbased_always_on"] {
        assert_eq!(every(on, Some("0.5")).unwrap(), 1);
    }
    assert_eq!(every("always_off", None).unwrap(), 0);
    assert_eq!(every("traceidratio", None).unwrap(), 1);
    assert_eq!(every("parentbased_traceidratio", Some("0")).unwrap(), 0);
    for steps in [1_u64, 2, 3, 7, 49, 100, 1_000, 999_983] {
        let ratio = (1.0 / steps as f64).to_string();
        assert_eq!(every("traceidratio", Some(&ratio)).unwrap(), steps);
    }
    for (sampler, argument) in
        [("jaeger_remote", None), ("traceidratio", Some("2")), ("traceidratio", Some("x"))]
    {
        let error = every(sampler, argument).unwrap_err().to_string();
        assert!(error.contains("OTEL_TRACES_SAMPLER"), "{error}");
    }
}

/// What the cluster file says holds where no variable says otherwise.
#[test]
fn variables_come_before_the_cluster_file() {
    let settings = Settings {
        endpoint: Some("http://file:1".into()),
        protocol: Some("grpc".into()),
        files: Files::default(),
        sample_every: Some(7),
        interval_ms: Some(500),
        prometheus: Some(0),
    };
    let file = Environment::default().with_settings(settings.clone());
    assert_eq!(file.url(Signal::Metrics).unwrap().as_deref(), Some("http://file:1"));
    assert_eq!((file.sample_every().unwrap(), file.interval().unwrap()), (7, Duration::from_millis(500)));
    assert_eq!(file.scraped_at().unwrap(), Some(SocketAddr::from(([127, 0, 0, 1], 0))));
    let said = Environment {
        endpoint: Some("http://said:2".into()),
        metrics: Export { protocol: Some("http/protobuf".into()), ..exporter("otlp") },
        sampler: Some("always_on".into()),
        interval: Some("200".into()),
        ..Environment::default()
    };
    let said = said.with_settings(settings);
    assert_eq!(said.url(Signal::Metrics).unwrap().as_deref(), Some("http://said:2/v1/metrics"));
    assert_eq!(
        said.url(Signal::Logs).unwrap().as_deref(),
        Some("http://said:2"),
        "over gRPC, as the file says"
    );
    assert_eq!((said.sample_every().unwrap(), said.interval().unwrap()), (1, Duration::from_millis(200)));
    assert_eq!(said.scraped_at().unwrap(), None, "the variable names other exporters");
}

#[test]
fn metrics_are_scraped_on_loopback_alone() {
    let scraped = |host: Option<&str>, port: Option<&str>| {
        let (prometheus_host, prometheus_port) = (host.map(str::to_owned), port.map(str::to_owned));
        let metrics = exporter("prometheus");
        Environment { metrics, prometheus_host, prometheus_port, ..Environment::default() }.scraped_at()
    };
    let at = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
    assert_eq!(scraped(None, None).unwrap(), at("127.0.0.1:9464"));
    assert_eq!(scraped(Some("localhost"), Some("0")).unwrap(), at("127.0.0.1:0"));
    assert_eq!(scraped(Some("::1"), Some("1234")).unwrap(), at("[::1]:1234"));
    for host in ["0.0.0.0", "::", "10.0.0.1", "example.org"] {
        let error = scraped(Some(host), None).unwrap_err().to_string();
        assert!(error.contains(host) && error.contains("loopback"), "{error}");
    }
    assert!(scraped(None, Some("70000")).unwrap_err().to_string().contains("OTEL_EXPORTER_PROMETHEUS_PORT"));
    assert_eq!(Environment::default().scraped_at().unwrap(), None);
}

/// What waits for a collector that does not come is memory.
#[test]
fn a_queue_is_bounded_whatever_is_asked_for() {
    let spans =
        |text: &str| Environment { span_queue: Some(text.into()), ..Environment::default() }.spans_waiting();
    assert_eq!(Environment::default().spans_waiting(), QUEUE);
    assert_eq!([" 16 ", "0", "many"].map(spans), [16, QUEUE, QUEUE]);
    assert_eq!(spans("18446744073709551615"), MOST_QUEUE);
    let lines = Environment { log_queue: Some("999999999".into()), ..Environment::default() };
    assert_eq!(lines.lines_waiting(), MOST_QUEUE);
}

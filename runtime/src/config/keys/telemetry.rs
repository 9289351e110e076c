//! The rows about collectors of traces, metrics and logs.

use super::super::check;
use super::rules::DAY_MS;
use super::{Absent, Base, Key, Rule};

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "telemetry.endpoint",
        rule: Rule::Text { check: check::collector, allowed: "a URL that begins with https:// or http://" },
        absent: Absent::Unset("nothing is exported"),
        applies: None,
        doc: "Base URL of the OpenTelemetry collector that every node sends traces, metrics and its log to, `https://collector.example:4318` for instance, or port 4317 with gRPC: see [metrics](metrics.md#opentelemetry). `http://` is plain text, for a collector on the same machine; the log and `testudo run` warn where it leads to another. `OTEL_EXPORTER_OTLP_ENDPOINT` and the variables of single signals come first.",
    },
    Key {
        path: "telemetry.protocol",
        rule: Rule::Choice(&["http/protobuf", "grpc"]),
        absent: Absent::Is("\"http/protobuf\""),
        applies: None,
        doc: "How it is spoken to. `OTEL_EXPORTER_OTLP_PROTOCOL` comes first.",
    },
    Key {
        path: "telemetry.certificate",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("the CAs that the system trusts"),
        applies: None,
        doc: "PEM file of the CAs that an `https://` collector's certificate may lead to. `testudo run` reads it and the next two for its nodes, those on hosts too; others read them when they start. `OTEL_EXPORTER_OTLP_CERTIFICATE` comes first.",
    },
    Key {
        path: "telemetry.client_certificate",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("the collector is shown none"),
        applies: None,
        doc: "PEM file of the certificate that an `https://` collector is shown, and behind it those of the CAs between it and one that the collector trusts. Goes with the next. `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE` comes first.",
    },
    Key {
        path: "telemetry.client_key",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("the collector is shown no certificate"),
        applies: None,
        doc: "PEM file of its private key; nobody but its owner may read it. `OTEL_EXPORTER_OTLP_CLIENT_KEY` comes first.",
    },
    Key {
        path: "telemetry.sample_every",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("100"),
        applies: None,
        doc: "One step in so many is traced, across all nodes; 0 for none. All nodes must say the same. `OTEL_TRACES_SAMPLER` comes first: `always_on`, `always_off`, or `traceidratio` with `OTEL_TRACES_SAMPLER_ARG=0.01` for one in 100.",
    },
    Key {
        path: "telemetry.metrics_interval_ms",
        rule: Rule::Integer { min: 100, max: DAY_MS },
        absent: Absent::Is("60000"),
        applies: None,
        doc: "Milliseconds between two exports of metrics. `OTEL_METRIC_EXPORT_INTERVAL` comes first.",
    },
    Key {
        path: "telemetry.prometheus_port",
        rule: Rule::Integer { min: 0, max: 65_535 },
        absent: Absent::Unset("metrics cannot be scraped"),
        applies: None,
        doc: "TCP port of 127.0.0.1 on which the scheduler answers Prometheus; server *i* does on this port + 1 + *i*, and workers on those after the servers'. 0 for ports that the system chooses: they stand in each log and, for Prometheus, in `RUN_DIR/prometheus/`. `OTEL_METRICS_EXPORTER=prometheus` and `OTEL_EXPORTER_PROMETHEUS_PORT` come first.",
    },
    Key {
        path: "telemetry.tensorboard",
        rule: Rule::Boolean,
        absent: Absent::Is("true"),
        applies: None,
        doc: "Whether the scheduler writes what TensorBoard shows to `RUN_DIR/tensorboard/`: see [watching](watching.md#tensorboard).",
    },
    Key {
        path: "telemetry.histogram_every",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("100"),
        applies: None,
        doc: "Steps between two histograms of gradients and parameters there, of each tensor; of the first step there is one, too. 0 for none. Servers count, so theirs must say the same.",
    },
];

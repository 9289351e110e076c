//! `[telemetry]`: who is told of traces, metrics and the log.

use std::path::PathBuf;

use serde::Serialize;
use testudo_observability::{Environment, Files, Settings};

/// `[telemetry]`: who is told of traces, metrics and the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Telemetry {
    /// The collector's base URL; `None` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How it is spoken to.
    pub protocol: String,
    /// The CAs that an `https://` collector's certificate may lead to; `None` for the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// The certificate that it is shown; `None` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    /// The private key of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// One step in so many is traced; 0 for none.
    pub sample_every: u64,
    /// Milliseconds between two exports of metrics.
    pub metrics_interval_ms: u64,
    /// The port on which the scheduler's metrics can be scraped; `None` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus_port: Option<u16>,
    /// Whether the run directory gets an event file for TensorBoard.
    pub tensorboard: bool,
    /// Steps between two histograms of gradients and parameters in it; 0 for none.
    pub histogram_every: u64,
}

impl Telemetry {
    /// Of which versions servers count how values are spread: nobody asks for it where there is no event file.
    #[must_use]
    pub fn counted_every(&self) -> u64 {
        if self.tensorboard { self.histogram_every } else { 0 }
    }

    /// What holds in this process: its `OTEL_*` variables, and this where they say nothing.
    #[must_use]
    pub fn environment(&self) -> Environment {
        Environment::from_process().with_settings(self.settings())
    }

    /// What this says, without the variables: what holds on hosts, which have none.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            endpoint: self.endpoint.clone(),
            protocol: Some(self.protocol.clone()),
            files: Files {
                certificate: self.certificate.clone(),
                client_certificate: self.client_certificate.clone(),
                client_key: self.client_key.clone(),
            },
            sample_every: Some(self.sample_every),
            interval_ms: Some(self.metrics_interval_ms),
            prometheus: self.prometheus_port,
        }
    }
}

//! Numbers for an OpenTelemetry collector, and for Prometheus: who has them hands over a closure, once, and it is asked before every export and scrape.
//!
//! Nothing is recorded when something happens: the numbers are those that a node keeps anyway, so a collector that is slow, away
//! or that refuses costs no memory and holds nobody up. Names, units and attributes follow the semantic conventions of
//! OpenTelemetry; `docs/metrics.md` lists them.
//!
//! Invariants:
//! 1. An attribute's values are a closed set ([`Attribute`]): no value that is made while the program runs, a peer's name or address
//!    above all, can become one.
//! 2. So a metric has no more series than the product of its attributes' sets, whatever anybody sends; and never more than
//!    [`MAX_SERIES`], which the SDK is told too.
//! 3. Without a collector, and where nothing is scraped, no closure is kept.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, MeterProvider as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Stream};

use crate::scrape::{Kind, Number, Registry};

/// Values that an attribute may have at most.
pub const MAX_VALUES: usize = 32;
/// Series that a metric may have at most, of at most two attributes.
pub const MAX_SERIES: usize = MAX_VALUES * MAX_VALUES;
/// What the SDK calls the source of the metrics.
const SCOPE: &str = "testudo";

/// What a metric is called, its unit (UCUM, or `{thing}` for things that are counted), and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instrument {
    /// For example `testudo.refusals`.
    pub name: &'static str,
    /// For example `{refusal}` or `By`.
    pub unit: &'static str,
    /// One sentence.
    pub what: &'static str,
}

/// An attribute of a metric: its key, and every value that it can have.
#[derive(Debug, Clone, Copy)]
pub struct Attribute<T: 'static> {
    key: &'static str,
    all: &'static [T],
    word: fn(T) -> &'static str,
}

impl<T: Copy + PartialEq> Attribute<T> {
    /// The attribute `key` with the values `all`, each told as its `word`. Meant for constants: there, more than [`MAX_VALUES`]
    /// values do not compile.
    ///
    /// # Panics
    /// With more than [`MAX_VALUES`] values.
    #[must_use]
    pub const fn new(key: &'static str, all: &'static [T], word: fn(T) -> &'static str) -> Self {
        assert!(all.len() <= MAX_VALUES, "an attribute has few values");
        Self { key, all, word }
    }

    /// What a series has of it; `None` for what is not in the set (invariant 1).
    fn of(&self, value: T) -> Option<KeyValue> {
        self.all.contains(&value).then(|| KeyValue::new(self.key, (self.word)(value)))
    }
}

/// What tells the series of a metric apart: nothing, an attribute or two.
pub trait By: Send + Sync + 'static {
    /// What names a series.
    type Value;
    /// Its attributes, if there is such a series.
    #[doc(hidden)]
    fn attributes(&self, value: Self::Value) -> Option<Vec<KeyValue>>;
}

impl By for () {
    type Value = ();

    fn attributes(&self, (): ()) -> Option<Vec<KeyValue>> {
        Some(Vec::new())
    }
}

impl<T: Copy + PartialEq + Send + Sync> By for Attribute<T> {
    type Value = T;

    fn attributes(&self, value: T) -> Option<Vec<KeyValue>> {
        Some(vec![self.of(value)?])
    }
}

impl<A, B> By for (Attribute<A>, Attribute<B>)
where
    A: Copy + PartialEq + Send + Sync,
    B: Copy + PartialEq + Send + Sync,
{
    type Value = (A, B);

    fn attributes(&self, (first, second): (A, B)) -> Option<Vec<KeyValue>> {
        Some(vec![self.0.of(first)?, self.1.of(second)?])
    }
}

/// What has a metric's series read.
type Series<N> = Arc<dyn Fn() -> Vec<(Vec<KeyValue>, N)> + Send + Sync>;

/// Where numbers are handed over. Without a collector, and where nothing is scraped, it takes none.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    exported: Option<opentelemetry::metrics::Meter>,
    scraped: Option<Registry>,
}

impl Meter {
    pub(crate) fn of(provider: Option<&SdkMeterProvider>, scraped: Option<Registry>) -> Meter {
        Meter { exported: provider.map(|provider| provider.meter(SCOPE)), scraped }
    }

    /// A sum that only grows, since the process began.
    pub fn counter(&self, of: &Instrument, read: impl Fn() -> u64 + Send + Sync + 'static) {
        self.counter_by(of, (), move || [((), read())]);
    }

    /// The same for each series of `by`; one that is not told is not there.
    pub fn counter_by<K: By, R: IntoIterator<Item = (K::Value, u64)>>(
        &self,
        of: &Instrument,
        by: K,
        read: impl Fn() -> R + Send + Sync + 'static,
    ) {
        let Some(series) = self.series(of, Kind::Counter, by, read, Number::Whole) else { return };
        let Some(meter) = &self.exported else { return };
        let counter = meter.u64_observable_counter(of.name).with_unit(of.unit).with_description(of.what);
        counter.with_callback(move |observer| each(observer, series())).build();
    }

    /// How much there is of something now, so that the sum over processes means something.
    pub fn level(&self, of: &Instrument, read: impl Fn() -> Option<u64> + Send + Sync + 'static) {
        self.level_by(of, (), move || read().map(|now| ((), now)));
    }

    /// The same for each series of `by`.
    pub fn level_by<K: By, R: IntoIterator<Item = (K::Value, u64)>>(
        &self,
        of: &Instrument,
        by: K,
        read: impl Fn() -> R + Send + Sync + 'static,
    ) {
        let Some(series) = self.series(of, Kind::Level, by, read, Number::Whole) else { return };
        let Some(meter) = &self.exported else { return };
        let level =
            meter.i64_observable_up_down_counter(of.name).with_unit(of.unit).with_description(of.what);
        let signed = move || {
            let signed = |(by, now)| (by, i64::try_from(now).unwrap_or(i64::MAX));
            series().into_iter().map(signed).collect::<Vec<(Vec<KeyValue>, i64)>>()
        };
        level.with_callback(move |observer| each(observer, signed())).build();
    }

    /// A measurement, whose sum over processes means nothing; `None` while there is none.
    pub fn gauge(&self, of: &Instrument, read: impl Fn() -> Option<f64> + Send + Sync + 'static) {
        self.gauge_by(of, (), move || read().map(|now| ((), now)));
    }

    /// The same for each series of `by`.
    pub fn gauge_by<K: By, R: IntoIterator<Item = (K::Value, f64)>>(
        &self,
        of: &Instrument,
        by: K,
        read: impl Fn() -> R + Send + Sync + 'static,
    ) {
        let Some(series) = self.series(of, Kind::Gauge, by, read, Number::Real) else { return };
        let Some(meter) = &self.exported else { return };
        let gauge = meter.f64_observable_gauge(of.name).with_unit(of.unit).with_description(of.what);
        gauge.with_callback(move |observer| each(observer, series())).build();
    }

    /// Who has a metric's series read, where anybody wants it; keeps it for who scrapes.
    fn series<K: By, N: 'static, R: IntoIterator<Item = (K::Value, N)>>(
        &self,
        of: &Instrument,
        kind: Kind,
        by: K,
        read: impl Fn() -> R + Send + Sync + 'static,
        number: fn(N) -> Number,
    ) -> Option<Series<N>> {
        if self.exported.is_none() && self.scraped.is_none() {
            return None;
        }
        let series: Series<N> = Arc::new(move || {
            read().into_iter().filter_map(|(value, now)| Some((by.attributes(value)?, now))).collect()
        });
        if let Some(registry) = &self.scraped {
            let series = Arc::clone(&series);
            registry
                .keep(of, kind, move || series().into_iter().map(|(by, now)| (by, number(now))).collect());
        }
        Some(series)
    }
}

fn each<N>(observer: &dyn AsyncInstrument<N>, series: Vec<(Vec<KeyValue>, N)>) {
    for (attributes, number) in series {
        observer.observe(number, &attributes);
    }
}

/// A provider whose metrics keep within [`MAX_SERIES`].
pub(crate) fn provider<E: PushMetricExporter>(
    resource: Resource,
    reader: PeriodicReader<E>,
) -> SdkMeterProvider {
    let few = |_: &opentelemetry_sdk::metrics::Instrument| {
        Stream::builder().with_cardinality_limit(MAX_SERIES).build().ok()
    };
    SdkMeterProvider::builder().with_resource(resource).with_reader(reader).with_view(few).build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::metrics::Temporality;
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};

    use super::*;

    /// The series of each metric that was exported last.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<BTreeMap<String, BTreeMap<String, u64>>>>);

    impl PushMetricExporter for Seen {
        async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
            let mut seen = self.0.lock().unwrap();
            for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
                let AggregatedMetrics::U64(MetricData::Sum(sum)) = metric.data() else { continue };
                let series = sum.data_points().map(|point| {
                    let words: Vec<String> =
                        point.attributes().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
                    (words.join(","), point.value())
                });
                seen.insert(metric.name().to_owned(), series.collect());
            }
            Ok(())
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }

        fn temporality(&self) -> Temporality {
            Temporality::Cumulative
        }
    }

    fn pipeline() -> (Seen, SdkMeterProvider) {
        let seen = Seen::default();
        let reader = PeriodicReader::builder(seen.clone()).with_interval(Duration::from_secs(3600)).build();
        (seen, provider(Resource::builder_empty().build(), reader))
    }

    const NUMBERS: [u16; MAX_VALUES] = {
        let mut all = [0; MAX_VALUES];
        let mut at = 0;
        while at < MAX_VALUES {
            all[at] = at as u16;
            at += 1;
        }
        all
    };
    const WORDS: [&str; 4] = ["zero", "one", "two", "three"];
    const NUMBER: Attribute<u16> = Attribute::new("number", &NUMBERS, |n| WORDS[usize::from(n) % 4]);
    const OF: Instrument = Instrument { name: "testudo.test", unit: "{test}", what: "A test." };

    /// Invariants 1 and 2: values that are not in the set make no series.
    #[test]
    fn a_metric_has_no_other_series_than_its_attributes_values() {
        let (seen, provider) = pipeline();
        let few: Attribute<u16> = Attribute::new("number", &NUMBERS[..4], NUMBER.word);
        let all = || (0..=u16::MAX).map(|n| (n, u64::from(n)));
        Meter::of(Some(&provider), None).counter_by(&OF, few, all);
        provider.force_flush().unwrap();
        let expected = [("number=one", 1), ("number=three", 3), ("number=two", 2), ("number=zero", 0)];
        let expected = expected.map(|(series, value)| (series.to_owned(), value));
        assert_eq!(seen.0.lock().unwrap()[OF.name], BTreeMap::from(expected));
    }

    /// Invariant 2, as the SDK holds it for whoever goes round [`Attribute`].
    #[test]
    fn the_sdk_is_told_how_many_series_there_may_be() {
        let (seen, provider) = pipeline();
        let meter = Meter::of(Some(&provider), None).exported.unwrap();
        meter
            .u64_observable_counter(OF.name)
            .with_callback(|observer| {
                (0..5000).for_each(|n| observer.observe(1, &[KeyValue::new("peer", n.to_string())]));
            })
            .build();
        provider.force_flush().unwrap();
        let seen = seen.0.lock().unwrap();
        // The one beyond the limit stands for all the others.
        assert_eq!(seen[OF.name].len(), MAX_SERIES + 1);
        assert!(seen[OF.name].contains_key("otel.metric.overflow=true"));
    }

    /// Invariant 3.
    #[test]
    fn without_a_collector_no_closure_is_kept() {
        let kept = Arc::new(());
        let held = Arc::clone(&kept);
        Meter::default().counter(&OF, move || Arc::strong_count(&held) as u64);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}

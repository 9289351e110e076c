//! What an event file says, as protocol buffers: the few messages and fields that TensorBoard reads.
//!
//! Field numbers are those of TensorBoard's `event.proto`, `summary.proto` and `histogram.proto`
//! (<https://github.com/tensorflow/tensorboard/tree/master/tensorboard/compat/proto>), wire types those of protocol buffers
//! (<https://protobuf.dev/programming-guides/encoding/>). Only writing is here.

use testudo_actors::histogram::Histogram;

/// The version of the format: readers heed [`started`] from 2 on.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.START`.
const START: u64 = 1;

/// One value at one step.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    /// A number; TensorBoard keeps it as an f32.
    Scalar(f64),
    /// A histogram.
    Histogram(&'a Histogram),
}

/// The first event of a file.
#[must_use]
pub(super) fn version(wall_seconds: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_seconds);
    event.bytes(3, FILE_VERSION.as_bytes());
    event.0
}

/// From here on, what stands in files before about `step` and the steps after it counts no more: the run goes on from before it.
#[must_use]
pub(super) fn started(wall_seconds: f64, step: u64) -> Vec<u8> {
    let mut log = Message::default();
    log.integer(1, START);
    let mut event = Message::default();
    event.double(1, wall_seconds);
    event.integer(2, step);
    event.bytes(7, &log.0);
    event.0
}

/// Values at `step`, by their tags.
#[must_use]
pub(super) fn values(wall_seconds: f64, step: u64, values: &[(String, Value<'_>)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in values {
        let mut told = Message::default();
        told.bytes(1, tag.as_bytes());
        match value {
            Value::Scalar(value) => told.float(2, *value as f32),
            Value::Histogram(histogram) => told.bytes(5, &spread(histogram)),
        }
        summary.bytes(1, &told.0);
    }
    let mut event = Message::default();
    event.double(1, wall_seconds);
    event.integer(2, step);
    event.bytes(5, &summary.0);
    event.0
}

/// Buckets are told by their upper limits, each from the one before on: what is empty between two has a bucket of its own.
fn spread(histogram: &Histogram) -> Vec<u8> {
    let (mut limits, mut counts, mut reached) = (Vec::new(), Vec::new(), None);
    for (low, high, count) in histogram.limits() {
        if reached.is_some_and(|reached| reached < low) {
            limits.push(low);
            counts.push(0.0);
        }
        limits.push(high);
        counts.push(count as f64);
        reached = Some(high);
    }
    let mut message = Message::default();
    message.double(1, f64::from(histogram.min));
    message.double(2, f64::from(histogram.max));
    message.double(3, histogram.count as f64);
    message.double(4, histogram.sum);
    message.double(5, histogram.squares);
    message.doubles(6, &limits);
    message.doubles(7, &counts);
    message.0
}

/// A message under way.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, wire_type: u64) {
        self.varint(u64::from(field) << 3 | wire_type);
    }

    fn integer(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn float(&mut self, field: u32, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn doubles(&mut self, field: u32, values: &[f64]) {
        let packed: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.bytes(field, &packed);
    }
}

#[cfg(test)]
mod tests {
    use testudo_actors::histogram::Tally;

    use super::*;

    #[test]
    fn bytes_are_those_of_protocol_buffers() {
        let wall = 1.0_f64.to_le_bytes();
        assert_eq!(version(1.0), [&[0x09][..], &wall, &[0x1a, 13], b"brain.Event:2"].concat());
        assert_eq!(started(1.0, 300), [&[0x09][..], &wall, &[0x10, 0xac, 0x02, 0x3a, 2, 0x08, 1]].concat());
        let told = values(1.0, 2, &[("a".into(), Value::Scalar(1.5))]);
        let value = [&[0x0a, 1, b'a', 0x15][..], &1.5_f32.to_le_bytes()].concat();
        let head = [&[0x09][..], &wall, &[0x10, 2, 0x2a, 10, 0x0a, 8]].concat();
        assert_eq!(told, [head, value].concat());
    }

    #[test]
    fn what_is_empty_between_buckets_has_its_own() {
        let mut tally = Tally::default();
        tally.count([1.0, 1.0, 4.0, 4.25]);
        let bytes = spread(&tally.histogram());
        let packed = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let numbers: Vec<u8> =
            (1..).zip([1.0, 4.25, 4.0, 10.25, 36.0625_f64]).fold(Vec::new(), |mut all, (field, value)| {
                all.push(field << 3 | 1);
                all.extend(value.to_le_bytes());
                all
            });
        let limits = packed(&[1.125, 4.0, 4.25]);
        let counts = packed(&[2.0, 0.0, 2.0]);
        assert_eq!(bytes, [numbers, vec![6 << 3 | 2, 24], limits, vec![7 << 3 | 2, 24], counts].concat());
    }
}

//! The role table: which role may say which message to which, how large it may be, and in which class it travels.
//!
//! The transport enforces it before a header is decoded; a `peer` may say what a server or a worker may.

use testudo_kernels::Codec;
use testudo_transport::pki::MAX_CHAIN_BYTES;
use testudo_transport::{Class, Policy, PolicyError, Rate, Role, RoleSet, Rule};

use crate::job::MAX_SIGNED_JOB;
use crate::message::*;
use crate::own::Grants;

/// Bytes of f32 in a slice at most: one slice is one message, and a receiver's memory is counted in messages.
pub const MAX_SLICE_BYTES: u32 = 16 << 20;

/// Header bytes of a message whose body is a few numbers; the rest is for the two addresses.
const SMALL: u32 = 2 << 10;
/// Header bytes of a message that carries text for people.
const TEXT: u32 = 8 << 10;
/// Header bytes of a message that lists members or leases: room for 65,536 leases.
const LISTS: u32 = 2 << 20;

/// Header bytes of a list of revoked certificates: room for some 6,000 of them.
const REVOCATIONS: u32 = 256 << 10;

/// Header bytes of pieces of a hash: 64 of them, each of less than 2 KiB and some hashes.
const PIECES: u32 = 512 << 10;

/// Header bytes of histograms: eight tensors with two each, of less than 11 KiB.
const HISTOGRAMS: u32 = 256 << 10;

/// Header bytes of a report of refusals: some 160 lines of a cause, a name and a count.
const REFUSALS: u32 = 32 << 10;

/// Header bytes of a certificate with those between it and its CA.
const CERTIFICATE: u32 = MAX_CHAIN_BYTES as u32 + SMALL;
/// Payload bytes of a step's products: 80 for each pair of the most vectors that are weighed.
const PRODUCTS: u64 = {
    let vectors = testudo_kernels::robust::MOST_WEIGHED as u64 + 1;
    vectors * (vectors + 1) / 2 * 80
};
/// How often a member or an operator needs to say what time brings, not training: heartbeats come a few times a second.
const NOW_AND_THEN: Rate = Rate { per_second: 64, burst: 512 };

const SCHEDULER: RoleSet = RoleSet::of(&[Role::Scheduler]);
const SERVER: RoleSet = RoleSet::of(&[Role::Server]);
const WORKER: RoleSet = RoleSet::of(&[Role::Worker]);
const MEMBERS: RoleSet = RoleSet::of(&[Role::Server, Role::Worker]);
const OPERATOR: RoleSet = RoleSet::of(&[Role::Operator]);

/// The table, for slices of at most `slice_bytes`.
///
/// # Errors
/// [`PolicyError`] when two rows name one kind; the rows are fixed, so that is a bug.
pub fn policy(slice_bytes: u32) -> Result<Policy, PolicyError> {
    Policy::new(rules(slice_bytes))
}

/// The same, where pushes are encoded in `push`: one that is longer than a slice can be in it is refused by its announced length.
///
/// # Errors
/// As [`policy`].
pub fn policy_with(slice_bytes: u32, push: Codec) -> Result<Policy, PolicyError> {
    policy_with_own(slice_bytes, push, &Grants::none())
}

/// The same, with rows for actors of one's own.
///
/// # Errors
/// As [`policy`].
pub fn policy_with_own(slice_bytes: u32, push: Codec, own: &Grants) -> Result<Policy, PolicyError> {
    let mut rules = rules(slice_bytes);
    for rule in rules.iter_mut().filter(|rule| rule.kind == Push::KIND) {
        let most = push.encoded_len(slice_bytes.min(MAX_SLICE_BYTES) as usize / 4) as u64;
        rule.max_payload = rule.max_payload.min(most);
    }
    rules.extend(own.rules());
    Policy::new(rules)
}

/// The table's rows.
#[must_use]
pub fn rules(slice_bytes: u32) -> Vec<Rule> {
    let values = u64::from(slice_bytes.min(MAX_SLICE_BYTES));
    let row = |kind, name, from, to, class, max_header, max_payload| Rule {
        kind,
        name,
        from,
        to,
        class,
        max_header,
        max_payload,
        rate: None,
    };
    let control = |kind, name, from, to, max_header| row(kind, name, from, to, Class::Control, max_header, 0);
    let data = |kind, name, from, to, payload| row(kind, name, from, to, Class::Data, SMALL, payload);
    // What members and operators say once in a while, however fast training goes.
    let timed = |kind, name, from, max_header| Rule {
        rate: Some(NOW_AND_THEN),
        ..control(kind, name, from, SCHEDULER, max_header)
    };
    let witnessed = |kind, name| {
        row(kind, name, WORKER, SCHEDULER, Class::Control, SMALL, 4 * crate::witness::MOST as u64)
    };
    vec![
        timed(Join::KIND, "join", MEMBERS, SMALL),
        control(Welcome::KIND, "welcome", SCHEDULER, MEMBERS, MAX_SIGNED_JOB + SMALL),
        control(JoinRefused::KIND, "join refused", SCHEDULER, MEMBERS, TEXT),
        control(Membership::KIND, "membership", SCHEDULER, MEMBERS, LISTS),
        control(Ready::KIND, "ready", SERVER, SCHEDULER, SMALL),
        control(LeaseExtended::KIND, "lease extended", SCHEDULER, WORKER, SMALL),
        control(NodeDone::KIND, "node done", WORKER, SCHEDULER, LISTS),
        timed(Heartbeat::KIND, "heartbeat", MEMBERS, SMALL),
        control(Evaluate::KIND, "evaluate", SCHEDULER, WORKER, SMALL),
        control(EvaluationResult::KIND, "evaluation result", WORKER, SCHEDULER, SMALL),
        control(Export::KIND, "export", SCHEDULER, WORKER, SMALL),
        control(Exported::KIND, "exported", WORKER, SCHEDULER, SMALL),
        control(Shutdown::KIND, "shutdown", SCHEDULER, MEMBERS, TEXT),
        timed(Failure::KIND, "failure", MEMBERS, TEXT),
        timed(Unreachable::KIND, "unreachable", WORKER, TEXT),
        data(Hello::KIND, "hello", WORKER, SERVER, 0),
        control(CheckpointOrder::KIND, "checkpoint order", SCHEDULER, SERVER, SMALL),
        control(CheckpointPart::KIND, "checkpoint part", SERVER, SCHEDULER, TEXT),
        control(ResidualOrder::KIND, "residual order", SCHEDULER, WORKER, TEXT),
        control(ResidualPart::KIND, "residual part", WORKER, SCHEDULER, TEXT),
        control(ParameterPieces::KIND, "parameter pieces", SERVER, SCHEDULER, PIECES),
        control(Histograms::KIND, "histograms", SERVER, SCHEDULER, HISTOGRAMS),
        control(HashOrder::KIND, "hash order", SCHEDULER, SERVER, SMALL),
        row(GradientProducts::KIND, "gradient products", SERVER, SCHEDULER, Class::Control, SMALL, PRODUCTS),
        control(GradientWeights::KIND, "gradient weights", SCHEDULER, SERVER, TEXT),
        control(Contributions::KIND, "contributions", WORKER, SCHEDULER, SMALL),
        control(AuditHead::KIND, "audit head", SCHEDULER, MEMBERS, SMALL),
        control(Countersigned::KIND, "counter-signed", MEMBERS, SCHEDULER, SMALL),
        control(NewCertificate::KIND, "new certificate", MEMBERS, SCHEDULER, CERTIFICATE),
        timed(RefusalReport::KIND, "refusals", MEMBERS, REFUSALS),
        data(Push::KIND, "push", WORKER, SERVER, values),
        data(PushAccepted::KIND, "push accepted", SERVER, WORKER, 0),
        data(PushRefused::KIND, "push refused", SERVER, WORKER, 0),
        data(Pull::KIND, "pull", WORKER, SERVER, 0),
        data(SliceVersion::KIND, "slice version", SERVER, WORKER, values),
        data(PullRefused::KIND, "pull refused", SERVER, WORKER, 0),
        timed(Status::KIND, "status", OPERATOR, SMALL),
        control(StatusReport::KIND, "status report", SCHEDULER, OPERATOR, LISTS),
        timed(Pause::KIND, "pause", OPERATOR, SMALL),
        timed(Resume::KIND, "resume", OPERATOR, SMALL),
        timed(Stop::KIND, "stop", OPERATOR, SMALL),
        timed(Scale::KIND, "scale", OPERATOR, SMALL),
        timed(Revoke::KIND, "revoke", OPERATOR, REVOCATIONS),
        control(Revocations::KIND, "revocations", SCHEDULER, MEMBERS, REVOCATIONS),
        timed(Ended::KIND, "ended", OPERATOR, TEXT),
        control(Witnessed::KIND, "witnessed", SCHEDULER, WORKER, SMALL),
        witnessed(Testimony::KIND, "testimony"),
        witnessed(Given::KIND, "given"),
        control(Answer::KIND, "answer", SCHEDULER, OPERATOR, TEXT),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What training sets the pace of is never slowed by time, and an operator's every word has a rate.
    #[test]
    fn what_time_brings_has_a_rate_and_what_training_brings_has_none() {
        let rules = rules(1 << 20);
        let rated = |kind| rules.iter().find(|rule| rule.kind == kind).unwrap().rate.is_some();
        let paced = [Push::KIND, Pull::KIND, NodeDone::KIND, Contributions::KIND, Testimony::KIND];
        assert!(paced.into_iter().all(|kind| !rated(kind)));
        assert!([Heartbeat::KIND, Join::KIND, RefusalReport::KIND].into_iter().all(rated));
        assert!(rules.iter().filter(|rule| rule.from == OPERATOR).all(|rule| rule.rate.is_some()));
    }

    /// No more is taken in for a push than a slice takes in the job's codec; versions may be asked for exactly.
    #[test]
    fn a_push_is_no_longer_than_its_codec_makes_it() {
        let most = |push, kind| {
            let policy = policy_with(1 << 20, push).unwrap();
            policy.rules().iter().find(|rule| rule.kind == kind).unwrap().max_payload
        };
        let of = |push| most(push, Push::KIND);
        assert_eq!(
            [of(Codec::F32), of(Codec::Bf16), of(Codec::TopK { fraction: 0.01 })],
            [1 << 20, 1 << 19, 20_968]
        );
        assert_eq!(most(Codec::Bf16, SliceVersion::KIND), 1 << 20);
    }

    #[test]
    fn the_table_is_well_formed() {
        let rows = rules(1 << 20).len();
        assert_eq!(policy(1 << 20).unwrap().rules().len(), rows);
    }

    /// What the most votes take is what the table lets pass.
    #[test]
    fn products_and_weights_of_the_most_votes_fit() {
        use testudo_kernels::Aggregation;
        use testudo_kernels::robust::{MOST_WEIGHED, weigh::Weighing};

        let rule = Aggregation::CentredClipping { hostile: 1, radius: 1.0 };
        let weighing = Weighing::new(rule, None, MOST_WEIGHED as usize).unwrap();
        assert_eq!(weighing.products().size() as u64, PRODUCTS);
        let weights = vec![0.5; weighing.vectors()];
        let body = GradientWeights { step: u64::MAX, weights, clip: 1.0 }.encode();
        assert!(body.len() + 1024 <= TEXT as usize, "{}", body.len());
    }

    /// A message of the most tensors whose every bucket holds the most that can be said.
    #[test]
    fn the_fullest_histograms_fit() {
        use crate::histogram::{BUCKETS, Histogram};
        use crate::server::histograms::MOST;

        let buckets = (0..BUCKETS as u16).map(|bucket| (bucket, u64::MAX)).collect();
        let (count, not_finite, sum) = (u64::MAX, u64::MAX, f64::MAX);
        let full = Histogram { count, not_finite, min: 0.0, max: 0.0, sum, squares: sum, buckets };
        let tensor = TensorHistograms { parameter: u32::MAX, gradient: Some(full.clone()), values: full };
        let body = Histograms { version: u64::MAX, tensors: vec![tensor; MOST] }.encode();
        assert!(body.len() + 1024 <= HISTOGRAMS as usize, "{}", body.len());
    }

    #[test]
    fn a_node_can_tell_of_any_certificate_that_it_can_show() {
        let longest = NewCertificate { certificate: vec![7; MAX_CHAIN_BYTES] }.encode().len();
        let rule = rules(1 << 20).into_iter().find(|rule| rule.kind == NewCertificate::KIND).unwrap();
        assert!(longest + 1024 <= rule.max_header as usize, "{longest} of {}", rule.max_header);
    }
}

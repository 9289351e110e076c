//! Checking a log: every line, every signature, its end, and what lies beside it.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use testudo_actors::audit::{Base64, CheckpointName, Entry, Head, Hex, KEY_NAME, KEY_NODE};
use testudo_actors::contributions::{self, Digest};
use testudo_actors::countersign;
use testudo_actors::message::HeadName;
use testudo_observability::audit::{Chain, Record, SIGN_EVERY, SIGNATURE, Signature, signed_bytes};
use testudo_transport::pki::bundle_parts;
use testudo_transport::{Expected, Role, SpiffeId, Trust};

use super::lines::Lines;
use super::{AuditLogError, compare};
use crate::rundir::RunDir;

/// What a log is checked against.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A head that somebody noted: some record of the log must have this hash.
    pub expect_head: Option<Hex>,
    /// Certificates of CAs, in DER: if there are any, a key is good only if one of these certified it.
    pub cas: Vec<Vec<u8>>,
    /// Take a log that does not come to an end: of a run that is under way, or was killed.
    pub unfinished: bool,
}

/// One run of the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its first record.
    pub first: u64,
    /// BLAKE3 of the CA's certificate.
    pub ca_blake3: Hex,
    /// BLAKE3 of the audit key's certificate.
    pub certificate_blake3: Hex,
    /// The checkpoint that it went on from.
    pub resumed_from: Option<CheckpointName>,
}

/// A log that holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verified {
    /// How many records.
    pub records: u64,
    /// How many of each kind.
    pub kinds: BTreeMap<String, u64>,
    /// The last record's hash: it names the whole log.
    pub head: Option<Hex>,
    /// Whether the last run in it came to an end.
    pub ended: bool,
    /// The runs: more than one where a run was resumed.
    pub sessions: Vec<Session>,
    /// The newest record up to which some node has counter-signed the log.
    pub countersigned: Option<u64>,
    /// Records after the expected head.
    pub since_expected: Option<u64>,
    /// Records that a crash left without a signature of their own session's key; later keys signed them.
    pub late_signed: u64,
    /// Entries that a log which could not be written has left out.
    pub left_out: u64,
    /// Checkpoints that are gone by word of `deletions.jsonl` alone, which nobody signed.
    pub unsigned_deletions: u64,
}

/// Checks the log of `run_dir`, and what lies beside it against it.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(run_dir: &RunDir, options: &Options) -> Result<Verified, AuditLogError> {
    let path = run_dir.audit_log();
    let mut facts = compare::Facts::new(run_dir, options.expect_head)?;
    let verified = read(&path, options, |seen, entry| facts.see(seen, entry))?;
    let unsigned_deletions = facts.compare()?;
    let since_expected = facts.since_expected(&verified);
    Ok(Verified { since_expected, unsigned_deletions, ..verified })
}

/// Checks the log at `path` by itself; `see` is shown every record once it has been checked, and what it says if it is no
/// signature.
///
/// # Errors
/// The first thing that is wrong.
pub fn read(
    path: &Path,
    options: &Options,
    mut see: impl FnMut(&Seen<'_>, Option<&Entry>),
) -> Result<Verified, AuditLogError> {
    let mut reader = Reader {
        options,
        session: None,
        verified: Verified::default(),
        unsigned: 0,
        signed: false,
        job_due: false,
        reopened: false,
        parameters: None,
        members: BTreeMap::new(),
        hashes: VecDeque::new(),
    };
    let mut chain = Chain::new();
    for line in Lines::open(path)? {
        let line = line?;
        let damaged =
            |what: String| AuditLogError::Damaged { path: path.to_owned(), line: line.number, what };
        if !line.is_whole && options.unfinished {
            break;
        }
        if !line.is_whole {
            return Err(damaged("the log is cut in the middle of this record".into()));
        }
        let record = chain.follow(&line.bytes).map_err(|why| damaged(why.to_string()))?;
        let entry = reader.record(&record).map_err(damaged)?;
        reader.remember(record.seq, chain.head());
        let trust = reader.session.as_ref().map(|s| &s.trust);
        see(&Seen { record: &record, hash: chain.head(), trust }, entry.as_ref());
    }
    let incomplete = |what: &str| AuditLogError::Incomplete { path: path.to_owned(), what: what.to_owned() };
    reader.is_signed().map_err(|why| incomplete(&why))?;
    let mut verified = reader.verified;
    verified.records = chain.next();
    verified.head = (chain.next() > 0).then(|| chain.head());
    if verified.records == 0 {
        return Err(incomplete("it is empty"));
    }
    if reader.unsigned > 0 && !options.unfinished {
        return Err(incomplete(
            "its last records are not signed: it was cut, or the run was killed or is under way (--unfinished takes that)",
        ));
    }
    if !verified.ended && !options.unfinished {
        return Err(incomplete(
            "it does not come to the run's end: it was cut, or the run was killed or is under way (--unfinished takes that)",
        ));
    }
    Ok(verified)
}

/// A record that was checked.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The record.
    pub record: &'a Record,
    /// Its hash.
    pub hash: Hex,
    /// The CA of its session.
    pub trust: Option<&'a Trust>,
}

impl Seen<'_> {
    /// When it was written.
    #[must_use]
    pub fn at(&self) -> SystemTime {
        time(self.record.at)
    }
}

struct Keys {
    trust: Trust,
    id: SpiffeId,
    certificate: Vec<u8>,
}

struct Reader<'a> {
    options: &'a Options,
    session: Option<Keys>,
    verified: Verified,
    /// Records since the last signature.
    unsigned: u64,
    /// The session's key has signed something.
    signed: bool,
    /// The session has no job yet.
    job_due: bool,
    /// A command went on with the log after the session's last record.
    reopened: bool,
    /// The newest step at which the servers told their parameters, and the hash.
    parameters: Option<(u64, Hex)>,
    /// By role and index: who has joined this session.
    members: BTreeMap<String, Member>,
    /// Records and their hashes, the newest last.
    hashes: VecDeque<(u64, Hex)>,
}

/// Records of a session, its key and its job, that may stand there before the first signature.
const UNSIGNED_FIRST: u64 = 2;

/// Records whose hashes are remembered: a node counter-signs a head within moments of being shown it.
const HASHES: usize = 1 << 16;

struct Member {
    id: SpiffeId,
    certificate: Vec<u8>,
    /// The last head that it counter-signed.
    signed: Option<Head>,
}

impl Reader<'_> {
    /// Checks one record that follows the chain; the answer is what it says, unless it is a signature.
    fn record(&mut self, record: &Record) -> Result<Option<Entry>, String> {
        *self.verified.kinds.entry(kind(record)?).or_default() += 1;
        if record.kind == SIGNATURE {
            self.signature(record)?;
            return Ok(None);
        }
        let entry = entry(record)?;
        if self.session.is_none() && !matches!(entry, Entry::Key { .. }) {
            return Err("the first record does not name the key that signs".into());
        }
        if let Entry::Reopened { .. } = entry {
            self.reopened = true;
        }
        let afterwards =
            matches!(entry, Entry::Reopened { .. } | Entry::Deletion { .. } | Entry::KeyDestroyed { .. });
        let over = self.verified.ended || self.reopened;
        if over && !matches!(entry, Entry::Key { .. }) && !(self.reopened && afterwards) {
            return Err("the run was over, and no other began".into());
        }
        if self.job_due != matches!(entry, Entry::Job { .. }) && !matches!(entry, Entry::Key { .. }) {
            return Err("the job stands after the key, once".into());
        }
        self.job_due = false;
        match entry {
            Entry::End { .. } => self.verified.ended = true,
            Entry::LeftOut { records } => {
                self.verified.left_out = self.verified.left_out.saturating_add(records);
            }
            Entry::Key { .. } => (self.verified.ended, self.reopened) = (false, false),
            _ => {}
        }
        self.parameters(&entry)?;
        self.signed_by_members(record, &entry)?;
        if let Entry::Key { trust_domain, job, ca, certificate, resumed_from, .. } = &entry {
            let first = record.seq;
            self.key((trust_domain, job), ca, certificate, (first, *resumed_from))?;
        }
        self.unsigned += 1;
        Ok(Some(entry))
    }

    /// What a crash may leave without a signature is little: whoever has no key cannot add more, nor a session of his own.
    fn is_signed(&self) -> Result<(), String> {
        if self.unsigned > SIGN_EVERY {
            return Err(format!(
                "{} records together are not signed: no writer leaves so many",
                self.unsigned
            ));
        }
        if !self.signed && self.unsigned > UNSIGNED_FIRST {
            return Err("a run's key has signed nothing of it: no writer goes on without that".into());
        }
        Ok(())
    }

    fn remember(&mut self, record: u64, hash: Hex) {
        self.hashes.push_back((record, hash));
        if self.hashes.len() > HASHES {
            self.hashes.pop_front();
        }
    }

    /// Signatures of workers over their contributions, and of nodes over the log itself.
    fn signed_by_members(&mut self, record: &Record, entry: &Entry) -> Result<(), String> {
        match entry {
            Entry::Key { .. } => self.members.clear(),
            Entry::Join { node, certificate: Some(certificate), .. } => {
                let trust = self.session.as_ref().map(|s| &s.trust).ok_or("a node joins before any key")?;
                let id = format!("spiffe://{}/job/{}/{node}", trust.trust_domain(), trust.job());
                let id = SpiffeId::parse(&id).map_err(|e| e.to_string())?;
                let member = Member { id, certificate: certificate.0.clone(), signed: None };
                self.members.insert(node.clone(), member);
            }
            Entry::Renewed { node, certificate } => self.renewed(node, certificate)?,
            Entry::Contributions { node, step, count, digest, signature } => {
                let digest = Digest { count: *count, blake3: digest.0 };
                self.check(node, &contributions::signed_bytes(*step, &digest), signature, record.at)?;
            }
            Entry::Countersignature { node, record: at, head, before, signature } => {
                let holds = self.hashes.iter().rev().find(|(record, _)| record == at);
                if holds.is_none_or(|(_, hash)| hash != head) {
                    return Err(format!("{node} counter-signed another log: its record {at} is {head}"));
                }
                let name = |h: &Head| HeadName { record: h.record, hash: h.hash.0 };
                let shown = Head { record: *at, hash: *head };
                let message = countersign::signed_bytes(&name(&shown), before.as_ref().map(name).as_ref());
                self.check(node, &message, signature, record.at)?;
                let member = self.members.get_mut(node);
                if let Some(member) = member
                    && member.signed.replace(shown) != *before
                {
                    return Err(format!("{node} counter-signed a head before that the log does not show"));
                }
                self.verified.countersigned = self.verified.countersigned.max(Some(*at));
            }
            _ => {}
        }
        Ok(())
    }

    /// What `node` signs from here on is by another certificate, which is checked with its signatures.
    fn renewed(&mut self, node: &str, certificate: &Base64) -> Result<(), String> {
        let keys = self.session.as_mut().ok_or("a certificate is renewed before any key")?;
        let held = match self.members.get_mut(node) {
            Some(member) => &mut member.certificate,
            None if node == KEY_NODE => &mut keys.certificate,
            None => return Err(format!("{node} renews its certificate and has not joined")),
        };
        held.clone_from(&certificate.0);
        Ok(())
    }

    fn check(&self, node: &str, message: &[u8], signature: &Base64, at: u64) -> Result<(), String> {
        let member = self.members.get(node).ok_or_else(|| format!("{node} signs and has not joined"))?;
        let trust = self.session.as_ref().map(|s| &s.trust).ok_or("a signature before any key")?;
        let expected = Expected::Node(member.id.clone());
        trust
            .verify_signature_at(&member.certificate, &expected, message, &signature.0, time(at))
            .map(|_| ())
            .map_err(|e| format!("{node}: {e}"))
    }

    /// The final parameters are those that the servers told.
    fn parameters(&mut self, entry: &Entry) -> Result<(), String> {
        match entry {
            Entry::Parameters { step, params_blake3 } => self.parameters = Some((*step, *params_blake3)),
            Entry::Key { .. } => self.parameters = None,
            Entry::End { steps, params_blake3: Some(last), .. } => {
                if let Some((step, told)) = self.parameters
                    && (step, told) != (*steps, *last)
                {
                    return Err(format!(
                        "the run ends at step {steps} with parameters {last}; at step {step}, they were {told}"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn key(
        &mut self,
        (trust_domain, job): (&str, &str),
        ca: &Base64,
        certificate: &Base64,
        (first, resumed_from): (u64, Option<CheckpointName>),
    ) -> Result<(), String> {
        if !self.options.cas.is_empty() && !is_within(&ca.0, &self.options.cas) {
            return Err(format!(
                "its key is certified by a CA (BLAKE3 {}) that is not among those given",
                Hex::hash(&ca.0)
            ));
        }
        let trust = Trust::from_der_for(&ca.0, trust_domain, job).map_err(|e| format!("its CA: {e}"))?;
        if let Some(before) = &self.session
            && (before.trust.trust_domain(), before.trust.job()) != (trust_domain, job)
        {
            return Err("another job's log goes on here".into());
        }
        let id = SpiffeId::new(trust_domain, job, Role::Actor, KEY_NAME).map_err(|e| e.to_string())?;
        self.verified.sessions.push(Session {
            first,
            ca_blake3: Hex::hash(&ca.0),
            certificate_blake3: Hex::hash(&certificate.0),
            resumed_from,
        });
        self.is_signed()?;
        self.signed = false;
        self.verified.late_signed += std::mem::take(&mut self.unsigned);
        self.session = Some(Keys { trust, id, certificate: certificate.0.clone() });
        self.job_due = true;
        Ok(())
    }

    fn signature(&mut self, record: &Record) -> Result<(), String> {
        let keys = self.session.as_ref().ok_or("a signature before any key")?;
        let body: Signature = typed(&record.body)?;
        let message = signed_bytes(record.seq, &record.prev, record.at);
        keys.trust
            .verify_signature_at(
                &keys.certificate,
                &Expected::Node(keys.id.clone()),
                &message,
                &body.signature.0,
                time(record.at),
            )
            .map_err(|e| e.to_string())?;
        self.unsigned = 0;
        self.signed = true;
        Ok(())
    }
}

/// Whether every certificate of a bundle is in one of those given.
fn is_within(bundle: &[u8], given: &[Vec<u8>]) -> bool {
    let parts = |bundle| bundle_parts(bundle).unwrap_or_default();
    let given: Vec<&[u8]> = given.iter().flat_map(|one| parts(one)).collect();
    parts(bundle).iter().all(|one| given.contains(one))
}

/// The kind, if it is one: what is counted must not grow with what a forger writes.
fn kind(record: &Record) -> Result<String, String> {
    match record.kind.len() {
        1..=64 => Ok(record.kind.clone()),
        _ => Err("its kind is none".into()),
    }
}

/// What a record that is no signature says.
///
/// # Errors
/// When it is of no kind that this build knows, or of another form.
pub fn entry(record: &Record) -> Result<Entry, String> {
    let mut whole = Map::new();
    whole.insert("kind".into(), Value::String(record.kind.clone()));
    whole.insert("body".into(), Value::Object(record.body.clone()));
    let read: Entry = typed(&whole)?;
    // What it says more, or in another way, would go unseen otherwise.
    match serde_json::to_value(&read) {
        Ok(Value::Object(again)) if again == whole => Ok(read),
        _ => Err("it says what its kind does not say".into()),
    }
}

fn typed<T: serde::de::DeserializeOwned>(body: &Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(body.clone())).map_err(|e| e.to_string())
}

fn time(at: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at)).unwrap_or(SystemTime::UNIX_EPOCH)
}

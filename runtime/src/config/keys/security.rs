//! The rows about identities and processes.

use super::super::check;
use super::{Absent, Base, Key, Rule};

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "security.certificate_hours",
        rule: Rule::Integer { min: 1, max: 8760 },
        absent: Absent::Is("24"),
        applies: None,
        doc: "Life of the certificates that a run issues, in hours.",
    },
    Key {
        path: "security.run_as",
        rule: Rule::Text { check: check::user, allowed: "a user's name or number, not root's" },
        absent: Absent::Is("\"nobody\""),
        applies: None,
        doc: "The user that `testudo run` and `testudo node` go on as when they are started as root: they open their inputs, give the run directory to that user, and become it before a socket opens. Means nothing for others.",
    },
    Key {
        path: "security.ca",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("`--identity` gives it"),
        applies: None,
        doc: "PEM file of the CAs that are trusted, for `testudo node`: the job's own, or a bundle of others (SPIRE's `svid_bundle.pem`), with `job.trust_domain` theirs: see [identities](identities.md). Goes with the next two. `testudo run` makes a CA of its own for each run, and refuses these three.",
    },
    Key {
        path: "security.cert",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("`--identity` gives it"),
        applies: None,
        doc: "PEM file of this node's certificate, and behind it those of the CAs between it and a trusted one, if there are any (SPIRE's `svid.pem`): 4 at most. The file is read again when it changes.",
    },
    Key {
        path: "security.key",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("`--identity` gives it"),
        applies: None,
        doc: "PEM file of this node's private key (PKCS#8, ECDSA on P-256 or P-384; SPIRE's `svid_key.pem`); nobody but its owner may read it.",
    },
    Key {
        path: "security.crl",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("no certificate is revoked"),
        applies: None,
        doc: "File of the CA's list of revoked certificates, PEM or DER, or of several CAs' lists one after the other, for `testudo node` and operators' commands: see [identities](identities.md). It is read again when it changes. Once it has ended, the node trusts nobody until there is a new one.",
    },
    Key {
        path: "security.revocation",
        rule: Rule::Choice(&["required", "short-lived"]),
        absent: Absent::Is("\"required\""),
        applies: None,
        doc: "What of a certificate whose CA has no list of revoked ones, while `security.crl` or an operator has given others': with `required` it is refused, with `short-lived` it is good until it ends. A list that has ended is no list, and refuses either way. Without any list certificates are good until they end.",
    },
];

//! The signature's file: a Sigstore bundle v0.3 around a DSSE envelope.
//!
//! Sources: `sigstore_bundle.proto` of <https://github.com/sigstore/protobuf-specs> (in its JSON form); DSSE v1,
//! <https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md>.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
// Canonical Base64 and nothing else: with padding, without white space, with no stray bits at the end.
use base64::engine::general_purpose::STANDARD;
use rustix::fs::OFlags;
use serde::Serialize;

use super::json;
use super::{PublicKey, SigningError, SigningKey};

/// Largest bundle: room for some fifty thousand files.
pub const BYTES_MOST: u64 = 16 << 20;
/// What a bundle says it is.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// What the envelope says its payload is.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

// The members' order is that of the public tool.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bundle<'a> {
    media_type: &'a str,
    verification_material: Material<'a>,
    dsse_envelope: Envelope<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Material<'a> {
    public_key: KeyHint<'a>,
    tlog_entries: [(); 0],
}

#[derive(Serialize)]
struct KeyHint<'a> {
    hint: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    payload: &'a str,
    payload_type: &'a str,
    signatures: [Signature<'a>; 1],
}

#[derive(Serialize)]
struct Signature<'a> {
    sig: &'a str,
    keyid: &'a str,
}

/// The bundle of `payload` signed with `key`.
///
/// # Errors
/// When the cryptographic library refuses, or the bundle would be longer than [`BYTES_MOST`].
pub fn seal(payload: &[u8], key: &SigningKey) -> Result<String, SigningError> {
    let signature = key.sign(&pre_authentication(payload))?;
    let bundle = Bundle {
        media_type: MEDIA_TYPE,
        verification_material: Material {
            public_key: KeyHint { hint: &key.public().hint() },
            tlog_entries: [],
        },
        dsse_envelope: Envelope {
            payload: &STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE,
            signatures: [Signature { sig: &STANDARD.encode(signature), keyid: "" }],
        },
    };
    let text = serde_json::to_string(&bundle)
        .map_err(|why| SigningError::Malformed(format!("the bundle cannot be written: {why}")))?;
    match text.len() as u64 > BYTES_MOST {
        true => Err(SigningError::Malformed(format!(
            "too many files: the bundle would exceed {BYTES_MOST} bytes"
        ))),
        false => Ok(text),
    }
}

/// The payload of a bundle, if `key` signed it.
///
/// # Errors
/// A bundle of another form, of another key, or whose signature does not verify.
pub fn open(bundle: &[u8], key: &PublicKey) -> Result<Vec<u8>, SigningError> {
    let mut bundle = json::parse("the bundle", bundle)?.object("the bundle")?;
    bundle.fixed("mediaType", MEDIA_TYPE)?;
    let mut material = bundle.object("verificationMaterial")?;
    let mut public_key = material.object("publicKey")?;
    let signed = public_key.text("hint")?;
    public_key.end()?;
    // Transparency logs are for certificates; an entry that nobody checks would only seem to say something.
    if let Some(entries) = material.optional("tlogEntries")
        && !entries.list("verificationMaterial.tlogEntries")?.is_empty()
    {
        return Err(SigningError::Malformed(
            "a bundle with transparency log entries is not taken".to_owned(),
        ));
    }
    material.end()?;
    let mut envelope = bundle.object("dsseEnvelope")?;
    bundle.end()?;
    envelope.fixed("payloadType", PAYLOAD_TYPE)?;
    let payload = base64("dsseEnvelope.payload", &envelope.text("payload")?)?;
    let mut signature = envelope.only("signatures")?;
    envelope.end()?;
    let value = base64("the signature's sig", &signature.text("sig")?)?;
    if let Some(keyid) = signature.optional("keyid") {
        keyid.text("the signature's keyid")?;
    }
    signature.end()?;
    let given = key.hint();
    if signed != given {
        return Err(SigningError::OtherKey { signed: signed.escape_default().to_string(), given });
    }
    match key.verifies(&pre_authentication(&payload), &value) {
        true => Ok(payload),
        false => Err(SigningError::Forged),
    }
}

/// Reads a bundle's file.
///
/// # Errors
/// A link, no regular file, or one longer than [`BYTES_MOST`].
pub fn read(path: &Path) -> Result<Vec<u8>, SigningError> {
    let failed = |what| move |source| SigningError::File { path: path.to_owned(), what, source };
    let refused = |why: &str| SigningError::Model { path: path.to_owned(), why: why.to_owned() };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::LOOP.raw_os_error() => refused("is a symbolic link"),
        _ => failed("the signature cannot be read")(error),
    })?;
    let found = file.metadata().map_err(failed("cannot be looked at"))?;
    if !found.is_file() {
        return Err(refused("is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MOST + 1).read_to_end(&mut bytes).map_err(failed("the signature cannot be read"))?;
    match bytes.len() as u64 > BYTES_MOST {
        true => Err(SigningError::Malformed(format!("{} is longer than {BYTES_MOST} bytes", path.display()))),
        false => Ok(bytes),
    }
}

/// What is signed: DSSE's pre-authentication encoding.
fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn base64(what: &str, text: &str) -> Result<Vec<u8>, SigningError> {
    STANDARD.decode(text).map_err(|why| SigningError::Malformed(format!("{what} is not Base64: {why}")))
}

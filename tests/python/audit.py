"""Checks an audit log as docs/audit.md describes it, with other people's code alone.

usage: audit.py AUDIT_LOG [EXPECTED_HEAD [TRUSTED_CAS.pem]]
"""

import base64
import json
import sys
from datetime import datetime, timezone

from blake3 import blake3
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

RECORD = b"testudo audit record, format 1\0"
SIGNED = b"testudo audit signature, format 1\0"


def certificates(text):
    """Certificates in DER, one after the other, in base64."""
    der, found = base64.b64decode(text, validate=True), []
    while der:
        # A long form of the length: whatever is shorter is no certificate.
        assert der[0] == 0x30 and der[1] in (0x81, 0x82), "no certificate"
        octets = der[1] & 0x7F
        end = 2 + octets + int.from_bytes(der[2 : 2 + octets], "big")
        assert end <= len(der), "a certificate that was cut"
        found.append(x509.load_der_x509_certificate(der[:end]))
        der = der[end:]
    assert found, "no certificate"
    return found


def issued(certificate, ca):
    """Whether `ca` signed `certificate`, and may have."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    of = ca.extensions.get_extension_for_class
    return of(x509.BasicConstraints).value.ca and of(x509.KeyUsage).value.key_cert_sign


def certified(chain, cas):
    """The path from a node's certificate, the first in `chain`, to one of `cas`, through the others in it."""
    path, between = chain[:1], chain[1:]
    while not any(issued(path[-1], ca) for ca in cas):
        above = [ca for ca in between if issued(path[-1], ca)]
        assert above, "no CA that is trusted certified it"
        between.remove(above[0])
        path.append(above[0])
    return path


def good_at(path, at):
    when = datetime.fromtimestamp(at // 1000, timezone.utc)
    for certificate in path:
        assert certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc, "an expired key"


def signed(path, signature, message, at):
    """Whether the node whose certificate begins `path` signed `message`, at a time when it could."""
    good_at(path, at)
    key = path[0].public_key()
    hashed = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384}[key.curve.name]()
    key.verify(base64.b64decode(signature, validate=True), message, ec.ECDSA(hashed))


def san(certificate):
    """Whose a certificate is."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def said_by_member(kind, body, heads):
    """What a worker or a server signed."""
    number = lambda n: n.to_bytes(8, "big")
    if kind == "contributions":
        digest = bytes.fromhex(body["digest"])
        return b"testudo contributions, format 1\0" + number(body["step"]) + number(body["count"]) + digest
    assert heads[body["record"]] == body["head"], "another log was counter-signed"
    before = body["before"] or {"record": 0, "hash": "00" * 32}
    parts = [number(body["record"]), bytes.fromhex(body["head"]), bytes([body["before"] is not None])]
    parts += [number(before["record"]), bytes.fromhex(before["hash"])]
    return b"testudo audit counter-signature, format 1\0" + b"".join(parts)


def main(path, expected=None, trusted=None):
    if trusted is not None:
        trusted = x509.load_pem_x509_certificates(open(trusted, "rb").read())
    data = open(path, "rb").read()
    assert data.endswith(b"\n"), "cut in the middle of a record"
    head, at, key, unsigned, heads, members = bytes(32), 0, None, 0, [], {}
    ended = reopened = False
    lines = data[:-1].split(b"\n")
    for number, line in enumerate(lines):
        record = json.loads(line)
        spelled = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
        assert list(record) == ["seq", "prev", "at", "kind", "body"] and spelled == line, "not canonical"
        assert record["seq"] == number, f"record {record['seq']} in place {number}"
        assert record["prev"] == head.hex(), f"record {number} does not follow"
        assert record["at"] >= at, f"record {number} is older than the one before"
        at, kind, body = record["at"], record["kind"], record["body"]
        if kind == "key":
            cas = certificates(body["ca"])
            assert trusted is None or all(ca in trusted for ca in cas), "another CA's log"
            key = certified(certificates(body["certificate"]), cas)
            job = f"spiffe://{body['trust_domain']}/job/{body['job']}"
            assert san(key[0]) == [f"{job}/actor/audit"], "another's key"
        if kind == "join":
            members[body["node"]] = certified(certificates(body["certificate"]), cas)
            assert san(members[body["node"]][0]) == [f"{job}/{body['node']}"], "another's certificate"
        if kind == "renewed":
            renewed = certified(certificates(body["certificate"]), cas)
            assert san(renewed[0]) == [f"{job}/{body['node']}"], "another's certificate"
            if body["node"] == "actor/audit":
                key = renewed
            else:
                assert body["node"] in members, f"{body['node']} has not joined"
                members[body["node"]] = renewed
        if kind in ("contributions", "countersignature"):
            signed(members[body["node"]], body["signature"], said_by_member(kind, body, heads), at)
        if kind == "signature":
            signed(key, body["signature"], SIGNED + number.to_bytes(8, "big") + head + at.to_bytes(8, "big"), at)
            unsigned = 0
        else:
            assert key is not None, "no key"
            afterwards = ("reopened", "deletion", "key_destroyed")
            ended, reopened = ended and kind != "key", (reopened or kind == "reopened") and kind != "key"
            assert not (ended or reopened) or (reopened and kind in afterwards), f"record {number} after the end"
            ended = ended or kind == "end"
            unsigned += 1
        head = blake3(RECORD + line).digest()
        heads.append(head.hex())
    assert unsigned == 0 and ended, "the log does not come to its end"
    assert expected is None or expected in heads, "the expected head is not in it"
    print(f"{len(lines)} records, head {head.hex()}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Checks an audit log as docs/audit.md describes it, with other people's code alone.

usage: audit.py AUDIT_LOG [EXPECTED_HEAD]
"""

import base64
import json
import sys
from datetime import datetime, timezone

from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

RECORD = b"testudo audit record, format 1\0"
SIGNED = b"testudo audit signature, format 1\0"


def certified(certificate, ca):
    """Whether `ca` signed `certificate`."""
    ca.public_key().verify(
        certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256())
    )


def good_at(certificate, at):
    when = datetime.fromtimestamp(at // 1000, timezone.utc)
    assert certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc, "an expired key"


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


def main(path, expected):
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
            ca = x509.load_der_x509_certificate(base64.b64decode(body["ca"]))
            key = x509.load_der_x509_certificate(base64.b64decode(body["certificate"]))
            certified(key, ca)
            job = f"spiffe://{body['trust_domain']}/job/{body['job']}"
            assert san(key) == [f"{job}/actor/audit"], "another's key"
        if kind == "join":
            members[body["node"]] = x509.load_der_x509_certificate(base64.b64decode(body["certificate"]))
            certified(members[body["node"]], ca)
        if kind == "renewed":
            renewed = x509.load_der_x509_certificate(base64.b64decode(body["certificate"]))
            certified(renewed, ca)
            assert san(renewed) == [f"{job}/{body['node']}"], "another's certificate"
            if body["node"] == "actor/audit":
                key = renewed
            else:
                assert body["node"] in members, f"{body['node']} has not joined"
                members[body["node"]] = renewed
        if kind in ("contributions", "countersignature"):
            member = members[body["node"]]
            good_at(member, at)
            signature = base64.b64decode(body["signature"], validate=True)
            member.public_key().verify(signature, said_by_member(kind, body, heads), ec.ECDSA(hashes.SHA256()))
        if kind == "signature":
            good_at(key, at)
            message = SIGNED + number.to_bytes(8, "big") + head + at.to_bytes(8, "big")
            signature = base64.b64decode(body["signature"], validate=True)
            key.public_key().verify(signature, message, ec.ECDSA(hashes.SHA256()))
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
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)

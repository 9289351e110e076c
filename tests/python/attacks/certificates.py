"""Certificates made by hand with PyPI's cryptography: what the job's CA signs, and what it never would."""
import datetime
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


class Authority:
    """The CA in a folder of the job, with its key: whoever has it can sign anything."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        self.key = serialization.load_pem_private_key((folder / "ca-key.pem").read_bytes(), None)


def with_key(certificate, key):
    """Whoever has a certificate's key can sign as it."""
    made = object.__new__(Authority)
    made.certificate, made.key = certificate, key
    return made


def below(authority):
    """A CA's certificate by another CA, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "below")]))
        .issuer_name(authority.certificate.subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(True, 0), True)
        .sign(authority.key, hashes.SHA256()))
    return certificate, key


def under(certificate, key, name):
    """A node's certificate that whoever has `key` signed, followed by that one's own; its key."""
    own, own_key = leaf(with_key(certificate, key), [name])
    return [own, certificate], own_key


def impostor(original, path_length=0):
    """Another CA of the same name."""
    forged = object.__new__(Authority)
    forged.key = ec.generate_private_key(ec.SECP256R1())
    forged.certificate = (
        x509.CertificateBuilder().subject_name(original.certificate.subject).issuer_name(original.certificate.subject)
        .public_key(forged.key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(True, path_length), True)
        .sign(forged.key, hashes.SHA256()))
    return forged


def leaf(authority, uris, *, start=NOW - DAY, end=NOW + DAY, is_ca=False, basic=True, key_usage=("digital_signature",),
         usages=(Usage.SERVER_AUTH, Usage.CLIENT_AUTH), names=(), critical=(), own=False, curve=None, padding=0):
    """A certificate and its key; as the job's CA would issue it unless told otherwise."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 60)] * (padding // 60))
    builder = (
        x509.CertificateBuilder().subject_name(subject)
        .issuer_name(subject if own else authority.certificate.subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(start).not_valid_after(end))
    if basic:
        builder = builder.add_extension(x509.BasicConstraints(is_ca, None), True)
    if key_usage:
        flags = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
        builder = builder.add_extension(x509.KeyUsage(**{flag: flag in key_usage for flag in flags}), True)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
    alternatives = [x509.UniformResourceIdentifier(uri) for uri in uris] + list(names)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
    for oid in critical:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b"\x05\x00"), True)
    return builder.sign(key if own else authority.key, hashes.SHA256()), key


class Bytes:
    """Stands where aioquic wants a certificate, and gives any bytes for it."""

    def __init__(self, der):
        self.der = der

    def public_bytes(self, _encoding):
        return self.der


def bad(authority, name):
    """Every bad certificate for the node `name`: what is wrong with it, its chain, its key."""
    def other(old, new):
        return name.replace(old, new, 1)

    role, index = name.split("/")[-2:]
    good, good_key = leaf(authority, [name])
    der = good.public_bytes(serialization.Encoding.DER)
    cases = {
        "no certificate": ([], None),
        "self-signed": leaf(authority, [name], own=True),
        "of a foreign CA of the same name": leaf(impostor(authority), [name]),
        "expired": leaf(authority, [name], start=NOW - 3 * DAY, end=NOW - DAY),
        "not yet valid": leaf(authority, [name], start=NOW + DAY, end=NOW + 2 * DAY),
        "with a CA flag": leaf(authority, [name], is_ca=True),
        "for clients alone": leaf(authority, [name], usages=[Usage.CLIENT_AUTH]),
        "for servers alone": leaf(authority, [name], usages=[Usage.SERVER_AUTH]),
        "for signing code": leaf(authority, [name], usages=[Usage.CODE_SIGNING]),
        "for any use": leaf(authority, [name], usages=[Usage.ANY_EXTENDED_KEY_USAGE]),
        "for no stated use": leaf(authority, [name], usages=[]),
        "that may sign certificates": leaf(authority, [name], key_usage=("digital_signature", "key_cert_sign")),
        "without a URI": leaf(authority, []),
        "with a DNS name alone": leaf(authority, [], names=[x509.DNSName("worker-0.test")]),
        "with two URIs": leaf(authority, [name, f"{name}1"]),
        "with the same URI twice": leaf(authority, [name, name]),
        "with a percent-escaped URI": leaf(authority, [other(f"/{role}/", f"/%{ord(role[0]):x}{role[1:]}/")]),
        "with a percent-escaped slash": leaf(authority, [other(f"/{role}/{index}", f"/{role}%2f{index}")]),
        "with dot segments": leaf(authority, [other("/job/", "/x/../job/")]),
        "with an empty segment": leaf(authority, [other("/job/", "//job/")]),
        "with a query": leaf(authority, [f"{name}?admin"]),
        "in capitals": leaf(authority, [other("spiffe://", "SPIFFE://")]),
        "of another job": leaf(authority, [other("/job/toy/", "/job/other/")]),
        "of another trust domain": leaf(authority, [other("test.local", "test.evil")]),
        "of an unknown role": leaf(authority, [other(f"/{role}/", "/root/")]),
        "with a leading zero": leaf(authority, [f"{name[:-len(index)]}0{index}"]),
        "with an unknown critical extension": leaf(authority, [name], critical=["1.3.6.1.4.1.55555.1"]),
        "that is no certificate": ([Bytes(b"\x30\x03\x02\x01\x00")], good_key),
        "with a byte too many": ([Bytes(der + b"\0")], good_key),
        "cut short": ([Bytes(der[:-1])], good_key),
        "with a flipped bit in its signature": ([Bytes(der[:-1] + bytes([der[-1] ^ 1]))], good_key),
        "with another's key": ([good], leaf(authority, [name])[1]),
        "under a node's certificate": under(*leaf(authority, [other(f"/{index}", "/7")]), name),
        "under a CA below the job's": under(*below(authority), name),
        "under a foreign CA's": under(*below(impostor(authority, None)), name),
        "followed by 4 more": ([good] * 5, good_key),
        "of 20 KiB": leaf(authority, [name], padding=20_000),
        "followed by 100 more": ([good] * 101, good_key),
        "followed by 2000 more": ([good] * 2001, good_key),
    }
    return {what: (chain if isinstance(chain, list) else [chain], key) for what, (chain, key) in cases.items()}

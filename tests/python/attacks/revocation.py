"""Class A's lists of revoked certificates, made by hand, and a node that is on them."""
import datetime

import certificates
import wire
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

# What an order leaves for the next: credentials and connections by name.
credentials, held = {}, {}


def crl(ca, number, serials, forged=False, ended=False, unnumbered=False):
    """A list of those serial numbers, in hex of its DER."""
    authority = certificates.Authority(ca)
    authority = certificates.impostor(authority) if forged else authority
    start, day = certificates.NOW - 3 * certificates.DAY, certificates.DAY
    builder = (
        x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
        .last_update(start).next_update(start + day if ended else start + 5 * day))
    if not unnumbered:
        builder = builder.add_extension(x509.CRLNumber(number), False)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(start).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER).hex()


def enrol(ca, names):
    """A good certificate for each name, to be used later; their serial numbers in hex."""
    authority = certificates.Authority(ca)
    for name in names:
        chain, key = certificates.leaf(authority, [name])
        credentials[name] = ([chain], key)
    return [format(credentials[name][0][0].serial_number, "x") for name in names]


def dial(target, name, expect):
    """Dials under the certificate of `name`; whether it is let in, and how it was cut off if not. It stays connected."""
    peer = wire.Peer(target, name, expect, *credentials[name], source=wire.next_address())
    admitted = peer.admitted()
    if admitted:
        held[name, expect] = peer
        wire.keep(peer)
    return {"admitted": admitted, "closed": peer.closed}


def cut_off(name, expect):
    """How the connection that stayed is cut off."""
    return held[name, expect].verdict()

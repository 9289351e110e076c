"""Class A: handshakes that must not succeed, and identities that are taken."""
import asyncio
import os
import pathlib
import select
import socket
import threading
import time

import certificates
from aioquic import tls
from aioquic.asyncio import serve
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import wire


def strangers(target, ca, name, expect):
    """How `expect` answers each bad certificate for `name`."""
    found = {}
    for what, (chain, key) in certificates.bad(certificates.Authority(ca), name).items():
        peer = wire.Peer(target, name, expect, chain, key, source=wire.next_address())
        found[what] = peer.verdict()
        peer.close()
    return found


def stranger(target, name, expect):
    """How `expect` answers somebody who has signed for itself."""
    certificate, key = certificates.leaf(None, [name], own=True)
    peer = wire.Peer(target, name, expect, [certificate], key, source=wire.next_address())
    closed = peer.verdict()
    peer.close()
    return closed


def protocols(target, ca, name, expect):
    """A good certificate under other protocols."""
    chain, key = certificates.leaf(certificates.Authority(ca), [name])

    def versions(context):
        context._supported_versions = [0x0303]

    def groups(context):
        context._supported_groups = [tls.Group.SECP384R1]

    def signatures(context):
        context._signature_algorithms = [tls.SignatureAlgorithm.RSA_PKCS1_SHA1]

    found = {}
    for what, alpn, changes in [
        ("of HTTP/3", ["h3"], ()),
        ("of no protocol", None, ()),
        ("of another version", ["testudo/2"], ()),
        ("of 500 protocols", [f"testudo/{n}" for n in range(1000, 1500)], ()),
        ("of TLS 1.2", [wire.ALPN], (versions,)),
        ("by another group", [wire.ALPN], (groups,)),
        ("that takes SHA-1 alone", [wire.ALPN], (signatures,)),
    ]:
        peer = wire.Peer(target, name, expect, [chain], key, alpn=alpn, changes=changes,
                         source=wire.next_address())
        found[what] = peer.verdict()
        peer.close()
    return found


def resumption(target, ca, name, expect):
    """An honest handshake under a good certificate: the tickets that it got, and whether it was let in."""
    chain, key = certificates.leaf(certificates.Authority(ca), [name])
    peer = wire.Peer(target, name, expect, [chain], key)
    admitted = peer.admitted()
    peer.until(lambda: False, 0.5)
    peer.quic.close(error_code=0)
    peer.flush()
    peer.close()
    return {"admitted": admitted, "tickets": len(peer.tickets)}


def stalled(target, count):
    """Begins `count` handshakes, proves its address where that is asked, and says no more; how many were answered."""
    peers, answered = [], 0
    for _ in range(count):
        peer = wire.Peer(target, groups=wire.FAST, source=wire.next_address())
        peer.flush()
        while select.select([peer.socket], [], [], 20)[0]:
            data = peer.socket.recv(65536)
            if data[0] & 0xF0 != 0xF0:
                answered += 1
                break
            # A Retry (RFC 9000, section 17.2.5).
            peer.quic.receive_datagram(data, peer.target, now=time.monotonic())
            peer.flush()
        peers.append(peer)
    for peer in peers:
        peer.close()
    return answered


def noise(target, count):
    """Datagrams of no meaning, of every size, and Initial packets whose content is noise."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for size in range(count):
        one.sendto(os.urandom(size % 1400 + 1), tuple(target))
        start = bytes([0xC0 | size % 4]) + b"\0\0\0\1" + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0"
        one.sendto(start + b"\x44\x9e" + os.urandom(1182), tuple(target))
    return count


def stolen(folder):
    folder = pathlib.Path(folder)
    chain = [x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())]
    return chain, serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)


def join_as_another(target, identity, name, expect, release, fingerprint):
    """Joins under a live node's own key; what the scheduler says."""
    chain, key = stolen(identity)
    peer = wire.Peer(target, name, expect, chain, key)
    if not peer.admitted():
        return {"closed": peer.closed}
    peer.grant()
    stream = peer.stream()
    body = wire.text(release) + wire.text(fingerprint) + wire.option(None) + os.urandom(32)
    peer.say(stream, wire.JOIN, body)
    answer = peer.hear(stream)
    reason = wire.Reader(answer.body).text() if answer and answer.kind == wire.JOIN_REFUSED else None
    found = {"kind": answer.kind if answer else None, "reason": reason, "closed": peer.closed}
    peer.close()
    return found


def hello_as_another(target, identity, name, expect):
    """Speaks to a server under a live worker's own key, without the secret of its process; how it ends."""
    chain, key = stolen(identity)
    peer = wire.Peer(target, name, expect, chain, key)
    if peer.admitted():
        peer.grant()
        peer.say(peer.stream(), wire.HELLO, os.urandom(32))
    closed = peer.verdict()
    peer.close()
    return closed


def impostors(ca, name):
    """Servers that show bad certificates for `name`, each on a port of its own; they live as long as this process."""
    # aioquic's server has no room for the long ones, and cannot do without a certificate.
    left_out = {"no certificate", "of 20 KiB", "followed by 100 more", "followed by 2000 more"}
    cases = certificates.bad(certificates.Authority(ca), name)
    loop, ports = asyncio.new_event_loop(), {}

    async def listen():
        for what, (chain, key) in cases.items():
            if what in left_out:
                continue
            configuration = QuicConfiguration(is_client=False, alpn_protocols=[wire.ALPN])
            configuration.certificate, configuration.certificate_chain = chain[0], list(chain[1:])
            configuration.private_key = key
            server = await serve("127.0.0.1", 0, configuration=configuration)
            ports[what] = server._transport.get_extra_info("sockname")[1]

    loop.run_until_complete(listen())
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return ports

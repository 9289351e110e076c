"""A peer of the wire made of PyPI's aioquic, blake3 and this file: it shares no code with Testudo.

aioquic has no TLS exporter, so the secret of RFC 8446, section 7.5, is taken where aioquic derives its application keys: both
come from the same transcript. Everything else (prelude, postcard, MAC, credit) is written from the description of the wire.
"""
import itertools
import select
import socket
import ssl
import time

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from blake3 import blake3

ALPN = "testudo/1"
EXPORTER_LABEL = b"EXPERIMENTAL testudo/1 message authentication"
STREAM_KEY = b"testudo/1 stream key"
CREDIT = 0
JOIN, WELCOME, JOIN_REFUSED, MEMBERSHIP, HEARTBEAT = 1, 2, 3, 4, 8
PUSH, PUSH_ACCEPTED, PUSH_REFUSED, PULL, SLICE_VERSION, PULL_REFUSED, HELLO = 20, 21, 22, 23, 24, 25, 39
FROM_INITIATOR, FROM_ACCEPTOR = 0, 1
# More than any certificate chain takes.
LARGE = 1 << 22
# Far beyond what any answer takes.
PATIENCE = 60.0
# One group for attackers that are many: each costs a key.
FAST = [tls.Group.X25519]
_addresses = itertools.count(1)
# Connections that live from one order to a later one.
_kept = []


def keep(peer):
    """Tends `peer` between orders: nodes give up who acknowledges nothing for some seconds. Nobody else may use it meanwhile."""
    _kept.append(peer)


def tend():
    for peer in _kept:
        if peer.closed is None and peer.socket.fileno() >= 0:
            peer.until(lambda: False, 0.001)  # what has come, and what is due


def begin_addresses(network):
    """From now on in a network of this process's own, where several attack one node."""
    global _addresses
    _addresses = itertools.count(network * 60_000)


def next_address():
    """An address on loopback that nobody has used before: what one attacker does is charged to no other."""
    number = next(_addresses)
    return f"127.{1 + number // 60_000}.{number // 250 % 240}.{1 + number % 250}"

_derive_secret = tls.KeySchedule.derive_secret


def _derive_and_keep(schedule, label):
    if label == b"c ap traffic":
        schedule.exporter_master = _derive_secret(schedule, b"exp master")
    return _derive_secret(schedule, label)


tls.KeySchedule.derive_secret = _derive_and_keep

_send_hello = tls.Context._client_send_hello
# What is done to a TLS context before its ClientHello is written.
before_hello = []


def _altered_hello(context, output):
    for change in before_hello:
        change(context)
    _send_hello(context, output)


tls.Context._client_send_hello = _altered_hello


def varint(value):
    """A number in postcard: seven bits a byte, lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def text(value):
    value = value.encode()
    return varint(len(value)) + value


def option(value):
    return b"\0" if value is None else b"\1" + value


class Reader:
    """Reads postcard."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        part = self.data[self.at:self.at + count]
        if len(part) != count:
            raise ValueError("too short")
        self.at += count
        return part

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def text(self):
        return self.take(self.varint()).decode()

    def rest(self):
        return self.take(len(self.data) - self.at)


def envelope(sender, receiver, request=0):
    return text(sender) + text(receiver) + varint(request) + b"\0"


def prelude(kind, header, payload=0, version=1, flags=0):
    return (bytes([version, kind]) + flags.to_bytes(2, "little") + header.to_bytes(4, "little")
            + payload.to_bytes(8, "little"))


class Message:
    def __init__(self, kind, header, payload):
        reader = Reader(header)
        self.kind, self.payload = kind, payload
        self.sender, self.receiver, self.request = reader.text(), reader.text(), reader.varint()
        if reader.take(1)[0]:
            reader.take(25)
        self.body = reader.rest()


class Sealer:
    """Frames messages of one direction of one stream, under its key and in its order."""

    def __init__(self, peer, stream, direction=FROM_INITIATOR):
        derivation = STREAM_KEY + bytes([direction]) + stream.to_bytes(8, "little")
        self.key, self.sequence, self.peer = blake3(derivation, key=peer.secret()).digest(), 0, peer

    def mac(self, start, header, payload_hash):
        covered = self.sequence.to_bytes(8, "little") + start + header + payload_hash
        return blake3(covered, key=self.key).digest()

    def frame(self, kind, body, payload=b"", *, header=None, start=None):
        """A message; `header` and `start` are sealed as they are given."""
        header = envelope(self.peer.name, self.peer.expect) + body if header is None else header
        start = prelude(kind, len(header), len(payload)) if start is None else start
        sealed = start + header + payload + self.mac(start, header, blake3(payload).digest())
        self.sequence += 1
        return sealed


class Peer:
    """One connection of somebody called `name` to `expect`, under a certificate that may be anything."""

    def __init__(self, target, name="", expect="", chain=(), key=None, *, alpn=(ALPN,), changes=(), data=1 << 24,
                 groups=None, source="127.0.0.1"):
        self.target, self.name, self.expect = tuple(target), name, expect
        configuration = QuicConfiguration(
            alpn_protocols=list(alpn) if alpn else None, verify_mode=ssl.CERT_NONE, server_name="testudo.invalid",
            max_data=data, max_stream_data=data, idle_timeout=PATIENCE)
        if chain:
            configuration.certificate, configuration.certificate_chain = chain[0], list(chain[1:])
            configuration.private_key = key
        self.tickets = []
        self.quic = QuicConnection(configuration=configuration, session_ticket_handler=self.tickets.append)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((source, 0))
        self.socket.setblocking(False)
        self.connected = False
        self.closed = None
        self.streams, self.reset, self.sealers, self.opened = {}, {}, {}, {}
        before_hello[:] = changes
        if groups:
            before_hello.append(lambda context: setattr(context, "_supported_groups", groups))
        self.quic.connect(self.target, now=time.monotonic())
        before_hello.clear()

    def close(self):
        self.socket.close()

    def secret(self):
        return self.secret_for(self.expect.split("/")[4], self.name, self.expect)

    def secret_for(self, *texts):
        schedule = self.quic.tls.key_schedule
        size = schedule.algorithm.digest_size
        context = b"".join(len(t).to_bytes(4, "little") + t.encode() for t in texts)

        def hashed(data):
            digest = tls.hashes.Hash(schedule.algorithm)
            digest.update(data)
            return digest.finalize()

        def expand(secret, label, value, length):
            return tls.hkdf_expand_label(
                algorithm=schedule.algorithm, secret=secret, label=label, hash_value=value, length=length)

        derived = expand(schedule.exporter_master, EXPORTER_LABEL, hashed(b""), size)
        return expand(derived, b"exporter", hashed(context), 32)

    def flush(self):
        for data, address in self.quic.datagrams_to_send(now=time.monotonic()):
            try:
                self.socket.sendto(data, address)
            except (BlockingIOError, ConnectionRefusedError):
                pass  # lost, as on any network

    def until(self, ready, patience=PATIENCE):
        """Runs the connection until `ready()` gives something, or it is closed, or patience ends."""
        deadline = time.monotonic() + patience
        while True:
            self.flush()
            self.take_events()
            found = ready()
            if found or self.closed is not None:
                return found
            now = time.monotonic()
            if now >= deadline:
                return None
            timer = self.quic.get_timer()
            wait = min(deadline, timer if timer is not None else deadline) - now
            readable, _, _ = select.select([self.socket], [], [], max(0.0, min(wait, 0.5)))
            if readable:
                self.receive()
            timer = self.quic.get_timer()
            if timer is not None and time.monotonic() >= timer:
                self.quic.handle_timer(now=time.monotonic())

    def receive(self):
        while True:
            try:
                data, address = self.socket.recvfrom(65536)
            except (BlockingIOError, ConnectionRefusedError):
                return
            # aioquic's own buffer, which it makes anew after a Retry, has no room for the certificate chains of some attacks.
            buffers = self.quic._crypto_buffers
            if buffers[tls.Epoch.HANDSHAKE].capacity < LARGE and not buffers[tls.Epoch.HANDSHAKE].tell():
                buffers[tls.Epoch.HANDSHAKE] = Buffer(capacity=LARGE)
            self.quic.receive_datagram(data, address, now=time.monotonic())

    def take_events(self):
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, events.HandshakeCompleted):
                self.connected = True
            elif isinstance(event, events.StreamDataReceived):
                self.streams.setdefault(event.stream_id, bytearray()).extend(event.data)
            elif isinstance(event, events.StreamReset):
                self.reset[event.stream_id] = event.error_code
            elif isinstance(event, events.ConnectionTerminated):
                self.closed = {"code": event.error_code, "reason": event.reason_phrase, "frame": event.frame_type}

    def verdict(self, patience=PATIENCE):
        """How the other end closed the connection; None if it did not."""
        self.until(lambda: False, patience)
        return self.closed

    def admitted(self):
        """Waits until the other end grants credit, which is how it says that it let us in."""
        return bool(self.until(lambda: any(s % 4 == 3 for s in self.streams)))

    def grant(self, amount=1 << 30, messages=1 << 20):
        stream = self.quic.get_next_available_stream_id(is_unidirectional=True)
        grants = (varint(amount) + varint(messages)) * 2
        self.quic.send_stream_data(stream, self.sealer(stream).frame(CREDIT, grants))
        return stream

    def stream(self):
        stream = self.quic.get_next_available_stream_id()
        self.quic.send_stream_data(stream, b"")
        return stream

    def sealer(self, stream):
        if stream not in self.sealers:
            self.sealers[stream] = Sealer(self, stream)
        return self.sealers[stream]

    def write(self, stream, data, end=False):
        self.quic.send_stream_data(stream, data, end)
        self.flush()

    def say(self, stream, kind, body, payload=b""):
        self.write(stream, self.sealer(stream).frame(kind, body, payload))

    def hear(self, stream, patience=PATIENCE):
        """The next message on a stream; its MAC must hold."""
        self.opened.setdefault(stream, Sealer(self, stream, FROM_ACCEPTOR))

        def whole():
            data = self.streams.get(stream, b"")
            if len(data) < 16:
                return None
            size = 16 + int.from_bytes(data[4:8], "little") + int.from_bytes(data[8:16], "little") + 32
            return size if len(data) >= size else None

        size = self.until(whole, patience)
        if not size:
            return None
        data = bytes(self.streams[stream][:size])
        del self.streams[stream][:size]
        start, header_length = data[:16], int.from_bytes(data[4:8], "little")
        header, payload, mac = data[16:16 + header_length], data[16 + header_length:-32], data[-32:]
        opener = self.opened[stream]
        if opener.mac(start, header, blake3(payload).digest()) != mac:
            raise ValueError("an answer fails its MAC")
        opener.sequence += 1
        return Message(start[1], header, payload)

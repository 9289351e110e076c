"""Decodes the golden vectors beside this file by hand, and checks keys, hashes and MACs.

It shares no code with the crate: what it reads is the wire format. Needs the PyPI package `blake3`.

usage: decode.py [FILE.json ...]
"""
import json
import pathlib
import sys

from blake3 import blake3

VERSION = 1


def main(paths):
    for path in paths:
        vector = json.loads(path.read_text())
        check(vector)
        print(f"{vector['name']}: good")


def check(vector):
    frame = bytes.fromhex(vector["frame"])
    secret = bytes.fromhex(vector["exporter_secret"])
    stream, sequence = int(vector["stream"]), int(vector["sequence"])

    # The context given to the TLS exporter: three texts, each with its length.
    texts = [vector["job"], vector["initiator"], vector["acceptor"]]
    context = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in texts)
    equal("exporter context", context.hex(), vector["exporter_context"])

    # One key per direction and stream.
    derivation = b"testudo/1 stream key" + bytes([vector["direction"]]) + stream.to_bytes(8, "little")
    key = blake3(derivation, key=secret).digest()
    equal("stream key", key.hex(), vector["stream_key"])

    # The prelude: 16 bytes, little-endian.
    prelude, rest = frame[:16], frame[16:]
    equal("version", prelude[0], VERSION)
    equal("kind", prelude[1], vector["kind"])
    equal("flags", prelude[2:4], b"\0\0")
    header_length = int.from_bytes(prelude[4:8], "little")
    payload_length = int.from_bytes(prelude[8:16], "little")
    equal("frame length", len(frame), 16 + header_length + payload_length + 32)
    header, rest = rest[:header_length], rest[header_length:]
    payload, mac = rest[:payload_length], rest[payload_length:]
    equal("payload", payload.hex(), vector["payload"])

    # The MAC covers the payload by its hash.
    payload_hash = blake3(payload).digest()
    equal("payload hash", payload_hash.hex(), vector["payload_hash"])
    covered = sequence.to_bytes(8, "little") + prelude + header + payload_hash
    equal("mac", blake3(covered, key=key).hexdigest(), mac.hex())
    equal("stored mac", vector["mac"], mac.hex())

    # The envelope in postcard: two texts, a varint, an optional array of 25 bytes; then the kind's own fields.
    reader = Reader(header)
    equal("from", reader.text(), vector["from"])
    equal("to", reader.text(), vector["to"])
    equal("request", reader.varint(), int(vector["request"]))
    present = reader.take(1)[0]
    equal("option tag", present in (0, 1), True)
    traceparent = reader.take(25).hex() if present else None
    equal("traceparent", traceparent, vector["traceparent"])
    equal("body", reader.rest().hex(), vector["body"])
    sender = vector["initiator"] if vector["direction"] == 0 else vector["acceptor"]
    equal("sender", vector["from"], sender)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        part = self.data[self.at:self.at + count]
        equal("bytes left", len(part), count)
        self.at += count
        return part

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                equal("canonical varint", byte == 0 and shift > 7, False)
                return value

    def text(self):
        return self.take(self.varint()).decode("ascii")

    def rest(self):
        return self.take(len(self.data) - self.at)


def equal(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: found {found!r}, expected {expected!r}")


if __name__ == "__main__":
    named = [pathlib.Path(name) for name in sys.argv[1:]]
    main(named or sorted(pathlib.Path(__file__).parent.glob("*.json")))

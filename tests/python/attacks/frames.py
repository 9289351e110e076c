"""Classes C and D: an authenticated node that frames badly, and one that forges, repeats, reorders and drops messages.

Each case has a connection, an address and an identity of its own, so that no case is refused for what another did.
"""
import threading

import certificates
import wire
from handshake import stolen
from worker import greet

BODY = wire.text("0.1.0") + wire.text("none") + wire.option(None) + bytes(32)


def run(target, ca, expect, stem, first, cases):
    """Runs the named table of cases; how each connection was closed, and the kind of a message that came before."""
    authority, found = certificates.Authority(ca), {}
    for number, (what, attack) in enumerate(globals()[cases]().items(), first):
        found[what] = one(target, authority, expect, f"{stem}/{number}", attack)
    return found


def one(target, authority, expect, name, attack):
    chain, key = certificates.leaf(authority, [name])
    peer = wire.Peer(target, name, expect, [chain], key, groups=wire.FAST, source=wire.next_address())
    if not peer.admitted():
        return {"closed": peer.closed, "heard": None, "admitted": False}
    peer.grant()
    stream = peer.stream()
    peer.credentials = [chain], key
    heard = attack(peer, stream)
    closed = peer.closed if heard else peer.verdict()
    peer.quic.close(error_code=0)
    peer.flush()
    peer.close()
    return {"closed": closed, "heard": heard, "admitted": True}


def raw(data, end=False):
    return lambda peer, stream: peer.write(stream, data, end)


def sealed(**how):
    kind, body = how.pop("kind", wire.JOIN), how.pop("body", BODY)
    return lambda peer, stream: peer.write(stream, peer.sealer(stream).frame(kind, body, **how))


def framing():
    """Class C: bytes that are no messages, and messages that lie about themselves."""
    whole = wire.prelude(wire.JOIN, 100)
    return {
        "a payload of 2^32 bytes": raw(wire.prelude(wire.JOIN, 100, 1 << 32)),
        "a payload of 2^64 - 1 bytes": raw(wire.prelude(wire.JOIN, 100, (1 << 64) - 1)),
        "a header of 2^32 - 1 bytes": raw(wire.prelude(wire.JOIN, (1 << 32) - 1)),
        "both at once": raw(wire.prelude(wire.JOIN, (1 << 32) - 1, (1 << 64) - 1)),
        "half a prelude": raw(whole[:7], True),
        "an end inside the header": raw(whole + bytes(50), True),
        "an end inside the MAC": raw(whole + bytes(131), True),
        "a reset inside a message": reset,
        "wire version 0": raw(wire.prelude(wire.JOIN, 100, version=0)),
        "wire version 2": raw(wire.prelude(wire.JOIN, 100, version=2)),
        "wire version 255": raw(wire.prelude(wire.JOIN, 100, version=255)),
        "flags": raw(wire.prelude(wire.JOIN, 100, flags=1)),
        "an unknown kind": raw(wire.prelude(99, 100)),
        "the last kind": raw(wire.prelude(255, 100)),
        "the transport's own kind": raw(wire.prelude(wire.CREDIT, 100)),
        "HTTP": raw(b"GET / HTTP/1.1\r\nHost: scheduler\r\n\r\n", True),
        "a header of nothing": sealed(header=b""),
        "an envelope that is longer than the header": lambda peer, stream: sealed(
            header=wire.varint(1 << 31) + peer.name.encode())(peer, stream),
        "an envelope of 2^64 - 1 bytes": lambda peer, stream: sealed(
            header=wire.varint((1 << 64) - 1) + peer.name.encode())(peer, stream),
        "a varint that is not the shortest": lambda peer, stream: sealed(
            header=wire.text(peer.name) + wire.text(peer.expect) + b"\x80\x00\0" + BODY)(peer, stream),
        "a varint without end": lambda peer, stream: sealed(
            header=wire.text(peer.name) + wire.text(peer.expect) + b"\xff" * 40)(peer, stream),
        "a text that is no UTF-8": lambda peer, stream: sealed(
            header=wire.varint(4) + b"\xff\xfe\xfd\xfc" + wire.text(peer.expect) + b"\0\0" + BODY)(peer, stream),
        "bytes after the message": sealed(body=BODY + b"\0"),
        "a text of 2^60 bytes in the message": sealed(body=wire.varint(1 << 60) + b"0.1.0"),
        "a list of 2^60 items": sealed(kind=7, body=wire.varint(0) + wire.varint(1 << 60)),
        "a million items, none of which is there": sealed(kind=7, body=wire.varint(0) + wire.varint(1_000_000)),
        "a million empty items": sealed(kind=7, body=wire.varint(0) + wire.varint(1_000_000) + bytes(1_000_000)),
        "a payload where none may be": sealed(payload=b"\0"),
        "credit that is taken back": credit([(1 << 40, 1 << 20), (1, 1)]),
        "credit with trailing bytes": credit([(1 << 40, 1 << 20)], b"\0"),
        "another message on the credit stream": on_credit(wire.JOIN),
        "an end of the credit stream": lambda peer, stream: peer.write(2, b"", True),
        "a byte at a time": slowly,
    }


def reset(peer, stream):
    peer.write(stream, wire.prelude(wire.JOIN, 100))
    peer.until(lambda: False, 0.1)
    peer.quic.reset_stream(stream, 9)


def credit(grants, trailing=b""):
    # The first grant was on stream 2 already.
    def attack(peer, _stream):
        for amount, messages in grants:
            body = (wire.varint(amount) + wire.varint(messages)) * 2 + trailing
            peer.say(2, wire.CREDIT, body)
    return attack


def on_credit(kind):
    return lambda peer, _stream: peer.say(2, kind, BODY)


def slowly(peer, stream):
    """A good message, a byte at a time: it is waited for, and answered, and delays nobody."""
    for byte in peer.sealer(stream).frame(wire.JOIN, BODY):
        peer.write(stream, bytes([byte]))
        peer.until(lambda: False, 0.02)
    answer = peer.hear(stream)
    return answer.kind if answer else None


# Who says a byte a second, until it is told to end.
dripping = {}


def drip(target, identity, name, expect, secret, streams):
    """Under a worker's key and secret: begins a push on each of several streams, and goes on by a byte a second on each."""
    chain, key = stolen(identity)
    peer, _lane = greet(target, name, expect, chain, key, secret, wire.next_address())
    push, over = wire.prelude(wire.PUSH, 300, 256) + bytes(556), threading.Event()
    dripping.update(peer=peer, over=over, said=0)
    numbers = [peer.stream() for _ in range(streams)]

    def go_on():
        while not over.is_set() and peer.closed is None and dripping["said"] < len(push):
            for number in numbers:
                peer.write(number, push[dripping["said"]:][:1])
            peer.until(over.is_set, 1.0)
            dripping["said"] += 1

    dripping["thread"] = threading.Thread(target=go_on, daemon=True)
    dripping["thread"].start()
    return len(numbers)


def dripped(least):
    """Ends that when `least` bytes have been said on each stream; how the connection was closed if it was."""
    while dripping["said"] < least and dripping["thread"].is_alive():
        dripping["thread"].join(0.1)
    dripping["over"].set()
    dripping["thread"].join()
    peer = dripping["peer"]
    found = {"said": dripping["said"], "closed": peer.closed}
    peer.quic.close(error_code=0)
    peer.flush()
    peer.close()
    return found


def order():
    """Class D: messages whose MAC must fail."""
    return {
        "a message again on its stream": again,
        "a message of another connection": other_connection,
        "two messages in the wrong order": swapped,
        "a message that was dropped": dropped,
        "an answer thrown back": reflected,
        "the other end's credit thrown back": reflected_credit,
        "another job's key": another_key(lambda peer: ("other", peer.name, peer.expect)),
        "the key of the other direction": other_direction,
        "the key of swapped ends": another_key(lambda peer: (peer.expect.split("/")[4], peer.expect, peer.name)),
        "no MAC": lambda peer, stream: peer.write(stream, peer.sealer(stream).frame(wire.JOIN, BODY)[:-32] + bytes(32)),
        "another's name as the sender": lambda peer, stream: sealed(
            header=wire.envelope(peer.name[:-1] + str((int(peer.name[-1]) + 1) % 10), peer.expect) + BODY)(peer, stream),
        "another's name as the receiver": lambda peer, stream: sealed(
            header=wire.envelope(peer.name, peer.expect[:-1] + "9") + BODY)(peer, stream),
    }


def again(peer, stream):
    peer.write(stream, peer.sealer(stream).frame(wire.JOIN, BODY) * 2)


def other_connection(peer, stream):
    before = wire.Peer(peer.target, peer.name, peer.expect, *peer.credentials, groups=wire.FAST)
    if not before.admitted():
        raise ValueError(f"the recorded connection was not let in: {before.closed}")
    recorded = before.sealer(before.stream()).frame(wire.JOIN, BODY)
    before.quic.close(error_code=0)
    before.flush()
    before.close()
    peer.write(stream, recorded)


def swapped(peer, stream):
    sealer = peer.sealer(stream)
    first, second = sealer.frame(wire.JOIN, BODY), sealer.frame(wire.JOIN, BODY)
    peer.write(stream, second + first)


def dropped(peer, stream):
    sealer = peer.sealer(stream)
    sealer.frame(wire.JOIN, BODY)
    peer.write(stream, sealer.frame(wire.JOIN, BODY))


def reflected(peer, stream):
    peer.write(stream, peer.sealer(stream).frame(wire.JOIN, BODY))
    size = peer.until(lambda: len(peer.streams.get(stream, b"")) > 64)
    assert size, "no answer came"
    peer.write(stream, bytes(peer.streams[stream]))


def reflected_credit(peer, _stream):
    theirs = next(s for s in peer.streams if s % 4 == 3)
    peer.write(2, bytes(peer.streams[theirs]))


def another_key(texts):
    def attack(peer, stream):
        secret = peer.secret_for(*texts(peer))
        peer.secret = lambda: secret
        peer.sealers.clear()
        peer.write(stream, peer.sealer(stream).frame(wire.JOIN, BODY))
    return attack


def other_direction(peer, stream):
    peer.write(stream, wire.Sealer(peer, stream, wire.FROM_ACCEPTOR).frame(wire.JOIN, BODY))


def flips(target, ca, expect, stem, first, bit, step, network):
    """A heartbeat with one bit flipped, for every `step`-th of its bits from `bit` on; what was taken, and the codes of what was
    not."""
    authority, taken, codes = certificates.Authority(ca), [], {}
    size, bits, number = None, None, first
    wire.begin_addresses(network)
    while bits is None or bit < bits:
        def attack(peer, stream):
            nonlocal size, bits
            frame = bytearray(peer.sealer(stream).frame(wire.HEARTBEAT, b""))
            size, bits = len(frame), len(frame) * 8
            frame[bit // 8] ^= 1 << bit % 8
            # Whatever lengths it announces, more bytes than that follow, or the stream ends.
            peer.write(stream, bytes(frame), True)
        closed = one(target, authority, expect, f"{stem}/{number}", attack)["closed"]
        if closed is None or not 2 <= closed["code"] <= 6:
            taken.append([bit, closed])
        else:
            codes[closed["code"]] = codes.get(closed["code"], 0) + 1
        number, bit = number + 1, bit + step
    return {"taken": taken, "codes": codes, "bytes": size}

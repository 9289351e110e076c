"""Classes B and F: roles that say what is not theirs, and a worker of the job, admitted and leased, that lies.

The worker is played over several orders: `join`, `pushes`, `streams`, then `leave`, after which it holds no lease, and `late`.
"""
import os
import struct

import certificates
import wire
from blake3 import blake3
from handshake import stolen

INCARNATION = "testudo 2026-11 incarnation commitment"
# What an order leaves for the next.
state = {}


def roles(target, ca, expect, stem, first, attempts):
    """Has each role of `attempts` send its kind: a prelude, and less header than it announces."""
    authority, found = certificates.Authority(ca), []
    for number, (role, kind) in enumerate(attempts, first):
        name = f"{stem}/{role}/{number}"
        chain, key = certificates.leaf(authority, [name])
        peer = wire.Peer(target, name, expect, [chain], key, groups=wire.FAST, source=wire.next_address())
        if peer.admitted():
            peer.write(peer.stream(), wire.prelude(kind, 200) + b"\xff" * 3)
        found.append([role, kind, peer.verdict(20)])
        peer.close()
    return found


def unleased(target, ca, expect, name):
    """A worker whose index the job does not have pushes to a server."""
    chain, key = certificates.leaf(certificates.Authority(ca), [name])
    peer = wire.Peer(target, name, expect, [chain], key, source=wire.next_address())
    if peer.admitted():
        stream = peer.stream()
        peer.say(stream, wire.HELLO, bytes(32))
        peer.say(stream, wire.PUSH, push(1, 0, (0, 0), (0, 1)), bytes(256))
    closed = peer.verdict(20)
    peer.close()
    return closed


def without_hello(target, identity, name, expect):
    """A push as the first word, under a live worker's own key."""
    chain, key = stolen(identity)
    peer = wire.Peer(target, name, expect, chain, key, source=wire.next_address())
    if peer.admitted():
        peer.say(peer.stream(), wire.PUSH, push(1, 0, (0, 0), (0, 1)), bytes(256))
    closed = peer.verdict(20)
    peer.close()
    return closed


def push(epoch, step, slice_id, node, codec=0):
    return b"".join(map(wire.varint, (epoch, step, *slice_id, *node))) + bytes([codec])


def join(target, identity, name, expect, release, fingerprint, servers):
    """Joins honestly, and connects to `servers` ([name, address, port] each) once the membership is known."""
    chain, key = stolen(identity)
    secret = os.urandom(32)
    source = wire.next_address()
    scheduler = wire.Peer(target, name, expect, chain, key, source=source)
    if not scheduler.admitted():
        raise ValueError(f"not admitted: {scheduler.closed}")
    scheduler.grant()
    stream = scheduler.stream()
    commitment = blake3(secret, derive_key_context=INCARNATION).digest()
    scheduler.say(stream, wire.JOIN, wire.text(release) + wire.text(fingerprint) + wire.option(None) + commitment)
    kinds = []
    while True:
        message = scheduler.hear(stream)
        if message is None:
            raise ValueError(f"no membership came, but {kinds}, {scheduler.closed}")
        kinds.append(message.kind)
        if message.kind == wire.MEMBERSHIP:
            break
    epoch, leases = membership(message.body)
    mine = [node for node, worker in leases if worker == int(name.split("/")[-1])]
    lanes = {}
    for server, host, port in servers:
        peer = wire.Peer([host, port], name, server, chain, key, source=source)
        if not peer.admitted():
            raise ValueError(f"{server} does not admit it: {peer.closed}")
        peer.grant()
        lane = peer.stream()
        peer.say(lane, wire.HELLO, secret)
        lanes[server] = (peer, lane)
    state.update(scheduler=scheduler, stream=stream, epoch=epoch, leases=leases, mine=mine[0], lanes=lanes, request=0)
    return {"epoch": epoch, "leases": leases, "kinds": kinds}


def membership(body):
    reader = wire.Reader(body)
    epoch = reader.varint()
    for _ in range(reader.varint()):
        reader.varint(), reader.text()
    for _ in range(reader.varint()):
        reader.varint(), reader.varint(), reader.take(32)
    leases = []
    for _ in range(reader.varint()):
        node = [reader.varint(), reader.varint()]
        leases.append([node, reader.varint()])
        reader.varint(), reader.varint(), reader.varint()
    # Leases are every shard, once: what reads otherwise was not read right.
    end = 0
    for (first, shards), _ in sorted(leases):
        if first != end or shards == 0:
            raise ValueError(f"these are not the leases of a job: {leases}")
        end += shards
    return epoch, leases


REFUSALS = ["not initialised", "unknown slice", "unknown codec", "wrong length", "no lease", "step gone", "step ahead",
            "not finite", "conflict", "overlap"]
PULL_REFUSALS = ["not initialised", "unknown slice", "gone", "not yet possible"]


def ask(server, kind, body, payload=b""):
    """Says something to a server; what it answers, in words, or how it closed the connection."""
    peer, lane = state["lanes"][server]
    state["request"] += 1
    header = wire.envelope(peer.name, peer.expect, state["request"]) + body
    peer.write(lane, peer.sealer(lane).frame(kind, body, payload, header=header))
    answer = peer.hear(lane, 20)
    if answer is None:
        return f"closed: {peer.closed}"
    if answer.kind == wire.PUSH_REFUSED:
        return REFUSALS[answer.body[0]]
    if answer.kind == wire.PULL_REFUSED:
        return PULL_REFUSALS[answer.body[0]]
    return {wire.PUSH_ACCEPTED: "accepted", wire.SLICE_VERSION: "a version"}.get(answer.kind, f"kind {answer.kind}")


def pushes(server, slice_id, size):
    """Lies about the slice `slice_id` of `size` bytes, each refused; `server` keeps it, and the worker holds a lease."""
    epoch, mine = state["epoch"], state["mine"]
    other = next(node for node, _ in state["leases"] if node != mine)
    count = size // 4
    zeros = [0.0] * (count - 1)

    def values(last):
        return struct.pack(f"<{count}f", *zeros, last)

    good = values(0.0)

    def one(payload=good, epoch=epoch, step=0, slice_id=tuple(slice_id), node=tuple(mine), codec=0):
        return ask(server, wire.PUSH, push(epoch, step, slice_id, node, codec), payload)

    top = (1 << 32) - 1
    return {
        "NaN": one(values(float("nan"))),
        "a signalling NaN": one(good[:-4] + bytes.fromhex("0100a07f")),
        "infinity": one(values(float("inf"))),
        "minus infinity": one(values(float("-inf"))),
        "no values": one(b""),
        "a value too few": one(good[:-4]),
        "a byte too few": one(good[:-1]),
        "an unknown parameter": one(slice_id=(top, 0)),
        "an unknown slice": one(slice_id=(slice_id[0], top)),
        "an unknown codec": one(codec=1),
        "the last codec": one(codec=255),
        "another's shards": one(node=tuple(other)),
        "no shard": one(node=(0, 0)),
        "shards that no tree has": one(node=(top, top)),
        "all shards": one(node=(0, 4)),
        "a future step": one(step=1),
        "the last step there can be": one(step=(1 << 64) - 1),
        "a future epoch": one(epoch=epoch + 1),
        "the epoch before the first": one(epoch=0),
        "a pull of an unknown parameter": ask(server, wire.PULL, b"".join(map(wire.varint, (top, 0, 0)))),
        "a pull of a version to come": ask(server, wire.PULL, b"".join(map(wire.varint, (*slice_id, 2)))),
        "a pull of the last version": ask(server, wire.PULL, b"".join(map(wire.varint, (*slice_id, (1 << 64) - 1)))),
    }


def leave():
    """Ends its membership; the connections to servers stay."""
    scheduler = state["scheduler"]
    scheduler.quic.close(error_code=0)
    scheduler.flush()
    scheduler.close()
    return True


def late(server, slice_id, size):
    """Pushes under the lease that it had; what comes of it."""
    body = push(state["epoch"], 0, slice_id, state["mine"])
    return ask(server, wire.PUSH, body, bytes(size))


def other_stream(server, slice_id):
    """A message of one stream again on another; how the server closes the connection."""
    peer, lane = state["lanes"][server]
    state["request"] += 1
    body = b"".join(map(wire.varint, (*slice_id, 0)))
    header = wire.envelope(peer.name, peer.expect, state["request"]) + body
    frame = peer.sealer(lane).frame(wire.PULL, body, header=header)
    peer.write(lane, frame)
    answer = peer.hear(lane, 20)
    peer.write(peer.stream(), frame)
    return {"first": answer.kind if answer else None, "closed": peer.verdict(20)}

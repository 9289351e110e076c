"""Classes B and F: roles that say what is not theirs, and a worker of the job, admitted and leased, that lies.

The worker is played over several orders: `join`, `pushes`, `other_stream`, then `leave`, after which it holds no lease, and `late`.
Or somebody who has an honest worker's key and secret speaks beside it: `wrong_kinds`, or `beside`, `by_form` and `by_value`.
"""
import os
import struct
import time

import certificates
import wire
from blake3 import blake3
from handshake import stolen

INCARNATION = "testudo 2026-11 incarnation commitment"
# What an order leaves for the next.
state = {}
# Bytes that a slow reader has room for.
ROOM = 2048


def roles(target, ca, expect, stem, first, attempts, network=0):
    """Has each role of `attempts` send its kind: a prelude, and less header than it announces."""
    authority, found = certificates.Authority(ca), []
    if network:
        wire.begin_addresses(network)
    for number, (role, kind) in enumerate(attempts, first):
        name = f"{stem}/{role}/{number}"
        chain, key = certificates.leaf(authority, [name])
        peer = wire.Peer(target, name, expect, [chain], key, groups=wire.FAST, source=wire.next_address())
        if peer.admitted():
            peer.write(peer.stream(), wire.prelude(kind, 200) + b"\xff" * 3)
        found.append([role, kind, peer.verdict()])
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
    closed = peer.verdict()
    peer.close()
    return closed


def without_hello(target, identity, name, expect):
    """A push as the first word, under a live worker's own key."""
    chain, key = stolen(identity)
    peer = wire.Peer(target, name, expect, chain, key, source=wire.next_address())
    if peer.admitted():
        peer.say(peer.stream(), wire.PUSH, push(1, 0, (0, 0), (0, 1)), bytes(256))
    closed = peer.verdict()
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
        wire.keep(peer)
    wire.keep(scheduler)
    state.update(scheduler=scheduler, stream=stream, epoch=epoch, leases=leases, mine=mine[0], lanes=lanes, request=0)
    return {"epoch": epoch, "leases": leases, "kinds": kinds}


def membership(body):
    reader = wire.Reader(body)
    epoch = reader.varint()
    for _ in range(reader.varint()):
        reader.varint(), reader.text()
    for _ in range(reader.varint()):
        reader.varint(), reader.varint(), reader.take(32), reader.varint()
    leases = []
    for _ in range(reader.varint()):
        node = [reader.varint(), reader.varint()]
        leases.append([node, reader.varint()])
        reader.varint(), reader.varint(), reader.varint()
        if reader.varint():
            reader.varint()
    # Leases are every shard, once: what reads otherwise was not read right.
    end = 0
    for (first, shards), _ in sorted(leases):
        if first != end or shards == 0:
            raise ValueError(f"these are not the leases of a job: {leases}")
        end += shards
    return epoch, leases


REFUSALS = ["not initialised", "unknown slice", "unknown codec", "wrong length", "no lease", "step gone", "step ahead",
            "not finite", "conflict", "overlap", "malformed"]
PULL_REFUSALS = ["not initialised", "unknown slice", "gone", "not yet possible"]


def ask(server, kind, body, payload=b""):
    """Says something to a server; what it answers, in words, or how it closed the connection."""
    peer, lane = state["lanes"][server]
    state["request"] += 1
    header = wire.envelope(peer.name, peer.expect, state["request"]) + body
    peer.write(lane, peer.sealer(lane).frame(kind, body, payload, header=header))
    answer = peer.hear(lane)
    if answer is None:
        return f"closed: {peer.closed}"
    if answer.kind == wire.PUSH_REFUSED:
        return REFUSALS[answer.body[0]]
    if answer.kind == wire.PULL_REFUSED:
        return PULL_REFUSALS[answer.body[0]]
    return {wire.PUSH_ACCEPTED: "accepted", wire.SLICE_VERSION: "a version"}.get(answer.kind, f"kind {answer.kind}")


def pushes(server, slice_id, size):
    """Lies about the slice `slice_id` of `size` bytes, each refused; `server` keeps it, and the worker holds a lease."""
    return by_value(server, slice_id, size, 0) | by_form(server, slice_id, size, 1) | {
        "a pull of a version to come": ask(server, wire.PULL, b"".join(map(wire.varint, (*slice_id, 5, 0)))),
    }


def by_value(server, slice_id, size, step):
    """Values that are no numbers, for a step to which the worker may still contribute."""
    good = bytes(size - 4)

    def one(last):
        return ask(server, wire.PUSH, push(state["epoch"], step, slice_id, state["mine"]), good + last)

    return {
        "NaN": one(struct.pack("<f", float("nan"))),
        "a signalling NaN": one(bytes.fromhex("0100a07f")),
        "infinity": one(struct.pack("<f", float("inf"))),
        "minus infinity": one(struct.pack("<f", float("-inf"))),
    }


def by_form(server, slice_id, size, ahead):
    """What is no contribution of this worker whatever its values are; `ahead` is a step that cannot have begun."""
    epoch, mine = state["epoch"], state["mine"]
    other = next(node for node, _ in state["leases"] if node != mine)
    good = bytes(size)

    def one(payload=good, epoch=epoch, step=ahead - 1, slice_id=tuple(slice_id), node=tuple(mine), codec=0):
        return ask(server, wire.PUSH, push(epoch, step, slice_id, node, codec), payload)

    top = (1 << 32) - 1
    return {
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
        "a future step": one(step=ahead),
        "the last step there can be": one(step=(1 << 64) - 1),
        "a future epoch": one(epoch=epoch + 1),
        "the epoch before the first": one(epoch=0),
        "a pull of an unknown parameter": ask(server, wire.PULL, b"".join(map(wire.varint, (top, 0, 0, 0)))),
        "a pull of the last version": ask(server, wire.PULL, b"".join(map(wire.varint, (*slice_id, (1 << 64) - 1, 0)))),
    }


def between(server, slice_id, size, version):
    """Lies for the step that begins with `version`, once that is there and before anybody has contributed to it."""
    patience = time.monotonic() + wire.PATIENCE
    pull = b"".join(map(wire.varint, (*slice_id, version, 0)))
    while (answer := ask(server, wire.PULL, pull)) == "not yet possible" and time.monotonic() < patience:
        time.sleep(0.05)
    if answer != "a version":
        raise ValueError(f"version {version} of {slice_id}: {answer}")
    epoch, mine = state["epoch"], state["mine"]
    return by_value(server, slice_id, size, version) | {
        "other values than the step before's": ask(
            server, wire.PUSH, push(epoch, version - 1, slice_id, mine), b"\x01" * size),
        "a step that is gone": ask(server, wire.PUSH, push(epoch, version - 2, slice_id, mine), bytes(size)),
        "the first step": ask(server, wire.PUSH, push(epoch, 0, slice_id, mine), bytes(size)),
        "the next step": ask(server, wire.PUSH, push(epoch, version + 1, slice_id, mine), bytes(size)),
    }


def beside(identity, name, secret, servers, leases):
    """Speaks to `servers` under the key and the secret of a worker that takes part, whose lease is the first of `leases`."""
    chain, key = stolen(identity)
    source, lanes = wire.next_address(), {}
    for server, host, port in servers:
        peer, lane = greet([host, port], name, server, chain, key, secret, source)
        peer.grant()
        lanes[server] = (peer, lane)
        wire.keep(peer)
    state.update(epoch=1, leases=leases, mine=leases[0][0], lanes=lanes, request=0,
                 credentials=(chain, key), secret=secret)
    return len(lanes)


def greet(target, name, server, chain, key, secret, source, **how):
    """A connection whose first word was the worker's own, and the stream that it was said on."""
    peer = wire.Peer(target, name, server, chain, key, groups=wire.FAST, source=source, **how)
    if not peer.admitted():
        raise ValueError(f"{server} does not admit it: {peer.closed}")
    lane = peer.stream()
    peer.say(lane, wire.HELLO, bytes.fromhex(secret))
    return peer, lane


def wrong_kinds(target, identity, name, expect, secret, kinds):
    """After a worker's own first word, on a connection each, what no worker may say to a server; how each ends."""
    chain, key = stolen(identity)
    found = []
    for kind in kinds:
        peer, lane = greet(target, name, expect, chain, key, secret, wire.next_address())
        peer.write(lane, wire.prelude(kind, 200) + b"\xff" * 3)
        found.append([kind, peer.verdict()])
        peer.close()
    return found


def trickle(server, slice_id, version, asked):
    """Pulls `asked` times beside the worker, on a connection with room for a few answers, and takes one now and then; how many
    came, and how the connection ended if it did."""
    beside_it, _ = state["lanes"][server]
    peer, lane = greet(beside_it.target, beside_it.name, server, *state["credentials"], state["secret"],
                       wire.next_address(), data=ROOM)
    peer.grant()
    pull, came = b"".join(map(wire.varint, (*slice_id, version, 0))), 0
    for _ in range(asked):
        peer.say(lane, wire.PULL, pull)
    for _ in range(asked):
        time.sleep(0.25)
        came += peer.hear(lane) is not None
    found = {"came": came, "closed": peer.closed}
    peer.quic.close(error_code=0)
    peer.flush()
    peer.close()
    return found


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
    body = b"".join(map(wire.varint, (*slice_id, 0, 0)))
    header = wire.envelope(peer.name, peer.expect, state["request"]) + body
    frame = peer.sealer(lane).frame(wire.PULL, body, header=header)
    peer.write(lane, frame)
    answer = peer.hear(lane)
    peer.write(peer.stream(), frame)
    return {"first": answer.kind if answer else None, "closed": peer.verdict()}

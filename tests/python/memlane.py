#!/usr/bin/env python3
"""Lanes in Python, that go by docs/wire-format.md and docs/memory-layout.md alone.

It is there to keep those two documents true: tests/tests/python runs it against the lanes of the Rust crates. It needs
nothing but Python 3.10, Linux and x86-64, and trusts nobody it talks to.

    memlane.py subscribe PATH [EXPECTS]   prints a line for each message: its length and CRC-32, and what its attachments say
    memlane.py receive PATH               the same, of all senders of a queue that it binds
    memlane.py publish PATH               sends what standard input says: a line for each message, "SEED LENGTH"
    memlane.py offer PATH                 the same, as a sender to a queue

link.py is of wire-format.md, memory.py of memory-layout.md, and the two ends of a lane are of both.
"""

import os
import platform
import socket
import sys
import zlib

from link import HungUp, Link, Refused, Violation
from memory import sleep
from publisher import Publisher
from subscriber import Subscriber


def say(*words):
    print(*words, flush=True)


def connect(path):
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connected.connect(path)
    return Link(connected)


def bind(path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    say("bound")
    return listener


def got(message, attachments=None):
    """With attachments come the first bytes of each: they are files."""
    contents = []
    for descriptor in attachments or ():
        contents.append(os.pread(descriptor, 64, 0).decode())
        os.close(descriptor)
    say(len(message), zlib.crc32(message), *contents)


def subscribe(path, expects=None):
    subscriber = Subscriber(connect(path), expects)
    say("subscribed")
    while (message := subscriber.receive()) is not None:
        got(message, subscriber.attachments)
    say("ended", subscriber.reason)
    say("slept", subscriber.sleeps)


def receive(path):
    """Until it has had senders, and the last of them has left."""
    listener, lanes, some = bind(path), [], False
    while lanes or not some:
        for lane in list(lanes):
            try:
                while (message := lane.try_receive()) is not None:
                    got(message, lane.attachments)
                over = lane.reason if lane.ended and lane.header() == 0 else None
            except Violation as violation:
                over = violation
            if over is not None:
                lanes.remove(lane)
                lane.link.close()
                say("ended", over)
        if lanes or not some:
            busy = [lane.arm() for lane in lanes]
            found = set() if any(busy) else sleep([lane.bell for lane in lanes], [lane.link for lane in lanes], [listener])
            for lane in lanes:
                lane.disarm()
            if listener.fileno() in found:
                some = take_in(Link(listener.accept()[0]), lanes) or some
    os.unlink(path)


def take_in(link, lanes):
    """Whether a sender came, and offered its lane. Others wait as long as it is silent, which is up to 5 s."""
    link.socket.settimeout(5)
    try:
        lanes.append(Subscriber(link, queue=True))
    except (Violation, Refused, HungUp, OSError) as error:
        link.close()
        return say("failed", error or "hung up")
    link.socket.settimeout(None)
    say("offered")
    return True


def feed(publisher):
    """Sends what standard input says, until it ends."""
    text, pattern = b"", bytes(range(251)) * 600
    while publisher.listener or publisher.readers:
        if 0 not in publisher.look(standard_input=[0]):
            continue
        more = os.read(0, 1 << 16)
        if not more:
            break
        *lines, text = (text + more).split(b"\n")
        for line in lines:
            seed, length = map(int, line.split())
            publisher.send(pattern[seed % 251 :][:length])
            say("sent")


def publish(path):
    publisher = Publisher(say, bind(path))
    feed(publisher)
    # While it listens there: a subscriber that finds it gone may do the same.
    os.unlink(path)
    publisher.close()
    say("slept", publisher.sleeps)


def offer(path):
    publisher = Publisher(say)
    publisher.join(connect(path), b"\x04")
    feed(publisher)
    publisher.close()
    say("slept", publisher.sleeps)


if __name__ == "__main__":
    if platform.machine() != "x86_64":
        sys.exit(f"expected x86_64, got {platform.machine()}: no other ordering of loads and stores is relied on")
    parts = {part.__name__: part for part in (subscribe, receive, publish, offer)}
    if len(sys.argv) < 3 or sys.argv[1] not in parts:
        sys.exit(f"expected one of {', '.join(parts)} and a path, got {sys.argv[1:]}")
    try:
        parts[sys.argv[1]](*sys.argv[2:])
    except Refused as refused:
        say("refused", *refused.args)
    except Violation as violation:
        say("failed", violation)
        sys.exit(1)

"""The sending end of lanes."""

import os
import select
import socket

from link import VERSION, HungUp, Link, Refused, Violation, expect, number, string
from memory import ARMED, CARRIED, CURSOR, INLINE, LEFT, PAGE, WANTED, Region, doorbell, fence, ring, sleep
from subscriber import refusal


class Reader:
    """A publisher's idea of one of its subscribers."""

    def __init__(self, link, page, bell, start):
        self.link, self.page, self.theirs = link, page, bell
        self.start = self.seen = start
        self.rung = 0
        self.bell, self.sent = doorbell()

    def position(self, head):
        """What its cursor tells of, or None if it reads no more."""
        cursor = self.page.words[CURSOR]
        if cursor == LEFT:
            return None
        position = self.start + cursor
        expect(self.seen <= position <= head, f"a cursor from {self.seen} to {head}", position)
        self.seen = position
        return position

    def wake(self):
        flag = self.page.words[ARMED] & ~CARRIED
        if flag and flag != self.rung and self.theirs:
            self.rung = flag
            ring(self.theirs)


class Publisher:
    """The end of a lane that sends: bytes, through a ring, to those who come to the listener, if there is one."""

    def __init__(self, say, listener=None, capacity=1 << 16):
        self.say = say
        self.listener, self.readers, self.capacity, self.head, self.sleeps = listener, [], capacity, 0, 0
        self.sent = 0  # Records, which end at the head.
        self.ring = Region.create("memlane-ring", PAGE + capacity)

    def serve(self):
        """Takes in who waits at the listener. Others wait as long as it is silent, which is up to 5 s."""
        link = Link(self.listener.accept()[0])
        try:
            self.join(link)
        except (Violation, HungUp, OSError) as error:
            self.say("failed", error or "hung up")
            link.close()

    def join(self, link, offer=None):
        """Takes in the subscriber, or the receiver of a queue, at the other end of a link."""
        link.send(number(VERSION))
        if offer:
            link.send(offer)
        link.socket.settimeout(5)
        link.opening()
        with link.next() as packet:
            variant = packet.byte(5, "a variant")
            if variant == 4:
                return self.refuse(link, 6, "a publisher is there, which sends")
            if variant == 1:
                raise Refused(*refusal(packet))
            expect(variant == 3, "a greeting", f"variant {variant}")
            page = packet.descriptor()
            try:
                page = Region.open(page, PAGE)
            except Violation as error:
                return self.refuse(link, 1, str(error))
            bell = socket.socket(fileno=packet.descriptor()) if packet.byte(2, "an option") else None
            if packet.byte(2, "an option"):
                os.close(packet.descriptor())
                if not bell:
                    return self.refuse(link, 2, "expected a socket, got an eventfd alone")
            packet.byte(2, "a bool")
            expected = payload(packet) if packet.byte(2, "an option") else "bytes"
            overwrite = packet.byte(3, "what becomes of records") == 1
            packet.number()  # It has no history.
            packet.number()  # Attachments that it takes; here are none.
            packet.end()
        if expected != "bytes":
            return self.refuse(link, 5, "bytes", expected)
        if overwrite:
            return self.refuse(link, 6, "a publisher that waits for every subscriber")
        reader = Reader(link, page, bell, self.head)
        rings = b"\x01" if bell else b"\x00"
        welcome = b"\x00\x00" + number(self.capacity) + number(self.head) + rings + b"\x01\x01\x00" + number(self.sent) + b"\x00\x00\x00"
        link.send(welcome, [self.ring.descriptor, reader.sent.fileno()])
        reader.sent.close()
        link.socket.settimeout(None)
        # Nothing was committed since: this is before its first record.
        self.readers.append(reader)
        self.say("joined", len(self.readers))

    def refuse(self, link, kind, *why):
        link.send(b"\x01" + number(kind) + b"".join(map(string, why)))
        link.close()
        self.say("refused", *why)

    def leave(self, reader, why=None):
        """Gives a subscriber up, with a farewell if it is the publisher that ends it."""
        self.readers.remove(reader)
        if why is not None:
            try:
                reader.link.socket.setblocking(False)
                reader.link.send(b"\x02\x02" + string(why))
            except (HungUp, OSError):
                pass
        reader.link.close()
        self.say("left", why or "hung up")

    def slowest(self):
        """The position that all subscribers have reached."""
        slowest = self.head
        for reader in list(self.readers):
            try:
                position = reader.position(self.head)
                slowest = slowest if position is None else min(slowest, position)
            except Violation as error:
                self.leave(reader, str(error))
        return slowest

    def send(self, message):
        longest = self.capacity - self.capacity // 8 - 16
        if len(message) > longest:
            raise ValueError(f"expected at most {longest} bytes, got {len(message)}")
        advance = 8 + len(message) + -len(message) % 8
        # For the record, the 0 behind it, and an eighth of the ring if one has to wait.
        needed = self.head + advance + 8 - self.capacity
        if self.slowest() < needed:
            self.wait(max(needed, self.head + self.capacity // 8 - self.capacity))
        self.write(self.head + 8, message)
        self.set(self.head + advance, 0)
        header = advance | INLINE << 32 | (advance - 8 - len(message)) << 40
        self.set(self.head, header)
        self.head += advance
        self.sent += 1
        fence()
        for reader in self.readers:
            reader.wake()

    def wait(self, wanted):
        while True:
            self.ring.words[WANTED] = wanted | 1
            fence()
            if self.slowest() >= wanted:
                break
            self.sleeps += 1
            self.look()
        self.ring.words[WANTED] = 0

    def look(self, standard_input=()):
        """Sleeps, and then sees to who has come and who has left. What was found."""
        bells = [reader.bell for reader in self.readers]
        listener = [self.listener] if self.listener else []
        found = sleep(bells, [reader.link for reader in self.readers], [*listener, *standard_input])
        for reader in list(self.readers):
            if reader.link.fileno() in found or hung_up(reader.bell):
                self.leave(reader)
        if self.listener and self.listener.fileno() in found:
            self.serve()
        return found

    def write(self, position, message):
        at = PAGE + position % self.capacity
        first = min(len(message), PAGE + self.capacity - at)
        self.ring.bytes[at : at + first] = message[:first]
        self.ring.bytes[PAGE : PAGE + len(message) - first] = message[first:]

    def set(self, position, word):
        self.ring.words[(PAGE + position % self.capacity) // 8] = word

    def close(self):
        for reader in self.readers:
            try:
                reader.link.send(b"\x02\x00")
            except HungUp:
                pass
            reader.link.close()


def hung_up(bell):
    poll = select.poll()
    poll.register(bell, 0)
    return bool(poll.poll(0))


def payload(packet):
    """What a subscriber expects, for people."""
    kind = packet.byte(4, "an encoding")
    size, alignment = (packet.number(), packet.number()) if kind in (1, 2) else (0, 0)
    name, version = packet.string(), packet.number()
    text = ("bytes", "plain", "slices of", "encoded")[kind]
    words = [text, name, f"version {version}" if version else "", f"({size} bytes at {alignment})" if size else ""]
    return " ".join(filter(None, words))

"""The receiving end of a lane."""

import os
import socket
import struct

from link import VERSION, HungUp, Refused, Violation, expect, number, string
from memory import (
    A_SLOT,
    ARMED,
    CHUNK,
    CURSOR,
    INLINE,
    LAST_START,
    MAX_EMPTY,
    MAX_RINGS,
    MAX_SEGMENTS,
    MAX_SLACK,
    PAGE,
    SWITCH,
    TAKEN,
    WANTED,
    Region,
    doorbell,
    fence,
    ring,
    sleep,
)


# So many attachments of a message are taken.
MAX_ATTACHMENTS = 16


class Subscriber:
    """The end of a lane that receives, over a link that was just made."""

    def __init__(self, link, expects=None, queue=False):
        self.link, self.segments, self.ended, self.reason = link, {}, False, "died"
        self.rings, self.announced, self.arrived, self.capacity = {}, {}, None, None
        # First rings of publishers that may take the place of this one, and what those are rung by.
        self.homes, self.moved = {}, []
        self.empty, self.dismissed = 0, (None, None, None)
        self.page = Region.create("memlane-control", PAGE)
        self.bell, theirs = doorbell()
        greeting = bytes([3, 0, 1, 1, 0, 0])
        if expects is None:
            greeting += b"\x00"  # Anything.
        elif expects == "bytes":
            greeting += b"\x01\x00\x00\x00"
        else:
            greeting += b"\x01\x03" + string(expects) + number(0)
        greeting += b"\x00\x00" + number(MAX_ATTACHMENTS)  # The publisher waits; no history.
        try:
            link.send(number(VERSION))
            link.send(greeting, [self.page.descriptor, theirs.fileno()])
        except HungUp:
            pass  # Why, is in what it said before.
        theirs.close()
        os.close(self.page.descriptor)
        link.opening()
        if queue:
            with link.next() as packet:
                expect(packet.number() == 4, "an offer", packet.body)
                packet.end()
        while not self.answered(link.next()):
            pass
        self.position = self.exported = self.start
        self.armed, self.at_once, self.sleeps = 0, False, 0
        # Notices of attachments: position, tag, and descriptors, the next one's first. And those of the last message, as
        # descriptors that are the caller's: None if it has none.
        self.attached, self.taken, self.attachments = [], 0, None

    def answered(self, packet):
        """Takes the answer to the greeting, or a notice of a segment before it."""
        with packet:
            variant = packet.byte(5, "a variant")
            if variant == 2:
                self.notice(packet)
                return False
            if variant == 1:
                raise Refused(*refusal(packet))
            expect(variant == 0, "a welcome", f"variant {variant}")
            ring = packet.descriptor()
            self.capacity, self.start = packet.number(), packet.number()
            power = self.capacity >= PAGE and self.capacity & self.capacity - 1 == 0
            if not power or self.start % 8 or self.start > LAST_START:
                os.close(ring)
            expect(power, "a capacity that is a power of two and a page", self.capacity)
            expect(self.start % 8 == 0 and self.start <= LAST_START, "a start in bounds", self.start)
            # Of all rings, the first has the publisher's words.
            self.first = Region.open(ring, PAGE + self.capacity)
            for identity, memory in self.announced.items():
                self.rings[identity] = Region.open(memory, PAGE + self.capacity)
            expect(packet.byte(3, "a doorbell") == 1, "a publisher that rings the socket", "another")
            kind = packet.byte(3, "a doorbell")
            expect(kind < 2, "no doorbell or a socket", "an eventfd")
            self.theirs = socket.socket(fileno=packet.descriptor()) if kind else None
            packet.byte(2, "a bool")
            sequence = packet.number()
            expect(sequence <= self.start // 8, "as many records as fit before the start", sequence)
            self.at = packet.number()
            expect(packet.number() == 0, "no messages to skip", "some")
            self.home = packet.number()
            self.rings[self.home] = self.first
            self.ring = self.known(self.at)
            packet.end()
            return True

    def known(self, identity):
        expect(identity in self.rings, "a ring that was announced", identity)
        return self.rings[identity]

    def notice(self, packet):
        kind = packet.byte(13, "a notice")
        if kind == 0:
            identity, chunks, size, memory = packet.number(), packet.number(), packet.number(), packet.descriptor()
            first = -(-8 * chunks // PAGE) * PAGE
            region = Region.open(memory, first + size * chunks)
            expect(identity not in self.segments, "a new segment", identity)
            expect(len(self.segments) < MAX_SEGMENTS, f"{MAX_SEGMENTS} segments at most", "another")
            expect(size % PAGE == 0, "chunks of whole pages", size)
            self.segments[identity] = (region, first, chunks, size)
        elif kind == 1:
            self.segments.pop(packet.number(), None)
        elif kind == 3:
            identity, memory = packet.number(), packet.descriptor()
            new = identity not in self.rings and identity not in self.announced
            if not new or self.capacity is None:
                self.announced[identity] = memory
            else:
                self.rings[identity] = Region.open(memory, PAGE + self.capacity)
            expect(new, "a new ring", identity)
            expect(len(self.rings) + len(self.announced) < MAX_RINGS, f"{MAX_RINGS} rings at most", "another")
        elif kind == 4:
            self.rings.pop(packet.number(), None)
        elif kind == 5:
            position, tag, count = packet.number(), packet.number(), packet.number()
            expect(tag < 1 << 15 and 0 < count <= MAX_ATTACHMENTS, "a tag and attachments in bounds", (tag, count))
            self.void(lambda attached: attached[0] >= position)
            self.attached.append((position, tag, [packet.descriptor() for _ in range(count)]))
            self.took()
        elif kind == 11:
            identity, memory = packet.number(), packet.descriptor()
            expect(identity not in self.rings, "a new ring", identity)
            self.rings[identity] = Region.open(memory, PAGE + self.capacity)
            kind = packet.byte(2, "an option")
            self.homes[identity] = socket.socket(fileno=packet.descriptor()) if kind else None
        elif kind == 12:
            self.moved.append((packet.number(), packet.number(), packet.number()))
            self.leave_old()
        else:
            expect(kind == 2, "a notice of a lane", kind)
            why = packet.byte(4, "a farewell")
            if why == 3:
                self.dismissed = (packet.string(), packet.number(), packet.number())
                return packet.end()
            self.reason = ("closed", "panicked", "evicted")[why] + (": " + packet.string() if why == 2 else "")
        packet.end()

    def void(self, condition):
        for attached in filter(condition, self.attached):
            for descriptor in attached[2]:
                os.close(descriptor)
        self.attached = [attached for attached in self.attached if not condition(attached)]

    def took(self):
        self.taken += 1
        self.page.words[TAKEN] = self.taken
        fence()
        if self.wanting() == A_SLOT and self.theirs:
            ring(self.theirs)

    def attachments_of(self, position, tag):
        """Of the message at this position, whose notice is on the link."""
        while True:
            self.void(lambda attached: attached[0] < position or attached[0] == position and attached[1] != tag)
            if self.attached:
                break
            packet = None if self.ended else self.next_notice()
            expect(packet, f"attachments of the message at {position}", "none")
            with packet:
                self.notice(packet)
        expect(self.attached[0][0] == position, f"attachments of {position}", self.attached[0][0])
        return self.attached.pop(0)[2]

    def next_notice(self):
        try:
            return self.link.receive(wait=False)
        except HungUp:
            self.ended = True
            return None

    def read_link(self, all=False):
        try:
            # What comes for a later message stays where it is, but where the last word of all may be behind it.
            while (all or not self.ahead()) and (packet := self.link.receive(wait=False)) is not None:
                with packet:
                    self.notice(packet)
        except HungUp:
            self.ended = True

    def ahead(self):
        return self.attached and self.attached[-1][0] > self.position

    def wanting(self):
        return self.first.words[WANTED]

    def header(self):
        return self.ring.words[(PAGE + self.position % self.capacity) // 8]

    def receive(self):
        """The next message, a copy that is released already; None when the publisher has gone and the ring is empty."""
        while True:
            if (message := self.try_receive()) is not None:
                return message
            if self.ended:
                # What was committed before the link ended is there now.
                if (message := self.try_receive()) is not None:
                    return message
                return None
            if not self.arm() and not self.ended:
                self.sleeps += 1
                sleep([self.bell], [self.link])
            self.disarm()

    def try_receive(self):
        header = self.header()
        if header == 0:
            self.export()
            return None
        if header >> 32 == SWITCH and not self.circles(header & 0xFFFFFFFF):
            return self.try_receive() if self.follow(header & 0xFFFFFFFF) else None
        advance, kind, slack = header & 0xFFFFFFFF, header >> 32 & 0xFF, header >> 40 & 0xFF
        length = advance - 8 - slack
        good = advance % 8 == 0 and 0 <= length and advance <= self.capacity - 8 and slack <= MAX_SLACK
        good = good and (header >> 48 == 0 or header >> 48 & 1) and (kind == INLINE or kind == CHUNK and length == 24)
        expect(good, "a header in order", f"{header:#x} at {self.position}")
        message = copy(self.ring, self.capacity, self.position + 8, length)
        if kind == CHUNK:
            message = self.chunk(*struct.unpack("=IIQQ", message))
        self.attachments = self.attachments_of(self.position, header >> 49) if header >> 48 else None
        self.release(advance, kind == CHUNK or header >> 48 != 0)
        return message

    def follow(self, identity):
        """Goes on in another ring, unless the publisher goes on without this subscriber."""
        self.export()
        fence()
        self.read_link(all=True)
        why, ring, end = self.dismissed
        if (ring, end) == (self.at, self.position):
            self.reason = "evicted: " + why
        if self.reason.startswith("evicted"):
            self.ended = True
            return False
        self.empty = self.empty + (identity <= self.at) if self.arrived == self.position else 0
        self.ring, self.at, self.arrived = self.known(identity), identity, self.position
        if identity in self.homes:
            if self.theirs:
                self.theirs.close()
            self.home, self.first, self.theirs = identity, self.ring, self.homes.pop(identity)
            fence()
            if self.wanting() and self.theirs:
                ring(self.theirs)
            self.leave_old()
        return True

    def circles(self, identity):
        """Whether too many rings have been left here without a record in them."""
        return self.arrived == self.position and identity <= self.at and self.empty >= MAX_EMPTY

    def leave_old(self):
        """Of publishers before this one."""
        for moved in [moved for moved in self.moved if moved[0] == self.home]:
            self.moved = self.moved[self.moved.index(moved) + 1 :]
            _, rings, segments = moved
            self.rings = {i: r for i, r in self.rings.items() if i == self.home or i >= rings}
            self.segments = {i: s for i, s in self.segments.items() if i >= segments}

    def chunk(self, identity, chunk, sequence, length):
        if identity not in self.segments:
            self.read_link()
        expect(identity in self.segments, "a segment that was announced", identity)
        region, first, chunks, size = self.segments[identity]
        inside = chunk < chunks and length <= size and sequence > 0
        expect(inside, f"one of {chunks} chunks of {size} bytes", f"{length} of chunk {chunk}")
        return bytes(region.bytes[first + size * chunk :][:length])

    def release(self, advance, at_once):
        self.position += advance
        self.at_once |= at_once
        wanted = self.wanting() & ~1
        if (
            self.position - self.exported >= self.capacity // 8
            or self.at_once
            or self.exported < wanted <= self.position
        ):
            self.export()

    def export(self):
        before = self.exported
        if self.position == before:
            return
        self.page.words[CURSOR] = self.position - self.start
        self.exported, self.at_once = self.position, False
        fence()
        wanted = self.wanting()
        if wanted and before < wanted & ~1 <= self.position and self.theirs:
            ring(self.theirs)

    def arm(self):
        """Whether there is something after all."""
        self.armed += 1
        self.page.words[ARMED] = self.armed
        fence()
        self.read_link()
        if self.header() != 0:
            return True
        self.export()
        return False

    def disarm(self):
        self.page.words[ARMED] = 0


def refusal(packet):
    kind = packet.byte(8, "a refusal")
    if kind == 0:
        return "full", f"{packet.number()} subscribers"
    if kind == 5:
        return "payload", f"it carries {packet.string()}, expected {packet.string()}"
    if kind == 7:
        return "attachments", f"messages have up to {packet.number()}, and {packet.number()} are taken"
    return ("", "control page", "doorbell", "resources", "access", "", "pattern")[kind], packet.string()


def copy(region, capacity, position, length):
    """Bytes of the stream, which may go round the end of the ring."""
    at = position % capacity
    first = min(length, capacity - at)
    there = region.bytes
    return bytes(there[PAGE + at : PAGE + at + first]) + bytes(there[PAGE : PAGE + length - first])

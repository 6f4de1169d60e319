"""Packets, bodies and links: docs/wire-format.md."""

import fcntl
import os
import socket
import struct

VERSION = 4
# Of a lane's messages.
MAX_BODY, MAX_DESCRIPTORS = 4096, 16
# Seals, as in fcntl(2).
SEAL, SHRINK, GROW, FUTURE_WRITE = 1, 2, 4, 16


class Violation(Exception):
    """The other side does not keep to the documents."""


class Refused(Exception):
    """The publisher does not take this subscriber, or does not want to be one's."""


class HungUp(Exception):
    """The link has ended."""


def expect(condition, what, got):
    if not condition:
        raise Violation(f"expected {what}, got {got}")


def number(value):
    """A u16, u32, u64, or the index of an enum's variant."""
    if value < 251:
        return bytes([value])
    for mark, form in ((251, "<BH"), (252, "<BI"), (253, "<BQ")):
        if value < 1 << 8 * (struct.calcsize(form) - 1):
            return struct.pack(form, mark, value)
    raise ValueError(f"expected a number of 64 bits, got {value}")


def string(text):
    return number(len(text.encode())) + text.encode()


class Packet:
    """A message that came: its body, read from the front, and its descriptors."""

    def __init__(self, body, descriptors):
        self.body, self.descriptors = body, descriptors

    def take(self, count):
        expect(count <= len(self.body), f"{count} more bytes", f"{len(self.body)}")
        taken, self.body = self.body[:count], self.body[count:]
        return taken

    def byte(self, below, what):
        value = self.number()
        expect(value < below, f"{what} below {below}", value)
        return value

    def number(self):
        mark = self.take(1)[0]
        expect(mark < 254, "a number of at most 64 bits", f"mark {mark}")
        return mark if mark < 251 else int.from_bytes(self.take(2 << mark - 251), "little")

    def string(self):
        text = self.take(self.number())
        try:
            return str(text, "utf-8")
        except UnicodeDecodeError as error:
            raise Violation(f"expected UTF-8, got {text}") from error

    def descriptor(self):
        index = self.number()
        known = index < len(self.descriptors) and self.descriptors[index] is not None
        expect(known, "a descriptor that came and was not taken", f"number {index}")
        taken, self.descriptors[index] = self.descriptors[index], None
        return taken

    def end(self):
        expect(not self.body, "the end of the body", f"{len(self.body)} more bytes")
        expect(not any(self.descriptors), "no more descriptors", self.descriptors)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for descriptor in self.descriptors:
            if descriptor is not None:
                os.close(descriptor)


class Link:
    """One end of a link."""

    def __init__(self, connected):
        self.socket = connected

    def fileno(self):
        return self.socket.fileno()

    def send(self, body, descriptors=()):
        header = struct.pack("<BBHHH", ord("m"), 1, len(descriptors), 0, len(body))
        rights = struct.pack(f"{len(descriptors)}i", *descriptors)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        try:
            self.socket.sendmsg([header, body], control, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            raise HungUp from None

    def receive(self, wait=True):
        """The next message, or None if there is none yet."""
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        while True:
            try:
                data, control, flags, _ = self.socket.recvmsg(16648, socket.CMSG_SPACE(253 * 4), flags)
                break
            except (BlockingIOError, TimeoutError):
                return None
            except ConnectionResetError:
                continue  # Said once; what was sent before it is still there.
        descriptors, strangers = [], 0
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors += struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
            elif (level, kind) == (socket.SOL_SOCKET, 4):  # SCM_PIDFD
                os.close(struct.unpack("i", payload)[0])
            else:
                strangers += 1
        with Packet(data, descriptors) as packet:
            if not data and not descriptors:
                raise HungUp
            expect(not strangers, "no control message but SCM_RIGHTS", strangers)
            expect(not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC), "a whole packet", f"flags {flags:#x}")
            mark, version, count, fields, body = struct.unpack("<BBHHH", packet.take(8))
            expect((mark, version) == (ord("m"), 1), "packet version 1", (mark, version))
            expect(count == len(descriptors), f"{count} descriptors", len(descriptors))
            expect(fields <= 256 and body <= 16384, "lengths in bounds", (fields, body))
            expect(len(packet.body) == fields + body, f"{fields} + {body} bytes", len(packet.body))
            self.fields(packet.take(fields))
            expect(body <= MAX_BODY, f"at most {MAX_BODY} bytes", body)
            expect(count <= MAX_DESCRIPTORS, f"at most {MAX_DESCRIPTORS} descriptors", count)
            descriptors, packet.descriptors = packet.descriptors, []
            return Packet(packet.body, descriptors)

    def fields(self, fields):
        """A lane's messages have none that may not be skipped."""
        while fields:
            expect(len(fields) >= 2 and len(fields) >= 2 + fields[1], "a whole field", fields)
            expect(fields[0] >= 0x80, "a field that may be skipped", f"{fields[0]:#x}")
            fields = fields[2 + fields[1] :]

    def opening(self):
        """The first packet of the other side."""
        with self.next() as packet:
            version = packet.number()
            expect(version == VERSION, f"version {VERSION} of the protocol", version)
            packet.end()

    def next(self):
        packet = self.receive()
        expect(packet, "a packet in time", "none")
        return packet

    def close(self):
        self.socket.close()


def sealed(descriptor, seals):
    try:
        got = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise Violation(f"expected shared memory, got what has no seals: {error}") from None
    expect(got & seals == seals, f"seals {seals:#x}", f"{got:#x}")

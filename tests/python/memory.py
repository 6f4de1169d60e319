"""Words, regions and doorbells: docs/memory-layout.md.

What orders loads and stores here. A word is a memoryview's item of format Q: CPython copies 8 bytes with a memcpy of
that size, which compilers make one mov. Between two items the interpreter runs, so no compiler moves one across the
other; and x86-64 keeps loads in order, stores in order, and a store behind earlier loads. That is acquire and Release. What it
does not keep is a load behind an earlier store, which takes a fence. A system call is none ("system call entry is not a
mb", kernel/sched/membarrier.c; membarrier(2) itself returns at once in a process with one thread). But a lock that two
threads can rely on is taken by an atomic read-modify-write, which on x86-64 is a locked instruction, as good as
mfence; so fence() takes one that nobody else has.
"""

import fcntl
import mmap
import os
import select
import socket
import threading

from link import FUTURE_WRITE, GROW, SEAL, SHRINK, expect, sealed

PAGE = mmap.PAGESIZE
# Indices of words: in the publisher's page, and in the subscriber's.
WANTED, CURSOR, ARMED, TAKEN = 0, 0, 16, 32
CARRIED, LEFT, LAST_START = 1 << 63, (1 << 64) - 1, 1 << 62
A_SLOT = (1 << 64) - 1
INLINE, CHUNK, SWITCH, MAX_SLACK, MAX_SEGMENTS, MAX_RINGS, MAX_EMPTY = 1, 2, 3, 71, 128, 64, 64

_fence = threading.Lock()


def fence():
    """SeqCst (see above)."""
    with _fence:
        pass


class Region:
    """Memory that is shared, mapped: its bytes, and its words."""

    def __init__(self, descriptor, length, writable):
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.descriptor = descriptor
        self.bytes = memoryview(mmap.mmap(descriptor, length, mmap.MAP_SHARED, protection))
        self.words = self.bytes.cast("Q")

    @staticmethod
    def create(name, length):
        """One's own, with its descriptor to be sent."""
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            descriptor = os.memfd_create(name, flags | 8)  # MFD_NOEXEC_SEAL
        except OSError:
            descriptor = os.memfd_create(name, flags)
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, length)
        region = Region(descriptor, length, True)
        os.posix_fallocate(descriptor, 0, length)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEAL | SHRINK | GROW | FUTURE_WRITE)
        return region

    @staticmethod
    def open(descriptor, length):
        """Another's. Takes the descriptor."""
        try:
            sealed(descriptor, SHRINK | GROW | FUTURE_WRITE)
            block = os.fstatvfs(descriptor).f_bsize
            expect(block == PAGE, f"tmpfs with blocks of {PAGE} bytes", block)
            stat = os.fstat(descriptor)
            expect(stat.st_size == length > 0, f"a region of {length} bytes", stat.st_size)
            expect(stat.st_blocks * 512 >= length, f"{length} bytes allocated", stat.st_blocks * 512)
            return Region(descriptor, length, False)
        finally:
            os.close(descriptor)


def doorbell():
    """Our end, which sleeps, and theirs, which rings."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        try:
            end.setsockopt(socket.SOL_SOCKET, 83, 0)  # SO_PASSRIGHTS
        except OSError:
            pass
    return ends


def ring(bell):
    try:
        bell.send(b"\x01", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass


def silence(bell):
    try:
        while bell.recv(512, socket.MSG_DONTWAIT):
            pass
    except OSError:
        pass


def sleep(bells=(), ends=(), readable=()):
    """Until one of the bells rings, one of the links has ended, or something is readable. What there is."""
    poll = select.poll()
    for one in (*bells, *readable):
        poll.register(one, select.POLLIN)
    for one in ends:
        poll.register(one, select.POLLRDHUP)
    found = {descriptor for descriptor, _ in poll.poll()}
    for bell in bells:
        if bell.fileno() in found:
            silence(bell)
    return found

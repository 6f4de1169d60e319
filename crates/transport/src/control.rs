//! The control messages of a received packet, walked by hand.
//!
//! # Safety
//!
//! The module turns integers from a control buffer into [`OwnedFd`]s. That is sound because of three facts: [`adopt`] asks
//! its caller for a buffer as one recvmsg(2) left it and for a call only once per recvmsg; the kernel writes a number into
//! SCM_RIGHTS or SCM_PIDFD only after it installed that descriptor for this process; and each number is read once.
//!
//! rustix 1.1's iterator is not used because it skips SCM_PIDFD without closing what came with it (THREATS A17).

use std::mem::{offset_of, size_of};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::MAX_PACKET_DESCRIPTORS;

/// SCM_PIDFD, Linux 6.5 (include/linux/socket.h); the libc crate has no name for it.
const SCM_PIDFD: i32 = 4;

/// Room for everything that can legitimately come at once: all descriptors, the credentials and the pidfd that someone who
/// shares the socket can switch on. With room for all, MSG_CTRUNC means that descriptors could not be installed.
pub(crate) const SPACE: usize = space(MAX_PACKET_DESCRIPTORS * size_of::<RawFd>())
    + space(size_of::<libc::ucred>())
    + space(size_of::<RawFd>());

/// A buffer for control messages, aligned as the kernel expects. Zeroed once: what the kernel leaves out (padding between
/// messages) is of an earlier one.
#[repr(C, align(8))]
pub(crate) struct Buffer(pub(crate) [u8; SPACE]);

impl Buffer {
    pub(crate) const fn new() -> Buffer {
        Buffer([0; SPACE])
    }

    /// Writes one SCM_RIGHTS message, in the layout that [`walk`] reads, and gives its length with padding; `None` when
    /// the numbers are more than a packet takes.
    pub(crate) fn write_rights(&mut self, fds: &[RawFd]) -> Option<usize> {
        if fds.len() > MAX_PACKET_DESCRIPTORS {
            return None;
        }
        let data = size_of_val(fds);
        self.0[..size_of::<usize>()].copy_from_slice(&(HEADER + data).to_ne_bytes());
        for (at, int) in [
            (offset_of!(libc::cmsghdr, cmsg_level), libc::SOL_SOCKET),
            (offset_of!(libc::cmsghdr, cmsg_type), libc::SCM_RIGHTS),
        ] {
            self.0[at..at + size_of_val(&int)].copy_from_slice(&int.to_ne_bytes());
        }
        for (slot, fd) in self.0[HEADER..HEADER + data]
            .chunks_exact_mut(size_of::<RawFd>())
            .zip(fds)
        {
            slot.copy_from_slice(&fd.to_ne_bytes());
        }
        Some(space(data))
    }
}

const HEADER: usize = align(size_of::<libc::cmsghdr>());

const fn align(length: usize) -> usize {
    length.next_multiple_of(size_of::<usize>())
}

/// CMSG_SPACE.
pub(crate) const fn space(data: usize) -> usize {
    HEADER + align(data)
}

/// What came beside the bytes of a packet, owned.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// SCM_RIGHTS, in order.
    pub(crate) fds: Vec<OwnedFd>,
    /// The first message of a type that has no business here.
    pub(crate) foreign: Option<(i32, i32)>,
    pub(crate) malformed: Option<&'static str>,
}

/// Takes ownership of every descriptor in `buffer`. Pidfds (SO_PASSPIDFD, set by someone who shares the socket) are closed:
/// nobody asked for them.
///
/// # Safety
/// `buffer` must be the control part of one recvmsg(2) as the kernel left it, and be adopted only once.
pub(crate) unsafe fn adopt(buffer: &[u8]) -> Control {
    let mut control = Control::default();
    control.malformed = walk(buffer, |level, kind, data| match (level, kind) {
        (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
            control.fds.reserve_exact(data.len() / size_of::<RawFd>());
            // SAFETY: the kernel installed these for us, see the module's argument.
            control
                .fds
                .extend(numbers(data).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        (libc::SOL_SOCKET, SCM_PIDFD) => {
            // In place of a pidfd the kernel may write a negative errno; `numbers` leaves those out.
            // SAFETY: as above.
            numbers(data).for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        _ => {
            control.foreign.get_or_insert((level, kind));
        }
    })
    .err();
    control
}

fn numbers(data: &[u8]) -> impl Iterator<Item = RawFd> {
    data.chunks_exact(size_of::<RawFd>())
        .map(|bytes| RawFd::from_ne_bytes(bytes.try_into().expect("chunks_exact gives four bytes")))
        .filter(|fd| *fd >= 0)
}

/// Calls `visit` with level, type and data of each message, as far as the lengths make sense.
fn walk(mut buffer: &[u8], mut visit: impl FnMut(i32, i32, &[u8])) -> Result<(), &'static str> {
    while !buffer.is_empty() {
        let length = length_at(buffer).ok_or("shorter than a header")?;
        if length < HEADER {
            return Err("a length smaller than its header");
        }
        let message = buffer.get(..length).ok_or("a length beyond the buffer")?;
        let level = int_at(message, offset_of!(libc::cmsghdr, cmsg_level));
        let kind = int_at(message, offset_of!(libc::cmsghdr, cmsg_type));
        let (Some(level), Some(kind)) = (level, kind) else {
            return Err("shorter than a header");
        };
        let data = &message[HEADER..];
        visit(level, kind, data);
        if level == libc::SOL_SOCKET
            && kind == libc::SCM_RIGHTS
            && data.len() % size_of::<RawFd>() != 0
        {
            return Err("a part of a descriptor number");
        }
        // The last message may come without its padding.
        buffer = buffer.get(align(length)..).unwrap_or(&[]);
    }
    Ok(())
}

/// `cmsg_len`, a `size_t` for the kernel and with glibc; musl splits it into 32 bits and padding.
fn length_at(buffer: &[u8]) -> Option<usize> {
    let bytes = buffer.get(..HEADER)?.first_chunk()?;
    Some(usize::from_ne_bytes(*bytes))
}

fn int_at(message: &[u8], at: usize) -> Option<i32> {
    message
        .get(at..)?
        .first_chunk()
        .map(|bytes| i32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize, level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(space(data.len()), 0);
        bytes
    }

    type Seen = Vec<(i32, i32, Vec<u8>)>;

    fn collect(buffer: &[u8]) -> (Seen, Result<(), &'static str>) {
        let mut seen = Vec::new();
        let result = walk(buffer, |level, kind, data| {
            seen.push((level, kind, data.to_vec()))
        });
        (seen, result)
    }

    #[test]
    fn messages_follow_one_another() {
        let mut buffer = message(HEADER + 12, 1, 2, &[7; 12]);
        buffer.extend(message(HEADER + 4, 1, 1, &[9; 4]));
        assert_eq!(
            collect(&buffer),
            (vec![(1, 2, vec![7; 12]), (1, 1, vec![9; 4])], Ok(()))
        );
    }

    #[test]
    fn the_last_padding_may_be_missing() {
        let mut buffer = message(HEADER + 4, 1, 1, &[9; 4]);
        buffer.truncate(HEADER + 4);
        assert_eq!(collect(&buffer), (vec![(1, 1, vec![9; 4])], Ok(())));
    }

    #[test]
    fn lengths_that_make_no_sense_end_the_walk() {
        for (length, why) in [
            (0, "a length smaller than its header"),
            (HEADER - 1, "a length smaller than its header"),
            (HEADER + 9, "a length beyond the buffer"),
            (usize::MAX, "a length beyond the buffer"),
        ] {
            let (seen, result) = collect(&message(length, 1, 1, &[9; 8]));
            assert_eq!((seen.len(), result), (0, Err(why)));
        }
        assert_eq!(collect(&[1, 2, 3]).1, Err("shorter than a header"));
    }

    #[test]
    fn whole_numbers_before_a_torn_one_are_visited() {
        let (seen, result) = collect(&message(HEADER + 6, 1, 1, &[9; 6]));
        assert_eq!(
            (seen.len(), result),
            (1, Err("a part of a descriptor number"))
        );
    }

    #[test]
    fn no_buffer_panics() {
        let mut state = 1_u32;
        for round in 0..20_000 {
            let mut buffer = message(HEADER + round % 40, 1, 1, &[0; 24]);
            for byte in &mut buffer {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if state >> 28 == 0 {
                    *byte = (state >> 16) as u8;
                }
            }
            let _ = collect(&buffer);
        }
    }
}

//! The fuzzer's bytes, read as what a hostile peer does.
//!
//! Two bytes say how the link is made and what it is received as; packets follow until the bytes end. Most packets have a
//! right header, so that what is behind it is reached, and can be made wrong byte by byte. Whatever the bytes, they are a
//! script: what is missing at the end is zero.
//!
//! | byte | bits | |
//! |---|---|---|
//! | link | 0 | stream |
//! | | 1 | adopting |
//! | | 2 | small limits |
//! | | 3 | receives only when everything has been sent |
//! | type | | see [`values`](crate::values) |
//! | packet | 0-2 | how many descriptors: 0-4, 30, 252, 253; the kinds of the first four follow, a byte each |
//! | | 3 | no header: the body is all |
//! | | 4 | the body is in memory |
//! | | 5 | with a receipt |
//! | | 6 | not the last of its message; how many descriptors that has follows, two bytes |
//! | | 7 | with a twist, a byte that follows |
//! | twist | 0-1 | bytes to change: offset (two bytes) and what to add |
//! | | 2 | other fields: their length and bytes |
//! | | 3 | other number of descriptors in the header: what to add |
//! | | 4-5 | cuts (on streams): where (two bytes), and the kind of a descriptor that comes with the second half, if below 16 |
//! | body | | length and bytes; from 240 on, a pattern that is repeated: its length is the low four bits, then how often |

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use memlane_transport::frame::{MARK, VERSION};

use crate::files;

/// Bytes to take from the front; zero when there are no more.
#[derive(Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(count.min(self.0.len()));
        self.0 = tail;
        head
    }

    fn body(&mut self) -> Vec<u8> {
        match self.byte() {
            length @ 240.. => {
                let pattern = self.take(usize::from(length & 15)).to_vec();
                let times = 1 + usize::from(self.word() % 4096);
                pattern.repeat(times)
            }
            length => self.take(usize::from(length)).to_vec(),
        }
    }
}

/// How the receiver's end is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// SOCK_STREAM instead of SOCK_SEQPACKET.
    pub stream: bool,
    /// Takes links and listeners.
    pub adopting: bool,
    /// A body of 64 bytes and 4 descriptors.
    pub small: bool,
    /// Nothing is received before everything has been sent.
    pub late: bool,
    /// Which type.
    pub as_type: u8,
}

impl Setup {
    /// From the first two bytes.
    pub fn read(bytes: &mut Bytes<'_>) -> Setup {
        let link = bytes.byte();
        let bit = |bit: u8| link >> bit & 1 == 1;
        Setup {
            stream: bit(0),
            adopting: bit(1),
            small: bit(2),
            late: bit(3),
            as_type: bytes.byte(),
        }
    }
}

/// What one sendmsg(2) sends.
#[derive(Debug)]
pub struct Write {
    /// Bytes.
    pub bytes: Vec<u8>,
    /// Descriptors beside them.
    pub fds: Vec<OwnedFd>,
}

/// A packet, in the pieces in which it is sent.
#[derive(Debug)]
pub struct Packet {
    /// One, but for a stream.
    pub writes: Vec<Write>,
    /// Where the answer comes, if a receipt goes with it.
    pub receipt: Option<UnixStream>,
}

impl Packet {
    /// The next packet; `None` when the bytes have ended.
    pub fn read(bytes: &mut Bytes<'_>, stream: bool, peer: &OwnedFd) -> Option<Packet> {
        if bytes.0.is_empty() {
            return None;
        }
        let how = bytes.byte();
        let bit = |bit: u8| how >> bit & 1 == 1;
        let mut fds = descriptors(how & 7, bytes, peer);
        let total = bit(6).then(|| bytes.word());
        let twist = if bit(7) { bytes.byte() } else { 0 };
        let mut changes: Vec<_> = (0..twist & 3)
            .map(|_| (usize::from(bytes.word()), bytes.byte()))
            .collect();
        let other_fields = (twist & 4 != 0).then(|| {
            let length = bytes.byte();
            bytes.take(usize::from(length)).to_vec()
        });
        let more_descriptors = if twist & 8 != 0 { bytes.byte() } else { 0 };
        let mut cuts: Vec<_> = (0..twist >> 4 & 3)
            .map(|_| (usize::from(bytes.word()), bytes.byte()))
            .collect();
        let mut body = bytes.body();

        let mut fields = Vec::new();
        if let Some(total) = total {
            fields.extend([1, 4]);
            fields.extend(u32::from(total).to_le_bytes());
        }
        if bit(4) {
            fields.extend([2, 8]);
            fields.extend((body.len() as u64).to_le_bytes());
            fds.push(files::frozen(&body));
            body.clear();
        }
        let mut receipt = None;
        if bit(5) {
            let (theirs, ours) = files::receipt();
            fields.extend([3, 0]);
            fds.push(theirs);
            receipt = Some(ours);
        }
        fds.truncate(253);
        let fields = other_fields.unwrap_or(fields);
        let mut packet = Vec::new();
        if !bit(3) {
            packet.extend([MARK, VERSION]);
            packet.extend((fds.len() as u16 + u16::from(more_descriptors)).to_le_bytes());
            packet.extend((fields.len() as u16).to_le_bytes());
            packet.extend((body.len() as u16).to_le_bytes());
            packet.extend(fields);
        }
        packet.extend(body);
        for (at, add) in changes.drain(..) {
            if let Some(byte) = packet.get_mut(at) {
                *byte = byte.wrapping_add(add);
            }
        }

        let mut writes = Vec::new();
        cuts.retain(|_| stream);
        cuts.sort_unstable();
        let mut from = 0;
        for (at, kind) in cuts {
            let at = at.clamp(from, packet.len());
            let late = (kind < 16).then(|| files::make(kind, peer));
            writes.push(Write {
                bytes: packet[from..at].to_vec(),
                fds: std::mem::replace(&mut fds, Vec::from_iter(late)),
            });
            from = at;
        }
        writes.push(Write {
            bytes: packet[from..].to_vec(),
            fds,
        });
        Some(Packet { writes, receipt })
    }
}

fn descriptors(how_many: u8, bytes: &mut Bytes<'_>, peer: &OwnedFd) -> Vec<OwnedFd> {
    let count = match how_many {
        5 => 30,
        6 => 252,
        7 => 253,
        few => usize::from(few),
    };
    let kinds = bytes.take(count.min(4));
    let mut fds: Vec<OwnedFd> = kinds.iter().map(|kind| files::make(*kind, peer)).collect();
    // Many are copies of the first ones.
    while !fds.is_empty() && fds.len() < count {
        let copy = fds[fds.len() % 4 % fds.len()].as_fd().try_clone_to_owned();
        fds.push(copy.expect("a descriptor"));
    }
    fds
}

//! The bytes of a packet; docs/wire-format.md has them with all rules and reasons.
//!
//! A message travels in one packet, or in several where it carries more descriptors than a packet takes. A packet is a
//! header of [`HEADER`] bytes, optional fields, and a part of the body:
//!
//! | offset | size | content |
//! |---|---|---|
//! | 0 | 1 | [`MARK`], `b'm'` (0x6d): this is memlane |
//! | 1 | 1 | [`VERSION`] of the protocol: header, body encoding and rules |
//! | 2 | 2 | number of descriptors that come with the packet, `u16`, little endian |
//! | 4 | 2 | bytes of fields, `u16`, little endian, at most [`MAX_FIELDS`] |
//! | 6 | 2 | bytes of body, `u16`, little endian, at most [`MAX_INLINE`] |
//! | 8 | | fields, each a tag (1), a length (1), data |
//! | | | body: the value in bincode 2 `standard()` encoding |
//!
//! | tag | length | meaning |
//! |---|---|---|
//! | 0x01 | 4 | more: descriptors alone; the message goes on in the next packet and carries this many in all (`u32`) |
//! | 0x02 | 8 | memory: the body is this many bytes (`u64`) of the sealed memory that is the next to last of the descriptors, or the last |
//! | 0x03 | 0 | receipt: the last descriptor is a socket to be sent one byte when the message has been taken |
//! | 0x80… | | may be ignored by who does not know it; any other unknown field ends the link |

use std::os::fd::OwnedFd;

use crate::control::Control;
use crate::error::Error;

/// First byte of each packet.
pub const MARK: u8 = b'm';
/// Second byte of each packet.
pub const VERSION: u8 = 1;
/// Bytes before the fields.
pub const HEADER: usize = 8;
/// Bytes that the fields of a packet may take.
pub const MAX_FIELDS: usize = 256;
/// Bytes of body that travel in a packet. Longer ones travel in sealed memory.
pub const MAX_INLINE: usize = 16 << 10;
pub(crate) const MAX_PACKET: usize = HEADER + MAX_FIELDS + MAX_INLINE;

const MORE: u8 = 0x01;
const MEMORY: u8 = 0x02;
const RECEIPT: u8 = 0x03;
/// From here on tags may be ignored.
const OPTIONAL: u8 = 0x80;

/// Bytes of the fields that this version writes behind one another in a message's last packet.
pub(crate) const RECEIPT_FIELD: usize = 2;
const MEMORY_FIELD: usize = 2 + size_of::<u64>();
const MORE_FIELD: usize = 2 + size_of::<u32>();
/// A packet that only carries descriptors.
pub(crate) const PART: usize = HEADER + MORE_FIELD;

/// What stands before the body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    /// The message goes on, and carries this many descriptors in all.
    pub(crate) more: Option<u32>,
    /// The body is in memory, this many bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) receipt: bool,
}

impl Fields {
    pub(crate) fn size(&self) -> usize {
        self.more.map_or(0, |_| MORE_FIELD)
            + self.memory.map_or(0, |_| MEMORY_FIELD)
            + if self.receipt { RECEIPT_FIELD } else { 0 }
    }

    /// Writes header and fields at the start of `packet`.
    pub(crate) fn write(&self, descriptors: u16, body: u16, packet: &mut [u8]) {
        packet[0] = MARK;
        packet[1] = VERSION;
        packet[2..4].copy_from_slice(&descriptors.to_le_bytes());
        packet[4..6].copy_from_slice(&(self.size() as u16).to_le_bytes());
        packet[6..8].copy_from_slice(&body.to_le_bytes());
        let mut at = HEADER;
        let mut field = |tag: u8, data: &[u8]| {
            packet[at] = tag;
            packet[at + 1] = data.len() as u8;
            packet[at + 2..at + 2 + data.len()].copy_from_slice(data);
            at += 2 + data.len();
        };
        if let Some(total) = self.more {
            field(MORE, &total.to_le_bytes());
        }
        if let Some(size) = self.memory {
            field(MEMORY, &size.to_le_bytes());
        }
        if self.receipt {
            field(RECEIPT, &[]);
        }
    }

    fn read(mut bytes: &[u8]) -> Result<Fields, Error> {
        let mut fields = Fields::default();
        while let Some((&tag, rest)) = bytes.split_first() {
            let malformed = |what| Error::MalformedField { tag, what };
            let (&length, rest) = rest
                .split_first()
                .ok_or(malformed("it ends before its length"))?;
            let (data, rest) = rest
                .split_at_checked(usize::from(length))
                .ok_or(malformed("it is longer than all the fields"))?;
            bytes = rest;
            let known = match tag {
                MORE => set(&mut fields.more, data, u32::from_le_bytes),
                MEMORY => set(&mut fields.memory, data, u64::from_le_bytes),
                RECEIPT if data.is_empty() && !fields.receipt => {
                    fields.receipt = true;
                    true
                }
                OPTIONAL.. => true,
                RECEIPT => false,
                _ => return Err(Error::UnknownField { tag }),
            };
            if !known {
                return Err(malformed("it comes twice, or with another length"));
            }
        }
        Ok(fields)
    }
}

/// Takes a field of fixed size that may come once.
fn set<const N: usize, T>(
    field: &mut Option<T>,
    data: &[u8],
    read: impl FnOnce([u8; N]) -> T,
) -> bool {
    match (data.try_into(), field.is_none()) {
        (Ok(data), true) => {
            *field = Some(read(data));
            true
        }
        _ => false,
    }
}

/// A header as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) descriptors: u16,
    fields: u16,
    body: u16,
}

impl Header {
    /// What can be said of the first bytes of a packet, which may be too few.
    pub(crate) fn read(bytes: &[u8]) -> Result<Header, Error> {
        if let Some(&found) = bytes.first().filter(|found| **found != MARK) {
            return Err(Error::NotMemlane {
                found,
                expected: MARK,
            });
        }
        // Another version may have another header.
        if let Some(&found) = bytes.get(1).filter(|found| **found != VERSION) {
            return Err(Error::Version {
                found,
                expected: VERSION,
            });
        }
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            return Err(Error::ShortPacket {
                size: bytes.len(),
                expected: HEADER,
            });
        };
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let header = Header {
            descriptors: word(2),
            fields: word(4),
            body: word(6),
        };
        if usize::from(header.fields) > MAX_FIELDS || usize::from(header.body) > MAX_INLINE {
            return Err(Error::PacketTooLarge { limit: MAX_PACKET });
        }
        Ok(header)
    }

    /// Bytes of the whole packet.
    pub(crate) fn packet(&self) -> usize {
        self.body_at() + usize::from(self.body)
    }

    pub(crate) fn body_at(&self) -> usize {
        HEADER + usize::from(self.fields)
    }

    /// The fields of a packet that is there whole.
    pub(crate) fn fields(&self, packet: &[u8]) -> Result<Fields, Error> {
        if packet.len() != self.packet() {
            return Err(Error::PacketSize {
                announced: self.packet(),
                received: packet.len(),
            });
        }
        let fields = Fields::read(&packet[HEADER..self.body_at()])?;
        if fields.more.is_some() && (self.body != 0 || fields.memory.is_some() || fields.receipt) {
            return Err(Error::MalformedField {
                tag: MORE,
                what: "the packet is not the message's last, so it has descriptors and nothing else",
            });
        }
        if fields.memory.is_some() && self.body != 0 {
            return Err(Error::MalformedField {
                tag: MEMORY,
                what: "there is a body in the packet, too",
            });
        }
        Ok(fields)
    }
}

/// What one recvmsg brought.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Bytes; they are in the caller's buffer.
    pub(crate) size: usize,
    pub(crate) control: Control,
    /// MSG_TRUNC.
    pub(crate) bytes_cut: bool,
    /// MSG_CTRUNC.
    pub(crate) control_cut: bool,
}

impl Piece {
    /// Its descriptors, if what came with them is as it should be. `bytes` are the first of the packet.
    pub(crate) fn descriptors(self, bytes: &[u8]) -> Result<Vec<OwnedFd>, Refused> {
        let error = match self.control {
            Control {
                foreign: Some((level, kind)),
                ..
            } => Error::ForeignControl { level, kind },
            Control {
                malformed: Some(what),
                ..
            } => Error::MalformedControl(what),
            _ if self.control_cut => Error::DescriptorsTruncated {
                announced: Header::read(bytes).ok().map(|header| header.descriptors),
                received: self.control.fds.len(),
            },
            _ if self.bytes_cut || bytes.len() > MAX_PACKET => {
                Error::PacketTooLarge { limit: MAX_PACKET }
            }
            control => return Ok(control.fds),
        };
        Err(Refused {
            error,
            fds: self.control.fds,
        })
    }
}

/// A packet or message that broke a rule, and the descriptors that came with it.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: Error,
    pub(crate) fds: Vec<OwnedFd>,
}

//! One message, one packet.
//!
//! A link is a SOCK_SEQPACKET socket, so the kernel keeps packets apart and whole. Each packet is a header of
//! [`HEADER`] bytes and a body of at most [`MAX_BODY`]:
//!
//! | offset | size | content |
//! |---|---|---|
//! | 0 | 1 | [`MARK`], `b'm'` (0x6d): this is memlane |
//! | 1 | 1 | [`VERSION`] of the protocol: header, body encoding and the rules below |
//! | 2 | 2 | number of descriptors that come with the packet, `u16`, little endian |
//! | 4 | 0… | body: the value in bincode 2 `standard()` encoding (little endian, variable-length integers), nothing after it |
//!
//! The descriptors come in one SCM_RIGHTS array beside the packet. In the body a descriptor is its index in that array, a
//! `u16` in the body's encoding. Each index below the announced number appears exactly once; the order is free.
//!
//! Rules that a receiver checks, in this order; breaking one ends the link: no control message but SCM_RIGHTS (an
//! SCM_PIDFD is closed and ignored); no empty packet; no descriptor lost, no byte lost; a whole header with the mark and the
//! version; as many descriptors as announced; a body that decodes; each descriptor taken once, none left.

use std::os::fd::OwnedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, EncodeError};
use crate::dispose::dispose;
use crate::error::Error;
use crate::fd::{self, Fault, Outgoing};
use crate::sys::Received;
use crate::{MAX_BODY, MAX_DESCRIPTORS};

/// First byte of each packet.
pub const MARK: u8 = b'm';
/// Second byte of each packet.
pub const VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER: usize = 4;
pub(crate) const MAX_PACKET: usize = HEADER + MAX_BODY;

/// A packet ready to be sent, as often as it takes.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Outgoing,
}

/// Encodes `value`, borrowing its descriptors by number.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Frame, Error> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&[MARK, VERSION, 0, 0]);
    let (result, descriptors) = fd::sending(|| codec::append(value, &mut bytes, MAX_BODY));
    let count = descriptors.fds.len();
    if count > MAX_DESCRIPTORS {
        return Err(Error::TooManyDescriptors {
            count,
            limit: MAX_DESCRIPTORS,
        });
    }
    match result {
        Ok(()) => {}
        Err(EncodeError::TooLarge { size, limit }) => {
            return Err(Error::BodyTooLarge { size, limit });
        }
        Err(error) => return Err(Error::Encode(error)),
    }
    bytes[2..HEADER].copy_from_slice(&(count as u16).to_le_bytes());
    Ok(Frame { bytes, descriptors })
}

/// Decodes what one recvmsg brought. On error every descriptor of the packet has been given to [`dispose`].
///
/// A packet without bytes and without descriptors is how the kernel reports a hang-up: [`Error::Disconnected`].
pub(crate) fn decode<T: DeserializeOwned>(packet: Received<'_>) -> Result<T, Error> {
    let announced = match check(&packet) {
        Ok(announced) => announced,
        Err(error) => {
            packet.control.fds.into_iter().for_each(dispose);
            return Err(error);
        }
    };
    debug_assert_eq!(announced, packet.control.fds.len());
    match take(packet.control.fds, || {
        codec::decode(&packet.bytes[HEADER..])
    }) {
        Ok(value) => Ok(value),
        Err(Refused::Body(source)) => Err(Error::Decode {
            expected: std::any::type_name::<T>(),
            source,
        }),
        Err(Refused::Descriptors(error)) => Err(error),
    }
}

/// All that can be said before the type is known. Gives the number of descriptors.
fn check(packet: &Received<'_>) -> Result<usize, Error> {
    let Received {
        bytes,
        control,
        bytes_cut,
        control_cut,
    } = packet;
    let received = control.fds.len();
    let announced = bytes
        .get(2..HEADER)
        .map(|count| u16::from_le_bytes([count[0], count[1]]));
    if let Some((level, kind)) = control.foreign {
        return Err(Error::ForeignControl { level, kind });
    }
    if let Some(what) = control.malformed {
        return Err(Error::MalformedControl(what));
    }
    if *control_cut {
        return Err(Error::DescriptorsTruncated {
            announced,
            received,
        });
    }
    if bytes.is_empty() {
        return Err(match received {
            0 => Error::Disconnected,
            descriptors => Error::EmptyPacket { descriptors },
        });
    }
    if *bytes_cut || bytes.len() > MAX_PACKET {
        return Err(Error::PacketTooLarge { limit: MAX_PACKET });
    }
    if bytes[0] != MARK {
        return Err(Error::NotMemlane {
            found: bytes[0],
            expected: MARK,
        });
    }
    let Some(announced) = announced else {
        return Err(Error::ShortPacket {
            size: bytes.len(),
            expected: HEADER,
        });
    };
    if bytes[1] != VERSION {
        return Err(Error::Version {
            found: bytes[1],
            expected: VERSION,
        });
    }
    if usize::from(announced) != received {
        return Err(Error::DescriptorCount {
            announced,
            received,
        });
    }
    Ok(received)
}

enum Refused {
    Body(codec::DecodeError),
    Descriptors(Error),
}

/// Decodes with `fds` within reach; all of them must be taken.
fn take<T>(
    fds: Vec<OwnedFd>,
    decode: impl FnOnce() -> Result<T, codec::DecodeError>,
) -> Result<T, Refused> {
    let received = fds.len();
    let (result, incoming) = fd::receiving(fds, decode);
    let (taken, fault) = (incoming.taken, incoming.fault);
    incoming.surplus().for_each(dispose);
    match (fault, result) {
        (Some(Fault::Missing(index)), _) => Err(Refused::Descriptors(Error::MissingDescriptor {
            index,
            received,
        })),
        (Some(Fault::Twice(index)), _) => {
            Err(Refused::Descriptors(Error::DescriptorTwice { index }))
        }
        (None, Err(error)) => Err(Refused::Body(error)),
        (None, Ok(_)) if taken < received => Err(Refused::Descriptors(Error::SurplusDescriptors {
            received,
            taken,
        })),
        (None, Ok(value)) => Ok(value),
    }
}

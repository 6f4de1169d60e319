//! Values to packets, and packets to values.

use std::cell::Cell;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::net::AddressFamily;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, EncodeError};
use crate::dispose::dispose_all;
use crate::error::Error;
use crate::fd::{Adoption, Descriptors, Fault, Fd, Lent, Taken, receiving, sending};
use crate::frame::{Fields, HEADER, MAX_INLINE, PART, RECEIPT_FIELD, Refused};
use crate::{Limits, MAX_PACKET_DESCRIPTORS, memory, socket, sys};

/// A message ready to be sent, as often as it takes.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The last packet, often the only one.
    bytes: Vec<u8>,
    fds: Descriptors,
}

thread_local! {
    /// Buffers of a message that has left, empty, for the next.
    static SPARE: Cell<(Vec<u8>, Descriptors)> = const { Cell::new((Vec::new(), Descriptors::new())) };
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let (mut bytes, mut fds) = (
            std::mem::take(&mut self.bytes),
            std::mem::take(&mut self.fds),
        );
        bytes.clear();
        fds.clear();
        if bytes.capacity() <= 2 * MAX_INLINE {
            // Not on a thread that is ending.
            let _ = SPARE.try_with(|spare| spare.set((bytes, fds)));
        }
    }
}

/// How much of a message has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Whole packets.
    packets: usize,
    /// Bytes of the next one; only a stream takes part of a packet.
    bytes: usize,
}

impl Outgoing {
    /// Encodes `value`, borrowing its descriptors.
    pub(crate) fn new<T: Serialize + ?Sized>(
        value: &T,
        receipt: Option<OwnedFd>,
        limits: &Limits,
        carrier: BorrowedFd<'_>,
    ) -> Result<Outgoing, Error> {
        let mut fields = Fields {
            receipt: receipt.is_some(),
            ..Fields::default()
        };
        let (mut bytes, spare_fds) = SPARE.try_with(Cell::take).unwrap_or_default();
        bytes.resize(HEADER + fields.size(), 0);
        let (limit, most) = (limits.max_body(), limits.max_sent());
        let (result, outgoing) =
            sending(spare_fds, most, || codec::append(value, &mut bytes, limit));
        if outgoing.count > most {
            return Err(Error::TooManyDescriptors {
                count: outgoing.count,
                limit: most,
            });
        }
        if let Some(error) = outgoing.failure {
            return Err(Error::io("duplicating a descriptor to be sent", error));
        }
        match result {
            Ok(()) => {}
            Err(EncodeError::TooLarge { size, limit }) => {
                return Err(Error::BodyTooLarge { size, limit });
            }
            Err(error) => return Err(Error::Encode(error)),
        }
        // A socket in its own queue is freed only when the kernel looks for such cycles (THREATS A23).
        if outgoing
            .links
            .iter()
            .any(|link| *link == socket::identity(carrier))
        {
            return Err(Error::LinkInItself);
        }
        let mut fds = outgoing.fds;
        let mut body = bytes.len() - HEADER - fields.size();
        if body > MAX_INLINE {
            let memory = memory::with(&bytes[HEADER + fields.size()..])?;
            fields.memory = Some(body as u64);
            bytes.clear();
            bytes.resize(HEADER + fields.size(), 0);
            body = 0;
            fds.push(Lent::Own(memory));
        }
        if let Some(receipt) = receipt {
            fds.push(Lent::Own(receipt));
        }
        let mut message = Outgoing { bytes, fds };
        let last = message.descriptors(message.packets() - 1).len();
        fields.write(last as u16, body as u16, &mut message.bytes);
        Ok(message)
    }

    pub(crate) fn carries_descriptors(&self) -> bool {
        !self.fds.numbers().is_empty()
    }

    /// Bytes of the last packet.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    fn packets(&self) -> usize {
        self.fds
            .numbers()
            .len()
            .div_ceil(MAX_PACKET_DESCRIPTORS)
            .max(1)
    }

    /// The descriptors that go with packet number `packet`.
    fn descriptors(&self, packet: usize) -> &[RawFd] {
        let start = (packet * MAX_PACKET_DESCRIPTORS).min(self.fds.numbers().len());
        let end = (start + MAX_PACKET_DESCRIPTORS).min(self.fds.numbers().len());
        &self.fds.numbers()[start..end]
    }

    /// Sends what has not left, as far as there is room for it. A packet's descriptors leave with its first byte.
    pub(crate) fn send(
        &self,
        progress: &mut Progress,
        mut send: impl FnMut(&[u8], &[RawFd]) -> std::io::Result<usize>,
    ) -> std::io::Result<()> {
        let packets = self.packets();
        let mut part = [0; PART];
        while progress.packets < packets {
            let bytes = if progress.packets + 1 == packets {
                &self.bytes
            } else {
                let fields = Fields {
                    more: Some(self.fds.numbers().len() as u32),
                    ..Fields::default()
                };
                fields.write(MAX_PACKET_DESCRIPTORS as u16, 0, &mut part);
                &part[..]
            };
            let fds = match progress.bytes {
                0 => self.descriptors(progress.packets),
                _ => &[],
            };
            progress.bytes += send(&bytes[progress.bytes..], fds)?;
            if progress.bytes >= bytes.len() {
                *progress = Progress {
                    packets: progress.packets + 1,
                    bytes: 0,
                };
            }
        }
        Ok(())
    }
}

/// A message that has come whole.
#[derive(Debug)]
pub(crate) struct Received<'p> {
    pub(crate) body: Body<'p>,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) fields: Fields,
}

#[derive(Debug)]
pub(crate) enum Body<'p> {
    Packet(&'p [u8]),
    Copy(Vec<u8>),
}

impl Body<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Body::Packet(bytes) => bytes,
            Body::Copy(bytes) => bytes,
        }
    }
}

impl Received<'_> {
    /// Decodes the message and says that it has been taken, if the sender wants to know. On error every descriptor has
    /// been given to [`dispose`](crate::dispose).
    pub(crate) fn decode<T: DeserializeOwned>(
        mut self,
        limits: &Limits,
        adoption: Adoption,
    ) -> Result<T, Error> {
        let receipt = match self.unpack(limits) {
            Ok(receipt) => receipt,
            Err(error) => {
                dispose_all(self.fds);
                return Err(error);
            }
        };
        let result = take(self.fds, adoption, self.body.bytes());
        if let Some(receipt) = receipt {
            if result.is_ok() {
                // Not to be had when the sender no longer waits, and then nothing is owed.
                let _ = sys::send(&receipt, &[1], &[]);
            }
        }
        result
    }

    /// Takes out the descriptors that are not the value's: the receipt, and the memory that the body is in.
    fn unpack(&mut self, limits: &Limits) -> Result<Option<Fd>, Error> {
        let missing = |what| Error::MissingService { what };
        let receipt = if self.fields.receipt {
            let receipt = self.fds.pop().ok_or(missing("a receipt"))?;
            let found = sys::socket_kind(&receipt);
            if found != Some((AddressFamily::UNIX, rustix::net::SocketType::STREAM)) {
                self.fds.push(receipt);
                return Err(Error::NotAReceipt);
            }
            Some(Fd::received(receipt))
        } else {
            None
        };
        if let Some(size) = self.fields.memory {
            let memory = self.fds.pop().ok_or(missing("memory for its body"))?;
            match memory::read(&memory, size, limits.max_body()) {
                Ok(body) => self.body = Body::Copy(body),
                Err(error) => {
                    self.fds.push(memory);
                    return Err(error);
                }
            }
        }
        let (count, limit) = (self.fds.len(), limits.max_received());
        if count > limit {
            return Err(Error::PeerTooManyDescriptors { count, limit });
        }
        let (size, limit) = (self.body.bytes().len(), limits.max_body());
        if size > limit {
            return Err(Error::PeerBodyTooLarge {
                size: size as u64,
                limit,
            });
        }
        Ok(receipt)
    }
}

/// Decodes with `fds` within reach; all of them must be taken.
fn take<T: DeserializeOwned>(
    fds: Vec<OwnedFd>,
    adoption: Adoption,
    body: &[u8],
) -> Result<T, Error> {
    let received = fds.len();
    let (
        result,
        Taken {
            count: taken,
            fault,
        },
    ) = receiving(fds, adoption, || codec::decode(body));
    match (fault, result) {
        (Some(Fault::Missing(index)), _) => Err(Error::MissingDescriptor { index, received }),
        (Some(Fault::Twice(index)), _) => Err(Error::DescriptorTwice { index }),
        (Some(Fault::Kind { expected, found }), _) => {
            Err(Error::WrongDescriptor { expected, found })
        }
        (Some(Fault::Unadopted(what)), _) => Err(Error::NotAdopted { what }),
        (None, Err(source)) => Err(Error::Decode {
            expected: std::any::type_name::<T>(),
            source,
        }),
        (None, Ok(_)) if taken < received => Err(Error::SurplusDescriptors { received, taken }),
        (None, Ok(value)) => Ok(value),
    }
}

/// Descriptors of a message that has begun.
#[derive(Debug)]
pub(crate) struct Parts {
    total: usize,
    fds: Vec<OwnedFd>,
}

impl Parts {
    /// Adds the descriptors of a packet to those that came before. Gives all when the message is whole.
    pub(crate) fn collect(
        parts: &mut Option<Parts>,
        fields: &Fields,
        mut fds: Vec<OwnedFd>,
        limits: &Limits,
    ) -> Result<Option<Vec<OwnedFd>>, Refused> {
        let begun = parts.take();
        // Memory and receipt are not the user's.
        let limit = limits.max_received() + 2;
        let announced = fields.more.map(|total| total as usize);
        let total = begun
            .as_ref()
            .map_or(announced.unwrap_or(fds.len()), |begun| begun.total);
        let came = fds.len();
        if let Some(mut begun) = begun {
            begun.fds.append(&mut fds);
            fds = begun.fds;
        }
        let error = match announced {
            _ if total > limit => Error::PeerTooManyDescriptors {
                count: total,
                limit: limits.max_received(),
            },
            // Each part has some, so that a message without end is not one of many packets either.
            Some(announced) if announced != total || came == 0 || fds.len() >= total => {
                Error::Parts {
                    announced: total,
                    received: fds.len(),
                }
            }
            None if fds.len() != total => Error::Parts {
                announced: total,
                received: fds.len(),
            },
            Some(_) => {
                *parts = Some(Parts { total, fds });
                return Ok(None);
            }
            None => return Ok(Some(fds)),
        };
        Err(Refused { error, fds })
    }

    pub(crate) fn into_descriptors(self) -> Vec<OwnedFd> {
        self.fds
    }
}

const _: () = assert!(
    RECEIPT_FIELD + 10 + PART - HEADER <= crate::frame::MAX_FIELDS,
    "all fields fit"
);

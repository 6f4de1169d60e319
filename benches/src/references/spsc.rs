//! The single-producer single-consumer byte ring of the textbooks, in shared memory.
//!
//! Two indices, each on lines of its own, count bytes and never wrap. Each side keeps its own index and a
//! copy of the other's, and looks at the other's line only when the copy says that it must. A record is a
//! word with the length, then the payload, rounded up to eight bytes; the data is mapped twice in a row, so
//! a record that passes the end needs no special case.
//!
//! A push publishes the tail. When a pop publishes the head is the one thing that can be chosen: see
//! [`Publish`].

use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Release};

use anyhow::{Result, ensure};

use crate::path::{Receiver, Sender, Spin};
use crate::shared::{LINE, Mapping};

const TAIL: usize = LINE;
const HEAD: usize = 2 * LINE;
const PREFIX: usize = size_of::<u64>();

/// When the consumer tells the producer how far it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// After each record.
    Each,
    /// After each eighth of the ring, and when there is nothing left to read.
    Lazily,
}

/// The writing side. There is one for each region, in one process.
#[derive(Debug)]
pub struct Producer {
    ring: Mapping,
    tail: u64,
    head_seen: u64,
}

/// The reading side. There is one for each region, in one process.
#[derive(Debug)]
pub struct Consumer {
    ring: Mapping,
    head: u64,
    tail_seen: u64,
    head_published: u64,
    step: u64,
    spin: Spin,
}

/// Bytes a record takes in the ring.
#[inline]
fn record_len(payload: usize) -> usize {
    PREFIX + payload.next_multiple_of(8)
}

/// Where in the data position `index` is.
#[inline]
fn offset(ring: &Mapping, index: u64) -> usize {
    index as usize & (ring.capacity() - 1)
}

impl Producer {
    /// The writing side of a region that is still all zeros.
    pub fn new(ring: Mapping) -> Self {
        Self {
            ring,
            tail: 0,
            head_seen: 0,
        }
    }

    /// Appends a copy of `payload`, unless there is no room for it now.
    #[inline]
    pub fn try_push(&mut self, payload: &[u8]) -> bool {
        let record = record_len(payload.len());
        let room_until = |head: u64| head + self.ring.capacity() as u64;
        let end = self.tail + record as u64;
        if end > room_until(self.head_seen) {
            self.head_seen = self.ring.word(HEAD).load(Acquire);
            if end > room_until(self.head_seen) {
                return false;
            }
        }
        // SAFETY: the record starts within the first image of the data and is no longer than the ring, so
        // it ends within the second. It is ours alone: the consumer has released these bytes by the head
        // loaded with Acquire, and does not look at them before the tail says so. The start is a multiple
        // of eight, as all record lengths are.
        unsafe {
            let at = self.ring.data().add(offset(&self.ring, self.tail));
            at.cast::<u64>().write(payload.len() as u64);
            ptr::copy_nonoverlapping(payload.as_ptr(), at.add(PREFIX), payload.len());
        }
        self.tail = end;
        self.ring.word(TAIL).store(end, Release);
        true
    }
}

impl Consumer {
    /// The reading side of a region that is still all zeros.
    pub fn new(ring: Mapping, publish: Publish, spin: Spin) -> Self {
        let step = match publish {
            Publish::Each => 1,
            Publish::Lazily => ring.capacity() as u64 / 8,
        };
        Self {
            ring,
            head: 0,
            tail_seen: 0,
            head_published: 0,
            step,
            spin,
        }
    }

    /// Copies the next record into `buffer`, if there is one.
    #[inline]
    pub fn try_pop(&mut self, buffer: &mut [u8]) -> Option<Result<usize>> {
        if self.head == self.tail_seen {
            self.tail_seen = self.ring.word(TAIL).load(Acquire);
            if self.head == self.tail_seen {
                if self.head != self.head_published {
                    self.publish();
                }
                return None;
            }
        }
        // SAFETY: a record starts at the head, within the first image of the data; the producer has
        // finished it, as the tail loaded with Acquire tells, and leaves it alone until the head is
        // published. The head is a multiple of eight.
        let (at, len) = unsafe {
            let at = self.ring.data().add(offset(&self.ring, self.head));
            (at, at.cast::<u64>().read() as usize)
        };
        if len > buffer.len() {
            return Some(Err(anyhow::anyhow!(
                "a record of {len} bytes for a buffer of {}",
                buffer.len()
            )));
        }
        // SAFETY: as above; the producer has written `len` bytes behind the prefix, and the buffer has room
        // for them.
        unsafe { ptr::copy_nonoverlapping(at.add(PREFIX), buffer.as_mut_ptr(), len) };
        self.head += record_len(len) as u64;
        if self.head - self.head_published >= self.step {
            self.publish();
        }
        Some(Ok(len))
    }

    #[inline]
    fn publish(&mut self) {
        self.head_published = self.head;
        self.ring.word(HEAD).store(self.head, Release);
    }
}

impl Sender for Producer {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        ensure!(
            record_len(payload.len()) <= self.ring.capacity(),
            "the record is larger than the ring"
        );
        Spin::Hard.until(|| self.try_push(payload).then_some(()));
        Ok(())
    }
}

impl Receiver for Consumer {
    #[inline]
    fn recv(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let spin = self.spin;
        spin.until(|| self.try_pop(buffer))
    }
}

/// One ring for each reader, written in turn: how a ring with one consumer reaches many.
#[derive(Debug)]
pub struct Each(Vec<Producer>);

impl Each {
    /// Sends through all of `producers`.
    pub fn new(producers: Vec<Producer>) -> Self {
        Self(producers)
    }
}

impl Sender for Each {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        self.0
            .iter_mut()
            .try_for_each(|producer| producer.send(payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{Inbox, Payloads};
    use crate::shared;

    fn ring(publish: Publish) -> (Producer, Consumer) {
        let fd = shared::create(4096, true).unwrap();
        let map = || Mapping::new(&fd, 4096, true).unwrap();
        (
            Producer::new(map()),
            Consumer::new(map(), publish, Spin::Yielding),
        )
    }

    #[test]
    fn full_and_empty_are_told() {
        for publish in [Publish::Each, Publish::Lazily] {
            let (mut producer, mut consumer) = ring(publish);
            let mut buffer = [0; 100];
            assert!(consumer.try_pop(&mut buffer).is_none());
            let pushed = std::iter::repeat_with(|| producer.try_push(&[7; 100]))
                .take_while(|&pushed| pushed)
                .count();
            assert_eq!(pushed, 4096 / 112);
            for _ in 0..pushed {
                assert_eq!(consumer.try_pop(&mut buffer).unwrap().unwrap(), 100);
                assert_eq!(buffer, [7; 100]);
            }
            assert!(consumer.try_pop(&mut buffer).is_none());
            assert!(producer.try_push(&[7; 100]));
        }
    }

    #[test]
    fn records_pass_the_end_whole() {
        for publish in [Publish::Each, Publish::Lazily] {
            for len in [8, 13, 1000, 4088] {
                let (mut producer, mut consumer) = ring(publish);
                let sender = std::thread::spawn(move || {
                    let mut payloads = Payloads::new(len);
                    for _ in 0..1000 {
                        producer.send(payloads.advance()).unwrap();
                        std::thread::yield_now();
                    }
                });
                let mut inbox = Inbox::new(len);
                for _ in 0..1000 {
                    inbox.receive(&mut consumer).unwrap();
                }
                sender.join().unwrap();
            }
        }
    }
}

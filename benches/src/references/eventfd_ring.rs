//! The plain ring, and an eventfd to wake its reader: written after each message, since nothing tells whether the reader
//! sleeps, and read whenever there is no message.

use anyhow::Result;

use super::eventfd::{Sleeper, Waker};
use super::spsc::{Consumer, Producer};
use crate::path::{Receiver, Sender};

/// The writing side.
#[derive(Debug)]
pub struct RingingProducer {
    producer: Producer,
    waker: Waker,
}

/// The reading side.
#[derive(Debug)]
pub struct RungConsumer {
    consumer: Consumer,
    sleeper: Sleeper,
}

impl RingingProducer {
    /// Rings `waker` for what is sent through `producer`.
    pub fn new(producer: Producer, waker: Waker) -> Self {
        Self { producer, waker }
    }
}

impl Sender for RingingProducer {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        self.producer.send(payload)?;
        self.waker.wake()
    }
}

impl RungConsumer {
    /// Sleeps while there is nothing in `consumer`'s ring.
    pub fn new(consumer: Consumer, sleeper: Sleeper) -> Self {
        Self { consumer, sleeper }
    }
}

impl Receiver for RungConsumer {
    #[inline]
    fn recv(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            if let Some(received) = self.consumer.try_pop(buffer) {
                return received;
            }
            // Rung after the message was there, so none is overslept.
            self.sleeper.sleep()?;
        }
    }
}

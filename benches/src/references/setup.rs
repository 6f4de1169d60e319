//! The least that sets up a lane: connect to a SEQPACKET listener in the other process, which makes a
//! region and two eventfds and passes them by SCM_RIGHTS; both map the region; the first message is written
//! and the reader woken.
//!
//! Nothing is checked, sealed or allocated ahead.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

use super::eventfd::{self, Sleeper, Waker};
use super::spsc::{Consumer, Producer, Publish};
use crate::control::{receive_with_descriptors, send_with_descriptors};
use crate::path::{Receiver, Sender, Spin};
use crate::shared::{self, Mapping};
use crate::task::Task;

/// Where the writing process waits for the reading one.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// The writing end of a lane that has been set up. The fields are here to be kept open.
#[derive(Debug)]
pub struct WriterEnd {
    producer: Producer,
    reader_sleeps: Waker,
    _writer_sleeps: OwnedFd,
    _region: OwnedFd,
    _connection: OwnedFd,
}

/// The reading end.
#[derive(Debug)]
pub struct ReaderEnd {
    consumer: Consumer,
    reader_sleeps: Sleeper,
    _writer_sleeps: OwnedFd,
    _region: OwnedFd,
    _connection: OwnedFd,
}

fn socket() -> Result<OwnedFd> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .context("socket")
}

impl Listener {
    /// Listens on an abstract address.
    ///
    /// # Errors
    ///
    /// Fails if the name is taken.
    pub fn bind(name: &str) -> Result<Self> {
        let listener = socket()?;
        bind(
            &listener,
            &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        )
        .context("bind")?;
        listen(&listener, 1).context("listen")?;
        Ok(Self(listener))
    }

    /// Waits for a reader and gives it what it needs.
    ///
    /// # Errors
    ///
    /// Fails if the reader goes away or a resource is short.
    pub fn accept(&self) -> Result<WriterEnd> {
        let connection = accept_with(&self.0, SocketFlags::CLOEXEC).context("accept")?;
        let region = shared::create(Task::RING_BYTES, false)?;
        let reader_sleeps = eventfd::create()?;
        let writer_sleeps = eventfd::create()?;
        send_with_descriptors(
            &connection,
            b"lane",
            &[region.as_fd(), reader_sleeps.as_fd(), writer_sleeps.as_fd()],
        )?;
        let producer = Producer::new(Mapping::new(&region, Task::RING_BYTES, false)?);
        Ok(WriterEnd {
            producer,
            reader_sleeps: Waker::new(reader_sleeps),
            _writer_sleeps: writer_sleeps,
            _region: region,
            _connection: connection,
        })
    }
}

impl WriterEnd {
    /// Writes a message and wakes the reader.
    ///
    /// # Errors
    ///
    /// Fails if the message is larger than the ring.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        self.producer.send(message)?;
        self.reader_sleeps.wake()
    }
}

impl ReaderEnd {
    /// Connects to the listener called `name` and maps what it gives.
    ///
    /// # Errors
    ///
    /// Fails if nobody listens, or if what arrives is not a lane.
    pub fn connect(name: &str) -> Result<Self> {
        let connection = socket()?;
        connect(
            &connection,
            &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        )
        .context("connect")?;
        let (_, descriptors) = receive_with_descriptors(&connection, &mut [0; 4])?;
        let [region, reader_sleeps, writer_sleeps] = <[OwnedFd; 3]>::try_from(descriptors)
            .ok()
            .context("a lane has three descriptors")?;
        let ring = Mapping::new(&region, Task::RING_BYTES, false)?;
        Ok(Self {
            consumer: Consumer::new(ring, Publish::Each, Spin::Hard),
            reader_sleeps: Sleeper::reading(reader_sleeps),
            _writer_sleeps: writer_sleeps,
            _region: region,
            _connection: connection,
        })
    }
}

impl Receiver for ReaderEnd {
    fn recv(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.reader_sleeps.sleep()?;
        self.consumer.recv(buffer)
    }
}

//! One piece of memory whose descriptor is sent each time it is handed over, and which is mapped each time it comes.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::plain::Plain;
use super::{give, memfd, take};
use crate::measure::ping_pong::Game;
use crate::worker::Session;

/// What both ends of the memory hold, checked on each arrival.
const MARK: u8 = 0x5a;

type Ends = (IpcSender<IpcSharedMemory>, IpcReceiver<IpcSharedMemory>);

/// Through the crate ipc-channel.
#[derive(Debug)]
pub struct Channel {
    sender: IpcSender<IpcSharedMemory>,
    receiver: IpcReceiver<IpcSharedMemory>,
    /// With the side that has it.
    memory: Option<IpcSharedMemory>,
}

impl Channel {
    /// Connects both processes; the initiator has the memory.
    ///
    /// # Errors
    ///
    /// Fails if they cannot be connected.
    pub fn new(session: &mut Session) -> Result<Self> {
        let socket = session.take_descriptor()?;
        if session.role().is_initiator() {
            let (server, name) = IpcOneShotServer::<Ends>::new()?;
            send(&socket, name.as_bytes(), SendFlags::NOSIGNAL).context("send")?;
            let (_, (sender, receiver)) = server.accept()?;
            let memory = IpcSharedMemory::from_bytes(&vec![MARK; session.task().size]);
            Ok(Self {
                sender,
                receiver,
                memory: Some(memory),
            })
        } else {
            let mut name = [0; 256];
            let (_, len) = recv(&socket, &mut name[..], RecvFlags::empty()).context("recv")?;
            let name = str::from_utf8(&name[..len])?.to_owned();
            let (there, receiver) = ipc::channel()?;
            let (sender, back) = ipc::channel()?;
            IpcSender::connect(name)?.send((there, back))?;
            Ok(Self {
                sender,
                receiver,
                memory: None,
            })
        }
    }

    fn give(&mut self) -> Result<()> {
        let memory = self.memory.take().context("the memory is not here")?;
        Ok(self.sender.send(memory)?)
    }

    fn get(&mut self) -> Result<()> {
        let memory = self.receiver.recv()?;
        check(&memory)?;
        self.memory = Some(memory);
        Ok(())
    }
}

impl Game for Channel {
    fn ping(&mut self) -> Result<()> {
        self.give()?;
        self.get()
    }

    fn pong(&mut self) -> Result<()> {
        self.get()?;
        self.give()
    }
}

/// By hand: the same system calls without the crate.
#[derive(Debug)]
pub struct Bare {
    socket: OwnedFd,
    size: usize,
    memory: Option<(OwnedFd, Plain)>,
}

impl Bare {
    /// The initiator has the memory.
    ///
    /// # Errors
    ///
    /// Fails if there is no memory left.
    pub fn new(session: &mut Session) -> Result<Self> {
        let (socket, size) = (session.take_descriptor()?, session.task().size);
        let mut memory = None;
        if session.role().is_initiator() {
            let fd = memfd(size, true)?;
            let mut mapped = Plain::map(&fd, size, true)?;
            // SAFETY: mapped to be written, and its descriptor has not left this process.
            unsafe { mapped.bytes_mut() }.fill(MARK);
            memory = Some((fd, mapped));
        }
        Ok(Self {
            socket,
            size,
            memory,
        })
    }

    fn give(&mut self) -> Result<()> {
        let (fd, _) = self.memory.take().context("the memory is not here")?;
        give(&self.socket, &[fd.as_fd()])
    }

    fn get(&mut self) -> Result<()> {
        let [fd] = take(&self.socket)?;
        let memory = Plain::map(&fd, self.size, true)?;
        // SAFETY: nobody writes any more.
        check(unsafe { memory.bytes() })?;
        self.memory = Some((fd, memory));
        Ok(())
    }
}

impl Game for Bare {
    fn ping(&mut self) -> Result<()> {
        self.give()?;
        self.get()
    }

    fn pong(&mut self) -> Result<()> {
        self.get()?;
        self.give()
    }
}

fn check(memory: &[u8]) -> Result<()> {
    ensure!(
        memory.first() == Some(&MARK) && memory.last() == Some(&MARK),
        "the memory is not what it was"
    );
    Ok(())
}

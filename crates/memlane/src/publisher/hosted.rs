use std::{
    io,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use memlane_region::ring::Roster;
use memlane_transport::{Access, Address, Link};
use rustix::event::epoll::{self, CreateFlags};

use super::{
    control::{Control, Terms},
    peer::Peer,
};
use crate::{Error, accepting, protocol::Farewell, reactor::Reactor};

/// The control side of one sending end, and who runs it. Dropped, it closes the service, and says so to all who are there.
#[derive(Debug)]
pub(super) struct Hosted {
    control: Arc<Control>,
    /// The control thread, which knows it by a number; none if the user runs it.
    reactor: Option<(Arc<Reactor>, u32)>,
    /// The process that made it.
    pid: u32,
}

impl Hosted {
    pub(super) fn new(
        terms: Terms,
        roster: Arc<Roster<Peer>>,
        driven: bool,
    ) -> Result<Hosted, Error> {
        let make = |epoll: Arc<OwnedFd>, id| Control::new(epoll, id, terms, roster);
        let (control, reactor) = if driven {
            let epoll = epoll::create(CreateFlags::CLOEXEC)
                .map_err(|errno| Error::os("create epoll")(errno.into()))?;
            (Arc::new(make(Arc::new(epoll), 0)), None)
        } else {
            let reactor = Reactor::get().map_err(Error::os("start the control thread"))?;
            let (id, control) = reactor.add(make);
            (control, Some((reactor, id)))
        };
        Ok(Hosted {
            control,
            reactor,
            pid: std::process::id(),
        })
    }

    /// Takes clients at this address. Everything is to be ready for them.
    pub(super) fn bind(&self, address: &Address, access: Access) -> Result<(), Error> {
        let listener = accepting::listen(address, access)?;
        self.control
            .listen(listener)
            .map_err(|errno| Error::os("watch the listener")(errno.into()))
    }

    /// Takes a link that somebody else made; its other end is in that process, if one is given.
    pub(super) fn attach(&self, link: Link, process: Option<OwnedFd>) -> Result<(), Error> {
        self.control
            .attach(link, process)
            .map_err(io::Error::from)
            .map_err(Error::os("watch the link"))
    }

    /// Whether a loop of the user's runs it.
    pub(super) fn is_driven(&self) -> bool {
        self.reactor.is_none()
    }

    /// Does what there is to do, if that is left to the user.
    pub(super) fn drive_if_driven(&self) -> io::Result<()> {
        match self.is_driven() {
            true => self.control.drive().map(drop),
            false => Ok(()),
        }
    }

    /// What the user's loop waits for.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.is_driven().then(|| self.control.epoll().as_fd())
    }

    /// Whether this is the process that made it, and no forked child, in which everything is the parent's.
    pub(super) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl Deref for Hosted {
    type Target = Arc<Control>;

    #[inline(always)]
    fn deref(&self) -> &Arc<Control> {
        &self.control
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        if let Some((reactor, id)) = &self.reactor {
            reactor.remove(*id);
        }
        self.control.close(&match std::thread::panicking() {
            true => Farewell::Panicked,
            false => Farewell::Closed,
        });
    }
}

//! Publishers that move to another process: where the one that is heard now has its words, and which come after it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use memlane_region::Remote;
use memlane_signaling::{Backing, Ringer, WrongDoorbell, gone};
use memlane_transport::{Fd, dispose};

use super::{Subscriber, Trust, chunks::Chunks};
use crate::{doorbells::Bell, protocol::MAX_RINGS};

/// Publishers that may go on in the place of the one that is heard.
#[derive(Debug, Default)]
pub(super) struct Homes {
    /// In the order in which they were announced: each one's first ring, and what it is rung by.
    announced: Vec<(u32, Option<Bell>)>,
    /// The one that has begun, and was not heard by then: its first ring, and the first ids of its own.
    moved: Option<(u32, u32, u32)>,
    /// That of the publisher that is heard, once it is not the one that was subscribed to.
    here: Option<u32>,
    /// The reader has come to another one's, and its page is to know.
    come: Option<Box<Home>>,
    /// Whoever watches the publisher's process is to know.
    unsettled: bool,
}

/// Where a publisher's words are, and what it is rung by.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) memory: Remote,
    pub(super) ringer: Option<Bell>,
}

impl Homes {
    /// That of another publisher, if the reader has just come to it.
    #[inline(always)]
    pub(super) fn come(&mut self) -> Option<Box<Home>> {
        match self.come {
            None => None,
            Some(_) => self.come.take(),
        }
    }

    /// Whether what is said on the link is said by a publisher that is not heard yet: this reader has still to come to it. What it has to
    /// say can wait until then: it is of its own memory, of which there may be as much as of the other's.
    pub(super) fn is_ahead(&self) -> bool {
        self.moved.is_some()
    }

    /// Whether another publisher is heard since this was asked last.
    pub(super) fn take_unsettled(&mut self) -> bool {
        std::mem::take(&mut self.unsettled)
    }

    /// What was announced is not any more.
    pub(super) fn forget(&mut self, id: u32) {
        self.announced.retain(|(other, _)| *other != id);
    }
}

impl Chunks {
    /// Takes the first ring of another publisher, which is not heard yet.
    pub(super) fn announce_home(&mut self, id: u32, memory: Fd, doorbell: Option<Fd>) {
        let ringer = doorbell.map(|end| Ringer::open(OwnedFd::from(end), Backing::Socket));
        self.rings.insert(id, memory.into());
        let ringer = ringer.transpose().map_err(|wrong| {
            let WrongDoorbell { error, descriptor } = *wrong;
            dispose(descriptor);
            error.to_string()
        });
        let ringer = match ringer {
            Ok(ringer) => ringer.map(Bell::new),
            Err(why) => return self.rings.refuse(id, why),
        };
        let known = self.homes.announced.iter().any(|(other, _)| *other == id);
        if !known && self.homes.announced.len() < MAX_RINGS {
            self.homes.announced.push((id, ringer));
        }
    }

    /// The reader goes on in this ring. Whether that is the first of another publisher, which is heard from now on.
    #[cold]
    pub(super) fn come_to(&mut self, ring: u32) -> bool {
        let announced = &mut self.homes.announced;
        let Some(at) = announced.iter().position(|(id, _)| *id == ring) else {
            return false;
        };
        let Ok(memory) = self.rings.get(ring) else {
            return false;
        };
        // Those before it were never heard, or were missed.
        let ringer = announced
            .drain(..=at)
            .next_back()
            .and_then(|(_, bell)| bell);
        self.homes.here = Some(ring);
        self.homes.come = Some(Box::new(Home { memory, ringer }));
        self.homes.unsettled = true;
        self.rings.settle(ring);
        self.leave_old();
        true
    }

    /// Another publisher has begun, whose own ids begin with these.
    pub(super) fn moved(&mut self, home: u32, rings: u32, segments: u32) {
        self.homes.moved = Some((home, rings, segments));
        self.leave_old();
    }

    /// Gives up what is the predecessor's of a publisher that has begun and is heard.
    fn leave_old(&mut self) {
        let Homes { moved, here, .. } = &mut self.homes;
        if let Some((_, rings, segments)) = moved.take_if(|(home, ..)| Some(*home) == *here) {
            self.rings.remove_before(rings);
            self.reader.remove_before(segments);
        }
    }
}

impl<T: Trust> Subscriber<T> {
    /// If another publisher is heard since the last time, the process of the one before is watched no longer, and whether the
    /// publisher is gone is asked anew: of the link alone, whose other end has moved. Whether that is so.
    #[cold]
    pub(super) fn settle(&mut self) -> bool {
        if !self.chunks.homes.take_unsettled() {
            return false;
        }
        if let Some(process) = self.process.take() {
            if let Some(sleep) = &self.sleep {
                sleep.waiter.forget_process(&process);
            }
        }
        // If the kernel cannot say, it is asked again.
        self.life.gone = self.is_publisher_gone().unwrap_or(false);
        true
    }

    pub(super) fn is_publisher_gone(&self) -> io::Result<bool> {
        gone(self.link.as_fd(), self.process.as_ref().map(AsFd::as_fd))
    }
}

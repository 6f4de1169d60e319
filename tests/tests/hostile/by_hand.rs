//! Both sides of a lane by hand: as an honest one would, but for what is asked to be different.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use memlane::Link;
use memlane_region::{Remote, Shared, Words, page_size};
use memlane_tests::{
    PATIENCE, wait_until,
    wire::{
        Answer, Asks, Bell, CURSOR, Greeting, Notice, Offer, Opening, VERSION, WANTED, advance,
        arrives,
    },
};
use memlane_transport::Fd;
use rustix::net::SendFlags;

use crate::{props::page, villain::Outcome};

/// A subscriber by hand.
pub(crate) struct Joined {
    pub(crate) link: Link,
    pub(crate) ring: Remote,
    pub(crate) mine: Shared,
    pub(crate) ringer: Option<OwnedFd>,
    pub(crate) start: u64,
    pub(crate) sequence: u64,
    pub(crate) position: u64,
    /// Its cursor is not to be the truth.
    pub(crate) lies: bool,
}

/// Joins by hand, as an honest subscriber would, but for the doorbells.
pub(crate) fn join(
    link: Link,
    offer: Offer,
    trusts: bool,
) -> Result<(Joined, Option<Fd>), Outcome> {
    let (mine, page) = page();
    greet(&link, page, offer, trusts)?;
    match link.recv_timeout(PATIENCE) {
        Ok(Answer::Welcome(welcome)) => {
            let capacity = welcome.capacity as usize;
            let ring = Remote::open(welcome.ring.into(), page_size(), capacity, usize::MAX);
            let (ringer, eventfd) = match welcome.doorbell {
                Bell::None => (None, None),
                Bell::Socket(end) => (Some(end.into()), None),
                Bell::EventFd(end) => (None, Some(end)),
            };
            let joined = Joined {
                link,
                ring: ring.expect("the ring"),
                mine,
                ringer,
                start: welcome.start,
                sequence: welcome.sequence,
                position: welcome.start,
                lies: false,
            };
            Ok((joined, eventfd))
        }
        Ok(Answer::Refused(refusal)) => Err(Outcome::Refused(refusal)),
        Err(error) => panic!("no answer: {error}"),
    }
}

/// Says a version, and hears the other side's.
pub(crate) fn open(link: &Link, version: u32) -> Opening {
    link.send_timeout(&Opening { version }, PATIENCE)
        .expect("room");
    link.recv_timeout(PATIENCE).expect("an opening")
}

pub(crate) fn greet(link: &Link, page: Fd, doorbell: Offer, trusts: bool) -> Result<(), Outcome> {
    let greeting = Greeting {
        trusts,
        ..Greeting::new(page, doorbell)
    };
    link.send_timeout(&greeting, PATIENCE)
        .map_err(|_| Outcome::HungUp)
}

impl Joined {
    /// What a successor sends on, by which nothing comes.
    pub(crate) fn ticket(&self) -> Link {
        self.link
            .send_timeout(&Asks::TICKET, PATIENCE)
            .expect("room");
        loop {
            let said = self.link.recv_timeout(PATIENCE).expect("a notice");
            if let Notice::Ticket { link, .. } = said {
                return Link::from_fd(link.into()).expect("a link");
            }
        }
    }

    /// The link of a successor, which has said where it is answered.
    pub(crate) fn successor(&self) -> Link {
        self.successor_and_its_back().0
    }

    /// The same, with a copy of that.
    pub(crate) fn successor_and_its_back(&self) -> (Link, Link) {
        let (mut link, back) = Link::pair().expect("a pair");
        link.send_over(self.ticket().into_fd()).expect("a ticket");
        let opening = Opening { version: VERSION };
        link.send_timeout(&opening, PATIENCE).expect("room");
        link.send_timeout(&arrives(&back), PATIENCE).expect("room");
        let _: Opening = link.recv_timeout(PATIENCE).expect("an opening");
        (link, back)
    }

    /// How far it is from this message, if there is one, to the next.
    pub(crate) fn poll(&self) -> Option<u64> {
        let header = self.ring.load(self.position);
        fence(Ordering::Acquire);
        (header != 0).then(|| advance(header))
    }

    /// Releases what was found, and says so.
    pub(crate) fn release(&mut self, advance: u64) {
        self.position += advance;
        if !self.lies {
            let cursor = self.position - self.start;
            self.word(CURSOR).store(cursor, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
        if self.ring.load_word(WANTED) != 0 {
            self.ring_the_publisher();
        }
    }

    pub(crate) fn ring_the_publisher(&self) {
        if let Some(ringer) = &self.ringer {
            let _ = rustix::net::send(ringer, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    /// Receives what there is.
    pub(crate) fn drain(&mut self) {
        while let Some(advance) = self.poll() {
            self.release(advance);
        }
    }

    /// Receives so many messages.
    pub(crate) fn read(&mut self, messages: u64) {
        for _ in 0..messages {
            let mut found = None;
            wait_until("a message", || {
                found = self.poll();
                found.is_some()
            });
            self.release(found.expect("just seen"));
        }
    }

    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        self.mine.word(offset)
    }
}

pub(crate) const CAPACITY: usize = 1 << 14;

pub(crate) fn a_ring() -> (Shared, Fd) {
    let (ring, fd) = Shared::create("rogue", page_size(), CAPACITY).expect("a ring");
    (ring, fd.into())
}

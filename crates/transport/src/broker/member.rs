//! A broker's end of the link to one client.

use std::collections::VecDeque;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::net::{Shutdown, shutdown};

use super::MAX_UNREAD;
use super::wire::{BROKER, Message, Request, Version};
use crate::dispose::dispose;
use crate::error::Error;
use crate::link::Link;

/// Identity of a client within its broker, never used again.
pub(super) type Token = u64;

pub(super) struct Member {
    pub(super) name: Arc<str>,
    pub(super) link: Link,
    /// What its epoll registration waits for.
    pub(super) watched: EventFlags,
    /// What it should wait for: requests, or room for the answers to them.
    pub(super) due: EventFlags,
    /// Who asked for the introductions that it may not have received yet, oldest first.
    unread: VecDeque<Token>,
}

impl Member {
    pub(super) const REQUESTS: EventFlags = EventFlags::IN;
    const ROOM: EventFlags = EventFlags::OUT;

    pub(super) fn new(name: Arc<str>, link: Link) -> Member {
        Member {
            name,
            link: link.with_limits(BROKER.in_flight(MAX_UNREAD)),
            watched: Member::REQUESTS,
            due: Member::REQUESTS,
            unread: VecDeque::new(),
        }
    }

    /// The next request, if there is one and room for its answer.
    pub(super) fn request(&mut self) -> Result<Option<Request>, Error> {
        if !self.link.has_room()? {
            self.due = Member::ROOM;
            return Ok(None);
        }
        self.due = Member::REQUESTS;
        match self.link.try_recv() {
            Ok(request) => Ok(Some(request)),
            Err(Error::WouldBlock) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether one more introduction that `asker` wants can be sent here now.
    ///
    /// Each asker gets as many of the places as it leaves to others: 16 of 32 for the first, 8 for the next, then 4, 2,
    /// 1. So one that asks without end still leaves some.
    pub(super) fn has_place_for(&mut self, asker: Token) -> Result<bool, Error> {
        if !self.link.has_room()? {
            return Ok(false);
        }
        let unread = self.link.in_flight()?;
        self.unread
            .drain(..self.unread.len().saturating_sub(unread));
        let own = self.unread.iter().filter(|token| **token == asker).count();
        Ok(own + unread < MAX_UNREAD)
    }

    /// Sends an end of a link.
    pub(super) fn introduce(&mut self, asker: Token, message: &Message) -> Result<(), Error> {
        self.send(message)?;
        self.unread.push_back(asker);
        Ok(())
    }

    pub(super) fn send(&self, message: &Message) -> Result<(), Error> {
        self.link.try_send(&(Version, message))
    }

    /// Hangs up, without waiting for the close: before Linux 6.16 the client can have sent what makes that wait.
    pub(super) fn hang_up(self) {
        // Fails when the client is gone.
        let _ = shutdown(&self.link, Shutdown::Both);
        dispose(self.link.into_fd());
    }
}

//! How requests get into their lane, and what is said of those that were given up.

use std::{
    thread,
    time::{Duration, Instant},
};

use memlane_signaling::remaining;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::{CallError, CallId, Client, Patience, finding::PASSED};
use crate::{
    Trust, TrySendError,
    envelope::{CANCEL, REQUEST, REQUEST_HEADER, given_up, now, put},
    watched::Watch,
};

/// A client that has no descriptor left to wait with for room and for replies looks for both this often.
const AGAIN: Duration = Duration::from_millis(2);

impl<T: Trust> Client<T> {
    /// Sends a request without a deadline, if there is room for it in the ring, and nothing else is to be seen to: all that most
    /// requests need. [`put`](Client::put) does the rest.
    #[inline(always)]
    pub(super) fn put_at_once(&mut self, request: &[u8]) -> Option<CallId> {
        self.settle();
        if self.ended.is_some() {
            return None;
        }
        let id = self.calls.open(None)?;
        if !self.publisher.send_at_once([id.0, REQUEST, 0], request) {
            self.calls.close(id);
            return None;
        }
        self.stats.requests += 1;
        Some(id)
    }

    /// Sends a request. It is awaited from then on.
    #[inline(never)]
    pub(super) fn put(
        &mut self,
        request: &[u8],
        deadline: Option<Instant>,
        patience: Patience,
    ) -> Result<CallId, CallError> {
        self.settle();
        if let Some(reason) = &self.ended {
            let reason = reason.clone();
            return Err(CallError::Disconnected { reason });
        }
        let id = match self.calls.open(deadline) {
            Some(id) => id,
            None => self.make_place(deadline)?,
        };
        let written = match self.write(id, request, deadline) {
            Err(CallError::Full) => {
                let written = self.write_later(id, request, deadline, patience);
                self.tell_news();
                written
            }
            written => written,
        };
        match written {
            Ok(()) => {
                self.stats.requests += 1;
                Ok(id)
            }
            Err(error) => {
                // The server never heard of it.
                self.calls.close(id);
                Err(error)
            }
        }
    }

    /// All places are taken. Those of what was given up are free once the server has said its last.
    #[cold]
    fn make_place(&mut self, deadline: Option<Instant>) -> Result<CallId, CallError> {
        self.take_in()?;
        self.tell_news();
        let requests = self.calls.limit;
        self.calls
            .open(deadline)
            .ok_or(CallError::TooMany { requests })
    }

    #[inline]
    fn write(
        &mut self,
        id: CallId,
        request: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), CallError> {
        let len = request.len().saturating_add(REQUEST_HEADER);
        let mut place = match self.publisher.try_reserve(len) {
            Ok(place) => place,
            Err(TrySendError::Disconnected) => return Err(self.hung_up()),
            Err(error) => return Err(CallError::unsent(error)),
        };
        let (header, payload) = place.split_at_mut(REQUEST_HEADER);
        put([id.0, REQUEST, deadline.map_or(0, in_words)], header);
        payload.copy_from_slice(request);
        place.commit();
        Ok(())
    }

    /// The lane of requests has nobody at its other end. Why is said in that of replies, behind those that wait.
    #[cold]
    fn hung_up(&mut self) -> CallError {
        self.subscriber.ask();
        match self.take_in() {
            Err(error @ CallError::Disconnected { .. }) => error,
            _ => CallError::unsent(TrySendError::Disconnected),
        }
    }

    /// There is no room. While it is waited for, replies are taken in: the server may be waiting for room for those.
    #[cold]
    fn write_later(
        &mut self,
        id: CallId,
        request: &[u8],
        deadline: Option<Instant>,
        patience: Patience,
    ) -> Result<(), CallError> {
        self.take_in()?;
        let Patience::Until(until) = patience else {
            return self.write(id, request, deadline);
        };
        let polls = self.publisher.polls() || self.subscriber.polls();
        // There may be no descriptor for that.
        let watches = self.watched.is_none() && !polls && Watch::watch(self).is_ok();
        let written = loop {
            if let Err(error) = self.take_in() {
                break Err(error);
            }
            match self.write(id, request, deadline) {
                Err(CallError::Full) => {}
                written => break written,
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                break Err(CallError::TimedOut);
            }
            if polls {
                std::hint::spin_loop();
            } else if self.watched.is_none() {
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                thread::sleep(left.map_or(AGAIN, |left| left.min(AGAIN)));
            } else if let Err(error) = self.wait_for_either(until) {
                break Err(error);
            }
        };
        if watches {
            Watch::unwatch(self);
        }
        written
    }

    /// Waits for room, for a reply, or for the deadline.
    fn wait_for_either(&self, until: Option<Instant>) -> Result<(), CallError> {
        let mut lanes = [PollFd::new(Watch::descriptor(self), PollFlags::IN)];
        match poll(&mut lanes, until.map(remaining).as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(CallError::Wait(errno.into())),
        }
    }

    /// Keeps the replies that wait: all of them, but for those of a server that sends many that concern nobody, and goes on.
    pub(super) fn take_in(&mut self) -> Result<(), CallError> {
        if let Some(reason) = &self.ended {
            let reason = reason.clone();
            return Err(CallError::Disconnected { reason });
        }
        let mut passed = 0;
        while passed < PASSED {
            let record = match self.find_now() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.unheard(error)),
            };
            match self.sort(record)? {
                Some((id, kind)) => self.store(id, kind, record)?,
                None => passed += 1,
            }
        }
        self.subscriber.look_again();
        Ok(())
    }

    /// Gives up what was dropped, and says of what was given up what could not be said before.
    #[inline(always)]
    pub(super) fn settle(&mut self) {
        if let Some(dropped) = self.dropped.take() {
            dropped.into_iter().for_each(|id| self.give_up(id));
        }
        if !self.untold.is_empty() {
            self.tell_again();
        }
    }

    #[cold]
    fn tell_again(&mut self) {
        let untold = std::mem::take(&mut self.untold);
        untold.into_iter().for_each(|id| self.tell(id));
    }

    /// Nobody waits for it any more.
    #[cold]
    pub(super) fn give_up(&mut self, id: CallId) {
        if self.calls.give_up(id) {
            self.stats.given_up += 1;
            self.tell(id);
        }
    }

    /// Tells the server that a request was given up: in a word, which it sees before it begins with it, and in the lane, which
    /// wakes it.
    fn tell(&mut self, id: CallId) {
        self.publisher.show(given_up(id.0), id.0);
        let wanting = self.publisher.is_wanting();
        match self.publisher.try_reserve(REQUEST_HEADER) {
            Ok(mut place) => {
                put([id.0, CANCEL, 0], &mut place);
                place.commit();
                if wanting && !self.publisher.is_wanting() {
                    // Nobody waits any more for the room that the user has not found: he is to look for it again.
                    self.news = true;
                    self.subscriber.look_again();
                }
            }
            Err(TrySendError::Full) => self.untold.push(id),
            // Nobody is there any more.
            Err(_) => {}
        }
    }
}

/// A deadline as the server reads it.
fn in_words(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    // 0 is none.
    now().saturating_add(left).max(1)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crate::{CallError, Client, Link, Publisher, Reason, Server, TryRecvError, Watched};

    #[test]
    fn who_finds_the_lane_closed_is_told_why() {
        let (ours, theirs) = Link::pair().unwrap();
        let mut server = Server::builder().unbound().unwrap();
        server.attach(ours).unwrap();
        let client = thread::spawn(|| {
            let requests = Publisher::builder().ring_bytes(4096);
            Client::builder().requests(requests).over(theirs).unwrap()
        });
        while server.clients() == 0 {
            assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
        }
        let mut client = Watched::new(client.join().unwrap()).unwrap();
        let full = loop {
            match client.try_send(&[0; 500]) {
                Ok(call) => drop(call.detach()),
                Err(error) => break error,
            }
        };
        assert!(matches!(full, CallError::Full), "{full:?}");
        server.close();
        // It may still get into the ring, with nobody there.
        let error = loop {
            match client.try_send(&[0; 500]) {
                Ok(call) => drop(call.detach()),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(
                error,
                CallError::Disconnected {
                    reason: Reason::Closed
                }
            ),
            "{error:?}"
        );
    }
}

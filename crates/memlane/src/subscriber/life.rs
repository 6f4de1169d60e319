//! What is known of the publisher's life, and what comes of its end.

use memlane_transport::Address;
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};

use super::{Next, NoMessage, Subscriber, Travel, Trust, Why};
use crate::Reason;

/// What is known of the publisher's life.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) gone: bool,
    /// Empty-handed calls of `try_recv`, and the clock when the kernel was last asked.
    pub(super) misses: u32,
    pub(super) asked: Timespec,
}

/// For so long a publisher may be dying.
const DYING: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

impl<T: Trust> Subscriber<T> {
    /// Unmaps what the publisher has given up, and takes attachments of messages that did not come about, if it waits for that.
    /// What is new can wait until a message is in it.
    pub(super) fn take_notices(&mut self) {
        if !self.chunks.is_empty() || self.ring.page().is_awaited() {
            self.chunks.take_notices(&self.link, self.position());
            self.tell_taken();
            if self.chunks.is_broken() {
                // The publisher does not wait for it any more.
                self.ring.stop();
            }
        }
    }

    #[cold]
    pub(super) fn look_for_death(&mut self) -> Result<(), NoMessage> {
        self.settle();
        if !self.life.gone && self.is_publisher_gone().map_err(Why::Wait)? {
            self.bury();
        }
        Ok(())
    }

    /// The publisher is gone. What it committed before that is in the ring: what is not there now never
    /// will be. `None` if there is more to look at than one look takes.
    pub(super) fn rest(&mut self) -> Result<Option<Next>, NoMessage> {
        match self.poll() {
            // It was that of the process from which the publisher has moved.
            Ok(None) if self.settle() && !self.life.gone => Ok(None),
            Ok(None) if self.may_sleep() => {
                let stranded = self.lossy.as_ref().and_then(|lossy| lossy.stranded());
                let why = match stranded {
                    Some(error) => Why::Chunk(error.clone()),
                    None => {
                        let reason = self.chunks.farewell(&self.link);
                        if matches!(reason, Reason::Evicted { .. }) || self.chunks.is_broken() {
                            self.leave_dropped();
                        }
                        Why::Disconnected(reason)
                    }
                };
                Err(why.into())
            }
            found => found,
        }
    }

    /// The publisher goes on without this subscriber, which has had all that it will get: what was left to it is given back, but
    /// for what it holds, or another goes on from.
    #[cold]
    pub(super) fn leave_dropped(&mut self) {
        if self.lossy.is_some() {
            // It is in nobody's way, and what it finds it may still read.
            return;
        }
        self.ring.stop();
        if self.ring.page().holds().taken() == 0 {
            self.link.hang_up();
        } else if self.travel == Travel::Stays {
            self.ring.leave();
        }
    }

    #[cold]
    pub(super) fn bury(&mut self) {
        if self.settle() && !self.life.gone {
            return;
        }
        self.life.gone = true;
        self.clear_name();
    }

    /// A publisher that was killed left its socket's name; the first to notice clears it.
    fn clear_name(&self) {
        if let (true, Some(address)) = (self.life.gone, &self.address) {
            let _ = memlane_transport::remove_stale(address);
        }
    }

    /// The name is still there. The link of a dying process may end a moment before its listener does; once its pidfd is
    /// readable, both have (do_exit: exit_files and exit_task_work come before exit_notify).
    pub(super) fn clear_name_of_the_dead(&self) {
        let (true, Some(Address::Path(name)), Some(process)) =
            (self.life.gone, &self.address, &self.process)
        else {
            return;
        };
        if name.exists() {
            let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&DYING));
            self.clear_name();
        }
    }
}

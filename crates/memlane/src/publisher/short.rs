//! How a publisher waits in a process that has no descriptor left for what wakes it.

use std::{io, sync::Arc, thread, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{control::Control, peer::Peer, state::Connection};

/// What no doorbell tells of (who has left, loans that were dropped) is looked for this often.
const AGAIN: Duration = Duration::from_millis(2);

impl Control {
    /// Waits until a subscriber has made room, or for a while, or until the time is over; takes what has happened, and does the
    /// control work of a driven publisher. As [`take_wakes`](Control::take_wakes), with the descriptors that there are.
    pub(super) fn await_rings(&self, driven: bool, timeout: Option<Timespec>) -> io::Result<()> {
        let peers: Vec<(u32, Arc<Peer>)> = self
            .state()
            .links
            .iter()
            .filter_map(|(source, connection)| match connection {
                Connection::Joined { peer, .. } | Connection::Arriving { peer, .. } => {
                    Some((*source, peer.clone()))
                }
                Connection::Greeting(_) => None,
            })
            .collect();
        let doorbells = peers
            .iter()
            .filter_map(|(source, peer)| Some((*source, peer.doorbell()?)));
        let (numbers, mut watched): (Vec<u32>, Vec<PollFd<'_>>) = doorbells
            .map(|(source, bell)| (source, PollFd::new(bell, PollFlags::IN | PollFlags::RDHUP)))
            .unzip();
        if driven {
            watched.push(PollFd::new(&*self.epoll, PollFlags::IN));
        }
        let again = Timespec {
            tv_sec: 0,
            tv_nsec: AGAIN.subsec_nanos().into(),
        };
        let timeout = timeout.map_or(again, |timeout| timeout.min(again));
        match poll(&mut watched, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            // More than RLIMIT_NOFILE is now, or short of memory.
            Err(_) => thread::sleep(AGAIN),
        }
        let ended = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        for (source, found) in numbers.into_iter().zip(&watched) {
            let flags = found.revents();
            if !flags.is_empty() {
                self.rung(source, flags.intersects(ended));
            }
        }
        match driven {
            true => self.drive().map(drop),
            false => Ok(()),
        }
    }
}

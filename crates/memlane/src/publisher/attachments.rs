//! Attachments: descriptors beside messages. They go over each subscriber's link, before the record is committed whose
//! header says that it has some.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

use memlane_region::ring::TAGS;
use memlane_transport::{Error as LinkError, Fds, WeakFds};
use rustix::io::Errno;

use super::{
    Publisher,
    control::Control,
    peer::Peer,
    room::{Need, NoRoomInTime},
    state::{Connection, State},
};
use crate::protocol::{MAX_ATTACHED, NoticeRef};

/// What the kernel refuses is tried again after so long.
const PAUSE: Duration = Duration::from_millis(2);

/// Attachments of the message that is being sent, as subscribers know them. Forgotten by whoever sends it, they are known to
/// nobody any more: what has been told of them is void.
#[derive(Debug)]
pub(super) struct Attaching {
    /// Where the record of their message begins.
    position: u64,
    tag: u16,
    fds: WeakFds,
}

/// What is on its way to one subscriber.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// Notices that have been sent, and of those the ones that have been taken.
    sent: u64,
    taken: u64,
    /// Descriptors of each of the others, the oldest first, and of all.
    counts: VecDeque<usize>,
    descriptors: usize,
    /// Position and tag of the last one.
    told: Option<(u64, u16)>,
    /// A part of the last one has not left yet.
    part: bool,
    /// There was no room for the next one, the last time.
    full: bool,
    /// Its armed flag when it was woken for them last.
    woken: u64,
}

impl Flight {
    /// Takes note of what has been taken. False if no subscriber can have taken so many, or fewer than before.
    fn take(&mut self, taken: u64) -> bool {
        if taken < self.taken || taken > self.sent {
            return false;
        }
        let count = (taken - self.taken) as usize;
        self.taken = taken;
        self.descriptors -= self.counts.drain(..count).sum::<usize>();
        true
    }

    /// What another publisher has sent, and what of that was taken.
    pub(super) fn of(sent: u64, taken: u64, counts: VecDeque<usize>) -> Flight {
        Flight {
            sent,
            taken,
            descriptors: counts.iter().sum(),
            counts,
            ..Flight::default()
        }
    }

    /// Whether a message with so many attachments may follow. One that has more than there may ever be goes by itself.
    fn has_room(&self, count: usize, most: usize) -> bool {
        self.counts.is_empty()
            || self.counts.len() < MAX_ATTACHED && self.descriptors + count <= most
    }
}

/// Why not all subscribers have been told.
pub(super) enum Unattached {
    /// One of them has not taken enough of what was sent before.
    Full,
    /// The kernel takes no more for now, and nothing tells when it will.
    Later,
    /// One of the descriptors cannot be passed.
    Descriptor(io::Error),
}

impl Peer {
    /// Whether a message with so many attachments may follow what is on its way to it. For one that is gone, or is from here
    /// on, it may; and for one that is not waited for, which goes without them if there is no room.
    fn has_room(&self, count: usize, most: usize) -> bool {
        if self.has_left() || self.evicted() || self.dismissed() {
            return true;
        }
        let taken = self.taken();
        let mut flight = self.flight();
        let (before, sent) = (flight.taken, flight.sent);
        if flight.take(taken) {
            flight.full = !flight.has_room(count, most);
            return !flight.full || self.is_lossy();
        }
        drop(flight);
        self.evict(format!(
            "expected a count of attachments taken from {before} to {sent}, got {taken}"
        ));
        true
    }

    /// How many notices of attachments it has been sent, how many it had taken when last looked at, and how many descriptors the
    /// others have.
    pub(super) fn in_flight(&self) -> (u64, u64, Vec<u32>) {
        let flight = self.flight();
        let counts = flight.counts.iter().map(|count| *count as u32);
        (flight.sent, flight.taken, counts.collect())
    }

    /// How many notices of attachments it has been sent.
    pub(super) fn sent_attachments(&self) -> u64 {
        self.flight().sent
    }

    /// Wakes it if it sleeps and has not taken what has been sent: it may have no message to take it for. Once for each sleep: its
    /// doorbell has no room for more rings than it expects, and in a loop it counts as asleep until it has been found empty.
    fn wake_for_attachments(&self) {
        let mut flight = self.flight();
        let armed = self.armed();
        if flight.taken < flight.sent && armed != 0 && flight.woken != armed {
            flight.woken = armed;
            drop(flight);
            self.wake_again();
        }
    }

    /// Tells it of attachments, unless it has been told. One that cannot be told, for reasons of its own, is gone from here on.
    fn attach(&self, position: u64, tag: u16, fds: &Fds) -> Result<(), Unattached> {
        let at = Some((position, tag));
        let mut flight = self.flight();
        let told = flight.told == at && !flight.part || flight.full;
        if told || self.has_left() || self.evicted() || self.dismissed() {
            return Ok(());
        }
        let told = self.with_link(|link| {
            if flight.part {
                link.try_flush()?;
                flight.part = false;
                if flight.told == at {
                    return Ok(());
                }
            }
            link.try_send(&NoticeRef::Attachments { position, tag, fds })?;
            flight.told = at;
            flight.sent += 1;
            flight.counts.push_back(fds.len());
            flight.descriptors += fds.len();
            // More than a packet takes leave one by one.
            flight.part = true;
            link.try_flush()?;
            flight.part = false;
            Ok(())
        });
        drop(flight);
        match told {
            None | Some(Ok(())) => Ok(()),
            Some(Err(LinkError::WouldBlock)) if self.is_lossy() => Ok(()),
            Some(Err(LinkError::WouldBlock)) => Err(Unattached::Later),
            // Such as an io_uring's.
            Some(Err(LinkError::Io { source, .. }))
                if Errno::from_io_error(&source) == Some(Errno::INVAL) =>
            {
                Err(Unattached::Descriptor(source))
            }
            Some(Err(error)) => {
                let why = format!("it cannot be sent attachments: {error}");
                match &error {
                    // It refuses descriptors (SO_PASSRIGHTS), and has said that it takes some.
                    LinkError::Io { source, .. }
                        if Errno::from_io_error(source) == Some(Errno::PERM) =>
                    {
                        self.evict(why);
                    }
                    error if error.is_disconnected() => {}
                    _ => self.fail(why),
                }
                Ok(())
            }
        }
    }
}

impl State {
    /// Tells a subscriber that has just joined of what the others know already. Whether it can be told.
    pub(super) fn attach_to(&self, peer: &Peer) -> bool {
        let attaching = self.attaching.as_ref();
        let known = attaching.and_then(|known| Some((known, known.fds.upgrade()?)));
        known.is_none_or(|(known, fds)| peer.attach(known.position, known.tag, &fds).is_ok())
    }
}

impl Control {
    /// Tells all subscribers of attachments of the message whose record is going to be at this position, those who join later
    /// included; the tag for its header. If not all can be told, those who were are not told again by the next call for the
    /// same descriptors.
    fn send_attachments(&self, position: u64, fds: &Fds) -> Result<u16, Unattached> {
        // Pairs with the fence of a subscriber between its count of what it has taken and its look at what is wanted.
        fence(Ordering::SeqCst);
        let mut state = self.state();
        let known = state.attaching.as_ref();
        let known = known.filter(|known| known.position == position && known.fds.is(fds));
        let tag = match known {
            Some(known) => known.tag,
            None => {
                let most = self.terms.attachments_in_flight;
                // Each is asked: whom it skips was told so then.
                let full = state.peers().filter(|peer| !peer.has_room(fds.len(), most));
                // Who is to take the place of one that has departed has to be there to be told.
                if full.count() > 0 || state.keeps_a_place() {
                    return Err(Unattached::Full);
                }
                // Never that of the attempt before, of which a subscriber may have a notice for the same position.
                let tag = (state.last_tag + 1) % TAGS;
                state.last_tag = tag;
                state.attaching = Some(Attaching {
                    position,
                    tag,
                    fds: fds.downgrade(),
                });
                tag
            }
        };
        let mut told = Ok(tag);
        for peer in state.peers() {
            match peer.attach(position, tag, fds) {
                Ok(()) => {}
                Err(Unattached::Descriptor(error)) => return Err(Unattached::Descriptor(error)),
                Err(refused) => told = Err(refused),
            }
        }
        told
    }

    /// Those that a message with attachments waits for, as of the last look: they have not taken what is on its way to them, or
    /// have departed without a successor.
    pub(super) fn in_the_way_of_attachments(&self) -> Vec<Arc<Peer>> {
        let state = self.state();
        let links = state.links.values();
        let slow = links.filter_map(|connection| match connection {
            Connection::Joined { peer, place, .. } => match place.is_own() {
                true => peer.flight().full.then_some(peer),
                false => place.is_kept().then_some(peer),
            },
            _ => None,
        });
        let slow = slow.filter(|peer| {
            !(peer.is_lossy() || peer.has_left() || peer.evicted() || peer.dismissed())
        });
        slow.cloned().collect()
    }

    /// The message has been committed: those who join from now on need not be told.
    fn attached(&self) {
        self.state().attaching = None;
    }

    /// Wakes subscribers that sleep and have not taken what has been sent.
    fn wake_for_attachments(&self) {
        self.state()
            .peers()
            .for_each(|peer| peer.wake_for_attachments());
    }
}

/// What the publisher is about to attach, while it waits for room for it.
#[derive(Debug, Default)]
pub(super) struct Attach {
    fds: Fds,
    tag: u16,
    /// The kernel has refused it, the last time.
    refused: bool,
}

impl Attach {
    /// Looks whether they can be attached, and attaches them.
    pub(super) fn look(&mut self, control: &Control, position: u64) -> Result<(), NoRoomInTime> {
        let attached = control.send_attachments(position, &self.fds);
        self.refused = matches!(attached, Err(Unattached::Later));
        match attached {
            Ok(tag) => {
                self.tag = tag;
                Ok(())
            }
            Err(Unattached::Full | Unattached::Later) => Err(NoRoomInTime::Full),
            Err(Unattached::Descriptor(error)) => Err(NoRoomInTime::Attachment(error)),
        }
    }
}

impl Publisher {
    /// Attaches descriptors to the message for which there is room in the ring: all subscribers have been told of them. The
    /// tag for its header; none if there are no descriptors. So many bytes of the message are written in the ring.
    pub(super) fn attach_next(
        &mut self,
        fds: &Fds,
        written: Option<usize>,
        room: impl Fn(&mut Publisher, Need) -> Result<(), NoRoomInTime>,
    ) -> Result<Option<u16>, NoRoomInTime> {
        if fds.is_empty() {
            return Ok(None);
        }
        let (count, max) = (fds.len(), self.max_attachments());
        if count > max {
            return Err(NoRoomInTime::TooManyAttachments { count, max });
        }
        self.attach.fds = fds.clone();
        let attached = room(self, Need::Attachments(written));
        self.attach.fds = Fds::default();
        attached.map(|()| Some(self.attach.tag))
    }

    /// After a commit.
    pub(super) fn attached(&mut self) {
        self.control.attached();
    }

    /// It is about to wait until what was sent before is taken. When to try again, if the kernel has refused it and will not tell.
    pub(super) fn await_attachments(&self) -> Option<Instant> {
        self.control.wake_for_attachments();
        let refused = self.attach.refused;
        refused.then(|| Instant::now() + PAUSE)
    }
}

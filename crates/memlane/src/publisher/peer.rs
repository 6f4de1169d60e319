use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use memlane_region::{
    Remote,
    pool::{self, NOTHING},
    ring::{self, End, LEFT},
};
use memlane_signaling::{CARRIED, Doorbell, Look, Ringer, Rung};
use memlane_transport::{Error as LinkError, Link, Room};
use rustix::net::sockopt;

use super::{
    attachments::Flight,
    told::{Part, Told},
};
use crate::{
    doorbells::Bell,
    page::{CURSOR, HOLDS, HOLDS_USED, SUBSCRIBER_ARMED, TAKEN},
    protocol::{Farewell, NoticeRef, Overflow},
};

/// One subscriber, as its publisher sees it. Shared by the hot side (cursor, doorbells) and the control side
/// (link).
#[derive(Debug)]
pub(super) struct Peer {
    /// The subscriber's control page.
    page: Remote,
    /// Its descriptor, for a publisher in another process; none where that cannot move.
    page_descriptor: Option<OwnedFd>,
    /// Of one that holds nobody up, whatever its page says. The control side's.
    lossy: Option<Mutex<Told>>,
    /// Wakes the subscriber; none if it never sleeps.
    ringer: Option<Bell>,
    rung: Rung,
    /// Wakes this publisher when it waits for room; none if it never sleeps.
    doorbell: Option<Doorbell>,
    /// Taken out when the subscriber is gone: the hot side may hold on to the rest until its next look.
    link: Mutex<Option<Arc<Link>>>,
    /// Attachments on their way to it. The hot side's alone, but when it joins.
    flight: Mutex<Flight>,
    evicted: AtomicBool,
    /// What it is to be told of that, while there is no room for it.
    last_word: Mutex<Option<Farewell>>,
    /// So many packets have come of it since.
    late: AtomicU32,
    /// So many tickets were given to it since its link was last seen with nothing unread.
    tickets: AtomicU32,
    /// It was too slow: the publisher goes on without it.
    dismissed: AtomicBool,
    overflow: Overflow,
    pid: Option<u32>,
}

impl Peer {
    pub(super) fn new(
        (page, page_descriptor): (Remote, Option<OwnedFd>),
        overflow: Overflow,
        ringer: Option<Bell>,
        doorbell: Option<Doorbell>,
        link: Arc<Link>,
        registered: bool,
    ) -> Peer {
        Peer {
            page,
            page_descriptor,
            lossy: (overflow == Overflow::Overwrite).then(Mutex::default),
            ringer,
            rung: if registered {
                Rung::registered()
            } else {
                Rung::new()
            },
            doorbell,
            pid: link.peer().ok().and_then(|peer| peer.pid()),
            link: Mutex::new(Some(link)),
            flight: Mutex::default(),
            evicted: AtomicBool::new(false),
            last_word: Mutex::new(None),
            late: AtomicU32::new(0),
            tickets: AtomicU32::new(0),
            dismissed: AtomicBool::new(false),
            overflow,
        }
    }

    /// What it has asked for.
    pub(super) fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// The process that made the other end of its link.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Tells it that this publisher goes on without it, and where it ends, before that is so. False if it cannot be told now: then it
    /// must not be so.
    /// It may read on in what is left to it, and closes the link when it is done: until then that stays open in both directions,
    /// since who finds one closed may close the other.
    pub(super) fn dismiss(&self, why: String, end: End) -> bool {
        let farewell = Farewell::Dismissed {
            why,
            ring: end.ring,
            end: end.position,
        };
        let told = self.with_link(|link| {
            let told = say(link, &farewell);
            self.dismissed.store(told, Ordering::Relaxed);
            if !told && link.sends_over().is_some() {
                // There is always room for that in a socket that is as it was made: nobody waits for one who has made it smaller.
                self.evicted.store(true, Ordering::Relaxed);
                link.hang_up();
            }
            told
        });
        // One that is gone is taken out by others.
        told.unwrap_or(false)
    }

    /// This publisher does not go on without it after all.
    pub(super) fn retain(&self) {
        self.dismissed.store(false, Ordering::Relaxed);
    }

    /// Goes on without one that has no link any more: its place is kept for whoever has its ticket, or it is just being taken out. False
    /// if it has one.
    pub(super) fn dismiss_absent(&self) -> bool {
        let absent = self.with_link(|_| ()).is_none();
        self.dismissed.fetch_or(absent, Ordering::Relaxed);
        absent
    }

    pub(super) fn dismissed(&self) -> bool {
        self.dismissed.load(Ordering::Relaxed)
    }

    /// Whether it may be asleep, so that commits have to look at its armed flag.
    pub(super) fn sleeps(&self) -> bool {
        self.ringer.is_some()
    }

    /// Whether commits need a full fence before they look at its armed flag.
    pub(super) fn fences(&self) -> bool {
        self.sleeps() && self.rung.fences()
    }

    /// Wakes it if it sleeps; what has become of its armed flag, if anything. After a commit and a fence.
    #[inline(always)]
    pub(super) fn wake(&self) -> Option<Look> {
        let ringer = self.ringer.as_ref()?;
        let look = self.rung.look(self.page.load_word(SUBSCRIBER_ARMED))?;
        if look.ring {
            ringer.ring();
        }
        Some(look)
    }

    /// Wakes it if it sleeps, once more than it may have been.
    pub(super) fn wake_again(&self) {
        if let Some(ringer) = &self.ringer {
            if self.armed() != 0 {
                ringer.ring();
            }
        }
    }

    /// Not 0 while it sleeps, and another number for each sleep.
    pub(super) fn armed(&self) -> u64 {
        self.page.load_word(SUBSCRIBER_ARMED) & !CARRIED
    }

    pub(super) fn doorbell(&self) -> Option<&Doorbell> {
        self.doorbell.as_ref()
    }

    fn locked_link(&self) -> MutexGuard<'_, Option<Arc<Link>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the link, if the subscriber is not gone yet.
    pub(super) fn with_link<T>(&self, with: impl FnOnce(&Link) -> T) -> Option<T> {
        self.locked_link().as_deref().map(with)
    }

    /// Tells it of the pool or of a ring. One that takes no notices, for whatever reason, cannot go on: it is
    /// [given up](Peer::give_up). One that has left needs none.
    ///
    /// Whether it falls behind by this, as one that is overwritten does, or one that is to be told why it was given up: it is to
    /// [catch up](Peer::catch_up) once its link is writable.
    pub(super) fn tell(&self, notice: &NoticeRef<'_>) -> bool {
        if self.has_left() || self.dismissed() {
            return false;
        }
        if self.evicted() {
            return self.last_word().is_some();
        }
        let told = self.with_link(|link| match &self.lossy {
            Some(told) => locked(told).tell(notice, |notice| send(link, notice)),
            None => send(link, notice).map(|sent| !sent && self.give_up(link, UNREAD.to_owned())),
        });
        self.behind(told)
    }

    /// Whether there is no room to tell it of a successor, and of what comes of that, though it is one that a publisher waits for. One
    /// that was given a smaller socket to be told over is not waited for: it would have no room from the start.
    pub(super) fn holds_up_moves(&self) -> bool {
        let full = |link: &Link| -> Result<bool, LinkError> {
            let room = link.room()?;
            let made = sockopt::socket_send_buffer_size(link).unwrap_or(0);
            Ok(!room.is_left_beside(LAST_WORDS + OF_A_MOVE) && room.size >= made)
        };
        let waits = self.overflow == Overflow::Block && !self.evicted();
        waits && matches!(self.with_link(full), Some(Ok(true)))
    }

    /// Tells it that the first ring of a successor is none after all, as [`tell`](Peer::tell) does.
    pub(super) fn withdraw(&self, ring: u32) -> bool {
        let behind = self.tell(&NoticeRef::RingRemoved { id: ring });
        if let Some(told) = &self.lossy {
            locked(told).owe(Part::Ring(ring));
        }
        behind
    }

    /// Goes on without it, which may be as honest as it is slow: for it, this publisher is gone from here on. It stays a reader
    /// until it has closed the link itself, since it may be reading what there was, and what it holds. For as long as it does not
    /// know why, it must not find the end of the link: it would take this publisher for dead, close the link, and read on in a ring
    /// that is not kept for it. Whether it cannot be told now.
    fn give_up(&self, link: &Link, why: String) -> bool {
        self.evicted.store(true, Ordering::Relaxed);
        let farewell = Farewell::Evicted { why };
        let said = say(link, &farewell);
        if said {
            shut(link);
        }
        *self.last_word() = (!said).then_some(farewell);
        !said
    }

    /// Whether one that was given up may say one thing more. It may not have heard of that yet; but it says no more than this
    /// without having heard an answer.
    pub(super) fn may_speak(&self) -> bool {
        self.late.fetch_add(1, Ordering::Relaxed) < MAX_LATE
    }

    fn last_word(&self) -> MutexGuard<'_, Option<Farewell>> {
        self.last_word
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells one that has fallen behind of what there is, and of what there is no more; whether there is still more to tell.
    pub(super) fn catch_up<'a>(
        &self,
        there_is: impl Iterator<Item = (Part, NoticeRef<'a>)> + Clone,
    ) -> bool {
        let told = self.with_link(|link| match &self.lossy {
            _ if self.evicted() => Ok(match &mut *self.last_word() {
                Some(farewell) if !say(link, farewell) => true,
                farewell => {
                    if farewell.take().is_some() {
                        shut(link);
                    }
                    false
                }
            }),
            Some(told) => {
                let all = locked(told).catch_up(there_is, |notice| send(link, notice));
                all.map(|all| !all)
            }
            None => Ok(false),
        });
        self.behind(told)
    }

    fn behind(&self, told: Option<Result<bool, LinkError>>) -> bool {
        match told {
            Some(Ok(behind)) => behind,
            // That it is gone is heard of its link.
            Some(Err(error)) if error.is_disconnected() => false,
            Some(Err(error)) => {
                let why = format!("it cannot be told of the pool: {error}");
                self.with_link(|link| self.give_up(link, why)) == Some(true)
            }
            None => false,
        }
    }

    /// It has been told of all this.
    pub(super) fn begin(&self, parts: impl Iterator<Item = Part>) {
        if let Some(told) = &self.lossy {
            locked(told).begin(parts);
        }
    }

    /// Whether there is more to tell it.
    pub(super) fn is_behind(&self) -> bool {
        let told = self.lossy.as_ref();
        told.is_some_and(|told| locked(told).is_behind()) || self.last_word().is_some()
    }

    pub(super) fn flight(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many notices of attachments it says it has taken.
    pub(super) fn taken(&self) -> u64 {
        self.page.load_word(TAKEN)
    }

    /// Whether it holds nobody up, whatever it does.
    pub(super) fn is_lossy(&self) -> bool {
        self.lossy.is_some()
    }

    /// Whether it has left, and reads nothing more.
    pub(super) fn has_left(&self) -> bool {
        self.page.load_word(CURSOR) == LEFT
    }

    /// Goes on without it at once, since it does not play by the rules: nothing is left to it.
    pub(super) fn evict(&self, why: String) {
        self.evicted.store(true, Ordering::Relaxed);
        self.farewell(&Farewell::Evicted { why });
        self.hang_up();
    }

    /// Tells it something that concerns it alone; whether it could be told.
    pub(super) fn try_say(&self, notice: &NoticeRef<'_>) -> bool {
        self.with_link(|link| link.try_send(notice).is_ok()) == Some(true)
    }

    /// Says it, if there is room for that. False if there is not, with somebody there to be told.
    fn sends(&self, notice: &NoticeRef<'_>) -> bool {
        if self.evicted() || self.dismissed() {
            return true;
        }
        match self.with_link(|link| send(link, notice)) {
            Some(Ok(sent)) => sent,
            Some(Err(error)) => error.is_disconnected(),
            None => true,
        }
    }

    /// How many of its tickets it may have left unread, at most.
    pub(super) fn unread_tickets(&self) -> usize {
        let packets = |link: &Link| link.room().map_or(usize::MAX, Room::packets);
        let unread = self.with_link(packets).unwrap_or(0);
        if unread == 0 {
            self.tickets.store(0, Ordering::Relaxed);
        }
        unread.min(self.tickets.load(Ordering::Relaxed) as usize)
    }

    /// Gives it one, as it [says](Peer::sends) anything.
    pub(super) fn gives_ticket(&self, ticket: &NoticeRef<'_>) -> bool {
        let given = self.sends(ticket);
        self.tickets.fetch_add(u32::from(given), Ordering::Relaxed);
        given
    }

    /// The same as [`sends`](Peer::sends). One that cannot be told has left others unread: it is [given up](Peer::give_up).
    pub(super) fn say(&self, notice: &NoticeRef<'_>) {
        if self.evicted() || self.dismissed() {
            return;
        }
        match self.with_link(|link| send(link, notice)) {
            Some(Ok(false)) => self.fail(UNREAD.to_owned()),
            Some(Err(error)) if !error.is_disconnected() => {
                self.fail(format!("it cannot be told of its move: {error}"));
            }
            // That it is gone is heard of its link.
            _ => {}
        }
    }

    /// [Gives it up](Peer::give_up), for want of a way to go on with it.
    pub(super) fn fail(&self, why: String) {
        self.with_link(|link| self.give_up(link, why));
    }

    /// Tells it why the link is about to end.
    pub(super) fn farewell(&self, farewell: &Farewell) {
        self.with_link(|link| say(link, farewell));
    }

    /// Ends the link, which tells the subscriber, and the control side too.
    pub(super) fn hang_up(&self) {
        self.with_link(Link::hang_up);
    }

    /// What another process needs to know it: its control page, and its doorbell.
    pub(super) fn descriptors(&self) -> Option<(&OwnedFd, Option<&Ringer>)> {
        let ringer = self.ringer.as_ref().and_then(Bell::ringer);
        Some((self.page_descriptor.as_ref()?, ringer))
    }

    /// Lets go of the link, which another process has by now: it stays open.
    pub(super) fn let_go(&self) {
        *self.locked_link() = None;
    }

    /// Lets go of the link, whoever still holds this peer, and ends it on both sides.
    pub(super) fn close(&self) {
        self.hang_up();
        *self.locked_link() = None;
    }

    pub(super) fn evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }
}

fn locked(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether there was room.
fn send(link: &Link, notice: &NoticeRef<'_>) -> Result<bool, LinkError> {
    if link.sends_over().is_some() && !link.room()?.is_left_beside(LAST_WORDS) {
        return Ok(false);
    }
    match link.try_send(notice) {
        Ok(()) => Ok(true),
        Err(LinkError::WouldBlock) => Ok(false),
        Err(error) => Err(error),
    }
}

/// So many packets may be on their way from one that is given up.
const MAX_LATE: u32 = 4;

/// Of one that is given up for that.
const UNREAD: &str = "it has left too many notices of the pool unread";

/// Bytes for them in a socket that cannot be enlarged: one or two, which are no longer than a packet may be, as the kernel counts.
const LAST_WORDS: usize = 16 << 10;

/// The same, for what is said of a move: the successor's ring, and that it has begun, or that it is none after all.
const OF_A_MOVE: usize = 4 << 10;

/// Nothing more is said.
fn shut(link: &Link) {
    link.end_sending();
}

/// A last word. It finds room where notices do not any more: one that does not read them is told all the same. False if it does
/// not, with somebody there to be told.
fn say(link: &Link, farewell: &Farewell) -> bool {
    let notice = NoticeRef::Farewell(farewell);
    let mut said = link.try_send(&notice);
    // A socket that another has made is left as it is: whoever holds it can sleep in setsockopt with its lock (a page fault
    // in SO_LINGER's value), and this process would sleep for that lock. There room is left instead ([`LAST_WORDS`]).
    if let (Err(LinkError::WouldBlock), None) = (&said, link.sends_over()) {
        // What is set is doubled (socket(7)), and what is asked for is what it is already.
        let enlarged = sockopt::socket_send_buffer_size(link)
            .and_then(|size| sockopt::set_socket_send_buffer_size(link, size));
        if enlarged.is_ok() {
            said = link.try_send(&notice);
        }
    }
    said.map_or_else(|error| error.is_disconnected(), |()| true)
}

impl ring::Reader for Peer {
    #[inline(always)]
    fn cursor(&self) -> u64 {
        if self.lossy.is_some() {
            LEFT
        } else {
            self.page.load_word(CURSOR)
        }
    }

    fn corrupt(&self, found: u64) {
        self.evict(format!(
            "expected a cursor that goes forward up to what was sent, got {found}"
        ));
    }
}

impl pool::Holder for Peer {
    #[inline(always)]
    fn released(&self, start: u64) -> u64 {
        match self.page.load_word(CURSOR) {
            // Everything, and it does not read what it holds nothing of, as a lossy one might ([`NOTHING`]).
            LEFT => NOTHING - 1,
            _ if self.lossy.is_some() => NOTHING,
            cursor => start.wrapping_add(cursor),
        }
    }

    #[inline(always)]
    fn slots(&self) -> u64 {
        self.page.load_word(HOLDS_USED)
    }

    #[inline(always)]
    fn slot(&self, slot: usize) -> u64 {
        self.page.load_word(HOLDS + 8 * slot)
    }
}

//! One client, as its server sees it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use memlane_region::Remote;
use memlane_signaling::gone;
use memlane_transport::Link;
use rustix::time::{ClockId, clock_gettime};

use super::ReplyError;
use crate::{
    Publisher, SendTimeoutError, TrySendError,
    envelope::{BEHIND, ITEM, REPLY_HEADER, behind, given_up, place, put, skew},
    protocol::Farewell,
    receiver::gather::Key,
};

/// The lane of replies to one client, and which of its requests are without their last one.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) publisher: Publisher,
    /// The numbers of its open requests, by place; 0 where there is none.
    open: Vec<u64>,
    pub(super) outstanding: usize,
    pub(super) shared: Arc<Shared>,
    /// It was dropped.
    pub(super) evicted: bool,
    /// What its deadlines lack to be this process's.
    pub(super) skew: i64,
    /// Records found in its lane since it is gone.
    orphans: usize,
}

/// What responders know of a client, wherever they are.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) key: Key,
    /// It is no client any more.
    gone: AtomicBool,
    /// What it has said that it gave up, by place.
    cancelled: Box<[AtomicU64]>,
    /// Its lane of requests, in whose page it says what it gives up.
    memory: Remote,
    pub(super) link: Arc<Link>,
    process: Option<OwnedFd>,
    /// When the kernel was last asked whether it lives, in nanoseconds of the coarse clock.
    asked: AtomicU64,
}

impl Caller {
    pub(super) fn new(
        publisher: Publisher,
        key: Key,
        memory: Remote,
        link: Arc<Link>,
        process: Option<OwnedFd>,
        requests: usize,
    ) -> Caller {
        let skew = skew(memory.load_word(BEHIND), behind());
        let shared = Shared {
            key,
            gone: AtomicBool::new(false),
            cancelled: (0..requests).map(|_| AtomicU64::new(0)).collect(),
            memory,
            link,
            process,
            asked: AtomicU64::new(0),
        };
        Caller {
            publisher,
            open: Vec::new(),
            outstanding: 0,
            shared: Arc::new(shared),
            evicted: false,
            skew,
            orphans: 0,
        }
    }

    /// It is gone, and has left another record. Whether nothing more is to be looked at: an honest client leaves no more than
    /// its requests, and as many that cancel those; and one that was dropped may go on for ever.
    pub(super) fn orphan(&mut self) -> bool {
        self.orphans += 1;
        self.evicted || self.orphans > 2 * self.shared.cancelled.len()
    }

    /// A deadline of the client's, by this process's clock. 0 is none.
    #[inline]
    pub(super) fn deadline(&self, theirs: u64) -> u64 {
        match theirs {
            0 => 0,
            theirs => theirs.saturating_add_signed(self.skew).max(1),
        }
    }

    /// A request with this number has come. False if that cannot be: its place must be free, and one that there is.
    #[inline]
    pub(super) fn open(&mut self, number: u64) -> bool {
        let at = place(number);
        let taken = self.open.get(at).is_some_and(|open| *open != 0);
        if number == 0 || taken || at >= self.shared.cancelled.len() {
            return false;
        }
        if at >= self.open.len() {
            self.open.resize(at + 1, 0);
        }
        self.open[at] = number;
        self.outstanding += 1;
        true
    }

    /// Goes on without this client: no request can have this number.
    #[cold]
    pub(super) fn evict_for(&mut self, number: u64) {
        let at = place(number);
        let places = self.shared.cancelled.len();
        self.evict(match at >= places {
            true => format!("expected a request at one of {places} places, got one at place {at}"),
            false => format!("expected a request at a free place, got number {number:#x}"),
        });
    }

    /// The client has given up a request. One that has its last reply by now is not known any more.
    pub(super) fn cancel(&mut self, number: u64) {
        if self.is_open(number) {
            self.shared.cancelled[place(number)].store(number, Ordering::Relaxed);
        }
    }

    #[inline]
    fn is_open(&self, number: u64) -> bool {
        number != 0 && self.open.get(place(number)) == Some(&number)
    }

    /// Sends something that is said of a request, if there is room for it in the ring, and nothing else is to be seen to.
    /// [`put`](Caller::put) does the rest.
    #[inline(always)]
    pub(super) fn put_at_once(&mut self, number: u64, kind: u64, payload: &[u8]) -> bool {
        let sent = !self.shared.is_gone()
            && self.is_open(number)
            && self.publisher.send_at_once([number, kind], payload);
        if sent && kind != ITEM {
            self.open[place(number)] = 0;
            self.outstanding -= 1;
        }
        sent
    }

    /// Sends something that is said of a request; waits for room no longer than `timeout`. A client that leaves none for as
    /// long is dropped.
    #[inline(never)]
    pub(super) fn put(
        &mut self,
        number: u64,
        kind: u64,
        payload: &[u8],
        timeout: Option<Duration>,
    ) -> Result<(), ReplyError> {
        if self.shared.is_gone() {
            return Err(ReplyError::Disconnected);
        }
        if !self.is_open(number) {
            return Err(ReplyError::Answered);
        }
        let len = payload.len().saturating_add(REPLY_HEADER);
        let mut room = match self.publisher.try_reserve(len) {
            Err(TrySendError::Full) => match timeout {
                None => return Err(ReplyError::Full),
                Some(timeout) => match self.publisher.reserve_timeout(len, timeout) {
                    Ok(room) => room,
                    Err(error) => return Err(self.no_room(error, timeout)),
                },
            },
            Ok(room) => room,
            Err(error) => return Err(ReplyError::unsent(error)),
        };
        let (header, rest) = room.split_at_mut(REPLY_HEADER);
        put([number, kind], header);
        rest.copy_from_slice(payload);
        room.commit();
        if kind != ITEM {
            self.open[place(number)] = 0;
            self.outstanding -= 1;
        }
        Ok(())
    }

    #[cold]
    fn no_room(&mut self, error: SendTimeoutError, timeout: Duration) -> ReplyError {
        match error {
            SendTimeoutError::TimedOut => {
                let why = format!("it has left no room for replies for {timeout:?}");
                self.evict(why);
                ReplyError::Disconnected
            }
            SendTimeoutError::Wait(error) => ReplyError::Wait(error),
            SendTimeoutError::Disconnected => ReplyError::Disconnected,
            SendTimeoutError::TooLarge { len, max } => {
                ReplyError::unsent(TrySendError::TooLarge { len, max })
            }
            SendTimeoutError::Loaned { len, bytes } => {
                ReplyError::unsent(TrySendError::Loaned { len, bytes })
            }
            SendTimeoutError::Memory(error) => ReplyError::Memory(error),
            SendTimeoutError::TooManyAttachments { .. } | SendTimeoutError::Attachment(_) => {
                unreachable!("replies have none")
            }
        }
    }

    /// Says that there is no reply. A client that cannot be told would wait for it for ever, and is dropped instead.
    #[cold]
    pub(super) fn leave(&mut self, number: u64, kind: u64, timeout: Duration) {
        match self.put(number, kind, &[], Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.is_final() => {}
            Err(error) => self.evict(format!("it cannot be told that there is no reply: {error}")),
        }
    }

    /// Goes on without this client.
    #[cold]
    pub(super) fn evict(&mut self, why: String) {
        if !self.shared.gone.swap(true, Ordering::Relaxed) {
            self.evicted = true;
            self.publisher.hang_up(&Farewell::Evicted { why });
        }
    }

    /// It is no client any more.
    pub(super) fn bury(self) {
        self.shared.gone.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Whether the client has said in its page that it gave the request up.
    #[inline]
    pub(super) fn is_given_up(&self, number: u64) -> bool {
        self.memory.load_word(given_up(number)) == number
    }

    /// Whether nobody waits for the reply any more: it was given up, or the client is gone. Asks the kernel for the latter, once
    /// in a tick of the coarse clock.
    pub(super) fn is_cancelled(&self, number: u64) -> bool {
        let said = &self.cancelled[place(number)];
        if self.is_gone() || self.is_given_up(number) || said.load(Ordering::Relaxed) == number {
            return true;
        }
        let now = clock_gettime(ClockId::MonotonicCoarse);
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        if self.asked.swap(now, Ordering::Relaxed) == now {
            return false;
        }
        let gone = gone(self.link.as_fd(), self.process.as_ref().map(AsFd::as_fd));
        let gone = gone.unwrap_or(false);
        if gone {
            self.gone.store(true, Ordering::Relaxed);
        }
        gone
    }
}

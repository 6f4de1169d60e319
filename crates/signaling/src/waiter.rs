use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{
        PollFd, PollFlags, Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
        poll,
    },
    io::Errno,
};

use crate::Doorbell;

/// Why a [`Waiter`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The doorbell was rung, or had been before: look for data. Rings may be spurious.
    Rung,
    /// The peer is gone: its link hung up, or it died. What it had committed is still there.
    Gone,
    /// The deadline passed.
    TimedOut,
}

const DOORBELL: u64 = 0;
const PEER: u64 = 1;
/// The link, while the waiter is to be readable: a link that this side sends nothing on can always be written to.
const READY: u64 = 2;

/// Waits on one doorbell and on the peer's death, in one system call.
///
/// The doorbell is watched edge-triggered, so that a wake-up costs no read; link and pidfd level-triggered:
/// dead is dead. The descriptors stay the caller's, and the waiter must be dropped before they are closed.
///
/// In a loop of one's own the waiter is a [descriptor](Waiter::descriptor) like any other: readable once there is something that
/// [`take`](Waiter::take) has not taken.
#[derive(Debug)]
pub struct Waiter {
    epoll: Arc<OwnedFd>,
}

impl Waiter {
    /// Watches `doorbell`.
    ///
    /// # Errors
    ///
    /// The kernel's, when descriptors or memory are short.
    pub fn new(doorbell: &Doorbell) -> io::Result<Waiter> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            doorbell,
            EventData::new_u64(DOORBELL),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Waiter {
            epoll: Arc::new(epoll),
        })
    }

    /// Watches a link for its hang-up too. Data on it is not waited for.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn watch_link(&self, link: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(
            &*self.epoll,
            link,
            EventData::new_u64(PEER),
            EventFlags::RDHUP,
        )?)
    }

    /// Watches a process for its death too: a helper that holds a copy of the link keeps that from hanging
    /// up (pidfd_open(2): a pidfd is readable once the process has terminated, zombie or not).
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn watch_process(&self, pidfd: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(
            &*self.epoll,
            pidfd,
            EventData::new_u64(PEER),
            EventFlags::IN,
        )?)
    }

    /// Watches a process no longer.
    pub fn forget_process(&self, pidfd: impl AsFd) {
        // It may not be watched.
        let _ = epoll::delete(&*self.epoll, pidfd);
    }

    /// Its descriptor, also for whoever keeps it for longer than the waiter lives.
    pub fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }

    /// Makes the waiter readable until [`not_ready`](Waiter::not_ready); `link` is the one it watches.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn ready(&self, link: impl AsFd) -> io::Result<()> {
        Ok(epoll::modify(
            &*self.epoll,
            link,
            EventData::new_u64(READY),
            EventFlags::RDHUP | EventFlags::OUT,
        )?)
    }

    /// Ends what [`ready`](Waiter::ready) began.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn not_ready(&self, link: impl AsFd) -> io::Result<()> {
        Ok(epoll::modify(
            &*self.epoll,
            link,
            EventData::new_u64(PEER),
            EventFlags::RDHUP,
        )?)
    }

    /// Takes what has happened, without waiting; nothing is `None`. From then on the waiter is not readable until the
    /// doorbell is rung again, or unless the peer is gone.
    ///
    /// A death wins over a ring here: whoever watches the waiter edge-triggered is told once of both. Look for data after
    /// either.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take(&self, doorbell: &mut Doorbell) -> io::Result<Option<Woken>> {
        let mut events = [MaybeUninit::uninit(); 3];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match epoll::wait(&*self.epoll, &mut events, Some(&now)) {
            Err(Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
            Ok((ready, _)) => Ok(match woken(ready, doorbell) {
                (_, true) => Some(Woken::Gone),
                (true, false) => Some(Woken::Rung),
                (false, false) => None,
            }),
        }
    }

    /// Sleeps until the doorbell rings, the peer is gone, or the deadline has passed; `doorbell` is the one
    /// this waiter was made with. A ring wins over a death, so that committed data is seen first.
    ///
    /// # Errors
    ///
    /// The kernel's; not EINTR, which goes on waiting.
    pub fn wait(&self, doorbell: &mut Doorbell, deadline: Option<Instant>) -> io::Result<Woken> {
        let mut events = [MaybeUninit::uninit(); 3];
        loop {
            let timeout = deadline.map(remaining);
            let (ready, _) = match epoll::wait(&*self.epoll, &mut events, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            match woken(ready, doorbell) {
                (true, _) => return Ok(Woken::Rung),
                (false, true) => return Ok(Woken::Gone),
                (false, false) => {}
            }
            // Coarse clocks may wake a little early.
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Woken::TimedOut);
            }
        }
    }
}

/// What these events say: whether it was rung, and whether the peer is gone.
fn woken(events: &[epoll::Event], doorbell: &mut Doorbell) -> (bool, bool) {
    let (mut rung, mut gone) = (false, false);
    for event in events {
        // Copied out: the event is a packed struct.
        let flags = event.flags;
        match event.data.u64() {
            DOORBELL => {
                doorbell.woken();
                rung = true;
            }
            READY if !flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) => {
                rung = true;
            }
            _ => gone = true,
        }
    }
    (rung, gone)
}

/// Whether a peer is gone, by its link and its pidfd, now and without waiting.
///
/// # Errors
///
/// The kernel's.
pub fn gone(link: BorrowedFd<'_>, pidfd: Option<BorrowedFd<'_>>) -> io::Result<bool> {
    let mut sources = [
        PollFd::from_borrowed_fd(link, PollFlags::RDHUP),
        PollFd::from_borrowed_fd(link, PollFlags::RDHUP),
    ];
    let count = match pidfd {
        Some(pidfd) => {
            sources[1] = PollFd::from_borrowed_fd(pidfd, PollFlags::IN);
            2
        }
        None => 1,
    };
    match poll(
        &mut sources[..count],
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    ) {
        Err(Errno::INTR) => Ok(false),
        result => Ok(result? > 0),
    }
}

/// The time left until a deadline, as poll(2) and its kin take it; none once it has passed.
pub fn remaining(deadline: Instant) -> Timespec {
    let left = deadline
        .checked_duration_since(Instant::now())
        .unwrap_or(Duration::ZERO);
    Timespec {
        tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

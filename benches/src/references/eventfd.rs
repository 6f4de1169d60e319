//! eventfd as the message itself: the cheapest way to wake a process, and nothing more.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};

use crate::measure::ping_pong::Game;

/// A new eventfd that blocks.
///
/// # Errors
///
/// Fails if there is no descriptor left.
pub fn create() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC).context("eventfd")
}

/// The side that wakes.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Wakes whoever sleeps on `eventfd`.
    pub fn new(eventfd: OwnedFd) -> Self {
        Self(eventfd)
    }

    /// Adds one.
    ///
    /// # Errors
    ///
    /// Fails if the descriptor is no eventfd.
    pub fn wake(&self) -> Result<()> {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).context("write to an eventfd")?;
        Ok(())
    }
}

/// The side that sleeps.
#[derive(Debug)]
pub struct Sleeper {
    eventfd: OwnedFd,
    epoll: Option<Epoll>,
}

impl Sleeper {
    /// Sleeps in `read`.
    pub fn reading(eventfd: OwnedFd) -> Self {
        Self {
            eventfd,
            epoll: None,
        }
    }

    /// Sleeps in `epoll_wait`, then reads.
    ///
    /// # Errors
    ///
    /// Fails if there is no descriptor left.
    pub fn polling(eventfd: OwnedFd) -> Result<Self> {
        let epoll = Epoll::of(&eventfd)?;
        Ok(Self {
            eventfd,
            epoll: Some(epoll),
        })
    }

    /// Sleeps until woken.
    ///
    /// # Errors
    ///
    /// Fails if the descriptor is no eventfd.
    pub fn sleep(&self) -> Result<()> {
        if let Some(epoll) = &self.epoll {
            epoll.wait()?;
        }
        rustix::io::read(&self.eventfd, &mut [0_u8; 8]).context("read from an eventfd")?;
        Ok(())
    }
}

/// A waker for the one direction and a sleeper for the other. The wake-up is all that travels.
#[derive(Debug)]
pub struct WakeUps {
    /// Wakes the other side.
    pub waker: Waker,
    /// Woken by the other side.
    pub sleeper: Sleeper,
}

impl Game for WakeUps {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.waker.wake()?;
        self.sleeper.sleep()
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        self.sleeper.sleep()?;
        self.waker.wake()
    }
}

/// An epoll set with one descriptor in it.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// A set that waits for `descriptor` to be readable.
    ///
    /// # Errors
    ///
    /// Fails if there is no descriptor left.
    pub fn of(descriptor: impl AsFd) -> Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create1")?;
        epoll::add(
            &set,
            descriptor,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        )
        .context("epoll_ctl")?;
        Ok(Self(set))
    }

    /// Sleeps until the descriptor is readable.
    ///
    /// # Errors
    ///
    /// Fails if the kernel does.
    #[inline]
    pub fn wait(&self) -> Result<()> {
        let mut events = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 1];
        epoll::wait(&self.0, &mut events[..], None).context("epoll_wait")?;
        Ok(())
    }
}

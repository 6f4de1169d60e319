//! Deadlines of a client that is watched: whoever waits for its descriptor is woken by them.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::epoll::{self, EventData, EventFlags},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

/// Beside those of the two lanes.
const TOKEN: u64 = 2;

/// Made by a client that is watched.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    timer: Option<OwnedFd>,
    set: bool,
    /// When a call last answered that nothing has come: what was late by then is known to whoever waits for it.
    since: Option<Instant>,
}

impl Alarm {
    /// Makes `watched` readable at the earliest of the deadlines that `next` knows after the time it is given, and not before.
    /// One that has passed since the last time counts: whoever waits for that one was told that it had not.
    #[inline]
    pub(super) fn set(
        &mut self,
        watched: &OwnedFd,
        next: impl FnOnce(Option<Instant>) -> Option<Instant>,
    ) -> io::Result<()> {
        let at = next(self.since);
        if at.is_none() && !self.set {
            return Ok(());
        }
        self.start(watched, at)
    }

    /// Makes all that it takes, so that no call has to say later that it cannot tell when a request is late.
    pub(super) fn prepare(&mut self, watched: &OwnedFd) -> io::Result<()> {
        if self.timer.is_none() {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            let token = EventData::new_u64(TOKEN);
            epoll::add(watched, &timer, token, EventFlags::IN)?;
            self.timer = Some(timer);
        }
        Ok(())
    }

    #[cold]
    fn start(&mut self, watched: &OwnedFd, at: Option<Instant>) -> io::Result<()> {
        self.prepare(watched)?;
        let Some(timer) = &self.timer else {
            return Ok(());
        };
        let now = Instant::now();
        // Zero stops it.
        let left = at.map_or(Duration::ZERO, |at| {
            let left = at.saturating_duration_since(now);
            left.max(Duration::from_nanos(1))
        });
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        self.set = at.is_some();
        self.since = Some(now);
        Ok(())
    }

    /// Nobody waits for the descriptor any more.
    pub(super) fn stop(&mut self, watched: &OwnedFd) {
        if let Some(timer) = self.timer.take() {
            let _ = epoll::delete(watched, &timer);
        }
        *self = Alarm::default();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::event::{PollFd, PollFlags, poll};

    use crate::{Async, CallError, Client, Link, NOW, Server, TryRecvError, Watched};

    use super::*;

    const SOON: Duration = Duration::from_millis(5);

    /// A client, and a server that says nothing.
    fn both() -> (Server, Client) {
        let (ours, theirs) = Link::pair().unwrap();
        let mut server = Server::builder().unbound().unwrap();
        server.attach(ours).unwrap();
        let client = thread::spawn(|| Client::builder().over(theirs).unwrap());
        while server.clients() == 0 {
            assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
        }
        (server, client.join().unwrap())
    }

    #[test]
    fn a_loop_is_woken_by_deadlines() {
        let (_server, client) = both();
        let mut client = Watched::new(client).unwrap();
        let readable = |client: &Watched<Client>, timeout| {
            poll(&mut [PollFd::new(client, PollFlags::IN)], timeout).unwrap() == 1
        };
        let mut first = client.send_timeout(b"first", SOON).unwrap();
        let mut second = client.send_timeout(b"second", 2 * SOON).unwrap();
        let mut never = client.send(b"never").unwrap();
        for call in [&mut first, &mut second] {
            let error = loop {
                match client.try_next(call) {
                    Err(CallError::Empty) => {}
                    other => break other.unwrap_err(),
                }
                // Whichever is looked at last.
                match client.try_next(&mut never) {
                    Err(CallError::Empty) => {}
                    other => panic!("{other:?}"),
                }
                assert!(readable(&client, None));
            };
            assert!(matches!(error, CallError::DeadlineExceeded), "{error:?}");
        }
        // None is left, and nobody is woken for those that were.
        assert!(matches!(client.try_next(&mut never), Err(CallError::Empty)));
        assert!(!readable(&client, Some(&NOW)));
        // One that is late and not asked for wakes once.
        let late = client.send_timeout(b"late", Duration::ZERO).unwrap();
        assert!(matches!(client.try_next(&mut never), Err(CallError::Empty)));
        assert!(readable(&client, None));
        assert!(matches!(client.try_next(&mut never), Err(CallError::Empty)));
        assert!(!readable(&client, Some(&NOW)));
        drop(late);
        let client = client.into_inner();
        assert!(client.alarm.timer.is_none());
    }

    #[test]
    fn a_task_is_woken_by_deadlines() {
        let (_server, mut client) = both();
        let calls = [(); 2].map(|()| client.send_timeout(b"a request", SOON).unwrap());
        let mut client = Async::new(client).unwrap();
        async_io::block_on(async {
            for call in calls {
                let error = client.wait(call).await.unwrap_err();
                assert!(matches!(error, CallError::DeadlineExceeded), "{error:?}");
            }
        });
    }
}

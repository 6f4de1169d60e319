//! The one control thread of a process: accepts subscribers and notices their deaths for every publisher that
//! is not driven by a loop of the user's.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread::JoinHandle,
};

use rustix::{
    event::{
        EventfdFlags,
        epoll::{self, CreateFlags, EventData, EventFlags},
        eventfd,
    },
    io::Errno,
};

use super::control::Control;

/// Runs the thread. It starts with the first publisher that needs it and ends with the last.
#[derive(Debug)]
pub(super) struct Reactor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The process that the thread is in.
    pid: u32,
}

#[derive(Debug)]
struct Shared {
    epoll: Arc<OwnedFd>,
    /// By the upper half of their tokens. Events are handled with this locked: a publisher that has been
    /// removed is not being handled any more.
    controls: Mutex<Controls>,
}

#[derive(Debug, Default)]
struct Controls {
    next: u32,
    by_id: HashMap<u32, Arc<Control>>,
}

static REACTOR: Mutex<Weak<Reactor>> = Mutex::new(Weak::new());

/// Never a publisher's.
const STOP: u64 = u64::MAX;

impl Reactor {
    /// The reactor of this process, started if need be.
    pub(super) fn get() -> io::Result<Arc<Reactor>> {
        let mut reactor = REACTOR.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = reactor.upgrade() {
            return Ok(running);
        }
        let shared = Arc::new(Shared {
            epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?),
            controls: Mutex::default(),
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("memlane-control".to_owned())
            .spawn(move || of_thread.run())?;
        let started = Arc::new(Reactor {
            shared,
            thread: Some(thread),
            pid: std::process::id(),
        });
        *reactor = Arc::downgrade(&started);
        Ok(started)
    }

    /// Adds a publisher: `make` gets the epoll instance and the id to put into the upper half of its tokens.
    pub(super) fn add(
        &self,
        make: impl FnOnce(Arc<OwnedFd>, u32) -> Control,
    ) -> (u32, Arc<Control>) {
        let mut controls = self
            .shared
            .controls
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Ids come round after 4 billion publishers; those in use are passed over.
        while controls.by_id.contains_key(&controls.next) || controls.next == u32::MAX {
            controls.next = controls.next.wrapping_add(1);
        }
        let id = controls.next;
        controls.next = controls.next.wrapping_add(1);
        let control = Arc::new(make(self.shared.epoll.clone(), id));
        controls.by_id.insert(id, control.clone());
        (id, control)
    }

    /// Removes a publisher. When this returns, none of its events is being handled.
    pub(super) fn remove(&self, id: u32) {
        self.shared
            .controls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .by_id
            .remove(&id);
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A forked child has no such thread, and the epoll instance is the parent's.
        if self.pid != std::process::id() {
            return;
        }
        // An eventfd that is readable from the start ends the wait. Without a descriptor to spare, the thread
        // is left to itself; it sleeps, and its epoll instance has nothing to say.
        let stop = eventfd(1, EventfdFlags::CLOEXEC);
        let stopped = stop.and_then(|stop| {
            epoll::add(
                &*self.shared.epoll,
                &stop,
                EventData::new_u64(STOP),
                EventFlags::IN,
            )
            .map(|()| stop)
        });
        if stopped.is_ok() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut events = [MaybeUninit::uninit(); 64];
        loop {
            let ready = match epoll::wait(&*self.epoll, &mut events, None) {
                Ok((ready, _)) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => unreachable!("epoll_wait on an instance of our own: {error}"),
            };
            let controls = self.controls.lock().unwrap_or_else(PoisonError::into_inner);
            for event in &*ready {
                let token = event.data.u64();
                if token == STOP {
                    return;
                }
                // A token that is not known belongs to something that was removed meanwhile.
                if let Some(control) = controls.by_id.get(&((token >> 32) as u32)) {
                    control.handle(token as u32);
                }
            }
        }
    }
}

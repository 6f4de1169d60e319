//! The one control thread of a process: accepts subscribers and notices their deaths for every publisher that is not driven
//! by a loop of the user's, and wakes tasks whose runtime it does not know.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
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

use crate::{future::Task, publisher::Control};

/// Runs the thread. It starts with the first publisher that needs it and ends with the last.
#[derive(Debug)]
pub(crate) struct Reactor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The process that the thread is in.
    pid: u32,
}

#[derive(Debug)]
struct Shared {
    epoll: Arc<OwnedFd>,
    /// Readable from the start, and watched once the thread is to end. Of a thread that ends itself nobody is left to close it.
    stop: OnceLock<OwnedFd>,
    /// By the upper half of their tokens. Events of publishers are handled with this locked: one that has been removed is not
    /// being handled any more.
    clients: Mutex<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    next: u32,
    by_id: HashMap<u32, Client>,
}

#[derive(Clone, Debug)]
enum Client {
    Publisher(Arc<Control>),
    Task(Arc<Task>),
}

impl Clients {
    /// An id for a client. They come round after 4 billion; those in use are passed over.
    fn add(&mut self, make: impl FnOnce(u32) -> Client) -> u32 {
        while self.by_id.contains_key(&self.next) || self.next == u32::MAX {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.by_id.insert(id, make(id));
        id
    }
}

static REACTOR: Mutex<Weak<Reactor>> = Mutex::new(Weak::new());

/// Never a publisher's.
const STOP: u64 = u64::MAX;

impl Reactor {
    /// The reactor of this process, started if need be.
    pub(crate) fn get() -> io::Result<Arc<Reactor>> {
        let mut reactor = REACTOR.lock().unwrap_or_else(PoisonError::into_inner);
        // A forked child has a copy of its parent's, without the thread.
        let running = reactor.upgrade();
        if let Some(running) = running.filter(|running| running.pid == std::process::id()) {
            return Ok(running);
        }
        let shared = Arc::new(Shared {
            epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?),
            stop: OnceLock::new(),
            clients: Mutex::default(),
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
    pub(crate) fn add(
        &self,
        make: impl FnOnce(Arc<OwnedFd>, u32) -> Control,
    ) -> (u32, Arc<Control>) {
        let mut made = None;
        let id = self.shared.clients().add(|id| {
            let control = Arc::new(make(self.shared.epoll.clone(), id));
            made = Some(control.clone());
            Client::Publisher(control)
        });
        (id, made.expect("made above"))
    }

    /// Removes a publisher. When this returns, none of its events is being handled.
    pub(crate) fn remove(&self, id: u32) {
        let removed = self.shared.clients().by_id.remove(&id);
        drop(removed);
    }

    /// Wakes a task whenever the descriptor becomes readable.
    pub(crate) fn add_task(&self, descriptor: &OwnedFd, task: Arc<Task>) -> io::Result<u32> {
        let id = self.shared.clients().add(|_| Client::Task(task));
        let data = EventData::new_u64(u64::from(id) << 32);
        let flags = EventFlags::IN | EventFlags::ET;
        match epoll::add(&*self.shared.epoll, descriptor, data, flags) {
            Ok(()) => Ok(id),
            Err(errno) => {
                self.remove(id);
                Err(errno.into())
            }
        }
    }

    /// Does no more for a task.
    pub(crate) fn remove_task(&self, id: u32, descriptor: &OwnedFd) {
        // In a forked child there is no thread, and the epoll instance is the parent's.
        if self.pid == std::process::id() {
            let _ = epoll::delete(&*self.shared.epoll, descriptor);
            self.remove(id);
        }
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
        // A task that was woken by this thread may have been the last to need it.
        let is_current = thread.thread().id() == std::thread::current().id();
        // Without a descriptor to spare, the thread is left to itself; it sleeps, and its epoll instance has nothing to say.
        let stopped = eventfd(1, EventfdFlags::CLOEXEC).and_then(|stop| {
            let stop = self.shared.stop.get_or_init(|| stop);
            epoll::add(
                &*self.shared.epoll,
                stop,
                EventData::new_u64(STOP),
                EventFlags::IN,
            )
        });
        if stopped.is_ok() && !is_current {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut events = [MaybeUninit::uninit(); 64];
        // Whoever has to be told, once nothing is locked.
        let mut happened: Vec<Client> = Vec::new();
        loop {
            let ready = match epoll::wait(&*self.epoll, &mut events, None) {
                Ok((ready, _)) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => unreachable!("epoll_wait on an instance of our own: {error}"),
            };
            let clients = self.clients();
            for event in &*ready {
                let token = event.data.u64();
                if token == STOP {
                    return;
                }
                // A token that is not known belongs to something that was removed meanwhile.
                let Some(client) = clients.by_id.get(&((token >> 32) as u32)) else {
                    continue;
                };
                if let Client::Publisher(control) = client {
                    control.handle(token as u32);
                }
                happened.push(client.clone());
            }
            drop(clients);
            for client in happened.drain(..) {
                match client {
                    Client::Publisher(control) => control.wake_waiting(),
                    Client::Task(task) => task.wake(),
                }
            }
        }
    }
}

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use memlane::{Address, Publisher, SendTimeoutError, TrySendError};
use memlane_region::{Remote, Shared, page_size};
use memlane_transport::Fd;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    Child, PATIENCE, Policy, Received, Role, Scene, Wish, alive, check, fill, length, number,
    thread_id, wait_asleep, wait_stopped, wait_until,
};

/// A publisher on a thread of its own that sends numbered messages until it is stopped.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<State>,
    thread: JoinHandle<Publisher>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    sent: AtomicU64,
    blocked: AtomicBool,
    evicted: AtomicU64,
}

/// Messages of a stream have a number in them, so are no shorter than that.
fn stream_length(number: u64, longest: usize) -> usize {
    length(number, longest).max(8)
}

impl Stream {
    /// Starts to send, messages of up to `longest` bytes.
    pub fn start(publisher: Publisher, longest: usize) -> Stream {
        let shared = Arc::new(State::default());
        let state = shared.clone();
        let thread = std::thread::Builder::new()
            .name("stream".to_owned())
            .spawn(move || {
                let mut publisher = publisher;
                let mut buffer = vec![0; longest.max(8)];
                let mut next = 0;
                while !state.stop.load(Ordering::Relaxed) {
                    let message = &mut buffer[..stream_length(next, longest)];
                    fill(next, message);
                    match publisher.try_send(message) {
                        Ok(()) => {}
                        Err(TrySendError::Full) => {
                            state.blocked.store(true, Ordering::Relaxed);
                            match publisher.send_timeout(message, PATIENCE) {
                                Ok(()) => {}
                                Err(SendTimeoutError::TimedOut) => {
                                    panic!("no room for message {next} for {PATIENCE:?}")
                                }
                                Err(error) => panic!("message {next}: {error}"),
                            }
                            state.blocked.store(false, Ordering::Relaxed);
                        }
                        Err(error) => panic!("message {next}: {error}"),
                    }
                    next += 1;
                    state.sent.store(next, Ordering::Relaxed);
                    if next.is_multiple_of(256) {
                        let evicted = publisher.stats().evicted;
                        state.evicted.store(evicted, Ordering::Relaxed);
                    }
                }
                assert_eq!(publisher.stats().messages, next);
                publisher
            })
            .expect("a thread");
        Stream { shared, thread }
    }

    /// Messages sent so far.
    pub fn sent(&self) -> u64 {
        assert!(!self.thread.is_finished(), "the stream has failed");
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Whether it waits for room just now.
    pub fn blocked(&self) -> bool {
        self.shared.blocked.load(Ordering::Relaxed)
    }

    /// Subscribers evicted, as of some 256 messages ago.
    pub fn evicted(&self) -> u64 {
        self.shared.evicted.load(Ordering::Relaxed)
    }

    /// Stops sending; somebody must be reading.
    pub fn stop(self) -> Publisher {
        self.shared.stop.store(true, Ordering::Relaxed);
        alive();
        self.thread.join().expect("the stream has failed")
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    address: String,
    wish: Wish,
    longest: usize,
}

/// A well-behaved subscriber in another process: checks that every message of a stream comes, whole and in order.
#[derive(Debug)]
pub struct Steady {
    child: Child,
    /// The thread that receives.
    thread: u32,
    /// How many messages it has received.
    received: Remote,
}

impl Steady {
    /// Starts one, in the role [`steady`]; it has subscribed when this returns.
    pub fn start(scene: &Scene, address: &Address, wish: Wish, longest: usize) -> Steady {
        let orders = Orders {
            address: address.to_string(),
            wish,
            longest,
        };
        let child = scene.spawn("steady", &orders);
        let (page, thread): (Fd, u32) = child.hear();
        let received = Remote::open(page.into(), page_size(), 0, page_size()).expect("a page");
        Steady {
            child,
            thread,
            received,
        }
    }

    /// How many messages it has received.
    pub fn received(&self) -> u64 {
        self.received.load_word(0)
    }

    /// Waits until it has received so many more than when this was called, which says that the publisher goes on.
    #[track_caller]
    pub fn advance(&self, messages: u64) {
        let goal = self.received() + messages;
        wait_until("a well-behaved subscriber gets on", || {
            self.received() >= goal
        });
    }

    /// Waits until it has received so many messages in all, and sleeps, which says that it has released them, too.
    #[track_caller]
    pub fn catch_up(&self, messages: u64) {
        wait_until("a well-behaved subscriber catches up", || {
            self.received() == messages
        });
        wait_asleep(self.child.id(), self.thread);
    }

    /// Stops it (SIGSTOP).
    #[track_caller]
    pub fn stop(&self) {
        self.child.signal(Signal::STOP);
        wait_stopped(self.child.id(), self.thread);
    }

    /// The process.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Waits for its end: it ends in order when it has received everything, and the publisher is gone. How many
    /// messages it has received, and the number after the last.
    #[track_caller]
    pub fn finish(self) -> (u64, u64) {
        let result = self.child.hear();
        self.child.finish();
        result
    }
}

/// The role of a [`Steady`].
pub fn steady(role: &Role) {
    let orders: Orders = role.hear();
    let (received, descriptor) = Shared::create("test-progress", page_size(), 0).expect("a page");
    let address = orders.address.parse().expect("an address");
    let mut subscriber = orders.wish.connect(&address).expect("a publisher");
    role.tell(&(Fd::from(descriptor), thread_id()));
    let (mut message, mut next, mut count) = (Vec::new(), None, 0);
    while let Received::Message = subscriber.recv(&mut message).expect("a message") {
        let expected = next.unwrap_or_else(|| number(&message));
        assert_eq!(message.len(), stream_length(expected, orders.longest));
        check(expected, &message);
        next = Some(expected + 1);
        count += 1;
        received.word(0).store(count, Ordering::Release);
        if count.is_multiple_of(1024) || orders.wish.policy == Policy::Block {
            alive();
        }
    }
    role.tell(&(count, next.unwrap_or(0)));
}

//! A readiness of the user's, with which things happen between a look and the wait for the next.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use memlane::{Async, Readiness, RecvError, Subscriber};
use memlane_region::page_size;
use memlane_tests::{Child, PATIENCE, Part, Role, Scene, block_on, play, unbound};
use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, EventData, EventFlags},
};

const ROLES: &[(&str, Part)] = &[("last", last)];

#[test]
fn other_process() {
    play(ROLES);
}

/// Sends one message when it is told to, and waits to be killed.
fn last(role: &Role) {
    let address: String = role.hear();
    let address = address.parse().expect("an address");
    let mut publisher = unbound(page_size()).bind_to(&address).expect("a publisher");
    role.tell(&());
    role.hear::<()>();
    publisher.send(b"the last").expect("room");
    role.tell(&());
    role.hear::<()>();
}

/// Edges, told one by one. In the middle of a wait, the publisher sends and dies: that is one edge.
struct Edges {
    epoll: OwnedFd,
    publisher: Arc<Mutex<Option<Child>>>,
}

impl Readiness for Edges {
    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let patience = Timespec {
            tv_sec: PATIENCE.as_secs() as i64 / 2,
            tv_nsec: 0,
        };
        if let Some(publisher) = self.publisher.lock().unwrap().take() {
            publisher.tell(&());
            publisher.hear::<()>();
            // Reaped, it has closed everything: nothing comes later.
            publisher.kill_and_reap();
        }
        let mut events = [MaybeUninit::uninit(); 1];
        let (ready, _) = epoll::wait(&self.epoll, &mut events, Some(&patience)).unwrap();
        assert!(!ready.is_empty(), "no edge for {patience:?}");
        Poll::Ready(Ok(()))
    }
}

/// Told once that the descriptor is readable, for a ring and a hang-up: both are heard of.
#[test]
fn a_last_message_does_not_hide_the_end() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let child = scene.spawn("last", &address.to_string());
    child.hear::<()>();
    let subscriber = Subscriber::builder().connect_to(&address).unwrap();
    let publisher = Arc::new(Mutex::new(None));
    let shared = publisher.clone();
    let edges = |descriptor: Arc<OwnedFd>| {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &*descriptor, EventData::new_u64(0), flags)?;
        // That it is readable at the start is over.
        epoll::wait(&epoll, &mut [MaybeUninit::uninit(); 1], None)?;
        Ok(Edges {
            epoll,
            publisher: shared,
        })
    };
    let mut subscriber = Async::with(subscriber, edges).unwrap();
    *publisher.lock().unwrap() = Some(child);
    block_on(async {
        assert_eq!(subscriber.recv().await.unwrap().to_vec(), b"the last");
        let end = subscriber.recv().await.map(drop);
        assert!(
            matches!(end, Err(RecvError::Disconnected { .. })),
            "{end:?}"
        );
    });
}

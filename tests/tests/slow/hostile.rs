//! Publishers that tell of rings, and of a history, that are none.

use std::time::Duration;

use memlane::{
    Error, Link, Reason, RecvError, Subscriber, TryRecvError,
    region::{Shared, page_size},
};
use memlane_tests::{
    PATIENCE, Scene,
    wire::{Answer, Farewell, Greeting, Notice, Opening, VERSION, Welcome},
};
use memlane_transport::Fd;

/// The publisher's side of a lane, by hand: a ring of one page, to which one subscriber comes.
struct Hostile {
    link: Link,
    ring: Shared,
    subscriber: Subscriber,
}

/// The header of a ring's end.
fn switch(ring: u64) -> u64 {
    ring | 3 << 32
}

fn hostile(rings: &[(u32, Fd)], at: u32) -> (Link, Shared, Result<Subscriber, Error>) {
    hostile_with(rings, at, 0)
}

fn hostile_with(
    rings: &[(u32, Fd)],
    at: u32,
    skip: u64,
) -> (Link, Shared, Result<Subscriber, Error>) {
    let (ours, theirs) = Link::pair().unwrap();
    let (ring, descriptor) = Shared::create("test-ring", page_size(), page_size()).unwrap();
    std::thread::scope(|scope| {
        let subscriber = scope.spawn(|| Subscriber::builder().timeout(PATIENCE).over(theirs));
        ours.send(&Opening { version: VERSION }).unwrap();
        assert_eq!(ours.recv::<Opening>().unwrap().version, VERSION);
        let _greeting: Greeting = ours.recv().unwrap();
        for (id, memory) in rings {
            let memory = memory_of(memory);
            ours.send(&(2_u32, Notice::Ring { id: *id, memory }))
                .unwrap();
        }
        ours.send(&Answer::Welcome(Welcome {
            at,
            skip,
            ..Welcome::new(descriptor.into(), page_size() as u64)
        }))
        .unwrap();
        (ours, ring, subscriber.join().unwrap())
    })
}

fn memory_of(memory: &Fd) -> Fd {
    use std::os::fd::AsFd;
    memory.as_fd().try_clone_to_owned().unwrap().into()
}

fn another_ring(len: usize) -> (Shared, Fd) {
    let (ring, descriptor) = Shared::create("test-ring", page_size(), len).unwrap();
    (ring, descriptor.into())
}

/// Stores a header in a ring, as its writer.
fn store(ring: &mut Shared, position: u64, header: u64) {
    use memlane::region::WordsMut;
    ring.store_release(position, header);
}

impl Hostile {
    fn new(rings: &[(u32, Fd)]) -> Hostile {
        let (link, ring, subscriber) = hostile(rings, 0);
        Hostile {
            link,
            ring,
            subscriber: subscriber.unwrap(),
        }
    }
}

/// A ring ends, and the next one is none: not announced, not a ring, of another size, over the quota.
#[test]
fn rings_that_are_none() {
    let _scene = Scene::new();
    let page = page_size();
    let null = || {
        Fd::from(std::os::fd::OwnedFd::from(
            std::fs::File::open("/dev/null").unwrap(),
        ))
    };
    let cases: [(&str, Option<Fd>); 3] = [
        ("expected a ring that was announced, got 7", None),
        ("ring 7", Some(null())),
        ("ring 7", Some(another_ring(2 * page).1)),
    ];
    for (expected, memory) in cases {
        let known = memory.is_some();
        let mut lane = Hostile::new(&[]);
        if let Some(memory) = memory {
            lane.link.send(&Notice::Ring { id: 7, memory }).unwrap();
        }
        store(&mut lane.ring, 0, switch(7));
        for _ in 0..2 {
            let error = lane.subscriber.recv().unwrap_err();
            let text = error.to_string();
            let refused = matches!(error, RecvError::Chunk(_));
            // Longer than announced is as good.
            if known && !refused {
                panic!("{text}");
            }
            assert!(refused && text.contains(expected), "{text}");
            assert!(lane.subscriber.try_recv().is_err());
        }
    }
}

/// Rings that lead to one another, and rings without end, each with something in it.
#[test]
fn rings_in_circles() {
    let _scene = Scene::new();
    let (mut second, memory) = another_ring(page_size());
    let mut lane = Hostile::new(&[(1, memory)]);
    store(&mut lane.ring, 0, switch(1));
    store(&mut second, 0, switch(0));
    for _ in 0..3 {
        // More of them than a publisher leaves that has dropped as many subscribers.
        let error = lane.subscriber.recv().unwrap_err();
        assert!(matches!(error, RecvError::Corrupt(_)), "{error}");
    }

    let (mut second, memory) = another_ring(page_size());
    let mut lane = Hostile::new(&[(1, memory)]);
    for position in (0..64).step_by(16) {
        // Both the same record; at each position but the first, the way to the other ring is beside it.
        let (here, there) = match position / 16 % 2 {
            0 => (&mut lane.ring, &mut second),
            _ => (&mut second, &mut lane.ring),
        };
        store(here, position, memlane_tests::wire::header(16, 8));
        store(
            here,
            position + 16,
            switch(if position / 16 % 2 == 0 { 1 } else { 0 }),
        );
        store(there, position + 16, 0);
    }
    for _ in 0..4 {
        assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
    }
    assert!(lane.subscriber.try_recv().is_err());
}

/// A publisher's word that a subscriber is to end where it has gone on from by now means nothing, for good: the subscriber receives
/// what follows, in this ring and in others, and hears why the publisher goes in the end.
#[test]
fn a_word_that_comes_too_late_is_void() {
    let _scene = Scene::new();
    let header = memlane_tests::wire::header(16, 8);
    let too_late = |ring, end| {
        Notice::Farewell(Farewell::Dismissed {
            why: "too slow".to_owned(),
            ring,
            end,
        })
    };
    for empty in [false, true] {
        let (mut second, memory) = another_ring(page_size());
        let (mut third, other) = another_ring(page_size());
        let mut lane = Hostile::new(&[(1, memory), (2, other)]);
        store(&mut lane.ring, 0, header);
        store(&mut lane.ring, 16, switch(1));
        assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
        // It goes on into the second ring.
        assert!(matches!(
            lane.subscriber.try_recv(),
            Err(TryRecvError::Empty)
        ));
        lane.link.send(&too_late(0, 16)).unwrap();
        let mut next = 16;
        if !empty {
            store(&mut second, 16, header);
            next = 32;
        }
        store(&mut third, next, header);
        store(&mut second, next, switch(2));
        let expected = if empty { 1 } else { 2 };
        for _ in 0..expected {
            assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
        }
        // Of the ring that it reads, but not of its end; and of that.
        lane.link.send(&too_late(2, next + 8)).unwrap();
        store(&mut lane.ring, next + 16, header);
        store(&mut third, next + 16, switch(0));
        assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
        lane.link.send(&too_late(0, next + 32)).unwrap();
        store(&mut lane.ring, next + 32, switch(1));
        let error = lane.subscriber.recv().unwrap_err();
        let RecvError::Disconnected { reason } = error else {
            panic!("{error}");
        };
        assert_eq!(
            reason.to_string(),
            Reason::Evicted {
                why: "too slow".to_owned()
            }
            .to_string()
        );
    }
    let (mut second, memory) = another_ring(page_size());
    let mut lane = Hostile::new(&[(1, memory)]);
    store(&mut lane.ring, 0, switch(1));
    store(&mut second, 0, header);
    assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
    lane.link.send(&too_late(0, 0)).unwrap();
    lane.link.send(&Notice::Farewell(Farewell::Closed)).unwrap();
    drop(lane.link);
    let error = lane.subscriber.recv().unwrap_err();
    let closed = matches!(
        error,
        RecvError::Disconnected {
            reason: Reason::Closed
        }
    );
    assert!(closed, "{error}");
}

/// Who ends a link for what comes over it has left, to an honest publisher: what comes next in memory is not for it any more.
#[test]
fn nothing_is_read_behind_a_broken_link() {
    let _scene = Scene::new();
    for elsewhere in [true, false] {
        let (mut second, memory) = another_ring(page_size());
        let mut lane = Hostile::new(&[(1, memory)]);
        store(&mut lane.ring, 0, memlane_tests::wire::header(16, 8));
        assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
        if elsewhere {
            store(&mut lane.ring, 16, switch(1));
        }
        rustix::net::send(&lane.link, b"no packet", rustix::net::SendFlags::empty()).unwrap();
        if !elsewhere {
            // Finds nothing in the ring, and takes what came.
            let timeout = Duration::from_millis(1);
            assert!(lane.subscriber.recv_timeout(timeout).is_err());
        }
        let next = match elsewhere {
            true => &mut second,
            false => &mut lane.ring,
        };
        store(next, 16, memlane_tests::wire::header(16, 8));
        for _ in 0..3 {
            let error = lane.subscriber.recv().unwrap_err();
            let RecvError::Disconnected { reason } = error else {
                panic!("{error}");
            };
            assert!(matches!(reason, Reason::Broken { .. }), "{reason}");
        }
    }
}

/// Notices of more rings than there can be, of the same one again, of the first, and a welcome to none.
#[test]
fn notices_of_rings_that_make_no_sense() {
    let _scene = Scene::new();
    let page = page_size();
    let many: Vec<_> = (0..64).map(|id| (id, another_ring(page).1)).collect();
    let (_link, _ring, subscriber) = hostile(&many, 63);
    assert!(subscriber.is_ok(), "{:?}", subscriber.err());
    drop(subscriber);
    let (_link, _ring, subscriber) = hostile(&[], 5);
    let Err(Error::Welcome { why }) = subscriber else {
        panic!("{subscriber:?}");
    };
    assert_eq!(why, "expected a ring that was announced, got 5");
    let twice = [(1, another_ring(page).1), (1, another_ring(page).1)];
    let mut lane = Hostile::new(&twice);
    store(&mut lane.ring, 0, switch(2));
    let text = lane.subscriber.recv().unwrap_err().to_string();
    assert!(
        text.contains("expected a new ring, got 1 once more"),
        "{text}"
    );
}

/// A welcome with messages to skip that are not there, or cannot be.
#[test]
fn messages_to_skip_that_are_none() {
    let _scene = Scene::new();
    for skip in [1, 2, 1 << 20, u64::MAX] {
        let (_link, _ring, subscriber) = hostile_with(&[], 0, skip);
        let Err(Error::Welcome { why }) = subscriber else {
            panic!("{subscriber:?}");
        };
        assert!(
            why.contains("messages to skip") && why.contains(&skip.to_string()),
            "{why}"
        );
    }
}

//! Attachments that a hostile publisher sends, and what a hostile subscriber makes of them.

#[path = "../../crates/transport/tests/common/mod.rs"]
mod common;

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use common::fuse::{Fuse, op};
use memlane::{
    AttachmentError, Fds, Link, Publisher, Reason, RecvError, RecvTimeoutError, SendTimeoutError,
    Subscriber, TrySendError, WaitPolicy,
};
use memlane_region::{Remote, Shared, WordsMut, page_size, ring};
use memlane_tests::{
    Census, PATIENCE, Scene, attachments, check_attachments, memfd_with, unbound, wait_until,
    wire::{
        Answer, Bell, CURSOR, Farewell, Greeting, Notice, Offer, Opening, Rings, TAKEN, VERSION,
        WANTED, Welcome, advance, attached, header,
    },
};

const CAPACITY: usize = 1 << 16;

#[test]
fn fuse_server() {
    common::fuse::serve();
}

/// A publisher by hand.
struct Rogue {
    memory: Shared,
    link: Link,
    position: u64,
    greeting: Greeting,
}

impl Rogue {
    fn new(policy: WaitPolicy) -> (Rogue, Subscriber) {
        let (here, there) = Link::pair().unwrap();
        let connecting =
            thread::spawn(move || Subscriber::builder().wait(policy).over(there).unwrap());
        here.send(&Opening { version: VERSION }).unwrap();
        here.recv::<Opening>().unwrap();
        let greeting = here.recv_timeout(PATIENCE).unwrap();
        let (memory, ring) = Shared::create("rogue", page_size(), CAPACITY).unwrap();
        here.send(&Answer::Welcome(Welcome {
            rings: match policy {
                WaitPolicy::Poll => Rings::Nothing,
                _ => Rings::Socket,
            },
            ..Welcome::new(ring.into(), CAPACITY as u64)
        }))
        .unwrap();
        let rogue = Rogue {
            memory,
            link: here.with_limits(memlane_transport::Limits::new().in_flight(1000)),
            position: 0,
            greeting,
        };
        (rogue, connecting.join().unwrap())
    }

    /// Attaches files to the message at this position; whether there is room.
    fn attach(&self, position: u64, tag: u16, files: usize) -> bool {
        let fds = (0..files).map(|_| memfd_with(b"memlane")).collect();
        self.attach_these(position, tag, fds)
    }

    fn attach_these(&self, position: u64, tag: u16, fds: Fds) -> bool {
        let notice = Notice::Attachments { position, tag, fds };
        match self.link.try_send(&notice) {
            Ok(()) => true,
            Err(memlane_transport::Error::WouldBlock) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Where the message is going to be after so many of its like.
    fn position_after(&self, messages: usize) -> u64 {
        (0..messages).fold(self.position, |position, _| ring::end(position, 8))
    }

    /// Commits a message, with this tag, if any.
    fn commit(&mut self, tag: Option<u16>) {
        let next = ring::end(self.position, 8);
        self.memory.write(self.position, 8, b"message!");
        self.memory.store(next, 0);
        let plain = header(next - self.position, 8);
        let header = tag.map_or(plain, |tag| attached(plain, tag));
        self.memory.store_release(self.position, header);
        self.position = next;
    }

    fn taken(&self, page: &Remote) -> u64 {
        page.load_word(TAKEN)
    }

    /// Its subscriber's page.
    fn page(&self) -> Remote {
        let page = self.greeting.page.as_fd().try_clone_to_owned().unwrap();
        Remote::open(page, page_size(), 0, page_size()).unwrap()
    }
}

/// The attachments of the next message: how many there are.
fn next(subscriber: &mut Subscriber) -> Result<usize, AttachmentError> {
    let mut message = subscriber.recv().expect("a message, whatever it has");
    assert_eq!(message.to_vec(), b"message!");
    message.take_attachments().map(|fds| fds.len())
}

/// Messages whose attachments do not come, come for others, come twice, or in another order. Their bytes come, and what
/// belongs to the messages behind.
#[test]
fn notices_and_records_that_do_not_fit() {
    let _scene = Scene::new();
    for policy in [WaitPolicy::Poll, WaitPolicy::Block] {
        let (mut rogue, mut subscriber) = Rogue::new(policy);
        let missing = Err(AttachmentError::Missing);
        // Without a notice.
        rogue.commit(Some(7));
        assert_eq!(next(&mut subscriber), missing);
        // With one for the message behind, which has it.
        rogue.attach(rogue.position_after(1), 9, 3);
        rogue.commit(Some(8));
        rogue.commit(Some(9));
        assert_eq!(next(&mut subscriber), missing);
        assert_eq!(next(&mut subscriber), Ok(3));
        // With other tags, before the right one and behind.
        for tag in [1, 2, 3] {
            rogue.attach(rogue.position, tag, usize::from(tag));
        }
        rogue.commit(Some(3));
        assert_eq!(next(&mut subscriber), Ok(3));
        rogue.attach(rogue.position, 3, 3);
        rogue.attach(rogue.position, 4, 4);
        rogue.commit(Some(3));
        assert_eq!(next(&mut subscriber), Ok(3));
        rogue.attach(rogue.position, 5, 5);
        rogue.commit(Some(6));
        assert_eq!(next(&mut subscriber), missing);
        // Backwards: what was first is void.
        let later = rogue.position_after(1);
        rogue.attach(later, 1, 1);
        rogue.attach(rogue.position, 1, 2);
        rogue.commit(Some(1));
        rogue.commit(Some(1));
        let first = next(&mut subscriber);
        assert!(first == missing || first == Ok(2), "{first:?}");
        let second = next(&mut subscriber);
        assert!(second == missing || second == Ok(1), "{second:?}");
        // For a message that has none, for one that was long ago, for none that can be.
        rogue.attach(rogue.position, 1, 2);
        rogue.attach(0, 7, 2);
        rogue.commit(None);
        assert_eq!(next(&mut subscriber), Ok(0));
        rogue.attach(rogue.position + 4, 1, 2);
        rogue.commit(None);
        assert_eq!(next(&mut subscriber), Ok(0));
        rogue.attach(rogue.position, 32_000, 16);
        rogue.commit(Some(32_000));
        assert_eq!(next(&mut subscriber), Ok(16));
        rogue.attach(u64::MAX, 1, 2);
        rogue.commit(Some(1));
        assert_eq!(next(&mut subscriber), missing);
        // That was the last of all: nothing else is looked for.
        rogue.attach(rogue.position, 1, 2);
        rogue.commit(Some(1));
        assert_eq!(next(&mut subscriber), missing);
        drop(rogue);
        let over = subscriber.recv().unwrap_err();
        assert!(matches!(over, RecvError::Disconnected { .. }), "{over}");
    }
}

/// Notices without end, with which the subscriber has nothing to do: it keeps two of them at most, and takes the others when it
/// is told that its publisher waits for that, or needs one of them, so many in one go.
#[test]
fn notices_without_end() {
    let _scene = Scene::new();
    for policy in [WaitPolicy::Poll, WaitPolicy::Block] {
        let (mut rogue, mut subscriber) = Rogue::new(policy);
        let page = rogue.page();
        let base = Census::take().descriptors();
        let fill = |rogue: &Rogue, position: &dyn Fn(usize) -> u64| {
            (0..10_000)
                .take_while(|at| rogue.attach(position(*at), (*at % 32_768) as u16, 4))
                .count()
        };
        let idle = |subscriber: &mut Subscriber| {
            let none = subscriber.recv_timeout(Duration::from_millis(2));
            assert!(matches!(none, Err(RecvTimeoutError::TimedOut)));
        };
        let closed = |most: usize| {
            wait_until("what was void to be closed", || {
                Census::take().descriptors() <= base + 4 * most
            });
        };
        // Of one message that never comes, which the publisher pretends to wait for.
        let many = fill(&rogue, &|_| rogue.position);
        assert!(many > 60, "{many}");
        idle(&mut subscriber);
        assert_eq!(rogue.taken(&page), 0);
        rogue.memory.word(WANTED).store(u64::MAX, Ordering::SeqCst);
        wait_until("them to be taken", || {
            idle(&mut subscriber);
            rogue.taken(&page) == many as u64
        });
        closed(2);
        // Of messages far ahead, of which it takes one.
        let ahead = fill(&rogue, &|at| rogue.position_after(at + 1));
        assert!(ahead > 60, "{ahead}");
        for _ in 0..3 {
            idle(&mut subscriber);
            assert!(rogue.taken(&page) <= many as u64 + 1);
        }
        closed(2);
        for _ in 0..3 {
            rogue.commit(Some(999));
            assert!(next(&mut subscriber).is_err());
        }
        closed(2);
        rogue.memory.word(WANTED).store(0, Ordering::SeqCst);
        drop((rogue, page));
        let over = subscriber.recv().unwrap_err();
        assert!(matches!(over, RecvError::Disconnected { .. }), "{over}");
    }
}

/// More than it takes, or what is no notice: the lane ends with what was committed, and says why.
#[test]
fn notices_that_break_the_link() {
    let _scene = Scene::new();
    type Breaks = fn(&Rogue);
    let all: [(Breaks, &str); 4] = [
        (
            |rogue| assert!(rogue.attach(0, 1, 17)),
            "this link takes 16",
        ),
        (
            |rogue| assert!(rogue.attach(0, 1, 1000)),
            "this link takes 16",
        ),
        (
            |rogue| {
                rogue
                    .link
                    .send(&(3_u8, 0_u64, 1_u16, vec![0_u16, 0], memfd()))
                    .unwrap()
            },
            "descriptor",
        ),
        (|rogue| rogue.link.send(&17_u64).unwrap(), "variant"),
    ];
    for (breaks, says) in all {
        let (mut rogue, mut subscriber) = Rogue::new(WaitPolicy::Block);
        breaks(&rogue);
        rogue.commit(Some(1));
        rogue.commit(None);
        match next(&mut subscriber) {
            Err(AttachmentError::Refused { why }) => assert!(why.contains(says), "{why}"),
            found => panic!("{found:?}"),
        }
        // To a publisher whose link has ended it is gone: nothing that is written from then on is for it.
        let over = subscriber.recv().unwrap_err();
        let RecvError::Disconnected {
            reason: Reason::Broken { why },
        } = over
        else {
            panic!("{over}")
        };
        assert!(why.contains(says), "{why}");
    }
}

fn memfd() -> memlane::Fd {
    memfd_with(b"x").into()
}

/// A TCP socket whose close waits for a day, since its peer takes nothing.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (unread, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65536]).is_ok() {}
    let day = Some(Duration::from_secs(86_400));
    rustix::net::sockopt::set_socket_linger(&socket, day).unwrap();
    (socket.into(), unread)
}

/// Files whose server never answers, and sockets whose close waits: whatever becomes of their messages, nobody waits for them.
#[test]
fn descriptors_that_nobody_can_close() {
    let _scene = Scene::new();
    let Some(mut fuse) = Fuse::start() else {
        return;
    };
    fuse.hang_only(&[op::FLUSH, op::RELEASE, op::GETATTR, op::READ, op::POLL]);
    let (socket, unread) = lingering();
    let (mut publisher, mut subscriber) = {
        let (here, there) = Link::pair().unwrap();
        let publisher = unbound(1 << 14).unbound().unwrap();
        publisher.attach(here).unwrap();
        (publisher, Subscriber::builder().over(there).unwrap())
    };
    // Lent by the test, which is what the file's server is to: nobody here closes the copies but the subscriber.
    let both = || -> Fds {
        let file = fuse.file().try_clone_to_owned().unwrap();
        [file, socket.try_clone().unwrap()].into_iter().collect()
    };
    let kept = both();
    for round in 0..3 {
        publisher.send_with(b"nasty", &kept).unwrap();
        publisher.send(b"plain").unwrap();
        let mut message = subscriber.recv().unwrap();
        match round {
            0 => drop(message),
            1 => {
                drop(message.take_attachments().unwrap().into_fds().unwrap());
                drop(message);
            }
            _ => drop(message.hold().unwrap()),
        }
        assert_eq!(subscriber.recv().unwrap().to_vec(), b"plain");
    }
    // Void ones, and ones that are left on the link.
    let mut place = publisher.reserve(8).unwrap();
    place.attach(&kept).unwrap();
    drop(place);
    publisher.send_with(b"nasty", &attachments(1, 1)).unwrap();
    assert_eq!(
        subscriber.recv().unwrap().take_attachments().unwrap().len(),
        1
    );
    publisher.send_with(b"nasty", &kept).unwrap();
    drop(subscriber);
    drop(publisher);
    // Now they can all be closed.
    fuse.kill();
    drop(unread);
    drop(kept);
    drop(socket);
    drop(fuse);
}

/// A subscriber by hand.
struct Villain {
    link: Link,
    mine: Shared,
    ring: Remote,
    position: u64,
    start: u64,
    /// Who closes it has left.
    _bell: Bell,
}

impl Villain {
    fn join(publisher: &Publisher) -> Villain {
        let (here, there) = Link::pair().unwrap();
        publisher.attach(there).unwrap();
        let (mine, page) = Shared::create("villain", page_size(), 0).unwrap();
        here.send(&Opening { version: VERSION }).unwrap();
        here.send(&Greeting::new(page.into(), Offer::default()))
            .unwrap();
        here.recv::<Opening>().unwrap();
        let Answer::Welcome(welcome) = here.recv().unwrap() else {
            panic!("refused")
        };
        let ring = Remote::open(welcome.ring.into(), page_size(), 1 << 14, 1 << 20).unwrap();
        Villain {
            link: here,
            mine,
            ring,
            position: welcome.start,
            start: welcome.start,
            _bell: welcome.doorbell,
        }
    }

    fn takes(&self, count: u64) {
        self.mine.word(TAKEN).store(count, Ordering::SeqCst);
    }

    /// Releases all that there is.
    fn releases(&mut self) {
        use memlane_region::Words;
        loop {
            let header = self.ring.load(self.position);
            if header == 0 {
                break;
            }
            self.position += advance(header);
        }
        let cursor = self.position - self.start;
        self.mine.word(CURSOR).store(cursor, Ordering::SeqCst);
    }

    /// Why it was dropped.
    fn farewell(&self) -> String {
        loop {
            match self.link.recv_timeout(PATIENCE).expect("a farewell") {
                Notice::Farewell(Farewell::Evicted { why }) => return why,
                Notice::Attachments { .. } => {}
                notice => panic!("{notice:?}"),
            }
        }
    }
}

/// A count of what was taken that no subscriber has.
#[test]
fn counts_that_make_no_sense() {
    let _scene = Scene::new();
    for (first, then, why) in [
        (0, 3, "from 0 to 2, got 3"),
        (0, u64::MAX, "from 0 to 2, got 18446744073709551615"),
        (2, 1, "from 2 to 3, got 1"),
    ] {
        let mut publisher = unbound(1 << 14).unbound().unwrap();
        let villain = Villain::join(&publisher);
        let (here, there) = Link::pair().unwrap();
        publisher.attach(there).unwrap();
        let mut subscriber = Subscriber::builder().over(here).unwrap();
        let mut send = |number| {
            publisher
                .send_with(b"a file", &attachments(number, 1))
                .unwrap()
        };
        (0..2).for_each(&mut send);
        if first > 0 {
            villain.takes(first);
            send(2);
        }
        villain.takes(then);
        send(3);
        assert!(villain.farewell().ends_with(why), "{why}");
        let sent: &[u64] = if first > 0 { &[0, 1, 2, 3] } else { &[0, 1, 3] };
        for &number in sent {
            let mut message = subscriber.recv().unwrap();
            check_attachments(number, 1, message.take_attachments().unwrap());
        }
        wait_until("it to be dropped", || publisher.stats().evicted == 1);
        assert_eq!(publisher.subscribers(), 1);
    }
}

/// One that takes nothing makes its publisher wait, with others, until it goes: as one that releases nothing does. Messages
/// without attachments go on.
#[test]
fn who_takes_nothing_is_waited_for() {
    let _scene = Scene::new();
    for way in [1, 4, 128] {
        let mut publisher = unbound(1 << 14)
            .attachments_in_flight(way)
            .unbound()
            .unwrap();
        let mut villain = Villain::join(&publisher);
        let mut sent = 0;
        let refused = loop {
            match publisher.try_send_with(b"files", &attachments(sent, 2)) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            villain.releases();
        };
        assert!(matches!(refused, TrySendError::Full), "{refused}");
        // At least one, so many descriptors, and so many messages.
        assert_eq!(
            sent,
            [1, 2, 64][[1, 4, 128].iter().position(|&each| each == way).unwrap()]
        );
        for _ in 0..1000 {
            publisher.send(b"plain").unwrap();
            villain.releases();
        }
        let timed_out =
            publisher.send_timeout_with(b"files", &attachments(0, 1), Duration::from_millis(5));
        assert!(
            matches!(timed_out, Err(SendTimeoutError::TimedOut)),
            "{timed_out:?}"
        );
        // As one that is honest would, it takes one.
        let notice: Notice = villain.link.recv().unwrap();
        assert!(matches!(notice, Notice::Attachments { .. }));
        villain.takes(1);
        publisher
            .try_send_with(b"files", &attachments(sent, 2))
            .unwrap();
        assert!(
            publisher
                .try_send_with(b"files", &attachments(sent, 2))
                .is_err()
        );
        let waiting = thread::spawn(move || {
            publisher.send_with(b"files", &attachments(0, 2)).unwrap();
            publisher
        });
        drop(villain);
        let publisher = waiting.join().unwrap();
        assert_eq!(publisher.stats().evicted, 0);
    }
}

/// One whose socket refuses descriptors cannot be a subscriber where there are some.
#[test]
fn who_refuses_descriptors_is_dropped() {
    let _scene = Scene::new();
    let mut publisher = unbound(1 << 14).unbound().unwrap();
    let mut villain = Villain::join(&publisher);
    if !memlane_transport::refuse_descriptors(&villain.link).unwrap() {
        eprintln!("skipped: this kernel cannot refuse descriptors (SO_PASSRIGHTS, Linux 6.16)");
        return;
    }
    publisher.send(b"plain").unwrap();
    villain.releases();
    publisher.send_with(b"a file", &attachments(0, 1)).unwrap();
    assert!(villain.farewell().contains("cannot be sent attachments"));
    wait_until("it to be dropped", || publisher.stats().evicted == 1);
    assert_eq!(publisher.subscribers(), 0);
}

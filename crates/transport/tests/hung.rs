//! Descriptors of a file whose server never answers: they cost a thread that closes them, and nothing else (A18, A20, A21).
//!
//! What no process can avoid: as long as such a descriptor is open, its *exit* waits for the server, SIGKILL or not, since
//! exiting closes everything; and so does the execve of a child that it forks, which closes the child's copy. That is why
//! each test starts the victim before the file is there, and ends the server before it waits for the victim.

mod common;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::fuse::{Fuse, Request, op};
use common::{
    Reaped, alone, child, descriptors, frame, kinds, memfd, packet, parent, raw_send, role, until,
};
use memlane_transport::frame::MAX_INLINE;
use memlane_transport::{Error, EventFd, Fd, Link, MAX_DISPOSERS, MemoryFd, StreamFd, codec};
use rustix::event::{PollFd, PollFlags, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[test]
fn fuse_server() {
    common::fuse::serve();
}

/// What the test wants from its victim, over the honest link.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Echo(u32),
    /// Serve this link, too.
    Serve(Fd),
    Descriptors,
    Exit,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Answer {
    /// The thread that serves.
    Started(u32),
    Echo(u32),
    Serving,
    Descriptors(usize),
    /// What became of a packet from a link to be served: it was received and dropped, or the error.
    Packet(Result<(), String>),
}

/// What the victim expects of the links it serves.
type Message = (String, Vec<Fd>, bool);

fn body(fds: &[u16]) -> Vec<u8> {
    codec::encode(&("ring", fds, true), MAX_INLINE).unwrap()
}

/// A service with a single thread.
fn victim() {
    let honest = parent();
    honest.send(&Answer::Started(this_thread())).unwrap();
    let mut served: Vec<Link> = Vec::new();
    loop {
        let mut fds: Vec<_> = [&honest]
            .into_iter()
            .chain(&served)
            .map(|link| PollFd::new(link, PollFlags::IN))
            .collect();
        poll(&mut fds, None).unwrap();
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for number in (0..served.len()).rev().filter(|number| ready[number + 1]) {
            let outcome = served[number].recv::<Message>().map(drop);
            let outcome = outcome.map_err(|error| {
                served.remove(number);
                format!("{error:?}")
            });
            honest.send(&Answer::Packet(outcome)).unwrap();
        }
        if !ready[0] {
            continue;
        }
        let answer = match honest.recv().unwrap() {
            Ask::Echo(number) => Answer::Echo(number),
            Ask::Serve(fd) => {
                served.push(Link::from_fd(fd.into()).unwrap());
                Answer::Serving
            }
            Ask::Descriptors => Answer::Descriptors(descriptors().len()),
            Ask::Exit => return,
        };
        honest.send(&answer).unwrap();
    }
}

/// Fields in the order they have to go: the server first, then the victim can be waited for.
struct Scene {
    fuse: Fuse,
    victim: Reaped,
    honest: Link,
    thread: u32,
    before: usize,
}

impl Scene {
    fn new(test: &str) -> Option<Scene> {
        let (honest, theirs) = Link::pair().unwrap();
        // First: a child forked with the hung file hangs in execve, which closes it.
        let victim = Reaped::spawn(&mut child(test, "victim", theirs));
        let mut scene = Scene {
            fuse: Fuse::start()?,
            victim,
            honest,
            thread: 0,
            before: 0,
        };
        let Answer::Started(thread) = scene.answer() else {
            panic!("expected the start")
        };
        scene.thread = thread;
        scene.before = scene.descriptors();
        Some(scene)
    }

    /// The victim's next answer. A minute without one is a victim that hangs.
    fn answer(&self) -> Answer {
        self.honest
            .recv_timeout(Duration::from_secs(60))
            .expect("the victim answers")
    }

    fn descriptors(&self) -> usize {
        self.honest.send(&Ask::Descriptors).unwrap();
        let Answer::Descriptors(count) = self.answer() else {
            panic!("expected a count")
        };
        count
    }

    /// The victim serves its other peers.
    fn serves(&self) {
        for number in 0..50 {
            self.honest.send(&Ask::Echo(number)).unwrap();
            assert_eq!(self.answer(), Answer::Echo(number));
        }
        only_closed_elsewhere(&self.fuse, self.thread);
    }

    /// A hostile peer's end of a new link to the victim.
    fn hostile(&self) -> OwnedFd {
        let (ours, theirs) = Link::pair().unwrap();
        let theirs = OwnedFd::from(theirs).into();
        self.honest.send(&Ask::Serve(theirs)).unwrap();
        assert_eq!(self.answer(), Answer::Serving);
        ours.into_fd()
    }

    /// Sends a packet with `count` hung descriptors and gives what became of it.
    fn attack(&self, hostile: &OwnedFd, packet: &[u8], count: usize) -> Result<(), String> {
        raw_send(hostile, packet, &vec![self.fuse.file(); count]);
        match self.answer() {
            Answer::Packet(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until `count` threads of the victim hang in the file.
    fn hanging(&self, count: usize) {
        until("threads that close", || self.fuse.requests().len() >= count);
    }

    /// When the server is gone everything gets closed, and the victim can exit.
    fn end(mut self) {
        self.fuse.kill();
        until("the victim's descriptors closed", || {
            self.descriptors() == self.before
        });
        self.honest.send(&Ask::Exit).unwrap();
        self.victim.succeed();
    }
}

/// The thread has not entered the file, and others only to close it.
fn only_closed_elsewhere(fuse: &Fuse, thread: u32) {
    for request in fuse.requests() {
        assert_eq!(request.op, op::FLUSH, "{request:?}");
        assert_ne!(request.thread, thread, "{request:?}");
    }
}

fn this_thread() -> u32 {
    rustix::thread::gettid().as_raw_pid() as u32
}

#[test]
fn in_a_message_that_is_dropped() {
    if role().is_some() {
        return victim();
    }
    let _alone = alone();
    let Some(scene) = Scene::new("in_a_message_that_is_dropped") else {
        return;
    };
    let hostile = scene.hostile();
    for count in 1..=3_u16 {
        let indices: Vec<u16> = (0..count).collect();
        let packet = frame(count, &body(&indices));
        assert_eq!(scene.attack(&hostile, &packet, count.into()), Ok(()));
        scene.serves();
    }
    scene.hanging(6);
    scene.serves();
    drop(hostile);
    assert_eq!(
        scene.answer(),
        Answer::Packet(Err("Disconnected".to_owned()))
    );
    scene.end();
}

#[test]
fn in_packets_that_break_the_protocol() {
    if role().is_some() {
        return victim();
    }
    let _alone = alone();
    let Some(scene) = Scene::new("in_packets_that_break_the_protocol") else {
        return;
    };
    let not_a_bool = [b"\x04ring\x01\x00".as_slice(), &[9]].concat();
    // The fields of docs/wire-format.md whose descriptor is the link's own: memory, receipt; and of a message in parts.
    let memory = [&[2, 8][..], &100_u64.to_le_bytes()].concat();
    let receipt = [3, 0];
    let more = [&[1, 4][..], &1_u32.to_le_bytes()].concat();
    let cases: [(Vec<u8>, usize, &str); 15] = [
        (packet(1, &memory, &[]), 1, "WrongDescriptor {"),
        (packet(1, &receipt, &body(&[])), 1, "NotAReceipt"),
        (packet(1, &more, &[]), 1, "Parts {"),
        (
            frame(1, &body(&[])),
            1,
            "SurplusDescriptors { received: 1, taken: 0 }",
        ),
        (
            frame(2, &body(&[1])),
            2,
            "SurplusDescriptors { received: 2, taken: 1 }",
        ),
        (
            frame(1, &body(&[0, 1])),
            1,
            "MissingDescriptor { index: 1, received: 1 }",
        ),
        (frame(1, &body(&[0, 0])), 1, "DescriptorTwice { index: 0 }"),
        (
            frame(0, &body(&[])),
            1,
            "DescriptorCount { announced: 0, received: 1 }",
        ),
        (
            frame(3, &body(&[0])),
            1,
            "DescriptorCount { announced: 3, received: 1 }",
        ),
        (frame(1, &not_a_bool), 1, "Decode {"),
        (frame(1, &[200, 1]), 1, "Decode {"),
        (Vec::new(), 1, "EmptyPacket { descriptors: 1 }"),
        (vec![b'm', 1], 1, "ShortPacket { size: 2, expected: 8 }"),
        (b"GET / HTTP/1.1".to_vec(), 1, "NotMemlane {"),
        (frame(1, &vec![0; MAX_INLINE + 1]), 1, "PacketTooLarge {"),
    ];
    let mut sent = 0;
    for (packet, count, expected) in cases {
        let hostile = scene.hostile();
        let error = scene.attack(&hostile, &packet, count).unwrap_err();
        assert!(error.starts_with(expected), "{error}, expected {expected}");
        sent += count;
        scene.serves();
    }
    scene.hanging(sent.min(MAX_DISPOSERS));
    scene.end();
}

/// When every thread that closes hangs, what may hang waits, and what cannot hang is closed as before.
#[test]
fn more_than_there_are_threads() {
    if role().is_some() {
        return victim();
    }
    let _alone = alone();
    let Some(scene) = Scene::new("more_than_there_are_threads") else {
        return;
    };
    const MANY: u16 = 40;
    assert!(usize::from(MANY) > MAX_DISPOSERS);
    let hostile = scene.hostile();
    let indices: Vec<u16> = (0..MANY).collect();
    let packet = frame(MANY, &body(&indices));
    assert_eq!(scene.attack(&hostile, &packet, MANY.into()), Ok(()));
    scene.hanging(MAX_DISPOSERS);
    scene.serves();
    assert_eq!(scene.fuse.requests().len(), MAX_DISPOSERS);
    // The link and those that wait for a thread: close(2) frees the number before it sleeps.
    let queued = scene.before + 1 + usize::from(MANY) - MAX_DISPOSERS;
    assert_eq!(scene.descriptors(), queued);

    let (ours, theirs) = UnixStream::pair().unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    raw_send(
        &hostile,
        &frame(3, &body(&[0, 1, 2])),
        &[theirs.as_fd(), memfd().as_fd(), writer.as_fd()],
    );
    drop((theirs, writer));
    assert_eq!(scene.answer(), Answer::Packet(Ok(())));
    // The memfd is closed already; the socket, which could hold anything, and the pipe wait behind the file.
    assert!(!hung_up(ours.as_fd()));
    assert!(!hung_up(reader.as_fd()));
    assert_eq!(scene.descriptors(), queued + 2);
    scene.serves();

    drop(hostile);
    assert_eq!(
        scene.answer(),
        Answer::Packet(Err("Disconnected".to_owned()))
    );
    scene.end();
    assert!(hung_up(ours.as_fd()) && hung_up(reader.as_fd()));
}

fn hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::empty())];
    let now = rustix::event::Timespec::default();
    poll(&mut fds, Some(&now)).unwrap();
    fds[0].revents().contains(PollFlags::HUP)
}

/// What waits behind the packet that breaks the protocol is discarded by the kernel, with the link and by the thread that
/// drops it. Even the last reference does not make it wait: there is no FLUSH, and nobody waits for RELEASE.
#[test]
fn behind_a_packet_that_breaks_the_protocol() {
    let _alone = alone();
    let Some(fuse) = Fuse::start() else { return };
    let (link, hostile) = Link::pair().unwrap();
    let hostile = hostile.into_fd();
    // A description of its own, closed here before anything hangs.
    fuse.hang_only(&[]);
    let path = format!("/proc/self/fd/{}", fuse.file().as_raw_fd());
    let again: OwnedFd = File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
        .into();
    raw_send(&hostile, b"GET", &[]);
    raw_send(
        &hostile,
        &frame(1, &body(&[0])),
        &[fuse.file(), again.as_fd()],
    );
    drop(again);
    let before = fuse.requests().len();
    fuse.hang_only(&[op::FLUSH, op::RELEASE]);

    let error = link.recv::<Message>().unwrap_err();
    assert!(matches!(error, Error::NotMemlane { .. }), "{error:?}");
    drop(link);
    until("the last reference gone", || fuse.requests().len() > before);
    let released = fuse.requests().split_off(before);
    assert!(
        matches!(
            released[..],
            [Request {
                op: op::RELEASE,
                ..
            }]
        ),
        "{released:?}"
    );
}

/// A peer that sleeps in its own end, in the middle of a receive or a send, does not make the other end sleep. In *this* end
/// it would (C5b), which is why an end that others may hold is not to be received from: see [`Link`].
#[test]
fn a_peer_that_hangs_in_its_own_end() {
    let _alone = alone();
    let Some(mut fuse) = Fuse::start() else {
        return;
    };
    let (link, hostile) = Link::pair().unwrap();
    let hostile = hostile.into_fd();
    // The kernel copies to and from pages that the server does not deliver.
    let (first, second) = (Page::of(&fuse, 0), Page::of(&fuse, 100));
    std::thread::scope(|scope| {
        link.send(&0_u8).unwrap();
        let receiving = scope.spawn(|| first.receive(&hostile));
        until("the peer receives", || fuse.requests().len() == 1);
        let sending = scope.spawn(|| second.send(&hostile));
        until("the peer sends", || fuse.requests().len() == 2);
        for number in 0..20_u8 {
            link.try_send(&number).unwrap();
            assert!(matches!(link.try_recv::<u8>(), Err(Error::WouldBlock)));
        }
        let waiting = fuse.requests();
        assert!(
            matches!(
                waiting[..],
                [Request { op: op::READ, .. }, Request { op: op::READ, .. }]
            ),
            "{waiting:?}"
        );
        fuse.kill();
        assert_eq!(receiving.join().unwrap(), Err(Some(libc::EFAULT)));
        assert_eq!(sending.join().unwrap(), Err(Some(libc::EFAULT)));
    });
}

/// A page of the hung file, mapped.
struct Page(usize);

impl Page {
    const SIZE: usize = 4096;

    fn of(fuse: &Fuse, number: u64) -> Page {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let offset = number * Page::SIZE as u64;
        // SAFETY: a new mapping, wherever there is room.
        let page = unsafe {
            mmap(
                std::ptr::null_mut(),
                Page::SIZE,
                access,
                MapFlags::PRIVATE,
                fuse.file(),
                offset,
            )
        };
        Page(page.unwrap() as usize)
    }

    fn address(&self) -> *mut libc::c_void {
        self.0 as *mut libc::c_void
    }

    fn receive(&self, socket: &OwnedFd) -> Result<isize, Option<i32>> {
        // SAFETY: the page stays mapped during the call, and nobody else looks at it.
        Page::result(unsafe { libc::recv(socket.as_raw_fd(), self.address(), 5, 0) })
    }

    fn send(&self, socket: &OwnedFd) -> Result<isize, Option<i32>> {
        // SAFETY: as above.
        Page::result(unsafe {
            libc::send(socket.as_raw_fd(), self.address(), 5, libc::MSG_NOSIGNAL)
        })
    }

    fn result(size: isize) -> Result<isize, Option<i32>> {
        match size {
            -1 => Err(std::io::Error::last_os_error().raw_os_error()),
            size => Ok(size),
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: made by `of`, and nobody keeps the address.
        unsafe { rustix::mm::munmap(self.address(), Page::SIZE) }.unwrap();
    }
}

/// What a receiver may ask of any descriptor does not enter the file.
#[test]
fn questions_that_no_file_answers_itself() {
    use rustix::fs::{AtFlags, StatxFlags, fcntl_get_seals, readlinkat, statx};
    let _alone = alone();
    let kinds = kinds();
    for (name, fd) in kinds.iter() {
        let _ = fcntl_get_seals(fd);
        let _ = rustix::fs::fcntl_getfl(fd);
        let _ = rustix::net::sockopt::socket_domain(fd);
        let _ = rustix::net::sockopt::socket_type(fd);
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        statx(fd, "", flags, StatxFlags::BASIC_STATS).expect(name);
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        readlinkat(rustix::fs::CWD, link, Vec::new()).expect(name);
    }
    if let Some(fuse) = kinds.fuse() {
        assert_eq!(fuse.requests(), []);
    }
}

/// Typed descriptors (A20, A21): each type takes its own kind and no other.
#[test]
fn every_kind_in_place_of_another() {
    let _alone = alone();
    let kinds = kinds();
    let index = codec::encode(&0_u16, MAX_INLINE).unwrap();
    for (name, fd) in kinds.iter() {
        for (taker, takes) in [
            (
                "sealed memfd",
                receives::<MemoryFd> as fn(&OwnedFd, &[u8]) -> _,
            ),
            ("eventfd", receives::<EventFd>),
            ("Unix stream socket", receives::<StreamFd>),
        ] {
            match takes(fd, &index) {
                Ok(()) => assert_eq!(*name, taker),
                Err(Error::WrongDescriptor { .. }) => assert_ne!(*name, taker),
                Err(error) => panic!("{name}: {error:?}"),
            }
        }
    }
    if let Some(fuse) = kinds.fuse() {
        until("the copies closed", || fuse.requests().len() == 3);
        only_closed_elsewhere(fuse, this_thread());
    }
}

fn receives<T: DeserializeOwned>(fd: &OwnedFd, body: &[u8]) -> Result<(), Error> {
    let (link, hostile) = Link::pair().unwrap();
    raw_send(&hostile, &frame(1, body), &[fd.as_fd()]);
    link.recv::<T>().map(drop)
}

/// A copy of each kind, refused or received and dropped.
#[test]
fn every_kind_of_descriptor() {
    let _alone = alone();
    let kinds = kinds();
    let all: Vec<BorrowedFd<'_>> = kinds.iter().map(|(_, fd)| fd.as_fd()).collect();
    let count = all.len() as u16;
    let indices: Vec<u16> = (0..count).collect();

    let (link, hostile) = Link::pair().unwrap();
    let hostile = hostile.into_fd();
    raw_send(&hostile, &frame(count, &body(&indices)), &all);
    let (_, received, _) = link.recv::<Message>().unwrap();
    assert_eq!(received.len(), kinds.len());
    drop(received);
    raw_send(&hostile, &frame(count, &body(&indices[1..])), &all);
    let error = link.recv::<Message>().unwrap_err();
    assert!(
        matches!(error, Error::SurplusDescriptors { .. }),
        "{error:?}"
    );
    if let Some(fuse) = kinds.fuse() {
        until("the copies closed", || fuse.requests().len() == 2);
        only_closed_elsewhere(fuse, this_thread());
    }
}

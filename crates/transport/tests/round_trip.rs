//! What goes in comes out: values, and descriptors that are the same files.

mod common;

use std::os::fd::OwnedFd;
use std::thread;

use common::{alone, inode, memfd};
use memlane_transport::{Fd, FdRef, Link};
use rustix::io::{FdFlags, fcntl_getfd};
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Offer<'a> {
    name: &'a str,
    ring: FdRef<'a>,
    more: Vec<FdRef<'a>>,
}

#[derive(Deserialize)]
struct Offered {
    name: String,
    ring: Fd,
    more: Vec<Fd>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Message {
    Empty,
    Number(i64),
    Text {
        text: String,
        bytes: Vec<u8>,
        maybe: Option<Box<Message>>,
    },
}

#[test]
fn values() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let text = Message::Text {
        text: "gemäß".into(),
        bytes: (0..=255).collect(),
        maybe: Some(Box::new(Message::Number(i64::MIN))),
    };
    for message in [Message::Empty, Message::Number(-1), text] {
        left.send(&message).unwrap();
        assert_eq!(right.recv::<Message>().unwrap(), message);
        right.send(&message).unwrap();
        assert_eq!(left.recv::<Message>().unwrap(), message);
    }
    left.send(&()).unwrap();
    right.recv::<()>().unwrap();
}

#[test]
fn any_number_of_descriptors() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    for count in [0, 1, 4, 64, 253] {
        let sent: Vec<Fd> = (0..count).map(|_| memfd().into()).collect();
        left.send(&sent).unwrap();
        let received: Vec<Fd> = right.recv().unwrap();
        assert_eq!(received.len(), count);
        for (sent, received) in sent.iter().zip(&received) {
            assert_eq!(inode(sent), inode(received));
            assert_eq!(fcntl_getfd(received).unwrap(), FdFlags::CLOEXEC);
        }
    }
}

#[test]
fn borrowed_descriptors_arrive_owned() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let (ring, first, second) = (memfd(), memfd(), memfd());
    let more = vec![FdRef::new(&first), FdRef::new(&second)];
    left.send(&Offer {
        name: "camera",
        ring: FdRef::new(&ring),
        more,
    })
    .unwrap();

    let offered: Offered = right.recv().unwrap();
    assert_eq!(offered.name, "camera");
    assert_eq!(inode(&offered.ring), inode(&ring));
    let more: Vec<_> = offered.more.iter().map(inode).collect();
    assert_eq!(more, [inode(&first), inode(&second)]);
    let owned: OwnedFd = offered.ring.into();
    assert_eq!(inode(&owned), inode(&ring));
}

#[test]
fn one_descriptor_may_be_sent_twice_in_a_message() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let file = memfd();
    left.send(&(FdRef::new(&file), FdRef::new(&file))).unwrap();
    let (first, second): (Fd, Fd) = right.recv().unwrap();
    assert_eq!(inode(&first), inode(&file));
    assert_eq!(inode(&second), inode(&file));
}

#[test]
fn from_many_threads_to_many_threads() {
    const EACH: u32 = 500;
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let mut received: Vec<u32> = thread::scope(|scope| {
        for thread in 0..3 {
            let left = &left;
            scope.spawn(move || {
                for number in 0..EACH {
                    left.send(&(thread * EACH + number, Fd::from(memfd())))
                        .unwrap();
                }
            });
        }
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    (0..EACH)
                        .map(|_| right.recv::<(u32, Fd)>().unwrap().0)
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        readers
            .into_iter()
            .flat_map(|reader| reader.join().unwrap())
            .collect()
    });
    received.sort_unstable();
    assert!(received.into_iter().eq(0..3 * EACH));
}

#[test]
fn descriptors_do_not_reach_an_executed_program() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    left.send(&Fd::from(memfd())).unwrap();
    let _received: Fd = right.recv().unwrap();
    let listing = std::process::Command::new("ls")
        .args(["-l", "/proc/self/fd"])
        .output()
        .unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    assert!(!listing.contains("memlane-test"), "{listing}");
}

/// A last word when a thread ends, after the buffers of its messages have gone.
#[test]
fn from_a_thread_that_ends() {
    struct Bye(Link);

    impl Drop for Bye {
        fn drop(&mut self) {
            self.0.send("bye").unwrap();
        }
    }

    thread_local! {
        static BYE: std::cell::RefCell<Option<Bye>> = const { std::cell::RefCell::new(None) };
    }

    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let speaker = std::thread::spawn(move || {
        BYE.set(Some(Bye(left)));
        BYE.with_borrow(|bye| bye.as_ref().unwrap().0.send("hello").unwrap());
    });
    speaker.join().unwrap();
    for expected in ["hello", "bye"] {
        assert_eq!(right.recv::<String>().unwrap(), expected);
    }
}

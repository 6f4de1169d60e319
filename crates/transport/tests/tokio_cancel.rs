//! Futures that are dropped before they are done.

mod common;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use common::{abstract_name, alone, memfd};
use memlane_transport::tokio::{Link, Listener};
use memlane_transport::{
    Access, Address, Error, Fd, FdRef, Link as Blocking, Listener as BlockingListener, SocketKind,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

const KINDS: [SocketKind; 2] = [SocketKind::Packets, SocketKind::Stream];

/// One of each, with descriptor numbers for several of the largest messages.
fn runtimes() -> [Runtime; 2] {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    [
        Builder::new_current_thread().enable_all().build().unwrap(),
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap(),
    ]
}

/// Polls at most `polls` times, letting the reactor run in between, and then drops the future.
async fn poll_and_drop<T>(polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

/// Failing takes a minute, succeeding no longer than it must.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(Duration::from_secs(60), future).await {
        Ok(output) => output,
        Err(_) => panic!("still waiting for: {what}"),
    }
}

/// Fills the sending end, but for one packet; says how many messages are in it.
fn room_for_one(sender: &Blocking, receiver: &Blocking) -> usize {
    sockopt::set_socket_send_buffer_size(sender, 1).unwrap();
    let mut queued = 0;
    while sender.try_send(&()).is_ok() {
        queued += 1;
    }
    receiver.try_recv::<()>().unwrap();
    queued - 1
}

/// How many descriptors the tests' messages have: none, a few, a packet's, several packets'.
const COUNTS: [usize; 6] = [0, 1, 253, 254, 1000, 0];

#[test]
fn a_dropped_recv_loses_no_message() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            let (left, right) = Blocking::pair_of(kind).unwrap();
            sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
            let sender = thread::spawn(move || {
                let file = memfd();
                for number in 0..300_u32 {
                    let fds = vec![FdRef::new(&file); COUNTS[number as usize % 6]];
                    left.send(&(number, fds)).unwrap();
                }
            });
            runtime.block_on(soon("300 messages", async {
                let right = Link::new(right).unwrap();
                let mut dropped = 0;
                let mut expected = 0;
                while expected < 300 {
                    let received = if expected % 2 == 0 {
                        poll_and_drop(dropped % 4, right.recv::<(u32, Vec<Fd>)>()).await
                    } else {
                        tokio::select! {
                            biased;
                            message = right.recv::<(u32, Vec<Fd>)>() => Some(message),
                            () = yield_now() => None,
                        }
                    };
                    let Some(message) = received else {
                        dropped += 1;
                        continue;
                    };
                    let (number, fds) = message.unwrap();
                    assert_eq!(number, expected);
                    assert_eq!(fds.len(), COUNTS[number as usize % 6]);
                    expected += 1;
                }
                assert!(dropped > 0);
                assert!(right.recv::<()>().await.unwrap_err().is_disconnected());
            }));
            sender.join().unwrap();
        }
    }
}

#[test]
fn a_dropped_send_sends_all_or_nothing() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            let (left, right) = Blocking::pair_of(kind).unwrap();
            sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
            let receiver = thread::spawn(move || {
                let mut numbers = Vec::new();
                while let Ok((number, fds)) = right.recv::<(u32, Vec<Fd>)>() {
                    assert_eq!(fds.len(), COUNTS[number as usize % 6]);
                    numbers.push(number);
                }
                numbers
            });
            let (sent, not_sent) = runtime.block_on(soon("all sends", async {
                let left = Link::new(left).unwrap();
                let file = memfd();
                let (mut sent, mut not_sent) = (Vec::new(), Vec::new());
                for number in 0..600_u32 {
                    let count = COUNTS[number as usize % 6];
                    let message = (number, vec![FdRef::new(&file); count]);
                    let future = left.send(&message);
                    let result = if number % 12 < 6 {
                        poll_and_drop(number % 5, future).await
                    } else {
                        tokio::select! {
                            biased;
                            result = future => Some(result),
                            () = yield_now() => None,
                        }
                    };
                    match result {
                        Some(result) => {
                            result.unwrap();
                            sent.push(number);
                        }
                        // What travels in one packet has either left or not.
                        None if kind == SocketKind::Packets && count <= 253 => {
                            not_sent.push(number);
                        }
                        None => {}
                    }
                }
                left.flush().await.unwrap();
                (sent, not_sent)
            }));
            let received = receiver.join().unwrap();
            assert!(received.is_sorted_by(|a, b| a < b), "{received:?}");
            assert!(!sent.is_empty());
            for number in sent {
                assert!(received.binary_search(&number).is_ok(), "{number} is lost");
            }
            for number in not_sent {
                assert!(
                    received.binary_search(&number).is_err(),
                    "{number} was sent"
                );
            }
        }
    }
}

/// What a time-out says is so, also of messages that leave in part.
#[test]
fn a_send_that_timed_out_has_sent_nothing() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = Blocking::pair_of(kind).unwrap();
                let (left, right) = (Link::new(left).unwrap(), Link::new(right).unwrap());
                sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
                let file = memfd();
                let mut sent = Vec::new();
                let mut received = Vec::new();
                for number in 0..100_u32 {
                    let fds = vec![FdRef::new(&file); COUNTS[number as usize % 6]];
                    match left
                        .send_timeout(&(number, fds), Duration::from_micros(300))
                        .await
                    {
                        Ok(()) => sent.push(number),
                        Err(Error::TimedOut) => {
                            // Nothing but this makes room.
                            let flushing = async {
                                left.flush().await.unwrap();
                                std::future::pending().await
                            };
                            let message = soon("a message", async {
                                tokio::select! {
                                    message = right.recv::<(u32, Vec<Fd>)>() => message,
                                    never = flushing => never,
                                }
                            })
                            .await;
                            received.push(message.unwrap().0);
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
                assert!(!received.is_empty());
                assert!(sent.len() < 100);
                let rest = async {
                    while received.len() < sent.len() {
                        let message = right.recv::<(u32, Vec<Fd>)>().await;
                        received.push(message.unwrap().0);
                    }
                };
                let (flushed, ()) =
                    soon("the rest", async { tokio::join!(left.flush(), rest) }).await;
                flushed.unwrap();
                assert_eq!(received, sent);
                assert!(matches!(
                    right.get_ref().try_recv::<()>(),
                    Err(Error::WouldBlock)
                ));
            });
        }
    }
}

/// A receiver that waits already sends on what a dropped sender has left in part.
#[test]
fn a_message_left_in_part_follows() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            let (left, right) = Blocking::pair_of(kind).unwrap();
            let queued = room_for_one(&left, &right);
            runtime.block_on(async {
                let left = Link::new(left).unwrap();
                let file = memfd();
                let message = vec![FdRef::new(&file); 1000];
                let mut answer = pin!(left.recv::<String>());
                let polled = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx).is_ready())).await;
                assert!(!polled);
                for transfer in [false, true] {
                    let dropped = if transfer {
                        poll_and_drop(1, left.transfer(&message)).await.is_none()
                    } else {
                        poll_and_drop(1, left.send(&message)).await.is_none()
                    };
                    assert!(dropped);
                }
                let peer = thread::spawn(move || {
                    for _ in 0..queued {
                        right.recv::<()>().unwrap();
                    }
                    assert_eq!(right.recv::<Vec<Fd>>().unwrap().len(), 1000);
                    right.send("whole").unwrap();
                    right
                });
                assert_eq!(soon("an answer", answer).await.unwrap(), "whole");
                let right = peer.join().unwrap();
                // The transfer never began.
                left.flush().await.unwrap();
                assert!(matches!(right.try_recv::<()>(), Err(Error::WouldBlock)));
            });
        }
    }
}

#[test]
fn a_dropped_accept_loses_no_client() {
    let _alone = alone();
    for runtime in runtimes() {
        let address = abstract_name("dropped");
        let listener = BlockingListener::bind(&address).unwrap();
        let clients = thread::spawn(move || {
            for number in 0..200_u32 {
                let link = Blocking::connect(&address).unwrap();
                link.send(&number).unwrap();
                assert_eq!(link.recv::<u32>().unwrap(), number);
            }
        });
        runtime.block_on(soon("200 clients", async {
            let listener = Listener::new(listener).unwrap();
            let mut dropped = 0;
            let mut expected = 0;
            while expected < 200 {
                let accepted = if expected % 2 == 0 {
                    poll_and_drop(dropped % 4, listener.accept()).await
                } else {
                    tokio::select! {
                        biased;
                        link = listener.accept() => Some(link),
                        () = yield_now() => None,
                    }
                };
                let Some(link) = accepted else {
                    dropped += 1;
                    continue;
                };
                let link = link.unwrap();
                assert_eq!(link.recv::<u32>().await.unwrap(), expected);
                link.send(&expected).await.unwrap();
                expected += 1;
            }
            assert!(dropped > 0);
        }));
        clients.join().unwrap();
    }
}

#[test]
fn a_dropped_connect_is_not_seen() {
    let _alone = alone();
    for runtime in runtimes() {
        runtime.block_on(async {
            let address = abstract_name("unseen");
            let Address::Abstract(name) = &address else {
                unreachable!()
            };
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
            .unwrap();
            rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name).unwrap()).unwrap();
            rustix::net::listen(&socket, 1).unwrap();
            let listener = BlockingListener::from_fd(socket, Access::SameUser).unwrap();
            let mut clients = Vec::new();
            while let Ok(link) = Blocking::try_connect(&address) {
                clients.push(link);
            }
            for polls in 0..20 {
                let connected = poll_and_drop(polls, Link::connect(&address)).await;
                assert!(connected.is_none());
                sleep(Duration::from_micros(100)).await;
            }
            let links: Vec<_> = std::iter::from_fn(|| listener.try_accept().ok()).collect();
            assert_eq!(links.len(), clients.len());
        });
    }
}

#[test]
fn a_dropped_wait_leaves_the_answer() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = Blocking::pair_of(kind).unwrap();
                let left = Link::new(left).unwrap();
                let file = Fd::from(memfd());
                let receipt = left.transfer(&file).await.unwrap();
                for polls in 0..20 {
                    assert!(poll_and_drop(polls, receipt.wait()).await.is_none());
                }
                right.recv::<Fd>().unwrap();
                for _ in 0..3 {
                    let answer = async {
                        let mut polls = 0;
                        loop {
                            if let Some(answer) = poll_and_drop(polls % 3, receipt.wait()).await {
                                break answer;
                            }
                            polls += 1;
                        }
                    };
                    soon("the answer", answer).await.unwrap();
                }
            });
        }
    }
}

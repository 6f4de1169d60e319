//! The calls that `.await`.

mod common;

use std::fs;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Directory, Reaped, abstract_name, alone, child, memfd, parent, role};
use memlane_transport::tokio::{Link, Listener, Receipt};
use memlane_transport::{
    Access, Address, Error, Fd, FdRef, Limits, Link as Blocking, Listener as BlockingListener,
    SocketKind,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tokio::runtime::{Builder, Runtime, RuntimeFlavor};
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

fn pair(kind: SocketKind) -> (Link, Link) {
    let (left, right) = Blocking::pair_of(kind).unwrap();
    (Link::new(left).unwrap(), Link::new(right).unwrap())
}

/// Failing takes a minute, succeeding no longer than it must.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(Duration::from_secs(60), future).await {
        Ok(output) => output,
        Err(_) => panic!("still waiting for: {what}"),
    }
}

/// Lets the reactor run.
async fn a_while() {
    for _ in 0..10 {
        sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn round_trips() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = pair(kind);
                // Spawned, so that the futures are known to be Send.
                let echo = tokio::spawn(async move {
                    while let Ok((number, fds)) = right.recv::<(u32, Vec<Fd>)>().await {
                        right.send(&(number + 1, &fds)).await.unwrap();
                    }
                });
                for (number, count) in [0, 1, 253, 254, 1000].into_iter().enumerate() {
                    let file = memfd();
                    let sent = (number as u32, vec![FdRef::new(&file); count]);
                    left.send(&sent).await.unwrap();
                    let (answer, fds) = left.recv::<(u32, Vec<Fd>)>().await.unwrap();
                    assert_eq!(answer, number as u32 + 1);
                    assert_eq!(fds.len(), count);
                    for fd in &fds {
                        assert_eq!(common::inode(fd), common::inode(&file));
                    }
                }
                // A body in memory of its own.
                let body = vec![7_u8; 1 << 20];
                let (one, two) = pair(kind);
                one.send(&body).await.unwrap();
                assert_eq!(two.recv::<Vec<u8>>().await.unwrap(), body);

                assert_eq!(left.credentials().unwrap().pid, Some(std::process::id()));
                assert_eq!(left.peer().unwrap().pid(), Some(std::process::id()));
                drop(left);
                echo.await.unwrap();
            });
        }
    }
}

#[test]
fn with_a_process_that_blocks() {
    if role().is_some() {
        let link = parent();
        while let Ok((number, fd)) = link.recv::<(u32, Fd)>() {
            link.send(&(number, &fd)).unwrap();
        }
        return;
    }
    let _alone = alone();
    for kind in KINDS {
        let (link, theirs) = Blocking::pair_of(kind).unwrap();
        let mut process = Reaped::spawn(&mut child("with_a_process_that_blocks", "echo", theirs));
        runtimes()[0].block_on(async {
            let link = Link::new(link).unwrap();
            for number in 0..100 {
                let file = Fd::from(memfd());
                link.send(&(number, &file)).await.unwrap();
                let (answer, fd) = link.recv::<(u32, Fd)>().await.unwrap();
                assert_eq!(answer, number);
                assert_eq!(common::inode(&fd), common::inode(&file));
            }
        });
        process.succeed();
    }
}

/// A stopped peer delays those who send to it, and nobody else.
#[test]
fn a_stopped_process() {
    if role().is_some() {
        let link = parent();
        let mut expected = 0;
        while let Ok((number, _)) = link.recv::<(u32, Vec<Fd>)>() {
            assert_eq!(number, expected);
            expected += 1;
        }
        assert!(expected > 10);
        return;
    }
    let _alone = alone();
    for kind in KINDS {
        let (link, theirs) = Blocking::pair_of(kind).unwrap();
        let mut process = Reaped::spawn(&mut child("a_stopped_process", "receiver", theirs));
        let pid = Pid::from_child(&process.0);
        kill_process(pid, Signal::STOP).unwrap();
        runtimes()[1].block_on(async {
            let link = Arc::new(Link::new(link).unwrap());
            let file = Arc::new(memfd());
            let mut sent = 0_u32;
            loop {
                let message = (sent, vec![FdRef::new(&*file); 300]);
                match link.send_timeout(&message, Duration::from_millis(20)).await {
                    Ok(()) => sent += 1,
                    Err(Error::TimedOut) => break,
                    Err(error) => panic!("{error:?}"),
                }
            }
            let sender = tokio::spawn({
                let (link, file) = (Arc::clone(&link), Arc::clone(&file));
                async move {
                    for more in 0..100 {
                        let message = (sent + more, vec![FdRef::new(&*file); 300]);
                        link.send(&message).await.unwrap();
                    }
                    link.flush().await.unwrap();
                }
            });
            let (left, right) = pair(kind);
            for number in 0..100_u32 {
                left.send(&number).await.unwrap();
                assert_eq!(right.recv::<u32>().await.unwrap(), number);
            }
            assert!(!sender.is_finished());
            kill_process(pid, Signal::CONT).unwrap();
            soon("the sender", sender).await.unwrap();
        });
        process.succeed();
    }
}

#[test]
fn a_thousand_descriptors_through_a_small_buffer() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = pair(kind);
                for end in [&left, &right] {
                    sockopt::set_socket_send_buffer_size(end, 1).unwrap();
                }
                // Both ends are in the middle of a message: each must send on while it receives.
                let file = memfd();
                let message = vec![FdRef::new(&file); 1000];
                let exchange = async |link: Link| {
                    for _ in 0..20 {
                        let (sent, received) =
                            tokio::join!(link.send(&message), link.recv::<Vec<Fd>>());
                        sent.unwrap();
                        assert_eq!(received.unwrap().len(), 1000);
                    }
                };
                soon("both ends", async {
                    tokio::join!(exchange(left), exchange(right))
                })
                .await;
            });
        }
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

/// Whoever receives sends on what a `try_send` has left in part.
#[test]
fn a_receiver_sends_what_has_begun() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = pair(kind);
                let file = memfd();
                let message = vec![FdRef::new(&file); 1000];
                let mut queued = Vec::new();
                for (sender, receiver) in [(&left, &right), (&right, &left)] {
                    queued.push(room_for_one(sender.get_ref(), receiver.get_ref()));
                    sender.get_ref().try_send(&message).unwrap();
                    let left = sender.get_ref().try_flush();
                    assert!(matches!(left, Err(Error::WouldBlock)), "{left:?}");
                }
                let whole = async |link: &Link, queued| {
                    for _ in 0..queued {
                        link.recv::<()>().await.unwrap();
                    }
                    let received = link.recv::<Vec<Fd>>().await.unwrap().len();
                    link.flush().await.unwrap();
                    received
                };
                let both = soon("both messages", async {
                    tokio::join!(whole(&left, queued[1]), whole(&right, queued[0]))
                });
                assert_eq!(both.await, (1000, 1000));
            });
        }
    }
}

/// A listener with room for few.
fn narrow(address: &Address, kind: SocketType, backlog: i32) -> Listener {
    let Address::Abstract(name) = address else {
        unreachable!()
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name).unwrap()).unwrap();
    rustix::net::listen(&socket, backlog).unwrap();
    let listener = BlockingListener::from_fd(socket, Access::SameUser).unwrap();
    Listener::new(listener).unwrap()
}

#[test]
fn a_hundred_clients() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in [SocketType::SEQPACKET, SocketType::STREAM] {
            runtime.block_on(async {
                let address = abstract_name("hundred");
                let listener = narrow(&address, kind, 3);
                assert_eq!(listener.address(), &address);
                let clients: Vec<_> = (0..100_u32)
                    .map(|number| {
                        let address = address.clone();
                        tokio::spawn(async move {
                            let minute = Duration::from_secs(60);
                            let link = Link::connect_timeout(&address, minute).await.unwrap();
                            link.send(&number).await.unwrap();
                            assert_eq!(link.recv::<u32>().await.unwrap(), number);
                        })
                    })
                    .collect();
                let mut links = Vec::new();
                let mut seen = [false; 100];
                for _ in 0..100 {
                    let link = soon("a client", listener.accept()).await.unwrap();
                    links.push(tokio::spawn(async move {
                        let number = link.recv::<u32>().await.unwrap();
                        link.send(&number).await.unwrap();
                        number
                    }));
                }
                for link in links {
                    seen[link.await.unwrap() as usize] = true;
                }
                for client in clients {
                    client.await.unwrap();
                }
                assert!(seen.iter().all(|seen| *seen));
                assert!(matches!(
                    listener.get_ref().try_accept(),
                    Err(Error::WouldBlock)
                ));
            });
        }
    }
}

#[test]
fn connecting() {
    let _alone = alone();
    let directory = Directory::new();
    for runtime in runtimes() {
        runtime.block_on(async {
            let address = Address::path(directory.join("service")).unwrap();
            for result in [
                Link::connect(&address).await,
                Link::connect_with(&address, Access::Anyone).await,
                Link::connect_timeout(&address, Duration::ZERO).await,
            ] {
                assert!(
                    matches!(result, Err(Error::NotRunning { .. })),
                    "{result:?}"
                );
            }
            // A dead process's file is removed; while its directory is locked by another, that is waited for.
            rustix::net::bind(
                rustix::net::socket_with(
                    AddressFamily::UNIX,
                    SocketType::SEQPACKET,
                    SocketFlags::CLOEXEC,
                    None,
                )
                .unwrap(),
                &SocketAddrUnix::new(directory.join("service")).unwrap(),
            )
            .unwrap();
            let lock = fs::File::open(&directory.0).unwrap();
            lock.lock().unwrap();
            let error = Blocking::try_connect(&address).unwrap_err();
            assert!(matches!(error, Error::Locked { .. }), "{error:?}");
            let (result, ()) = tokio::join!(Link::connect(&address), async {
                a_while().await;
                lock.unlock().unwrap();
            });
            assert!(
                matches!(result, Err(Error::NotRunning { .. })),
                "{result:?}"
            );
            assert!(!directory.join("service").exists());

            let listener = Listener::new(BlockingListener::bind(&address).unwrap()).unwrap();
            let client = Link::connect(&address).await.unwrap();
            let server = listener.accept().await.unwrap();
            client.send(&1_u8).await.unwrap();
            assert_eq!(server.recv::<u8>().await.unwrap(), 1);
        });
    }
}

#[test]
fn a_full_backlog() {
    let _alone = alone();
    let [one, two] = runtimes();
    for runtime in [two, one] {
        runtime.block_on(async {
            let address = abstract_name("full");
            let listener = narrow(&address, SocketType::SEQPACKET, 1);
            let mut waiting = Vec::new();
            let error = loop {
                match Blocking::try_connect(&address) {
                    Ok(link) => waiting.push(link),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, Error::WouldBlock), "{error:?}");
            let error = Link::connect_timeout(&address, Duration::from_millis(5)).await;
            assert!(matches!(error, Err(Error::TimedOut)), "{error:?}");
            let late = timeout(Duration::from_millis(5), Link::connect(&address)).await;
            assert!(late.is_err());
            let (client, server) = tokio::join!(Link::connect(&address), async {
                a_while().await;
                listener.accept().await.unwrap()
            });
            drop((client.unwrap(), server));
        });
        assert_eq!(threads(), threads_of(&runtime));
    }
    assert_eq!(threads(), 0);
}

#[test]
fn timeouts() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = pair(kind);
                let short = Duration::from_millis(5);
                assert!(timeout(short, right.recv::<u8>()).await.is_err());
                left.send_timeout(&1_u8, Duration::ZERO).await.unwrap();
                assert_eq!(soon("a byte", right.recv::<u8>()).await.unwrap(), 1);
                left.send_timeout(&2_u8, Duration::MAX).await.unwrap();
                assert_eq!(soon("a byte", right.recv::<u8>()).await.unwrap(), 2);

                let mut sent = 0_u32;
                while left.get_ref().try_send(&sent).is_ok() {
                    sent += 1;
                }
                assert!(timeout(short, left.send(&sent)).await.is_err());
                let error = left.send_timeout(&sent, short).await.unwrap_err();
                assert!(matches!(error, Error::TimedOut), "{error:?}");
                let error = left.transfer_timeout(&sent, short).await.unwrap_err();
                assert!(matches!(error, Error::TimedOut), "{error:?}");
                let everything = async {
                    for expected in 0..sent {
                        assert_eq!(right.recv::<u32>().await.unwrap(), expected);
                    }
                    right.recv::<String>().await.unwrap()
                };
                let (sent, last) = tokio::join!(left.send("last"), everything);
                sent.unwrap();
                assert_eq!(last, "last");
            });
        }
    }
}

#[test]
fn receipts() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = pair(kind);
                let file = Fd::from(memfd());
                let receipt = left.transfer(&file).await.unwrap();
                let short = Duration::from_millis(5);
                assert!(timeout(short, receipt.wait()).await.is_err());
                let (answer, taken) = tokio::join!(receipt.wait(), right.recv::<Fd>());
                answer.unwrap();
                assert_eq!(common::inode(taken.unwrap()), common::inode(&file));
                receipt.wait().await.unwrap();
                receipt.into_inner().try_wait().unwrap();

                let receipt = left.transfer_timeout(&file, short).await.unwrap();
                let (answer, ()) = tokio::join!(receipt.wait(), async { drop(right) });
                assert!(matches!(answer, Err(Error::NotAcknowledged)), "{answer:?}");
                let blocking = memlane_transport::Receipt::from(receipt);
                let receipt = Receipt::try_from(blocking).unwrap();
                let answer = receipt.wait().await;
                assert!(matches!(answer, Err(Error::NotAcknowledged)), "{answer:?}");
            });
        }
    }
}

#[test]
fn hang_ups() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = pair(kind);
                left.send(&1_u8).await.unwrap();
                drop(left);
                assert_eq!(right.recv::<u8>().await.unwrap(), 1);
                assert!(right.recv::<u8>().await.unwrap_err().is_disconnected());
                assert!(right.recv::<u8>().await.unwrap_err().is_disconnected());
                assert!(right.send(&1_u8).await.unwrap_err().is_disconnected());

                // While waiting for a message, for room, and for places among those in flight.
                let (left, right) = pair(kind);
                let (found, ()) = tokio::join!(left.recv::<u8>(), async {
                    a_while().await;
                    drop(right);
                });
                assert!(found.unwrap_err().is_disconnected());

                let (left, right) = pair(kind);
                while left.get_ref().try_send(&1_u8).is_ok() {}
                let (found, ()) = tokio::join!(left.send(&1_u8), async {
                    a_while().await;
                    drop(right);
                });
                assert!(found.unwrap_err().is_disconnected());

                let (left, right) = Blocking::pair_of(kind).unwrap();
                let left = Link::new(left.with_limits(Limits::new().in_flight(1))).unwrap();
                let file = Fd::from(memfd());
                left.send(&file).await.unwrap();
                let (found, ()) = tokio::join!(left.send(&file), async {
                    a_while().await;
                    drop(right);
                });
                assert!(found.unwrap_err().is_disconnected());
            });
        }
    }
}

#[test]
fn few_in_flight() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = Blocking::pair_of(kind).unwrap();
                let left = Link::new(left.with_limits(Limits::new().in_flight(2))).unwrap();
                let right = Link::new(right).unwrap();
                let file = Fd::from(memfd());
                let sending = async {
                    for number in 0..100_u32 {
                        left.send(&(number, FdRef::new(&file))).await.unwrap();
                    }
                };
                let receiving = async {
                    for expected in 0..100 {
                        assert_eq!(right.recv::<(u32, Fd)>().await.unwrap().0, expected);
                    }
                };
                soon("all", async { tokio::join!(sending, receiving) }).await;
            });
        }
    }
}

/// One broken rule ends the link for all who wait on it.
#[test]
fn a_broken_link() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = Blocking::pair_of(kind).unwrap();
                let left = Arc::new(Link::new(left).unwrap());
                let waiting: Vec<_> = (0..4)
                    .map(|_| {
                        let left = Arc::clone(&left);
                        tokio::spawn(async move { left.recv::<u8>().await.unwrap_err() })
                    })
                    .collect();
                a_while().await;
                common::raw_send(&right, b"nonsense, and long enough", &[]);
                let mut reasons = 0;
                for task in waiting {
                    match soon("an end", task).await.unwrap() {
                        Error::NotMemlane { .. } => reasons += 1,
                        Error::Ended { .. } => {}
                        error => panic!("{error:?}"),
                    }
                }
                // Two that look at the same moment may both see it.
                assert!(reasons >= 1);
                let error = left.send(&1_u8).await.unwrap_err();
                assert!(matches!(error, Error::Ended { .. }), "{error:?}");
            });
        }
    }
}

/// Several tasks on one link: each message comes once.
#[test]
fn many_tasks_on_a_link() {
    let _alone = alone();
    for runtime in runtimes() {
        for kind in KINDS {
            runtime.block_on(async {
                let (left, right) = pair(kind);
                sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
                let (left, right) = (Arc::new(left), Arc::new(right));
                let file = Arc::new(memfd());
                let sum = Arc::new(AtomicU32::new(0));
                let tasks: Vec<_> = (0..8_u32)
                    .flat_map(|task| {
                        let (left, file) = (Arc::clone(&left), Arc::clone(&file));
                        let (right, sum) = (Arc::clone(&right), Arc::clone(&sum));
                        [
                            tokio::spawn(async move {
                                for number in 0..50 {
                                    let fds = vec![FdRef::new(&*file); 40 * task as usize];
                                    left.send(&(task * 50 + number, fds)).await.unwrap();
                                }
                            }),
                            tokio::spawn(async move {
                                for _ in 0..50 {
                                    let (number, fds) =
                                        right.recv::<(u32, Vec<Fd>)>().await.unwrap();
                                    assert_eq!(fds.len(), 40 * (number / 50) as usize);
                                    sum.fetch_add(number, Ordering::Relaxed);
                                }
                            }),
                        ]
                    })
                    .collect();
                for task in tasks {
                    soon("all tasks", task).await.unwrap();
                }
                assert_eq!(sum.load(Ordering::Relaxed), 399 * 400 / 2);
            });
        }
    }
}

/// A peer that never stops sending does not keep other tasks of the thread from running.
#[test]
fn a_flood() {
    let _alone = alone();
    let [runtime, _] = runtimes();
    for kind in KINDS {
        runtime.block_on(async {
            let (left, right) = pair(kind);
            let mut queued = 0;
            while left.get_ref().try_send(&queued).is_ok() {
                queued += 1;
            }
            // With the socket known to be readable, nothing else makes a receive wait.
            right.recv::<u32>().await.unwrap();
            let other = tokio::spawn(async {});
            for _ in 1..queued {
                right.recv::<u32>().await.unwrap();
            }
            assert!(other.is_finished(), "{queued} messages without a break");
            other.await.unwrap();
        });
    }
}

/// In and out of a runtime, and into another one.
#[test]
fn between_runtimes() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Blocking::pair_of(kind).unwrap();
        let queued = room_for_one(&left, &right);
        let file = memfd();
        let message = vec![FdRef::new(&file); 1000];
        let [one, two] = runtimes();
        let left = one.block_on(async {
            let left = Link::try_from(left).unwrap();
            left.send_timeout(&message, Duration::ZERO).await.unwrap();
            Blocking::from(left)
        });
        assert!(matches!(left.try_flush(), Err(Error::WouldBlock)));
        two.block_on(async {
            let (left, right) = (Link::new(left).unwrap(), Link::new(right).unwrap());
            let (flushed, ()) = tokio::join!(left.flush(), async {
                for _ in 0..queued {
                    right.recv::<()>().await.unwrap();
                }
                assert_eq!(right.recv::<Vec<Fd>>().await.unwrap().len(), 1000);
            });
            flushed.unwrap();
            // Nothing to flush is nothing to wait for, also on a link that is full.
            while left.get_ref().try_send(&()).is_ok() {}
            assert!(
                timeout(Duration::from_millis(5), left.send(&()))
                    .await
                    .is_err()
            );
            soon("nothing", left.flush()).await.unwrap();
        });
    }
}

/// Threads that tokio has started.
fn threads() -> usize {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|thread| {
            let name = thread.as_ref().unwrap().path().join("comm");
            fs::read_to_string(name).is_ok_and(|name| name.starts_with("tokio-rt"))
        })
        .count()
}

/// How many it starts without being asked to block.
fn threads_of(runtime: &Runtime) -> usize {
    match runtime.handle().runtime_flavor() {
        RuntimeFlavor::CurrentThread => 0,
        _ => 2,
    }
}

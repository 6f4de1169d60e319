//! Ends of lanes in a process that has no descriptor left: whoever has one waits with it, sleeps, and is woken, as ever.

use std::{thread, time::Duration};

use memlane::{
    Address, CallError, Client, Fds, Overflow, Publisher, Reason, RecvError, RecvTimeoutError,
    SendTimeoutError, Sender, Server, Subscriber, TrySendError, WaitPolicy, WatchError,
    WatchReceiver, WatchSender, Watched, WhenFull,
};
use memlane_region::page_size;
use memlane_tests::{
    PATIENCE, Part, Role, Scene, Shortage, check, fill, memfd_with, number, play, thread_id,
    unbound, wait_asleep, wait_until,
};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[
    ("publisher", publisher),
    ("last descriptor", last_descriptor),
    ("watched publisher", watched_publisher),
    ("subscriber", subscriber),
    ("holder", holder),
    ("receiver", receiver),
    ("watcher", watcher),
    ("client", client),
    ("watched client", watched_client),
    ("server", server),
];

#[test]
fn other_process() {
    play(ROLES);
}

const SHORT: Duration = Duration::from_millis(5);

/// What a publisher is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Wait {
    Room,
    Chunks,
    Attachments,
}

const LONG: usize = 1 << 17;

impl Wait {
    fn message(self, number: u64) -> Vec<u8> {
        let mut message = match self {
            Wait::Room | Wait::Attachments => vec![0; 100],
            Wait::Chunks => vec![0; LONG],
        };
        fill(number, &mut message);
        message
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Poor {
    wait: Wait,
    asleep: bool,
    driven: bool,
}

/// Has no descriptor from its first message on.
fn publisher(role: &Role) {
    let poor: Poor = role.hear();
    let builder = unbound(page_size())
        .pool_bytes(8 * LONG)
        .max_attachments(2)
        .attachments_in_flight(2)
        .wait(match poor.asleep {
            true => WaitPolicy::Block,
            false => WaitPolicy::Adaptive,
        });
    let builder = match poor.driven {
        true => builder.driven(),
        false => builder,
    };
    let mut publisher = builder.bind("lane").expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(2).expect("subscribers");
    let attached: Fds = match poor.wait {
        Wait::Attachments => [memfd_with(b"attached")].into_iter().collect(),
        _ => Fds::default(),
    };
    // Memory of the pool is made when it is needed: there will be no more than for this.
    publisher.send(&poor.wait.message(0)).expect("room");
    role.tell(&());
    role.hear::<()>();
    let shortage = Shortage::new();
    let mut next = 1;
    for round in 0..4 {
        let full = loop {
            match publisher.try_send_with(&poor.wait.message(next), &attached) {
                Ok(()) => next += 1,
                Err(full) => break full,
            }
        };
        assert!(matches!(full, TrySendError::Full), "{full:?}");
        assert!(next > 1);
        let message = poor.wait.message(next);
        let late = publisher.send_timeout_with(&message, &attached, SHORT);
        assert!(matches!(late, Err(SendTimeoutError::TimedOut)), "{late:?}");
        assert!(!publisher.drain(SHORT).expect("a wait"));
        // What they are to receive, and how that is to go on.
        role.tell(&(next, thread_id()));
        let more = 100;
        for _ in 0..more {
            let message = poor.wait.message(next);
            publisher.send_with(&message, &attached).expect("room");
            next += 1;
        }
        if round < 3 {
            role.tell(&next);
            assert!(publisher.drain(PATIENCE).expect("a wait"));
            role.hear::<()>();
        }
    }
    role.tell(&next);
    role.hear::<()>();
    drop(shortage);
    assert_eq!(publisher.stats().evicted, 0);
    assert_eq!(publisher.stats().messages, next);
}

fn receive(subscriber: &mut Subscriber, next: &mut u64, until: u64, with: bool) {
    while *next < until {
        let mut message = subscriber.recv().expect("a message");
        check(*next, &message.to_vec());
        if with {
            let attached = message.take_attachments().expect("all of them");
            assert_eq!(attached.len(), 1);
        }
        drop(message);
        *next += 1;
    }
}

/// A publisher waits for room in its ring and in its pool, and for what is on its way.
#[test]
fn a_publisher_waits_for_its_subscribers() {
    for wait in [Wait::Room, Wait::Chunks, Wait::Attachments] {
        for (asleep, driven) in [(true, false), (false, false), (true, true)] {
            let scene = Scene::new();
            let address = scene.address("lane");
            let poor = Poor {
                wait,
                asleep,
                driven,
            };
            let publisher = scene.spawn("publisher", &poor);
            publisher.hear::<()>();
            let connect = || {
                Subscriber::builder()
                    .max_attachments(2)
                    .connect_to(&address)
                    .unwrap()
            };
            let with = wait == Wait::Attachments;
            let mut staying = connect();
            let mut leaving = Some(connect());
            publisher.hear::<()>();
            let mut next = 0;
            receive(&mut staying, &mut next, 1, false);
            receive(leaving.as_mut().unwrap(), &mut 0, 1, false);
            publisher.tell(&());
            let mut others = 1;
            for round in 0..4 {
                let (full, thread): (u64, u32) = publisher.hear();
                if asleep && !with {
                    // It sleeps by now, for the one as well as for the other.
                    wait_asleep(publisher.id(), thread);
                }
                let end = full + 100;
                receive(&mut staying, &mut next, full, with);
                // It may stay ahead of the other by what there is room for.
                match &mut leaving {
                    Some(leaving) if round < 2 => {
                        let (to, end) = (&mut others, end);
                        thread::scope(|scope| {
                            scope.spawn(|| receive(leaving, to, end, with));
                            receive(&mut staying, &mut next, end, with);
                        });
                    }
                    // The room is had by its leaving.
                    _ => {
                        leaving = None;
                        receive(&mut staying, &mut next, end, with);
                    }
                }
                assert_eq!(publisher.hear::<u64>(), next);
                if round < 3 {
                    // That they have released all they say by looking for more.
                    for subscriber in leaving.iter_mut().chain([&mut staying]) {
                        let none = subscriber.recv_timeout(SHORT).map(drop);
                        assert!(matches!(none, Err(RecvTimeoutError::TimedOut)), "{none:?}");
                    }
                    publisher.tell(&());
                }
            }
            publisher.tell(&());
            publisher.finish();
        }
    }
}

/// Has one descriptor left when it needs memory: for a long message, and for another ring.
fn last_descriptor(role: &Role) {
    let mut publisher = unbound(page_size())
        .spill_bytes(page_size())
        .bind("lane")
        .expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    let mut shortage = Shortage::new();
    let error = publisher.send(&Wait::Chunks.message(0)).unwrap_err();
    assert!(error.to_string().contains("Too many open files"), "{error}");
    shortage.relent();
    publisher.send(&Wait::Chunks.message(0)).expect("memory");
    role.tell(&());
    role.hear::<()>();
    shortage.relent();
    let mut next = 1;
    while publisher.try_send(&Wait::Room.message(next)).is_ok() {
        next += 1;
    }
    assert_eq!(publisher.stats().spills, 1);
    role.tell(&next);
    role.hear::<()>();
    assert_eq!(publisher.stats().evicted, 0);
    drop(shortage);
}

/// What memory is announced with takes no descriptor: nobody is dropped for want of one.
#[test]
fn the_last_descriptor_is_enough() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let publisher = scene.spawn("last descriptor", &());
    publisher.hear::<()>();
    let mut subscriber = Subscriber::builder().connect_to(&address).unwrap();
    publisher.hear::<()>();
    let mut next = 0;
    receive(&mut subscriber, &mut next, 1, false);
    publisher.tell(&());
    let end = publisher.hear();
    receive(&mut subscriber, &mut next, end, false);
    publisher.tell(&());
    publisher.finish();
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected {
            reason: Reason::Closed
        })
    ));
}

fn readable(end: impl std::os::fd::AsFd) {
    let patience = rustix::time::Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&patience)),
        Ok(1)
    );
}

/// Drops a subscriber that is too slow, in time, though it waits for that in a loop of its own.
fn watched_publisher(role: &Role) {
    let after = SHORT;
    let publisher = unbound(page_size())
        .when_full(WhenFull::Disconnect { after })
        .bind("lane")
        .expect("a publisher");
    // To go on without one that has begun to read takes another ring.
    let mut publisher = Watched::new(publisher).expect("descriptors");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    let mut shortage = Shortage::new();
    while publisher.try_send(b"unread").is_ok() {}
    readable(&publisher);
    shortage.relent();
    let message = Wait::Room.message(0);
    while let Err(full) = publisher.try_send(&message) {
        assert!(matches!(full, TrySendError::Full), "{full:?}");
        readable(&publisher);
        publisher.drive().expect("control work");
    }
    assert_eq!(publisher.stats().too_slow, 1);
    role.tell(&());
    role.hear::<()>();
    drop(shortage);
}

#[test]
fn a_loop_is_woken_in_time() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let publisher = scene.spawn("watched publisher", &());
    publisher.hear::<()>();
    let subscriber = Subscriber::builder().connect_to(&address).unwrap();
    publisher.hear::<()>();
    publisher.tell(&());
    publisher.finish();
    drop(subscriber);
}

fn policy(asleep: bool) -> WaitPolicy {
    match asleep {
        true => WaitPolicy::Block,
        false => WaitPolicy::Adaptive,
    }
}

fn subscriber(role: &Role) {
    let (asleep, overwritten): (bool, bool) = role.hear();
    let overflow = match overwritten {
        true => Overflow::Overwrite,
        false => Overflow::Block,
    };
    let mut subscriber = Subscriber::builder()
        .wait(policy(asleep))
        .overflow(overflow)
        .connect("lane")
        .expect("a publisher");
    let shortage = Shortage::new();
    for number in 0..100 {
        let late = subscriber.recv_timeout(Duration::from_millis(1)).map(drop);
        assert!(matches!(late, Err(RecvTimeoutError::TimedOut)), "{late:?}");
        role.tell(&thread_id());
        check(number, &subscriber.recv().expect("a message").to_vec());
    }
    role.tell(&thread_id());
    let end = subscriber.recv().map(drop);
    let closed = Reason::Closed;
    assert!(matches!(end, Err(RecvError::Disconnected { reason }) if reason == closed));
    drop(shortage);
}

#[test]
fn a_subscriber_waits_for_its_publisher() {
    for (asleep, overwritten) in [(true, false), (false, false), (true, true)] {
        let scene = Scene::new();
        let address = scene.address("lane");
        let mut publisher = unbound(page_size()).bind_to(&address).unwrap();
        let subscriber = scene.spawn("subscriber", &(asleep, overwritten));
        for number in 0..100 {
            wait_asleep(subscriber.id(), subscriber.hear());
            publisher.send(&Wait::Room.message(number)).unwrap();
        }
        wait_asleep(subscriber.id(), subscriber.hear());
        drop(publisher);
        subscriber.finish();
    }
}

/// Keeps a message of a lane that ends for want of a descriptor.
fn holder(role: &Role) {
    let trusts: bool = role.hear();
    let builder = Subscriber::builder();
    if trusts {
        // SAFETY: the publisher is this crate's, and its test.
        #[allow(unsafe_code)]
        let builder = unsafe { builder.trust_publisher() };
        holds(role, builder.connect("lane").expect("a publisher"));
    } else {
        holds(role, builder.connect("lane").expect("a publisher"));
    }
}

fn holds<T: memlane::Trust>(role: &Role, mut subscriber: Subscriber<T>) {
    let held = subscriber.recv().expect("a message").hold();
    let held = held.expect("a slot");
    let shortage = Shortage::new();
    role.tell(&());
    // Memory that it cannot be told of.
    let error = subscriber.recv().map(drop).unwrap_err();
    assert!(matches!(error, RecvError::Chunk(_)), "{error}");
    let end = subscriber.recv().map(drop);
    assert!(
        matches!(
            &end,
            Err(RecvError::Disconnected {
                reason: Reason::Broken { .. }
            })
        ),
        "{end:?}"
    );
    role.tell(&());
    role.hear::<()>();
    check(0, &held.to_vec());
    // Nor is it given back by this alone.
    drop(subscriber);
    role.tell(&());
    role.hear::<()>();
    check(0, &held.to_vec());
    drop(held);
    role.tell(&());
    role.hear::<()>();
    drop(shortage);
}

#[test]
fn what_is_held_is_kept_when_the_lane_breaks() {
    for trusts in [false, true] {
        let scene = Scene::new();
        let address = scene.address("lane");
        let mut publisher = unbound(page_size())
            .pool_bytes(8 * LONG)
            .bind_to(&address)
            .unwrap();
        let holder = scene.spawn("holder", &trusts);
        publisher.wait_for_subscribers(1).unwrap();
        publisher.send(&Wait::Chunks.message(0)).unwrap();
        holder.hear::<()>();
        // Another size: another segment.
        publisher.send(&[1; 2 * LONG]).unwrap();
        for _ in 0..2 {
            holder.hear::<()>();
            // It holds up nobody, and keeps what it has.
            for number in 1..50 {
                publisher.send(&Wait::Chunks.message(number)).unwrap();
            }
            assert_eq!(publisher.stats().left, 0);
            holder.tell(&());
        }
        holder.hear::<()>();
        wait_until("it has left", || publisher.stats().left == 1);
        holder.tell(&());
        holder.finish();
    }
}

/// Cannot let in another sender, and goes on receiving from the one it has.
fn receiver(role: &Role) {
    let address: String = role.hear();
    let address: Address = address.parse().expect("an address");
    let mut receiver = Subscriber::builder().bind_to(&address).expect("a receiver");
    role.tell(&());
    check(0, &receiver.recv().expect("a message").to_vec());
    let shortage = Shortage::new();
    for number in 1..100 {
        let late = receiver.recv_timeout(Duration::from_millis(1)).map(drop);
        assert!(matches!(late, Err(RecvTimeoutError::TimedOut)), "{late:?}");
        role.tell(&thread_id());
        check(number, &receiver.recv().expect("a message").to_vec());
    }
    drop(shortage);
    role.tell(&());
    assert_eq!(number(&receiver.recv().expect("a message").to_vec()), 0);
}

#[test]
fn a_receiver_waits_for_its_senders() {
    let scene = Scene::new();
    let address = scene.address("jobs");
    let receiver = scene.spawn("receiver", &address.to_string());
    receiver.hear::<()>();
    let connect = |timeout| Publisher::builder().timeout(timeout).connect_to(&address);
    let mut sender: Sender = connect(PATIENCE).unwrap();
    sender.send(&Wait::Room.message(0)).unwrap();
    for number in 1..100 {
        let thread = receiver.hear();
        if number % 10 == 0 {
            connect(Duration::from_millis(1)).unwrap_err();
        }
        wait_asleep(receiver.id(), thread);
        sender.send(&Wait::Room.message(number)).unwrap();
    }
    receiver.hear::<()>();
    let mut late: Sender = connect(PATIENCE).unwrap();
    late.send(&Wait::Room.message(0)).unwrap();
    receiver.finish();
}

fn watcher(role: &Role) {
    let asleep: bool = role.hear();
    let builder = WatchReceiver::builder().wait(policy(asleep));
    let mut receiver = builder.connect("pose").expect("a sender");
    let shortage = Shortage::new();
    for number in 1..100_u64 {
        let late = receiver.changed_timeout(Duration::from_millis(1));
        assert!(matches!(late, Err(WatchError::TimedOut)), "{late:?}");
        role.tell(&thread_id());
        receiver.changed().expect("a value");
        let mut value = [0; 8];
        receiver
            .get_into(&mut value)
            .expect("a value")
            .expect("a value");
        assert_eq!(u64::from_ne_bytes(value), number);
    }
    drop(shortage);
}

#[test]
fn a_watcher_waits_for_a_value() {
    for asleep in [true, false] {
        let scene = Scene::new();
        let address = scene.address("pose");
        let mut sender = WatchSender::builder().bind_to(&address).unwrap();
        let watcher = scene.spawn("watcher", &asleep);
        for number in 1..100_u64 {
            wait_asleep(watcher.id(), watcher.hear());
            sender.send(&number.to_ne_bytes()).unwrap();
        }
        watcher.finish();
    }
}

fn few(asleep: bool) -> memlane::PublisherBuilder {
    unbound(page_size()).wait(policy(asleep))
}

/// Asks for what is answered at once, for what is answered too late, and for more than there is room for.
fn client(role: &Role) {
    let asleep: bool = role.hear();
    let mut client = Client::builder()
        .requests(few(asleep))
        .replies(Subscriber::builder().wait(policy(asleep)))
        .connect("sum")
        .expect("a server");
    assert_eq!(client.call(b"answer").expect("a reply").to_vec(), b"answer");
    let shortage = Shortage::new();
    for _ in 0..10 {
        let late = client.call_timeout(b"never", SHORT).map(drop);
        assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
        assert_eq!(client.call(b"answer").expect("a reply").to_vec(), b"answer");
        role.tell(&());
        role.hear::<()>();
        // The server looks away.
        let mut calls = Vec::new();
        let full = loop {
            match client.try_send(&[1; 500]) {
                Ok(call) => calls.push(call),
                Err(full) => break full,
            }
        };
        assert!(matches!(full, CallError::Full), "{full:?}");
        let late = client.call_timeout(&[1; 500], SHORT).map(drop);
        assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
        role.tell(&thread_id());
        for _ in 0..20 {
            calls.push(client.send(&[1; 500]).expect("room"));
        }
        for call in calls {
            assert_eq!(client.wait(call).expect("a reply").to_vec(), [1; 500]);
        }
    }
    drop(client);
    drop(shortage);
}

#[test]
fn a_client_waits_for_its_server() {
    for asleep in [true, false] {
        let scene = Scene::new();
        let address = scene.address("sum");
        let mut server = Server::builder()
            .replies(few(asleep))
            .bind_to(&address)
            .unwrap();
        let client = scene.spawn("client", &asleep);
        let (mut pauses, mut unanswered) = (0, Vec::new());
        while pauses < 10 || server.clients() > 0 {
            let looks_away = match server.recv_timeout(SHORT) {
                Ok(request) if request.to_vec() == b"never" => {
                    unanswered.push(request.defer());
                    false
                }
                Ok(request) => {
                    let reply = request.to_vec();
                    request.reply(&reply).unwrap();
                    true
                }
                Err(RecvTimeoutError::TimedOut) => true,
                Err(error) => panic!("{error}"),
            };
            if looks_away && pauses < 10 && client.has_said::<()>().is_some() {
                pauses += 1;
                client.tell(&());
                let thread = client.hear();
                wait_asleep(client.id(), thread);
            }
        }
        client.finish();
    }
}

/// Deadlines wake a loop.
fn watched_client(role: &Role) {
    let mut client = Watched::new(Client::connect("sum").expect("a server")).expect("descriptors");
    let shortage = Shortage::new();
    for _ in 0..10 {
        let mut call = client.send_timeout(b"never", SHORT).expect("room");
        let error = loop {
            match client.try_next(&mut call).map(drop) {
                Err(CallError::Empty) => readable(&client),
                other => break other.unwrap_err(),
            }
        };
        assert!(matches!(error, CallError::DeadlineExceeded), "{error:?}");
    }
    role.tell(&());
    role.hear::<()>();
    drop(shortage);
}

#[test]
fn a_loop_is_woken_by_deadlines() {
    let scene = Scene::new();
    let address = scene.address("sum");
    let mut server = Server::builder().bind_to(&address).unwrap();
    let client = scene.spawn("watched client", &());
    let mut unanswered = Vec::new();
    wait_until("a client", || {
        unanswered.extend(server.try_recv().map(memlane::Request::defer));
        server.clients() == 1
    });
    client.hear::<()>();
    client.tell(&());
    client.finish();
}

/// Answers a client that leaves no room for it.
fn server(role: &Role) {
    let asleep: bool = role.hear();
    let mut server = Server::builder()
        .replies(few(asleep))
        .requests(Subscriber::builder().wait(policy(asleep)))
        .bind("sum")
        .expect("a server");
    role.tell(&());
    let request = server.recv().expect("a request");
    let responder = request.defer();
    let shortage = Shortage::new();
    let mut responder = responder;
    let mut items = 0;
    while responder.try_send(&mut server, &[1; 500]).is_ok() {
        items += 1;
    }
    role.tell(&thread_id());
    for _ in 0..100 {
        responder.send(&mut server, &[1; 500]).expect("room");
        items += 1;
    }
    role.tell(&items);
    responder.finish(&mut server).expect("room");
    let late = server.recv_timeout(SHORT).map(drop);
    assert!(matches!(late, Err(RecvTimeoutError::TimedOut)), "{late:?}");
    role.tell(&thread_id());
    server
        .recv()
        .expect("a request")
        .reply(b"at last")
        .expect("room");
    drop(shortage);
    role.hear::<()>();
}

#[test]
fn a_server_waits_for_its_clients() {
    for asleep in [true, false] {
        let scene = Scene::new();
        let address = scene.address("sum");
        let server = scene.spawn("server", &asleep);
        server.hear::<()>();
        let mut client = Client::builder().connect_to(&address).unwrap();
        let mut call = client.send(b"a stream").unwrap();
        wait_asleep(server.id(), server.hear());
        let mut items = 0;
        while let Some(item) = client.next(&mut call).unwrap() {
            assert_eq!(item.to_vec(), [1; 500]);
            items += 1;
        }
        assert_eq!(items, server.hear::<i32>());
        wait_asleep(server.id(), server.hear());
        assert_eq!(client.call(b"a request").unwrap().to_vec(), b"at last");
        server.tell(&());
        server.finish();
    }
}

//! Requests and replies: many under way, out of order, in streams, cancelled, late.

use std::{collections::BTreeMap, thread, time::Duration};

use memlane::{
    Address, Answer, CallError, CallId, Client, Error, Link, Publisher, ReplyError, Server,
    Subscriber, TryRecvError,
};
use memlane_tests::{
    Dice, PATIENCE, Policy, Role, Scene, check, fill, length, play, wait_asleep, wait_until,
};
use serde::{Deserialize, Serialize};

#[test]
fn other_process() {
    play(&[
        ("asker", asker),
        ("one by one", one_by_one),
        ("late asker", late_asker),
    ]);
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Task {
    address: String,
    name: u64,
    requests: u64,
    wait: Policy,
}

impl Task {
    fn connect(&self) -> Client {
        let address: Address = self.address.parse().unwrap();
        Client::builder()
            .requests(Publisher::builder().ring_bytes(4096).pool_bytes(1 << 20))
            .wait(self.wait.into())
            .connect_to(&address)
            .unwrap()
    }

    /// The number that request `number` of this client has among those of all.
    fn global(&self, number: u64) -> u64 {
        self.name << 32 | number
    }
}

const LONGEST: usize = 20_000;

/// Asks for echoes: a number, and how long a reply is to be; keeps many under way, and waits for them in whatever order.
fn asker(role: &Role) {
    let task: Task = role.hear();
    let mut client = task.connect();
    let mut dice = Dice::new();
    let mut calls = BTreeMap::new();
    let mut ids: BTreeMap<CallId, u64> = BTreeMap::new();
    let mut next = 0;
    let mut answered = 0;
    while answered < task.requests {
        if next < task.requests && calls.len() + ids.len() < 100 && dice.below(3) > 0 {
            let number = task.global(next);
            let mut request = vec![0; 8 + length(number, LONGEST)];
            fill(number, &mut request);
            let call = client.send(&request).unwrap();
            match dice.below(2) {
                0 => drop(calls.insert(next, call)),
                _ => drop(ids.insert(call.detach(), next)),
            }
            next += 1;
            continue;
        }
        let reply = match dice.below(2) {
            0 if !ids.is_empty() => match client.recv().unwrap() {
                (id, Answer::Last(reply)) => {
                    let bytes = reply.to_vec();
                    match ids.remove(&id) {
                        Some(number) => Some((number, bytes)),
                        None => {
                            let number = calls.iter().find(|(_, call)| call.id() == id);
                            let number = *number.unwrap().0;
                            // Its last reply is here: dropping it cancels nothing.
                            drop(calls.remove(&number));
                            Some((number, bytes))
                        }
                    }
                }
                other => panic!("{other:?}"),
            },
            _ => {
                let numbers: Vec<_> = calls.keys().copied().collect();
                match numbers.is_empty() {
                    true => None,
                    false => {
                        let number = dice.pick(&numbers);
                        let call = calls.remove(&number).unwrap();
                        Some((number, client.wait(call).unwrap().to_vec()))
                    }
                }
            }
        };
        if let Some((number, bytes)) = reply {
            check(task.global(number) ^ 1 << 63, &bytes);
            answered += 1;
            memlane_tests::alive();
        }
    }
    let stats = client.stats();
    assert_eq!(
        (stats.requests, stats.replies, stats.given_up, stats.strays),
        (task.requests, task.requests, 0, 0)
    );
    assert_eq!(client.outstanding(), 0);
}

/// Answers all of them, in no order.
fn echo_at_random(server: &mut Server, requests: u64) {
    let mut dice = Dice::new();
    let mut later = Vec::new();
    let mut received = 0;
    let reply_to = |number: u64| {
        let mut reply = vec![0; 8 + length(number ^ 0x55, LONGEST)];
        fill(number ^ 1 << 63, &mut reply);
        reply
    };
    while received < requests || !later.is_empty() {
        if received < requests && (later.is_empty() || dice.below(3) > 0) {
            // It sleeps where there is nothing else to do, if it is one that does.
            let request = match later.is_empty() {
                true => Some(server.recv_timeout(PATIENCE).unwrap()),
                false => match server.try_recv() {
                    Ok(request) => Some(request),
                    Err(TryRecvError::Empty) => None,
                    Err(error) => panic!("{error}"),
                },
            };
            if let Some(request) = request {
                let bytes = request.to_vec();
                let number = memlane_tests::number(&bytes);
                check(number, &bytes);
                received += 1;
                match dice.below(3) {
                    0 => request.reply(&reply_to(number)).unwrap(),
                    _ => later.push((number, request.defer())),
                }
                continue;
            }
        }
        let at = dice.below(later.len() as u64) as usize;
        let (number, responder) = later.swap_remove(at);
        match dice.below(4) {
            // As another thread would.
            0 => responder.post(reply_to(number)),
            _ => responder.reply(server, &reply_to(number)).unwrap(),
        }
    }
    // What was posted last.
    assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
    assert_eq!(server.outstanding(), 0);
}

#[test]
fn every_request_has_its_reply_in_whatever_order() {
    let scene = Scene::new();
    for wait in [Policy::Block, Policy::Adaptive, Policy::Poll] {
        let mut server = Server::builder()
            .replies(Publisher::builder().ring_bytes(4096).pool_bytes(1 << 20))
            .wait(wait.into())
            .reply_timeout(PATIENCE)
            .bind_to(&scene.address("echo"))
            .unwrap();
        let clients: Vec<_> = (0..3)
            .map(|name| {
                let task = Task {
                    address: scene.address("echo").to_string(),
                    name,
                    requests: 2_000,
                    wait: [Policy::Block, Policy::Adaptive][name as usize % 2],
                };
                scene.spawn("asker", &task)
            })
            .collect();
        echo_at_random(&mut server, 6_000);
        clients.into_iter().for_each(|client| client.finish());
        wait_until("every client has left", || {
            assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
            server.clients() == 0
        });
        let stats = server.stats();
        assert_eq!((stats.requests, stats.left, stats.evicted), (6_000, 3, 0));
    }
}

/// Asks, and waits for the reply, so that both sides sleep between.
fn one_by_one(role: &Role) {
    let task: Task = role.hear();
    let mut client = task.connect();
    for number in 0..task.requests {
        let mut request = [0; 64];
        fill(number, &mut request);
        let reply = client.call(&request).unwrap().to_vec();
        check(number, &reply);
        if number % 1000 == 0 {
            memlane_tests::alive();
        }
    }
}

#[test]
fn both_sides_sleep_and_are_woken() {
    let scene = Scene::new();
    for wait in [Policy::Block, Policy::Adaptive] {
        let mut server = Server::builder()
            .wait(wait.into())
            .bind_to(&scene.address("echo"))
            .unwrap();
        let task = Task {
            address: scene.address("echo").to_string(),
            name: 0,
            requests: 5_000,
            wait,
        };
        let client = scene.spawn("one by one", &task);
        for number in 0..5_000 {
            let request = server.recv_timeout(PATIENCE).unwrap();
            let bytes = request.to_vec();
            check(number, &bytes);
            request.reply(&bytes).unwrap();
        }
        client.finish();
        wait_until("the client has left", || {
            let _ = server.try_recv();
            server.clients() == 0
        });
    }
}

/// A server and a client inside of this process; `serve` runs beside.
fn pair(serve: impl FnOnce(&mut Server) + Send, ask: impl FnOnce(&mut Client)) {
    let (ours, theirs) = Link::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut server = Server::builder().max_requests(8).unbound().unwrap();
            server.attach(ours).unwrap();
            serve(&mut server);
        });
        let mut client = Client::builder().over(theirs).unwrap();
        ask(&mut client);
    });
}

#[test]
fn streams_come_item_by_item_beside_others() {
    let _scene = Scene::new();
    pair(
        |server| {
            let mut first = server.recv().unwrap().defer();
            let mut second = server.recv().unwrap();
            for number in 0..100_u64 {
                second.send(&number.to_ne_bytes()).unwrap();
            }
            second.finish().unwrap();
            for number in 100..200_u64 {
                first.send(server, &number.to_ne_bytes()).unwrap();
            }
            first.reply(server, b"the last item").unwrap();
            let mut third = server.recv().unwrap();
            third.send(b"an item").unwrap();
            third.fail("no more").unwrap();
            let mut fourth = server.recv().unwrap();
            fourth.send(b"one of many").unwrap();
            wait_until("the call is cancelled", || fourth.is_cancelled());
            drop(fourth);
            let fifth = server.recv().unwrap();
            fifth.finish().unwrap();
            // Until the client has left.
            wait_until("the client has left", || {
                let _ = server.try_recv();
                server.clients() == 0
            });
        },
        |client| {
            let mut first = client.send(b"first").unwrap();
            let mut second = client.send(b"second").unwrap();
            for number in 100..200_u64 {
                let item = client.next(&mut first).unwrap().unwrap();
                assert!(!item.is_last());
                assert_eq!(item.to_vec(), number.to_ne_bytes());
            }
            let last = client.next(&mut first).unwrap().unwrap();
            assert!(last.is_last());
            assert_eq!(last.to_vec(), b"the last item");
            drop(last);
            assert!(client.next(&mut first).unwrap().is_none());
            for number in 0..100_u64 {
                let item = client.next(&mut second).unwrap().unwrap();
                assert_eq!(item.to_vec(), number.to_ne_bytes());
            }
            assert!(client.next(&mut second).unwrap().is_none());
            assert!(client.next(&mut second).unwrap().is_none());

            let mut third = client.send(b"third").unwrap();
            assert_eq!(
                client.next(&mut third).unwrap().unwrap().to_vec(),
                b"an item"
            );
            let error = client.next(&mut third).unwrap_err();
            assert_eq!(error.to_string(), "the server says: no more");
            assert!(client.next(&mut third).unwrap().is_none());

            // One reply was expected.
            let error = client.call(b"fourth").unwrap_err();
            assert!(matches!(error, CallError::Stream), "{error:?}");
            let error = client.call(b"fifth").unwrap_err();
            assert!(matches!(error, CallError::Stream), "{error:?}");
            assert_eq!(client.stats().strays, 0);
        },
    );
}

#[test]
fn what_is_dropped_unanswered_is_told() {
    let _scene = Scene::new();
    pair(
        |server| {
            drop(server.recv().unwrap());
            drop(server.recv().unwrap().defer());
            // Which is told when the server next receives.
            let responder = server.recv().unwrap().defer();
            let sent = thread::spawn(move || responder.post_failure("from a thread"));
            let last = server.recv().unwrap();
            sent.join().unwrap();
            last.reply(b"").unwrap();
            wait_until("the client has left", || {
                let _ = server.try_recv();
                server.clients() == 0
            });
        },
        |client| {
            let error = client.call(b"one").unwrap_err();
            assert!(matches!(error, CallError::Unanswered), "{error:?}");
            let two = client.send(b"two").unwrap();
            let three = client.send(b"three").unwrap();
            let error = client.wait(two).unwrap_err();
            assert!(matches!(error, CallError::Unanswered), "{error:?}");
            let four = client.send(b"four").unwrap();
            let error = client.wait(three).unwrap_err();
            assert_eq!(error.to_string(), "the server says: from a thread");
            assert!(client.wait(four).unwrap().is_empty());
        },
    );
}

#[test]
fn what_is_cancelled_is_passed_over_or_known_to_whoever_works_on_it() {
    let _scene = Scene::new();
    let (said, hear) = std::sync::mpsc::channel();
    pair(
        move |server| {
            let first = server.recv().unwrap();
            assert!(!first.is_cancelled());
            said.send(()).unwrap();
            wait_until("the first is cancelled", || first.is_cancelled());
            let first = first.defer();
            assert!(first.is_cancelled());
            // The second and third were cancelled before they were received.
            let fourth = server.recv().unwrap();
            assert_eq!(fourth.to_vec(), b"fourth");
            let fourth = fourth.defer();
            said.send(()).unwrap();
            // Nobody takes it any more, and it is none too many.
            first.reply(server, b"too late").unwrap();
            let worker = thread::spawn(move || {
                wait_until("the fourth is cancelled", || fourth.is_cancelled());
                fourth.post("as late");
            });
            let fifth = server.recv().unwrap();
            fifth.reply(b"5").unwrap();
            worker.join().unwrap();
            wait_until("the client has left", || {
                let _ = server.try_recv();
                server.clients() == 0
            });
            let stats = server.stats();
            assert_eq!((stats.requests, stats.cancelled, stats.evicted), (3, 2, 0));
        },
        |client| {
            let first = client.send(b"first").unwrap();
            let second = client.send(b"second").unwrap();
            let third = client.send(b"third").unwrap();
            let () = hear.recv().unwrap();
            client.cancel(third);
            drop(second);
            client.cancel(&first);
            let error = client.wait(first).unwrap_err();
            assert!(matches!(error, CallError::Unknown), "{error:?}");
            let fourth = client.send(b"fourth").unwrap();
            let () = hear.recv().unwrap();
            drop(fourth);
            assert_eq!(client.call(b"fifth").unwrap().to_vec(), b"5");
            wait_until("the server has said its last of all of them", || {
                assert!(matches!(client.try_recv(), Err(CallError::Unknown)));
                client.outstanding() == 0
            });
            let stats = client.stats();
            assert_eq!((stats.strays, stats.replies), (0, 1));
        },
    );
}

/// Asks once, with a deadline, and says when that has passed.
fn late_asker(role: &Role) {
    let task: Task = role.hear();
    let mut client = task.connect();
    let () = role.hear();
    for _ in 0..2 {
        let error = client.call_timeout(b"too late", Duration::from_millis(5));
        assert!(
            matches!(error, Err(CallError::DeadlineExceeded)),
            "{error:?}"
        );
    }
    let call = client
        .send_timeout(b"whatever comes", Duration::from_millis(5))
        .unwrap();
    match client.recv().unwrap() {
        (id, Answer::Error(CallError::DeadlineExceeded)) => assert_eq!(id, call.id()),
        other => panic!("{other:?}"),
    }
    role.tell(&());
    let reply = client.call_timeout(b"in time", PATIENCE).unwrap().to_vec();
    assert_eq!(reply, b"in time");
    assert_eq!((client.stats().given_up, client.stats().strays), (3, 0));
    // The server has said its last of all of them before.
    assert_eq!(client.outstanding(), 0);
}

#[test]
fn what_is_late_is_passed_over_and_its_client_has_given_up_by_itself() {
    let scene = Scene::new();
    let mut server = Server::bind_at(&scene);
    let task = Task {
        address: scene.address("echo").to_string(),
        name: 0,
        requests: 0,
        wait: Policy::Block,
    };
    let client = scene.spawn("late asker", &task);
    wait_until("the client has come", || {
        assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
        server.clients() == 1
    });
    client.tell(&());
    let () = client.hear();
    let request = server.recv().unwrap();
    assert_eq!(request.to_vec(), b"in time");
    let deadline = request.deadline().unwrap();
    assert!(deadline > std::time::Instant::now() && !request.is_cancelled());
    request.reply(b"in time").unwrap();
    client.finish();
    wait_until("the client has left", || {
        let _ = server.try_recv();
        server.clients() == 0
    });
    let stats = server.stats();
    assert_eq!((stats.requests, stats.expired + stats.cancelled), (1, 3));
    assert!(stats.expired >= 1);
}

trait BindAt {
    fn bind_at(scene: &Scene) -> Server;
}

impl BindAt for Server {
    fn bind_at(scene: &Scene) -> Server {
        Server::builder().bind_to(&scene.address("echo")).unwrap()
    }
}

#[test]
fn there_are_so_many_requests_and_no_more() {
    let _scene = Scene::new();
    pair(
        |server| {
            let responders: Vec<_> = (0..8).map(|_| server.recv().unwrap().defer()).collect();
            assert_eq!(server.outstanding(), 8);
            for responder in responders {
                responder.reply(server, b"done").unwrap();
            }
            let mut ninth = server.recv().unwrap();
            let too_long = vec![0; (16 << 20) + 1];
            let error = ninth.try_reply(&too_long).unwrap_err();
            assert!(
                matches!(error, ReplyError::TooLarge { len, max }
                    if len == too_long.len() && max + 16 == 16 << 20),
                "{error}"
            );
            ninth.try_reply(b"short").unwrap();
            assert!(matches!(ninth.try_reply(b""), Err(ReplyError::Answered)));
            assert!(matches!(ninth.send(b""), Err(ReplyError::Answered)));
            drop(ninth);
            wait_until("the client has left", || {
                let _ = server.try_recv();
                server.clients() == 0
            });
        },
        |client| {
            assert_eq!(client.max_outstanding(), 8);
            let calls: Vec<_> = (0..8).map(|_| client.send(b"x").unwrap()).collect();
            let error = client.send(b"x").unwrap_err();
            assert!(matches!(error, CallError::TooMany { requests: 8 }));
            for call in calls {
                assert_eq!(client.wait(call).unwrap().to_vec(), b"done");
            }
            let error = client.call(&vec![0; client.max_request() + 1]).unwrap_err();
            assert!(matches!(error, CallError::TooLarge { len, max } if len == max + 1));
            assert_eq!(client.call(b"x").unwrap().to_vec(), b"short");
            let error = client.recv().unwrap_err();
            assert!(matches!(error, CallError::Unknown));
        },
    );
}

#[test]
fn replies_to_others_are_kept_up_to_a_limit() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let serving = thread::spawn(move || {
        let mut server = Server::builder().unbound().unwrap();
        server.attach(ours).unwrap();
        let mut first = server.recv().unwrap();
        for _ in 0..3 {
            first.send(&[1; 1000]).unwrap();
        }
        first.finish().unwrap();
        server.recv().unwrap().reply(b"two").unwrap();
        wait_until("the client has left", || {
            let _ = server.try_recv();
            server.clients() == 0
        });
    });
    let mut client = Client::builder().max_backlog(2000).over(theirs).unwrap();
    let mut first = client.send(b"one").unwrap();
    let mut second = client.send(b"two").unwrap();
    let error = client.next(&mut second).unwrap_err();
    assert!(
        matches!(error, CallError::Backlog { bytes: 2128 }),
        "{error:?}"
    );
    for _ in 0..3 {
        assert_eq!(client.next(&mut first).unwrap().unwrap().len(), 1000);
    }
    assert_eq!(client.next(&mut second).unwrap().unwrap().to_vec(), b"two");
    assert!(client.next(&mut first).unwrap().is_none());
    drop(client);
    serving.join().unwrap();
}

#[test]
fn a_flood_of_requests_makes_room_for_its_replies() {
    let scene = Scene::new();
    // Small rings, and a client that sends all it may before it receives anything: neither waits for the other.
    let mut server = Server::builder()
        .replies(Publisher::builder().ring_bytes(4096))
        .reply_timeout(PATIENCE)
        .bind_to(&scene.address("echo"))
        .unwrap();
    let address = scene.address("echo");
    let asking = thread::spawn(move || {
        let mut client = Client::builder()
            .requests(Publisher::builder().ring_bytes(4096))
            .connect_to(&address)
            .unwrap();
        let calls: Vec<_> = (0..1024_u64)
            .map(|number| {
                let mut request = [0; 300];
                fill(number, &mut request);
                client.send(&request).unwrap()
            })
            .collect();
        for (number, call) in calls.into_iter().enumerate() {
            check(number as u64, &client.wait(call).unwrap().to_vec());
        }
        assert!(client.stats().stored > 0);
    });
    for _ in 0..1024 {
        let request = server.recv_timeout(PATIENCE).unwrap();
        let bytes = request.to_vec();
        request.reply(&bytes).unwrap();
    }
    asking.join().unwrap();
}

#[test]
fn replies_may_spill() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let (said, hear) = std::sync::mpsc::channel();
    let serving = thread::spawn(move || {
        let mut server = Server::builder()
            .replies(Publisher::builder().ring_bytes(4096).spill_bytes(60 << 12))
            .unbound()
            .unwrap();
        server.attach(ours).unwrap();
        // All of them, though the client receives none of it before that.
        for number in 0..150_u64 {
            let mut request = server.recv().unwrap();
            let mut reply = [0; 1000];
            fill(number, &mut reply);
            request.try_reply(&reply).unwrap();
        }
        said.send(()).unwrap();
        wait_until("the client has left", || {
            let _ = server.try_recv();
            server.clients() == 0
        });
        assert_eq!(server.stats().evicted, 0);
    });
    let mut client = Client::builder().over(theirs).unwrap();
    let calls: Vec<_> = (0..150).map(|_| client.send(b"").unwrap()).collect();
    let () = hear.recv().unwrap();
    for (number, call) in calls.into_iter().enumerate() {
        check(number as u64, &client.wait(call).unwrap().to_vec());
    }
    drop(client);
    serving.join().unwrap();
}

#[test]
fn the_wrong_counterpart_is_told_what_is_there() {
    let scene = Scene::new();
    let mut server = Server::bind_at(&scene);
    let address = scene.address("echo");
    let told = |client: thread::JoinHandle<String>, server: &mut Server, refused| {
        wait_until("somebody is refused", || {
            let _ = server.try_recv();
            server.stats().refused == refused
        });
        client.join().unwrap()
    };
    let at = address.clone();
    let client = thread::spawn(move || {
        let error = Subscriber::builder().connect_to(&at).unwrap_err();
        error.to_string()
    });
    assert_eq!(
        told(client, &mut server, 1),
        "the publisher refused this subscriber: a server is there, which answers requests: connect a client to it \
         (Client::connect)"
    );
    let at = address.clone();
    let client = thread::spawn(move || {
        let error = Publisher::builder().connect_to(&at).unwrap_err();
        error.to_string()
    });
    let said = told(client, &mut server, 2);
    assert!(
        said.starts_with(
            "there is no receiver to send to: a server is there, which answers requests"
        ),
        "{said}"
    );
    drop(server);

    let publisher = Publisher::builder().bind_to(&address).unwrap();
    let error = Client::builder().connect_to(&address).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no server to call: a publisher is there, which sends: subscribe to it (Subscriber::connect)"
    );
    assert_eq!(publisher.stats().refused, 1);
    drop(publisher);

    let mut receiver = Subscriber::builder().bind_to(&address).unwrap();
    let at = address.clone();
    let client = thread::spawn(move || Client::builder().connect_to(&at).unwrap_err());
    wait_until("the client is refused", || {
        let _ = receiver.try_recv();
        receiver.stats().refused == 1
    });
    assert_eq!(
        client.join().unwrap().to_string(),
        "there is no server to call: a receiver is there, which receives: connect a sender to it (Sender::connect)"
    );

    // Two clients, or two servers, over one link.
    let (ours, theirs) = Link::pair().unwrap();
    let other = thread::spawn(|| Client::builder().over(ours).unwrap_err());
    let error = Client::builder().over(theirs).unwrap_err();
    for error in [error, other.join().unwrap()] {
        assert!(matches!(error, Error::NoServer { .. }), "{error}");
    }
}

#[test]
fn there_are_so_many_clients_and_no_more() {
    let scene = Scene::new();
    let mut server = Server::builder()
        .max_clients(1)
        .bind_to(&scene.address("echo"))
        .unwrap();
    let address = scene.address("echo");
    let connecting = thread::spawn(move || {
        let first = Client::builder().connect_to(&address).unwrap();
        let error = Client::builder().connect_to(&address).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no server to call: the server has 1 clients, and takes no more"
        );
        drop(first);
        loop {
            match Client::builder().connect_to(&address) {
                Ok(mut client) => break client.call(b"").unwrap().to_vec(),
                Err(error) => assert!(matches!(error, Error::NoServer { .. }), "{error}"),
            }
        }
    });
    server
        .recv_timeout(PATIENCE)
        .unwrap()
        .reply(b"at last")
        .unwrap();
    assert_eq!(connecting.join().unwrap(), b"at last");
}

#[test]
fn a_responder_of_another_server_is_nobodys() {
    let _scene = Scene::new();
    pair(
        |server| {
            let mut other = Server::builder().unbound().unwrap();
            let mut responder = server.recv().unwrap().defer();
            let error = responder.try_reply(&mut other, b"").unwrap_err();
            assert!(matches!(error, ReplyError::Disconnected));
            responder.reply(server, b"mine").unwrap();
            wait_until("the client has left", || {
                let _ = server.try_recv();
                server.clients() == 0
            });
        },
        |client| assert_eq!(client.call(b"").unwrap().to_vec(), b"mine"),
    );
}

#[test]
fn a_server_that_sleeps_is_woken_by_what_is_posted() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let asking = thread::spawn(move || {
        let mut client = Client::builder().over(theirs).unwrap();
        client.call(b"").unwrap().to_vec()
    });
    let mut server = Server::builder()
        .wait(memlane::WaitPolicy::Block)
        .unbound()
        .unwrap();
    server.attach(ours).unwrap();
    let responder = server.recv().unwrap().defer();
    let me = memlane_tests::thread_id();
    let posting = thread::spawn(move || {
        wait_asleep(std::process::id(), me);
        responder.post("posted");
    });
    // Nothing else comes, until the client has its reply and leaves.
    wait_until("the client has left", || {
        let _ = server.recv_timeout(PATIENCE / 6);
        server.clients() == 0
    });
    posting.join().unwrap();
    assert_eq!(asking.join().unwrap(), b"posted");
}

//! Requests whose other side is killed, stopped, slow, closed, or of another version.

use std::{thread, time::Duration};

use memlane::{
    Address, Answer, CallError, Client, Error, Link, Publisher, Reason, ReplyError, Server,
    TryRecvError, transport::Access,
};
use memlane_tests::{Census, End, PATIENCE, Role, Scene, wait_until, wire};

fn bind(address: &Address) -> Server {
    Server::builder().bind_to(address).unwrap()
}

fn connect(address: &Address) -> Client {
    Client::builder().connect_to(address).unwrap()
}

/// Receives as many requests as it is told and answers none; then it is killed, or ends in some other way.
pub(crate) fn server(role: &Role) {
    let (address, requests): (String, usize) = role.hear();
    let mut server = bind(&address.parse().unwrap());
    role.tell(&());
    let responders: Vec<_> = (0..requests)
        .map(|_| server.recv().unwrap().defer())
        .collect();
    role.tell(&());
    match role.hear::<Option<End>>() {
        Some(end) => {
            end.come(role, server, Server::close);
            // Nobody is told twice.
            drop(responders);
        }
        None => {
            for responder in responders {
                responder.reply(&mut server, b"at last").unwrap();
            }
            let () = role.hear();
        }
    }
}

#[test]
fn a_server_that_ends_fails_all_that_is_under_way_at_once() {
    let scene = Scene::new();
    let address = scene.address("sum");
    for end in End::REASONS {
        let server = scene.spawn("server", &(address.to_string(), 10_usize));
        let () = server.hear();
        let mut client = connect(&address);
        let calls: Vec<_> = (0..10)
            .map(|_| client.send(b"a request").unwrap())
            .collect();
        let () = server.hear();
        // It sleeps when that happens, and is woken by it.
        let ending = end.while_asleep(server);
        for call in calls {
            match client.wait(call) {
                Err(CallError::Disconnected { reason }) => assert_eq!(reason, end.reason()),
                other => panic!("{other:?}"),
            }
        }
        ending.join().unwrap();
        for error in [
            client.call(b"another").unwrap_err(),
            client.send(b"another").unwrap_err(),
            client.recv().unwrap_err(),
        ] {
            assert!(matches!(error, CallError::Disconnected { .. }), "{error:?}");
        }
        drop(client);
        let _ = memlane::transport::remove_stale(&address);
    }
}

#[test]
fn a_server_that_is_stopped_is_not_dead() {
    let scene = Scene::new();
    let address = scene.address("sum");
    let server = scene.spawn("server", &(address.to_string(), 1_usize));
    let () = server.hear();
    let mut client = connect(&address);
    let first = client.send(b"a request").unwrap();
    let () = server.hear();
    server.stop();
    let short = Duration::from_millis(5);
    let error = client.call_timeout(b"another", short).unwrap_err();
    assert!(matches!(error, CallError::DeadlineExceeded), "{error:?}");
    let mut first = first;
    let error = client.next_timeout(&mut first, short).unwrap_err();
    assert!(matches!(error, CallError::TimedOut), "{error:?}");
    // The lane is full one day: that takes no longer.
    while client.outstanding() < 200 {
        match client.send_timeout(&[0; 1000], short) {
            Ok(call) => drop(call.detach()),
            Err(CallError::DeadlineExceeded) => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    server.go_on();
    server.tell(&None::<End>);
    assert_eq!(client.wait(first).unwrap().to_vec(), b"at last");
    drop(client);
    server.tell(&());
    server.finish();
}

/// Sends as many requests as it is told, and waits for no reply.
pub(crate) fn client(role: &Role) {
    let (address, requests): (String, usize) = role.hear();
    let mut client = connect(&address.parse().unwrap());
    for number in 0..requests {
        let request = vec![number as u8; 1000 * (number % 2)];
        let _ = client.send(&request).unwrap().detach();
    }
    role.tell(&());
    let () = role.hear();
}

#[test]
fn a_client_that_dies_frees_its_work() {
    let scene = Scene::new();
    let address = scene.address("sum");
    let mut server = bind(&address);
    let before = Census::take();
    let client = scene.spawn("client", &(address.to_string(), 20_usize));
    let mut first = server.recv().unwrap();
    assert!(!first.is_cancelled());
    first.send(b"an item").unwrap();
    let first = first.defer();
    let second = server.recv().unwrap().defer();
    let third = server.recv().unwrap();
    let () = client.hear();
    client.kill_and_reap();
    // Known to whoever works on it, without a word of the server's.
    wait_until("the request is known to be nobody's", || {
        third.is_cancelled()
    });
    let third = third.defer();
    let worker = thread::spawn(move || {
        wait_until("elsewhere, too", || second.is_cancelled());
        second
    });
    let second = worker.join().unwrap();
    // What it had sent beside is of no use.
    wait_until("the client is gone", || {
        assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
        server.clients() == 0
    });
    assert!(first.is_cancelled() && second.is_cancelled());
    let error = first.reply(&mut server, b"too late").unwrap_err();
    assert!(matches!(error, ReplyError::Disconnected), "{error:?}");
    second.post("too late");
    drop(third);
    assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
    let stats = server.stats();
    assert_eq!((stats.requests, stats.orphaned, stats.left), (3, 17, 1));
    assert_eq!(server.outstanding(), 0);
    before.settle();
}

/// Asks for more than fits, and receives nothing.
pub(crate) fn flooder(role: &Role) {
    let address: String = role.hear();
    let mut client = connect(&address.parse().unwrap());
    let () = role.hear();
    for _ in 0..1000 {
        let _ = client.send(b"a request").unwrap().detach();
    }
    role.tell(&());
    let () = role.hear();
    // What was in its lane is still received; then it is told.
    let mut replies = 0;
    let reason = loop {
        match client.recv() {
            Ok((_, Answer::Last(_))) => replies += 1,
            Err(CallError::Disconnected { reason }) => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert!((1..1000).contains(&replies), "{replies}");
    let Reason::Evicted { why } = reason else {
        panic!("{reason:?}")
    };
    assert_eq!(why, "it has left no room for replies for 50ms");
}

/// Asks one by one.
pub(crate) fn good_client(role: &Role) {
    let address: String = role.hear();
    let mut client = connect(&address.parse().unwrap());
    for number in 0..200_u32 {
        let reply = client.call(&number.to_ne_bytes()).unwrap().to_vec();
        assert_eq!(reply[..4], number.to_ne_bytes());
    }
}

#[test]
fn a_client_that_does_not_receive_holds_up_nobody() {
    let scene = Scene::new();
    for stopped in [false, true] {
        let address = scene.address("sum");
        let mut server = Server::builder()
            .replies(Publisher::builder().ring_bytes(4096))
            .reply_timeout(Duration::from_millis(50))
            .bind_to(&address)
            .unwrap();
        let flooder = scene.spawn("flooder", &address.to_string());
        wait_until("the flooder is there", || {
            assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
            server.clients() == 1
        });
        flooder.tell(&());
        let () = flooder.hear();
        if stopped {
            flooder.stop();
        }
        let good = scene.spawn("good client", &address.to_string());
        let (mut served, mut dropped) = (0, 0);
        while served < 200 || dropped == 0 {
            let request = server.recv_timeout(PATIENCE).unwrap();
            let mut reply = [0; 100];
            let good = request.len() == 4;
            request.copy_to(&mut reply);
            match request.reply(&reply) {
                Ok(()) => served += u32::from(good),
                Err(ReplyError::Disconnected) => dropped += 1,
                Err(error) => panic!("{error}"),
            }
        }
        good.finish();
        flooder.go_on();
        flooder.tell(&());
        flooder.finish();
        wait_until("all have left", || {
            assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
            server.clients() == 0
        });
        let stats = server.stats();
        assert_eq!((stats.evicted, stats.left, dropped), (1, 1, 1));
        assert_eq!(u64::from(served), 200);
    }
}

#[test]
fn another_version_is_told_from_ours() {
    let scene = Scene::new();
    // A server of the future.
    let address = scene.address("sum");
    let future = wire::of_the_future(&address);
    let error = Client::builder().connect_to(&address).unwrap_err();
    assert!(
        matches!(error, Error::Version { them: "server", theirs, us: "client", ours }
            if theirs == wire::VERSION + 1 && ours == wire::VERSION),
        "{error:?}"
    );
    future.join().unwrap();

    // A client of the past.
    let mut server = bind(&address);
    let link = Link::connect_with(&address, Access::SameUser).unwrap();
    let version = wire::VERSION - 1;
    link.send(&wire::Opening { version }).unwrap();
    wait_until("it is refused", || {
        assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
        server.stats().refused == 1
    });
    let opening: wire::Opening = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(opening.version, wire::VERSION);
}

#[test]
fn a_server_that_does_not_answer_is_waited_for_so_long() {
    let scene = Scene::new();
    let address = scene.address("sum");
    let _server = bind(&address);
    let error = Client::builder()
        .timeout(Duration::from_millis(20))
        .connect_to(&address)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("there is no server to call: it did not answer within 20ms"),
        "{error}"
    );
}

//! Requests that are not answered, are cancelled, or are late.

use std::{thread, time::Duration};

use memlane::{Answer, CallError, Server, TryRecvError};
use memlane_tests::{PATIENCE, Policy, Role, Scene, wait_until};

use crate::{
    pair::{BindAt, pair},
    under_way::Task,
};

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
pub(crate) fn late_asker(role: &Role) {
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

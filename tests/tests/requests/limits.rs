//! There are so many of everything, and no more.

use std::thread;

use memlane::{CallError, Client, Error, Link, Publisher, ReplyError, Server};
use memlane_tests::{PATIENCE, Scene, check, fill, wait_until};

use crate::pair::pair;

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

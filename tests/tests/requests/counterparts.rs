//! The wrong counterpart.

use std::thread;

use memlane::{Client, Error, Link, Publisher, ReplyError, Server, Subscriber};
use memlane_tests::{Scene, wait_until};

use crate::pair::{BindAt, pair};

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

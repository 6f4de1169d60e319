//! A watched end is readable until it has been found empty: whichever end it is, however little of it is taken at a time, and
//! whoever is faster, a message or its ring.

use std::{thread, time::Duration};

use memlane::{
    Answer, CallError, Client, Link, Publisher, Received, Receiver, RecvTimeoutError, Sender,
    Server, Subscriber, Subscriptions, TryRecvError, TrySendError, Watched,
};
use memlane_tests::{PATIENCE, Scene, unbound, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// An end that is watched, and who sends to it, in this thread: what comes when is the test's to say.
trait Pair {
    fn new() -> Self;

    /// Sends a message.
    fn send(&mut self);

    /// Takes one with a `try_` call; false if there is none.
    fn take(&mut self) -> bool;

    /// Takes one, with a call that waits; false if none has come in time.
    fn wait(&mut self, timeout: Duration) -> bool;

    /// Sends two messages, of which the first is taken before anybody is rung.
    fn overtake(&mut self);

    fn is_readable(&self) -> bool;

    fn sleeps(&self) -> u64;

    /// It is found empty.
    #[track_caller]
    fn run_dry(&mut self) {
        assert!(!self.take());
        assert!(!self.is_readable());
    }
}

fn readable(end: &impl std::os::fd::AsFd) -> bool {
    let now = Timespec::default();
    poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&now)) == Ok(1)
}

fn taken<M>(result: Result<M, TryRecvError>) -> bool {
    match result {
        Ok(_) => true,
        Err(TryRecvError::Empty) => false,
        Err(error) => panic!("{error}"),
    }
}

fn in_time<M>(result: Result<M, RecvTimeoutError>) -> bool {
    match result {
        Ok(_) => true,
        Err(RecvTimeoutError::TimedOut) => false,
        Err(error) => panic!("{error}"),
    }
}

/// A lane of its own.
struct One(Publisher, Watched<Subscriber>);

/// One of two senders sends.
struct Queue(Vec<Sender>, Watched<Receiver>);

/// One of two publishers does.
struct Many(Vec<Publisher>, Watched<Subscriptions>);

/// Requests, each of which is answered, and its reply received.
struct Service(Client, Watched<Server>);

fn lane() -> (Publisher, Subscriber) {
    let (here, there) = Link::pair().unwrap();
    let publisher = unbound(1 << 16).unbound().unwrap();
    publisher.attach(here).unwrap();
    (publisher, Subscriber::builder().over(there).unwrap())
}

fn send_two_and_take(publisher: &mut Publisher, take: impl FnOnce() -> bool) {
    publisher.batch(|publisher| {
        publisher.send(b"one").unwrap();
        publisher.send(b"another").unwrap();
        assert!(take());
    });
}

impl Pair for One {
    fn new() -> One {
        let (publisher, subscriber) = lane();
        One(publisher, Watched::new(subscriber).unwrap())
    }

    fn send(&mut self) {
        self.0.send(b"a message").unwrap();
    }

    fn take(&mut self) -> bool {
        taken(self.1.try_recv())
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        in_time(self.1.recv_timeout(timeout))
    }

    fn overtake(&mut self) {
        send_two_and_take(&mut self.0, || taken(self.1.try_recv()));
    }

    fn is_readable(&self) -> bool {
        readable(&self.1)
    }

    fn sleeps(&self) -> u64 {
        self.1.stats().sleeps
    }
}

impl Pair for Queue {
    fn new() -> Queue {
        let mut receiver = Subscriber::builder().unbound().unwrap();
        let connecting = [(); 2].map(|()| {
            let (here, there) = Link::pair().unwrap();
            receiver.attach(here).unwrap();
            thread::spawn(|| Publisher::builder().over(there).unwrap())
        });
        wait_until("both are there", || {
            assert!(!taken(receiver.try_recv()));
            receiver.senders() == 2
        });
        let senders = connecting.map(|sender| sender.join().unwrap());
        Queue(senders.into(), Watched::new(receiver).unwrap())
    }

    fn send(&mut self) {
        self.0[0].send(b"a message").unwrap();
    }

    fn take(&mut self) -> bool {
        taken(self.1.try_recv())
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        in_time(self.1.recv_timeout(timeout))
    }

    fn overtake(&mut self) {
        // Of two, one is glanced at in each call.
        send_two_and_take(&mut self.0[0], || (0..2).any(|_| taken(self.1.try_recv())));
    }

    fn is_readable(&self) -> bool {
        readable(&self.1)
    }

    fn sleeps(&self) -> u64 {
        self.1.stats().sleeps
    }
}

impl Pair for Many {
    fn new() -> Many {
        let mut many = Subscriber::builder().subscriptions().unwrap();
        let publishers = [(); 2].map(|()| {
            let (publisher, subscriber) = lane();
            many.add(subscriber).unwrap();
            publisher
        });
        Many(publishers.into(), Watched::new(many).unwrap())
    }

    fn send(&mut self) {
        self.0[0].send(b"a message").unwrap();
    }

    fn take(&mut self) -> bool {
        taken(self.1.try_recv().map(Received::message))
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        in_time(self.1.recv_timeout(timeout).map(Received::message))
    }

    fn overtake(&mut self) {
        send_two_and_take(&mut self.0[0], || (0..2).any(|_| taken(self.1.try_recv())));
    }

    fn is_readable(&self) -> bool {
        readable(&self.1)
    }

    fn sleeps(&self) -> u64 {
        self.1.stats().sleeps
    }
}

/// A client, and its server, which takes four requests at a time of one that has a small ring.
fn both(small: bool) -> (Client, Server) {
    let (here, there) = Link::pair().unwrap();
    let (server, requests) = match small {
        true => (Server::builder().max_requests(4), 4096),
        false => (Server::builder(), 1 << 16),
    };
    let mut server = server.unbound().unwrap();
    server.attach(here).unwrap();
    let client = thread::spawn(move || {
        let requests = Publisher::builder().ring_bytes(requests);
        Client::builder().requests(requests).over(there).unwrap()
    });
    wait_until("the client is there", || {
        assert!(!taken(server.try_recv()));
        server.clients() == 1
    });
    (client.join().unwrap(), server)
}

/// Answers one request, if one has come.
fn answer(server: &mut Server) -> bool {
    match server.try_recv() {
        Ok(request) => {
            request.reply(b"an answer").unwrap();
            true
        }
        Err(TryRecvError::Empty) => false,
        Err(error) => panic!("{error}"),
    }
}

impl Pair for Service {
    fn new() -> Service {
        let (client, server) = both(false);
        Service(client, Watched::new(server).unwrap())
    }

    fn send(&mut self) {
        let _ = self.0.try_send(b"a request").unwrap().detach();
    }

    fn take(&mut self) -> bool {
        let answered = answer(&mut self.1);
        if answered {
            let (_, reply) = self.0.try_recv().unwrap();
            assert!(matches!(reply, Answer::Last(_)));
        }
        answered
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        match self.1.recv_timeout(timeout) {
            Ok(request) => request.reply(b"an answer").unwrap(),
            Err(RecvTimeoutError::TimedOut) => return false,
            Err(error) => panic!("{error}"),
        }
        let (_, reply) = self.0.try_recv().unwrap();
        assert!(matches!(reply, Answer::Last(_)));
        true
    }

    fn overtake(&mut self) {
        // A client has no batches: it is rung for each of them.
        self.send();
        self.send();
        assert!(self.take());
    }

    fn is_readable(&self) -> bool {
        readable(&self.1)
    }

    fn sleeps(&self) -> u64 {
        self.1.stats().sleeps
    }
}

/// Rings are counted, and their socket is emptied every 64th time: whatever the count is when there are messages left, it is not
/// the ring for those that is taken.
fn whatever_was_rung_before<P: Pair>() {
    for before in 0..4 {
        let mut pair = P::new();
        pair.run_dry();
        for _ in 0..before {
            // A ring that is taken by a call that waits is counted another time.
            pair.send();
            assert!(pair.wait(PATIENCE));
            assert!(!pair.wait(Duration::from_millis(1)));
        }
        for round in 0..150 {
            if pair.is_readable() {
                pair.run_dry();
            }
            (0..3).for_each(|_| pair.send());
            for number in 0..3 {
                assert!(pair.is_readable(), "{before}, {round}, {number}");
                assert!(pair.take());
            }
            pair.run_dry();
        }
    }
}

#[test]
fn whatever_was_rung_before_it_is_readable() {
    let _scene = Scene::new();
    whatever_was_rung_before::<One>();
    whatever_was_rung_before::<Queue>();
    whatever_was_rung_before::<Many>();
    whatever_was_rung_before::<Service>();
}

/// Once in 1024 messages the kernel is asked, which takes what rang.
fn never_found_empty<P: Pair>() {
    let mut pair = P::new();
    pair.run_dry();
    pair.send();
    for number in 0..5000 {
        pair.send();
        assert!(pair.is_readable(), "{number}");
        assert!(pair.take());
    }
    assert!(pair.is_readable());
    assert!(pair.take());
    pair.run_dry();
}

#[test]
fn one_that_is_never_found_empty_is_readable() {
    let _scene = Scene::new();
    never_found_empty::<One>();
    never_found_empty::<Queue>();
    never_found_empty::<Many>();
    never_found_empty::<Service>();
}

/// A loop looks for reasons of its own.
fn before_its_ring<P: Pair>() {
    let mut pair = P::new();
    for round in 0..300 {
        pair.run_dry();
        pair.overtake();
        assert!(pair.is_readable(), "{round}");
        assert!(pair.take());
    }
    // However many of their rings there are, the next one is heard.
    pair.run_dry();
    pair.send();
    assert!(pair.is_readable());
}

#[test]
fn one_whose_message_was_seen_before_its_ring_is_readable() {
    let _scene = Scene::new();
    before_its_ring::<One>();
    before_its_ring::<Queue>();
    before_its_ring::<Many>();
    before_its_ring::<Service>();
}

fn sleeps<P: Pair>() {
    let mut pair = P::new();
    for _ in 0..3 {
        let before = pair.sleeps();
        assert!(!pair.wait(Duration::from_millis(30)));
        let after = pair.sleeps();
        assert!(after <= before + 3, "{before}, {after}");
        // Nobody has seen it empty who answered that.
        assert!(pair.is_readable());
    }
    pair.send();
    assert!(pair.wait(PATIENCE));
    assert!(pair.is_readable());
    pair.run_dry();
}

#[test]
fn calls_that_wait_sleep() {
    let _scene = Scene::new();
    sleeps::<One>();
    sleeps::<Queue>();
    sleeps::<Many>();
    sleeps::<Service>();
}

/// A client that is watched, and its server.
fn client() -> (Watched<Client>, Server) {
    let (client, server) = both(true);
    (Watched::new(client).unwrap(), server)
}

fn is_empty<V>(result: Result<V, CallError>) -> bool {
    match result {
        Ok(_) => false,
        Err(CallError::Empty) => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn replies_that_others_came_across_are_told_of() {
    let _scene = Scene::new();
    let (mut client, mut server) = client();
    let [mut first, mut second] = [(); 2].map(|()| client.try_send(b"a request").unwrap());
    assert!(is_empty(client.try_next(&mut first)));
    // The answer to the first, which this call does not ask for.
    assert!(answer(&mut server));
    assert!(is_empty(client.try_next(&mut second)));
    assert!(readable(&client));
    assert!(!is_empty(client.try_next(&mut first)));
    assert!(is_empty(client.try_next(&mut second)));
    assert!(!readable(&client));
    assert!(answer(&mut server));
    assert!(readable(&client));
    // Whoever does not ask for it is told once.
    let mut third = client.try_send(b"a request").unwrap();
    assert!(is_empty(client.try_next(&mut third)));
    assert!(readable(&client));
    assert!(is_empty(client.try_next(&mut third)));
    assert!(!readable(&client));
    assert!(!is_empty(client.try_next(&mut second)));
}

#[test]
fn replies_that_were_taken_in_for_want_of_a_place_are_told_of() {
    let _scene = Scene::new();
    let (mut client, mut server) = client();
    for _ in 0..4 {
        let _ = client.try_send(b"a request").unwrap().detach();
    }
    assert!(is_empty(client.try_recv()));
    assert!(!readable(&client));
    while answer(&mut server) {}
    // Their places are free once they are received.
    let fifth = client.try_send(b"a request");
    assert!(matches!(fifth, Err(CallError::TooMany { requests: 4 })));
    for _ in 0..4 {
        assert!(readable(&client));
        assert!(!is_empty(client.try_recv()));
    }
    assert!(matches!(client.try_recv(), Err(CallError::Unknown)));
    assert!(!readable(&client));
}

#[test]
fn replies_that_were_taken_in_for_want_of_room_are_told_of() {
    let _scene = Scene::new();
    let (mut client, mut server) = client();
    let request = [0; 1500];
    let sent = loop {
        match client.try_send(&request) {
            Ok(call) => drop(call.detach()),
            Err(CallError::Full) => break client.stats().requests,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(sent < 4, "{sent}");
    assert!(is_empty(client.try_recv()));
    assert!(!readable(&client));
    // Of the answer the client hears while the request still lies in the ring.
    let mut answering = server.try_recv().unwrap();
    answering.try_reply(b"an answer").unwrap();
    assert!(readable(&client));
    assert!(matches!(client.try_send(&request), Err(CallError::Full)));
    assert!(readable(&client));
    assert!(!is_empty(client.try_recv()));
    assert!(is_empty(client.try_recv()));
    assert!(!readable(&client));
    // And of room there is word, too.
    drop(answering);
    while answer(&mut server) {}
    assert!(readable(&client));
}

#[test]
fn a_wait_for_room_does_not_end_unheard() {
    let _scene = Scene::new();
    let (mut client, mut server) = client();
    let call = client.try_send(&[0; 1500]).unwrap();
    while let Ok(call) = client.try_send(&[0; 1500]) {
        let _ = call.detach();
    }
    assert!(is_empty(client.try_recv()));
    assert!(!readable(&client));
    // That it was given up is said in what room there is.
    drop(call);
    assert!(is_empty(client.try_recv()));
    assert!(readable(&client));
    assert!(matches!(client.try_send(&[0; 1500]), Err(CallError::Full)));
    assert!(is_empty(client.try_recv()));
    assert!(!readable(&client));
    while answer(&mut server) {}
    assert!(readable(&client));
}

#[test]
fn room_is_told_of_whatever_else_was_waited_for() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().unwrap();
    let publisher = unbound(4096).driven().unbound().unwrap();
    publisher.attach(here).unwrap();
    let subscribing = thread::spawn(|| Subscriber::builder().over(there).unwrap());
    publisher.wait_for_subscribers(1).unwrap();
    let mut subscriber = subscribing.join().unwrap();
    let mut publisher = Watched::new(publisher).unwrap();
    while publisher.try_send(&[0; 500]).is_ok() {}
    publisher.drive().unwrap();
    assert!(matches!(
        publisher.try_send(&[0; 500]),
        Err(TrySendError::Full)
    ));
    assert!(!readable(&publisher));
    while taken(subscriber.try_recv()) {}
    assert!(readable(&publisher));
    publisher.wait_for_subscribers(1).unwrap();
    assert!(readable(&publisher));
    publisher.try_send(&[0; 500]).unwrap();
    assert!(!readable(&publisher));
}

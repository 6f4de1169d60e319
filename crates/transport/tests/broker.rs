//! Introductions within one process: what a broker answers, and to whom.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use common::broker::{
    ACCEPTED, DECLINED, INTRODUCE, INTRODUCED, accepted, anybody, client, declined, drive,
    introduced, only,
};
use common::{alone, frame, raw_send};
use memlane_transport::broker::{
    AdmitError, Arrival, Broker, Client, Declined, Event, MAX_KEPT, MAX_NAME, MAX_UNREAD,
};
use memlane_transport::{Error, FdRef, Link, SocketKind, codec};
use rustix::net::{RecvFlags, recv};
use serde::Serialize;

#[test]
fn both_get_an_end_and_the_name_of_the_other() {
    let _alone = alone();
    let mut broker = anybody();
    let (mut a, mut b) = (client(&mut broker, "a"), client(&mut broker, "b"));
    a.request("b").unwrap();
    b.request("a").unwrap();
    let events = drive(&mut broker);
    assert_eq!(events.keys().collect::<Vec<_>>(), ["a to b", "b to a"]);
    drop(broker);

    // In the order they were made, each with the other's end.
    let (from_a, from_b) = (accepted(&mut a), accepted_later(&mut b));
    let ((name_of_b, to_b), (name_of_a, to_a)) = (introduced(&mut a), from_b.1);
    assert_eq!((&name_of_a[..], &name_of_b[..]), ("a", "b"));
    from_a.send("first").unwrap();
    assert_eq!(to_a.recv::<String>().unwrap(), "first");
    from_b.0.send("second").unwrap();
    assert_eq!(to_b.recv::<String>().unwrap(), "second");
    assert!(a.recv().unwrap_err().is_disconnected());
}

fn accepted_later(client: &mut Client) -> (Link, (String, Link)) {
    let unasked = introduced(client);
    (accepted(client), unasked)
}

/// Bytes of the answers to the same request, which must tell a client nothing.
#[test]
fn forbidden_and_unknown_look_the_same() {
    let _alone = alone();
    let mut broker = Broker::new(|_, to| to != "secret").unwrap();
    let asker = broker.admit("asker").unwrap().into_fd();
    let mut secret = client(&mut broker, "secret");
    let mut answers = Vec::new();
    for name in ["secret", "nobody", "asker", "", &"x".repeat(MAX_NAME)] {
        raw_send(
            &asker,
            &frame(0, &encoded(&(1_u8, INTRODUCE, 7_u64, name))),
            &[],
        );
        let event = only(drive(&mut broker));
        assert_eq!(event, format!("asker to {name}: Unknown"));
        let mut bytes = [0; 100];
        let (size, _) = recv(&asker, &mut bytes, RecvFlags::DONTWAIT).unwrap();
        answers.push(bytes[..size].to_vec());
    }
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
    assert_eq!(
        answers[0],
        frame(0, &encoded(&(1_u8, DECLINED, 7_u64, 0_u32)))
    );
    assert!(matches!(secret.try_recv(), Err(Error::WouldBlock)));
    // A mere question ends nothing.
    assert_eq!(broker.names().count(), 2);
}

fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value, 1000).unwrap()
}

/// Answers to nothing, to requests that were answered before, or that timed out.
#[test]
fn answers_that_nobody_waits_for() {
    let _alone = alone();
    let (broker, link) = Link::pair().unwrap();
    let mut client = Client::new(link);
    let accept = |request: u64| {
        let (ours, theirs) = Link::pair().unwrap();
        broker
            .send(&(1_u8, ACCEPTED, request, FdRef::new(&theirs)))
            .unwrap();
        ours
    };
    let first = client.request("b").unwrap();
    let ends = [accept(17), accept(0), accept(0)];
    broker.send(&(1_u8, DECLINED, 0_u64, 1_u32)).unwrap();
    match client.recv().unwrap() {
        Arrival::Accepted {
            request,
            name,
            link,
        } => {
            assert_eq!((request, &name[..]), (first, "b"));
            link.send(&1_u8).unwrap();
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.try_recv(), Err(Error::WouldBlock)));
    let heard = ends.map(|end| end.recv::<u8>().is_ok());
    assert_eq!(heard, [false, true, false]);

    let late = client.introduce_timeout("b", Duration::from_millis(1));
    assert!(matches!(late, Err(Error::TimedOut)), "{late:?}");
    let late = accept(1);
    let kept = accept(2);
    client.introduce("b").unwrap().send(&2_u8).unwrap();
    assert!(late.recv::<u8>().unwrap_err().is_disconnected());
    assert_eq!(kept.recv::<u8>().unwrap(), 2);
}

/// What others ask for meanwhile stays for `recv`, up to a limit.
#[test]
fn arrivals_before_an_answer() {
    let _alone = alone();
    let (broker, link) = Link::pair().unwrap();
    let mut client = Client::new(link);
    let pending = client.request("slow").unwrap();
    let ends: Vec<Link> = (0..MAX_KEPT + 3)
        .map(|_| {
            let (ours, theirs) = Link::pair().unwrap();
            broker
                .send(&(1_u8, INTRODUCED, "c", FdRef::new(&theirs)))
                .unwrap();
            ours
        })
        .collect();
    broker.send(&(1_u8, DECLINED, 0_u64, 1_u32)).unwrap();
    broker.send(&(1_u8, DECLINED, 1_u64, 0_u32)).unwrap();
    let error = client.introduce("b").unwrap_err();
    assert!(!error.is_retryable());
    let Error::Declined { name, reason } = error else {
        panic!("{error:?}")
    };
    assert_eq!((&name[..], reason), ("b", Declined::Unknown));

    let links: Vec<Link> = (0..MAX_KEPT).map(|_| introduced(&mut client).1).collect();
    match client.try_recv().unwrap() {
        Arrival::Declined {
            request, reason, ..
        } => assert_eq!((request, reason), (pending, Declined::Busy)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.try_recv(), Err(Error::WouldBlock)));
    for (number, end) in ends.iter().enumerate() {
        match end.try_recv::<()>() {
            Err(Error::WouldBlock) => assert!(number < links.len()),
            Err(Error::Disconnected) => assert!(number >= links.len()),
            other => panic!("{other:?}"),
        }
    }
}

/// A client that asks without end and reads nothing is not read from, and stops no other.
#[test]
fn a_flood() {
    let _alone = alone();
    let mut broker = Broker::new(|from, _| from != "flooder").unwrap();
    let flooder = broker.admit("flooder").unwrap();
    let (mut a, mut b) = (client(&mut broker, "a"), client(&mut broker, "b"));
    let request = (1_u8, INTRODUCE, 0_u64, "nobody");
    let mut sent = 0;
    let mut served = 0;
    loop {
        while flooder.try_send(&request).is_ok() {
            sent += 1;
        }
        match drive(&mut broker).get("flooder to nobody: Unknown") {
            Some(count) => served += count,
            None => break,
        }
    }
    assert!(served > 10 && sent > served, "{served} of {sent}");
    // Not even its descriptor is ready for it: a loop around it sleeps.
    assert!(broker.drive_timeout(Duration::ZERO).unwrap().is_empty());

    a.request("b").unwrap();
    assert_eq!(only(drive(&mut broker)), "a to b");
    accepted(&mut a).send(&1_u8).unwrap();
    assert_eq!(introduced(&mut b).1.recv::<u8>().unwrap(), 1);

    // It is served again as soon as it reads.
    while served < sent {
        while flooder.try_recv::<(u8, u32, u64, u32)>().is_ok() {}
        served += drive(&mut broker)["flooder to nobody: Unknown"];
    }
    assert_eq!(broker.names().count(), 3);
}

/// One that asks for somebody who does not read gets some introductions, not all there is room for (D5).
#[test]
fn shares_of_a_queue() {
    let _alone = alone();
    let mut broker = anybody();
    let mut target = client(&mut broker, "target");
    let mut askers = ["greedy", "second", "third"].map(|name| client(&mut broker, name));
    let mut all = 0;
    let shares = [0, 1, 2].map(|asker| {
        let asker: &mut Client = &mut askers[asker];
        let mut share = 0;
        loop {
            asker.request("target").unwrap();
            let event = only(drive(&mut broker));
            match asker.recv().unwrap() {
                Arrival::Accepted { .. } => share += 1,
                Arrival::Declined { reason, .. } => {
                    assert_eq!(reason, Declined::Busy, "{event}");
                    all += share;
                    return share;
                }
                other => panic!("{other:?}"),
            }
        }
    });
    assert!(all <= MAX_UNREAD, "{shares:?}");
    assert!(
        shares[0] >= 2 && shares[0] <= MAX_UNREAD / 2 && shares[1] >= 1 && shares[2] >= 1,
        "{shares:?}"
    );
    // The askers' ends are gone; the target learns that where it looks.
    for _ in 0..all {
        let (_, link) = introduced(&mut target);
        assert!(link.recv::<()>().unwrap_err().is_disconnected());
    }
    assert!(matches!(target.try_recv(), Err(Error::WouldBlock)));
    askers[0].request("target").unwrap();
    assert_eq!(only(drive(&mut broker)), "greedy to target");
}

#[test]
fn clients_that_leave() {
    let _alone = alone();
    let mut broker = anybody();
    let mut a = client(&mut broker, "a");
    let b = client(&mut broker, "b");
    a.request("b").unwrap();
    assert_eq!(only(drive(&mut broker)), "a to b");
    // With its introduction unread.
    drop(b);
    assert!(accepted(&mut a).recv::<()>().unwrap_err().is_disconnected());
    // Whether the broker finds the request first or the hang-up.
    a.request("b").unwrap();
    let events = drive(&mut broker);
    assert_eq!(
        events.keys().collect::<Vec<_>>(),
        ["a to b: Unknown", "b left"]
    );
    assert_eq!(declined(&mut a), Declined::Unknown);

    // The name is free, and its new holder is nobody else.
    let mut b = client(&mut broker, "b");
    a.request("b").unwrap();
    assert_eq!(only(drive(&mut broker)), "a to b");
    introduced(&mut b);
    accepted(&mut a);

    // One that asked and left gets nobody a link.
    b.request("a").unwrap();
    drop(b);
    assert_eq!(only(drive(&mut broker)), "b left");
    assert!(matches!(a.try_recv(), Err(Error::WouldBlock)));

    assert!(broker.dismiss("a"));
    assert!(!broker.dismiss("a"));
    assert!(a.recv().unwrap_err().is_disconnected());
    assert!(matches!(a.try_request("b"), Err(Error::Disconnected)));
    assert_eq!(broker.names().count(), 0);
}

#[test]
fn whom_it_admits() {
    let _alone = alone();
    let mut broker = anybody();
    for length in [0, MAX_NAME + 1] {
        let error = broker.admit(&"x".repeat(length)).unwrap_err();
        assert!(
            matches!(error, AdmitError::Name { length: found } if found == length),
            "{error:?}"
        );
    }
    let longest = "x".repeat(MAX_NAME);
    let mut long = client(&mut broker, &longest);
    let error = broker.admit(&longest).unwrap_err();
    assert!(
        matches!(&error, AdmitError::Taken { name } if *name == longest),
        "{error:?}"
    );
    let (stream, _other) = Link::pair_of(SocketKind::Stream).unwrap();
    let error = broker.admit_link("stream", stream).unwrap_err();
    assert!(matches!(error, AdmitError::Stream), "{error:?}");

    let (ours, theirs) = Link::pair().unwrap();
    broker.admit_link("short", ours).unwrap();
    let mut short = Client::new(theirs);
    short.request(&longest).unwrap();
    assert_eq!(only(drive(&mut broker)), format!("short to {longest}"));
    assert_eq!(introduced(&mut long).0, "short");
    accepted(&mut short);
    let error = short.request(&"x".repeat(2 * MAX_NAME)).unwrap_err();
    assert!(matches!(error, Error::BodyTooLarge { .. }), "{error:?}");
}

/// The broker has no descriptor numbers left for a pair: the asker is told to come back, the owner why.
#[test]
fn no_descriptors_left() {
    let _alone = alone();
    let mut broker = anybody();
    let (mut a, _b) = (client(&mut broker, "a"), client(&mut broker, "b"));
    a.request("b").unwrap();
    let mut hoard: Vec<OwnedFd> = Vec::new();
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let few = rustix::process::Rlimit {
        current: Some(64),
        ..limits
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
    while let Ok(fd) = a.as_fd().try_clone_to_owned() {
        hoard.push(fd);
    }
    let events = broker.drive();
    drop(hoard);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limits).unwrap();
    let events = events.unwrap();
    assert!(
        matches!(
            &events[..],
            [Event::Declined {
                reason: Declined::Busy,
                error: Some(Error::DescriptorLimit(_)),
                ..
            }]
        ),
        "{events:?}"
    );
    assert_eq!(declined(&mut a), Declined::Busy);
    a.request("b").unwrap();
    assert_eq!(only(drive(&mut broker)), "a to b");
}

/// A round serves a bounded number of requests of each, and leaves the descriptor ready.
#[test]
fn turns() {
    let _alone = alone();
    let mut broker = Broker::new(|_, _| false).unwrap();
    let mut clients = ["a", "b", "c"].map(|name| client(&mut broker, name));
    for client in &mut clients {
        for _ in 0..20 {
            client.request("nobody").unwrap();
        }
    }
    let mut rounds = 0;
    loop {
        let events = broker.drive().unwrap();
        if events.is_empty() {
            break;
        }
        rounds += 1;
        for name in ["a", "b", "c"] {
            let own = events
                .iter()
                .filter(|event| matches!(event, Event::Declined { from, .. } if from == name));
            assert_eq!(own.count(), if rounds < 3 { 8 } else { 4 });
        }
    }
    assert_eq!(rounds, 3);
}

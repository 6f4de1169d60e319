//! What the other side of requests can write, and what comes of it.

use std::{thread, time::Duration};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::{
    CallError, Client, Link, NOW, Reason, RecvTimeoutError, Server, TryRecvError, Watched,
    envelope::{
        CANCEL, END, EXPIRED, FAILED, GIVEN_UP, GIVEN_UP_WORDS, ITEM, LAST, REQUEST, now, put,
    },
};

fn both() -> (Server, Client) {
    let mut server = Server::builder().max_requests(8).unbound().unwrap();
    let client = join(&mut server);
    (server, client)
}

/// Another client.
fn join(server: &mut Server) -> Client {
    let (ours, theirs) = Link::pair().unwrap();
    server.attach(ours).unwrap();
    let client = thread::spawn(|| Client::builder().over(theirs).unwrap());
    let clients = server.clients();
    while server.clients() == clients {
        assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
    }
    client.join().unwrap()
}

fn record<const N: usize>(words: [u64; N], len: usize) -> Vec<u8> {
    let mut record = vec![0; 8 * N];
    put(words, &mut record);
    record.resize(len, b'x');
    record
}

/// A number at this place, the first of it.
fn number(place: u64) -> u64 {
    1 << 16 | place
}

#[test]
fn a_client_that_writes_nonsense_is_dropped_and_told() {
    let header = "expected a request of at least 24 bytes, and of kind 1 or 2, got one of";
    for (records, why) in [
        (vec![record([], 0)], format!("{header} 0 bytes and kind 0")),
        (
            vec![record([number(0), REQUEST], 23)],
            format!("{header} 23 bytes and kind 1"),
        ),
        (
            vec![record([number(0), 0, 0], 24)],
            format!("{header} 24 bytes and kind 0"),
        ),
        (
            vec![record([number(0), u64::MAX, 0], 70_000)],
            format!("{header} 70000 bytes and kind {}", u64::MAX),
        ),
        (
            vec![record([number(8), REQUEST, 0], 24)],
            "expected a request at one of 8 places, got one at place 8".to_owned(),
        ),
        (
            vec![record([u64::MAX, REQUEST, 0], 24)],
            "expected a request at one of 8 places, got one at place 65535".to_owned(),
        ),
        (
            vec![record([0, REQUEST, 0], 24)],
            "expected a request at a free place, got number 0x0".to_owned(),
        ),
        (
            vec![
                record([number(3), REQUEST, 0], 24),
                record([number(3), REQUEST, 0], 24),
            ],
            "expected a request at a free place, got number 0x10003".to_owned(),
        ),
        (
            vec![
                record([number(3), REQUEST, 0], 24),
                record([2 << 16 | 3, REQUEST, 0], 24),
            ],
            "expected a request at a free place, got number 0x20003".to_owned(),
        ),
    ] {
        let (mut server, mut client) = both();
        let call = client.send(b"a request").unwrap();
        let first = server.try_recv().unwrap().defer();
        let (last, before) = records.split_last().unwrap();
        let mut others = Vec::new();
        for record in before {
            client.publisher.send(record).unwrap();
            others.push(server.try_recv().unwrap().defer());
        }
        client.publisher.send(last).unwrap();
        while server.clients() > 0 {
            assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
        }
        assert_eq!((server.stats().evicted, server.stats().left), (1, 0));
        assert!(first.is_cancelled());
        match client.wait(call) {
            Err(CallError::Disconnected {
                reason: Reason::Evicted { why: told },
            }) => assert_eq!(told, why),
            other => panic!("{other:?}"),
        }
        drop(others);
    }
}

/// What waits in line as it is has a way of its own, which no other record must take.
#[test]
fn what_is_no_usual_request_is_none_either_for_whoever_waits() {
    let usual = |place| record([number(place), REQUEST, 0], 30);
    for (records, requests, evicted, expired) in [
        (vec![record([], 0)], 0, 1, 0),
        (vec![record([number(0), REQUEST], 23)], 0, 1, 0),
        (vec![record([number(0), 0, 0], 24)], 0, 1, 0),
        (vec![record([0, REQUEST, 0], 24)], 0, 1, 0),
        (vec![record([number(8), REQUEST, 0], 24)], 0, 1, 0),
        (vec![record([u64::MAX, REQUEST, 0], 24)], 0, 1, 0),
        (vec![usual(3), usual(3)], 1, 1, 0),
        (vec![usual(3), usual(4), usual(3)], 2, 1, 0),
        (vec![record([number(3), CANCEL, 0], 24)], 0, 0, 0),
        (vec![record([number(3), REQUEST, 1], 24), usual(3)], 1, 0, 1),
        (
            vec![usual(3), record([number(4), REQUEST, 0], 70_000)],
            2,
            0,
            0,
        ),
    ] {
        let (mut server, mut hostile) = both();
        let mut honest = join(&mut server);
        for record in &records {
            hostile.publisher.send(record).unwrap();
        }
        let call = honest.send(b"a request").unwrap();
        let mut others = Vec::new();
        let request = loop {
            let request = server.recv().unwrap();
            match &*request.to_vec() {
                b"a request" => break request,
                _ => others.push(request.defer()),
            }
        };
        request.reply(b"a reply").unwrap();
        assert_eq!(honest.wait(call).unwrap().to_vec(), b"a reply");
        // By turns: what is behind the honest one's has been seen to when there is nothing left.
        while let Ok(request) = server.try_recv() {
            others.push(request.defer());
        }
        let stats = server.stats();
        assert_eq!(
            (others.len(), stats.requests),
            (requests, requests as u64 + 1)
        );
        assert_eq!((stats.evicted, stats.expired), (evicted, expired));
        assert_eq!(server.outstanding(), if evicted > 0 { 0 } else { requests });
    }
    // Nor what was given up, and is said to be, in the page alone.
    let (mut server, mut client) = both();
    let given_up = number(1);
    client.publisher.show(GIVEN_UP + 8, given_up);
    let given_up = record([given_up, REQUEST, 0], 24);
    client.publisher.send(&given_up).unwrap();
    client.publisher.send(&usual(2)).unwrap();
    assert_eq!(server.recv().unwrap().len(), 6);
    assert_eq!((server.stats().cancelled, server.outstanding()), (1, 0));
}

#[test]
fn what_means_nothing_is_ignored() {
    let (mut server, mut client) = both();
    let open = client.send(b"a request").unwrap();
    let request = server.try_recv().unwrap().defer();
    for place in 0..9 {
        for record in [
            record([number(place) | 7 << 16, CANCEL, 0], 24),
            record([0, CANCEL, u64::MAX], 24),
            record([u64::MAX, CANCEL, 1], 3000),
        ] {
            client.publisher.send(&record).unwrap();
        }
    }
    for at in 0..GIVEN_UP_WORDS {
        client.publisher.show(GIVEN_UP + 8 * at, u64::MAX);
    }
    assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
    assert!(!request.is_cancelled());
    request.reply(&mut server, b"a reply").unwrap();
    assert_eq!(client.wait(open).unwrap().to_vec(), b"a reply");

    // Deadlines of whatever kind.
    let far = [u64::MAX, i64::MAX as u64, now() + (1 << 62)];
    for (place, deadline) in far.into_iter().enumerate() {
        let record = record([number(place as u64) | 7 << 16, REQUEST, deadline], 24);
        client.publisher.send(&record).unwrap();
        let request = server.try_recv().unwrap();
        assert!(
            request
                .deadline()
                .is_none_or(|deadline| deadline > std::time::Instant::now())
        );
        request.reply(b"").unwrap();
    }
    for (place, deadline) in [1, now()].into_iter().enumerate() {
        let record = record([number(place as u64) | 8 << 16, REQUEST, deadline], 24);
        client.publisher.send(&record).unwrap();
        assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
    }
    assert_eq!(server.stats().expired, 2);
    // One that says of a request before it sends it that it was given up has wanted it so.
    let given_up = number(1) | 9 << 16;
    client.publisher.show(GIVEN_UP + 8, given_up);
    let record = record([given_up, REQUEST, 0], 24);
    client.publisher.send(&record).unwrap();
    assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
    assert_eq!((server.stats().cancelled, server.outstanding()), (1, 0));
}

impl Server {
    /// Writes this into the lane of its only client.
    fn write(&mut self, record: &[u8]) {
        let caller = self.callers[0].as_mut().unwrap();
        caller.publisher.send(record).unwrap();
    }
}

#[test]
fn a_server_that_writes_nonsense_is_hung_up_on() {
    for (record, why) in [
        (
            record([], 0),
            "expected a reply of at least 16 bytes, got 0",
        ),
        (
            record([number(0)], 15),
            "expected a reply of at least 16 bytes, got 15",
        ),
        (
            record([number(0), 0], 16),
            "expected a reply of kind 1 to 7, got 0",
        ),
        (
            record([number(0), 8], 100_000),
            "expected a reply of kind 1 to 7, got 8",
        ),
    ] {
        let (mut server, mut client) = both();
        let calls = [(); 2].map(|()| client.send(b"a request").unwrap());
        server.write(&record);
        for call in calls {
            match client.wait(call) {
                Err(CallError::Disconnected {
                    reason: Reason::Broken { why: found },
                }) => assert_eq!(found, why),
                other => panic!("{other:?}"),
            }
        }
        while server.clients() > 0 {
            if let Ok(request) = server.try_recv() {
                let _ = request.reply(b"nobody waits");
            }
        }
    }
}

#[test]
fn replies_to_nothing_are_strays() {
    let (mut server, mut client) = both();
    let first = client.send(b"a request").unwrap();
    let id = client.send(b"cancelled").unwrap().detach();
    client.cancel(id);
    for record in [
        record([number(7), LAST], 20),
        record([0, LAST], 20),
        record([u64::MAX, ITEM], 20),
        record([number(0) | 1 << 40, END], 16),
    ] {
        server.write(&record);
    }
    // Of one that was given up: as many items as it likes, and the last, once.
    server.write(&record([number(1), ITEM], 50_000));
    server.write(&record([number(1), LAST], 17));
    server.write(&record([number(1), LAST], 17));
    server.write(&record([number(0), LAST], 17));
    server.write(&record([number(0), LAST], 17));
    assert_eq!(client.wait(first).unwrap().to_vec(), b"x");
    assert!(matches!(client.try_recv(), Err(CallError::Unknown)));
    let second = client.send(b"another").unwrap();
    server.write(&record([number(0) + (1 << 16), FAILED], 70_000));
    match client.wait(second) {
        Err(CallError::Failed { why }) => assert_eq!(why.len(), 4096),
        other => panic!("{other:?}"),
    }
    let third = client.send(b"another").unwrap();
    let mut text = record([third.id().0, FAILED], 16);
    text.extend_from_slice(b"\x1b[2J\xff");
    server.write(&text);
    let error = client.wait(third).unwrap_err();
    assert_eq!(error.to_string(), "the server says: \\u{1b}[2J\u{fffd}");
    let late = client.send(b"another").unwrap();
    server.write(&record([late.id().0, EXPIRED], 16));
    assert!(matches!(
        client.wait(late),
        Err(CallError::DeadlineExceeded)
    ));
    assert_eq!((client.stats().strays, client.outstanding()), (6, 0));
}

/// Whether a loop that is told of edges is told of one.
fn edge(epoll: &std::os::fd::OwnedFd) -> bool {
    let mut events = Vec::with_capacity(1);
    epoll::wait(
        epoll,
        rustix::buffer::spare_capacity(&mut events),
        Some(&NOW),
    )
    .unwrap();
    !events.is_empty()
}

fn edges(of: impl std::os::fd::AsFd) -> std::os::fd::OwnedFd {
    let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
    let flags = EventFlags::IN | EventFlags::ET;
    epoll::add(&epoll, of, EventData::new_u64(0), flags).unwrap();
    epoll
}

#[test]
fn a_flood_of_what_is_no_request_holds_no_call_up() {
    let (server, mut client) = both();
    let mut server = Watched::new(server).unwrap();
    let edges = edges(&server);
    let mut flood = || {
        let cancel = record([number(7), CANCEL, 0], 24);
        (0..1500).for_each(|_| client.publisher.try_send(&cancel).unwrap());
        let _ = client.send(b"behind it").unwrap().detach();
    };
    flood();
    assert!(edge(&edges));
    assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
    // There is more, and whoever waits is told.
    assert!(edge(&edges));
    assert_eq!(server.try_recv().unwrap().to_vec(), b"behind it");
    flood();
    let late = server.recv_timeout(Duration::ZERO).unwrap_err();
    assert!(matches!(late, RecvTimeoutError::TimedOut));
    let request = server.recv_timeout(Duration::ZERO).unwrap();
    assert_eq!(request.to_vec(), b"behind it");
    drop(request);
    flood();
    // One that has the time receives all of it.
    assert_eq!(server.recv().unwrap().to_vec(), b"behind it");
}

#[test]
fn a_flood_of_replies_to_nothing_holds_no_call_up() {
    let (mut server, client) = both();
    let mut client = Watched::new(client).unwrap();
    let edges = edges(&client);
    let mut call = client.send(b"a request").unwrap();
    let mut request = server.try_recv().unwrap().defer();
    assert!(edge(&edges));
    assert!(matches!(client.try_next(&mut call), Err(CallError::Empty)));
    let flood = |server: &mut Server| {
        let stray = record([number(9), ITEM], 16);
        (0..1500).for_each(|_| server.write(&stray));
    };
    flood(&mut server);
    request.send(&mut server, b"behind it").unwrap();
    for told in 0..2 {
        assert!(edge(&edges), "{told}");
        if told == 0 {
            assert!(matches!(client.try_next(&mut call), Err(CallError::Empty)));
        }
    }
    assert_eq!(client.try_next(&mut call).unwrap().unwrap().len(), 9);
    assert!(matches!(client.try_next(&mut call), Err(CallError::Empty)));
    flood(&mut server);
    request.send(&mut server, b"behind it").unwrap();
    let late = client.next_timeout(&mut call, Duration::ZERO).unwrap_err();
    assert!(matches!(late, CallError::TimedOut));
    assert_eq!(client.next(&mut call).unwrap().unwrap().len(), 9);
    flood(&mut server);
    // What takes in what waits before it says that there are too many does no more than that.
    let calls: Vec<_> = (0..7).map(|_| client.send(b"more").unwrap()).collect();
    assert!(matches!(
        client.send(b"one more"),
        Err(CallError::TooMany { .. })
    ));
    assert_eq!(client.stats().strays, 2 * 1500 + 1024);
    drop((calls, request));
}

#[test]
fn a_client_that_is_dropped_and_writes_on_is_not_looked_at_any_more() {
    let (mut server, mut client) = both();
    client.publisher.send(b"nonsense").unwrap();
    for place in 0..8 {
        let record = record([number(place), REQUEST, 0], 24);
        client.publisher.send(&record).unwrap();
    }
    assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
    assert_eq!(server.clients(), 0);
    let stats = server.stats();
    assert_eq!((stats.evicted, stats.left, stats.orphaned), (1, 0, 1));
    let error = client.call(b"a request").unwrap_err();
    assert!(matches!(
        error,
        CallError::Disconnected {
            reason: Reason::Evicted { .. }
        }
    ));
}

#[test]
fn deadlines_are_those_of_the_clients_clock() {
    let (mut server, mut client) = both();
    // No longer than this machine has run.
    let far = 10_000_000_000_i64;
    let mut received = |ahead: i64, deadline: u64| {
        let caller = server.callers[0].as_mut().unwrap();
        caller.skew = -ahead;
        let _ = client
            .publisher
            .send(&record([number(1), REQUEST, deadline], 24));
        match server.try_recv() {
            Ok(request) => {
                let left = request.deadline().unwrap() - std::time::Instant::now();
                request.reply(b"").unwrap();
                Some(left)
            }
            Err(TryRecvError::Empty) => None,
            Err(error) => panic!("{error}"),
        }
    };
    let minute = Duration::from_secs(60);
    let theirs = |ahead: i64| now().saturating_add_signed(ahead) + minute.as_nanos() as u64;
    for ahead in [-far, 0, far] {
        let left = received(ahead, theirs(ahead)).unwrap();
        assert!(left > minute / 2 && left <= minute, "{left:?}");
        assert_eq!(received(ahead, now().saturating_add_signed(ahead)), None);
    }
    // One that is as good as none.
    assert!(received(-far, u64::MAX - 1).is_some());
}

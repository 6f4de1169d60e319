//! Typed lanes: what both sides carry is compared, values arrive, and what is no value is told.

use std::thread;

use memlane::{
    Async, Encoded, Error, Fd, Fds, Link, Payload, PayloadError, Plain, Publisher,
    PublisherBuilder, RecvError, RecvTimeoutError, SendTimeoutError, Slice, Subscriber,
    SubscriberBuilder, TryRecvError, Typed,
};
use memlane_tests::{Control, PATIENCE, Role, Scene, Tasks, play};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[test]
fn other_process() {
    play(&[("echo", echo)]);
}

#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Point {
    x: f64,
    y: f64,
    label: [u8; 8],
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Event {
    Opened { name: String, sizes: Vec<u64> },
    Closed(Option<Box<Event>>),
}

fn events(long: usize) -> [Event; 3] {
    let opened = Event::Opened {
        name: "ä".repeat(long),
        sizes: (0..long as u64).collect(),
    };
    let closed = Event::Closed(Some(Box::new(opened.clone())));
    [opened, closed, Event::Closed(None)]
}

type Ends<P, Q> = (Typed<Publisher, P>, Typed<Subscriber, Q>);

/// A typed lane inside this process, made at both ends at a time.
fn lane<P: Payload, Q: Payload>(
    publisher: Typed<PublisherBuilder, P>,
    subscriber: Typed<SubscriberBuilder, Q>,
) -> Result<Ends<P, Q>, Error> {
    let (ours, theirs) = Link::pair().expect("a pair");
    let publisher = publisher.unbound()?;
    publisher.get_ref().attach(ours)?;
    let subscriber = subscriber.over(theirs)?;
    Ok((publisher, subscriber))
}

fn of<P: Payload>() -> (Typed<PublisherBuilder, P>, Typed<SubscriberBuilder, P>) {
    let small = Publisher::builder().ring_bytes(4096).pool_bytes(1 << 20);
    (small.of(), Subscriber::builder().of())
}

#[test]
fn values_arrive() {
    let _scene = Scene::new();
    let (publisher, subscriber) = of::<Plain<Point>>();
    let (mut publisher, mut subscriber) = lane(publisher, subscriber).unwrap();
    let point = Point {
        x: 1.5,
        y: -2.5,
        label: *b"nowhere!",
    };
    publisher.send(&point).unwrap();
    let mut place = publisher.reserve().unwrap();
    *place = Point { x: 3.0, ..point };
    place.commit();
    drop(publisher.reserve().unwrap());
    assert_eq!(subscriber.recv().unwrap(), point);
    assert_eq!(subscriber.recv().unwrap(), Point { x: 3.0, ..point });
    drop(publisher);
    let end = subscriber.recv().unwrap_err();
    assert!(matches!(
        end,
        PayloadError::Lane(RecvError::Disconnected { .. })
    ));
}

#[test]
fn slices_of_any_length_arrive() {
    let _scene = Scene::new();
    let (publisher, subscriber) = of::<Slice<u32>>();
    let (mut publisher, mut subscriber) = lane(publisher, subscriber).unwrap();
    // In the ring, and in the pool.
    for count in [0, 1, 7, 1000, 30_000] {
        let mut place = publisher.reserve(count + 3).unwrap();
        for (at, value) in place.iter_mut().enumerate() {
            *value = at as u32;
        }
        place.commit_first(count);
        let message = subscriber.recv().unwrap();
        assert_eq!(message.len(), count);
        assert_eq!(message.get(count), None);
        assert!(message.to_vec().into_iter().eq(0..count as u32));
        let mut first = [u32::MAX; 2];
        assert_eq!(message.copy_to(&mut first), count.min(2));
    }
    publisher.send(&[3, 2, 1]).unwrap();
    assert_eq!(subscriber.try_recv().unwrap().get(1), Some(2));
}

/// Sends back what it gets, until the other side is gone.
fn echo(role: &Role) {
    let (outgoing, incoming): (Link, Link) = role.hear();
    let mut publisher = of::<Encoded<Event>>().0.unbound().unwrap();
    publisher.get_ref().attach(outgoing).unwrap();
    let mut subscriber = of::<Encoded<Event>>().1.over(incoming).unwrap();
    while let Ok(event) = subscriber.recv() {
        publisher.send(&event).unwrap();
    }
}

#[test]
fn any_serde_type_arrives() {
    let scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let (back, far) = Link::pair().unwrap();
    let child = scene.spawn("echo", &(&theirs, &far));
    drop((theirs, far));
    let mut publisher = of::<Encoded<Event>>().0.unbound().unwrap();
    publisher.get_ref().attach(back).unwrap();
    let mut subscriber = of::<Encoded<Event>>().1.over(ours).unwrap();
    publisher.get_ref().wait_for_subscribers(1).unwrap();
    // Short ones fit the first guess, longer ones are encoded twice, the longest go into the pool.
    for long in [0, 3, 100, 20_000] {
        for event in events(long) {
            publisher.send(&event).unwrap();
            assert_eq!(subscriber.recv().unwrap(), event);
        }
    }
    drop(publisher);
    child.finish();
}

#[test]
fn what_is_carried_is_compared() {
    let _scene = Scene::new();
    fn refused<P: Payload, Q: Payload>(
        publisher: Typed<PublisherBuilder, P>,
        subscriber: Typed<SubscriberBuilder, Q>,
    ) -> String {
        match lane(publisher, subscriber) {
            Err(Error::Refused { why }) => why,
            other => panic!("{other:?}"),
        }
    }
    let point = || of::<Plain<Point>>();
    assert_eq!(
        refused(point().0, of::<Encoded<Event>>().1),
        "it carries plain Point (24 bytes, aligned to 8); this subscriber expects encoded Event"
    );
    assert_eq!(
        refused(point().0, of::<Plain<[f64; 3]>>().1),
        "it carries plain Point (24 bytes, aligned to 8); this subscriber expects plain [f64; 3] (24 bytes, aligned to 8)"
    );
    assert_eq!(
        refused(point().0, point().1.version(2)),
        "it carries plain Point (24 bytes, aligned to 8); this subscriber expects plain Point (24 bytes, aligned to 8), version 2"
    );
    assert_eq!(
        refused(point().0.named("Place").version(7), point().1),
        "it carries plain Place (24 bytes, aligned to 8), version 7; this subscriber expects plain Point (24 bytes, aligned to 8)"
    );
    lane(
        point().0.named("Place").version(7),
        point().1.version(7).named("Place"),
    )
    .unwrap();

    // Bytes are a payload like any other, unless a subscriber takes whatever comes.
    let (ours, theirs) = Link::pair().unwrap();
    let mut publisher = point().0.unbound().unwrap();
    publisher.get_ref().attach(ours).unwrap();
    match Subscriber::builder().over(theirs) {
        Err(Error::Refused { why }) => assert!(why.ends_with("expects bytes"), "{why}"),
        other => panic!("{other:?}"),
    }
    let (ours, theirs) = Link::pair().unwrap();
    publisher.get_ref().attach(ours).unwrap();
    let mut recorder = Subscriber::builder().any_payload().over(theirs).unwrap();
    let point = Point {
        x: 0.0,
        y: 0.0,
        label: [0; 8],
    };
    publisher.send(&point).unwrap();
    assert_eq!(recorder.recv().unwrap().to_vec(), point.as_bytes());
}

/// A publisher of bytes under the name of a typed one: what its subscribers have to be ready for.
#[test]
fn what_is_no_value_is_told_and_the_next_one_arrives() {
    let _scene = Scene::new();
    let (publisher, subscriber) = of::<Plain<u64>>();
    let (mut publisher, mut subscriber) = lane(publisher, subscriber).unwrap();
    publisher.get_mut().send(b"seven b").unwrap();
    publisher.send(&7).unwrap();
    let error = subscriber.recv().unwrap_err().to_string();
    assert_eq!(error, "expected a message of exactly 8 bytes, got 7");
    assert_eq!(subscriber.recv().unwrap(), 7);

    let (publisher, subscriber) = of::<Slice<u64>>();
    let (mut publisher, mut subscriber) = lane(publisher, subscriber).unwrap();
    publisher.get_mut().send(&[0; 17]).unwrap();
    publisher.send(&[7, 8]).unwrap();
    let error = subscriber.recv().unwrap_err().to_string();
    assert_eq!(error, "expected a message of a multiple of 8 bytes, got 17");
    assert_eq!(subscriber.recv().unwrap().to_vec(), [7, 8]);

    let (publisher, subscriber) = of::<Encoded<Event>>();
    let (mut publisher, mut subscriber) = lane(publisher, subscriber).unwrap();
    publisher.get_mut().send(&[9; 40]).unwrap();
    publisher.send(&Event::Closed(None)).unwrap();
    let error = subscriber.recv().unwrap_err();
    assert!(matches!(error, PayloadError::Decode(_)), "{error}");
    assert_eq!(subscriber.recv().unwrap(), Event::Closed(None));
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let _scene = Scene::new();
    let small = Publisher::builder().ring_bytes(4096).max_message(1000);
    let (mut publisher, mut subscriber) =
        lane(small.of::<Encoded<Event>>(), of::<Encoded<Event>>().1).unwrap();
    let [long, ..] = events(20_000);
    let error = publisher.send(&long).unwrap_err().to_string();
    assert!(error.contains("expected at most 1000"), "{error}");
    let [short, ..] = events(3);
    publisher.send(&short).unwrap();
    assert_eq!(subscriber.recv().unwrap(), short);
}

#[test]
fn typed_ends_live_in_threads() {
    let _scene = Scene::new();
    let (publisher, subscriber) = of::<Plain<u64>>();
    let (mut publisher, mut subscriber) = lane(publisher, subscriber).unwrap();
    let sum = thread::spawn(move || {
        let mut sum = 0;
        while let Ok(value) = subscriber.recv() {
            sum += value;
        }
        sum
    });
    (0..10_000).for_each(|value| publisher.send(&value).unwrap());
    drop(publisher);
    assert_eq!(sum.join().unwrap(), (0..10_000).sum());
}

/// What waits for so long, and no longer: in every form that bytes have.
#[test]
fn every_form_of_bytes_is_one_of_values() {
    let _scene = Scene::new();
    let short = std::time::Duration::from_millis(1);
    let (publisher, subscriber) = of::<Plain<Point>>();
    // SAFETY: the publisher is this test's.
    let subscriber = unsafe { subscriber.into_inner().trust_publisher() }.of::<Plain<Point>>();
    let (ours, theirs) = Link::pair().unwrap();
    let mut publisher = publisher.unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = subscriber.over(theirs).unwrap();
    assert_eq!(publisher.subscribers(), 1);
    let point = |x| Point {
        x,
        y: 0.0,
        label: *b"anywhere",
    };
    // A file becomes a descriptor of any kind, and is one again.
    let fd = Fd::from(std::fs::File::open("/dev/null").unwrap());
    let null = std::fs::File::from(fd);
    assert_eq!(std::io::read_to_string(&null).unwrap(), "");
    let file: Fds = vec![null.into()].into();
    publisher
        .send_timeout_with(&point(1.0), &file, PATIENCE)
        .unwrap();
    let mut place = publisher.reserve_timeout(PATIENCE).unwrap();
    *place = point(2.0);
    place.attach_timeout(&file, PATIENCE).unwrap();
    place.commit();
    publisher.send(&point(3.0)).unwrap();
    publisher.send(&point(4.0)).unwrap();
    let (value, attachments) = subscriber.recv_timeout_with(PATIENCE).unwrap();
    assert_eq!((value, attachments.len()), (point(1.0), 1));
    let (value, attachments) = subscriber.try_recv_with().unwrap();
    assert_eq!((value, attachments.len()), (point(2.0), 1));
    assert_eq!(*subscriber.try_recv_ref().unwrap(), point(3.0));
    assert_eq!(*subscriber.recv_timeout_ref(PATIENCE).unwrap(), point(4.0));
    assert!(matches!(
        subscriber.try_recv_ref().unwrap_err(),
        PayloadError::Lane(TryRecvError::Empty)
    ));
    let late = subscriber.recv_timeout_ref(short).map(drop).unwrap_err();
    assert!(matches!(
        late,
        PayloadError::Lane(RecvTimeoutError::TimedOut)
    ));
    let late = subscriber.recv_timeout_with(short).map(drop).unwrap_err();
    assert!(matches!(
        late,
        PayloadError::Lane(RecvTimeoutError::TimedOut)
    ));
    while publisher.try_send(&point(5.0)).is_ok() {}
    let late = publisher.reserve_timeout(short).map(drop).unwrap_err();
    assert!(matches!(late, SendTimeoutError::TimedOut));
    let late = publisher.send_timeout_with(&point(5.0), &file, short);
    assert!(matches!(late, Err(SendTimeoutError::TimedOut)));
    drop((publisher, subscriber));

    let (publisher, subscriber) = of::<Slice<u16>>();
    let (mut publisher, mut subscriber) = lane(publisher, subscriber).unwrap();
    publisher
        .send_timeout_with(&[1, 2], &file, PATIENCE)
        .unwrap();
    let mut place = publisher.reserve_timeout(3, PATIENCE).unwrap();
    place.copy_from_slice(&[3, 4, 5]);
    place.attach_timeout(&file, PATIENCE).unwrap();
    place.commit();
    for expected in [&[1, 2][..], &[3, 4, 5]] {
        let mut slice = subscriber.recv().unwrap();
        assert_eq!(slice.to_vec(), expected);
        assert_eq!(slice.take_attachments().unwrap().len(), 1);
    }
    while publisher.try_send(&[0; 100]).is_ok() {}
    let late = publisher.reserve_timeout(100, short).map(drop);
    assert!(matches!(late, Err(SendTimeoutError::TimedOut)));
}

#[test]
fn values_are_written_and_read_in_place_in_tasks() {
    let _scene = Scene::new();
    let (publisher, subscriber) = of::<Plain<Point>>();
    // SAFETY: the publisher is this test's.
    let subscriber = unsafe { subscriber.into_inner().trust_publisher() }.of::<Plain<Point>>();
    let (ours, theirs) = Link::pair().unwrap();
    let publisher = publisher.unbound().unwrap();
    publisher.attach(ours).unwrap();
    let subscriber = subscriber.over(theirs).unwrap();
    let mut publisher = publisher.try_map(Async::new).unwrap();
    let mut subscriber = subscriber.try_map(Async::new).unwrap();
    let point = Point {
        x: 1.0,
        y: 2.0,
        label: *b"in place",
    };
    Control::run(async {
        let mut place = publisher.reserve().await.unwrap();
        *place = point;
        place.commit();
        assert_eq!(*subscriber.recv_ref().await.unwrap(), point);
    });
    let (publisher, subscriber) = of::<Slice<u8>>();
    let (publisher, subscriber) = lane(publisher, subscriber).unwrap();
    let mut publisher = publisher.try_map(Async::new).unwrap();
    let mut subscriber = subscriber.try_map(Async::new).unwrap();
    Control::run(async {
        let mut place = publisher.reserve(5).await.unwrap();
        place.copy_from_slice(b"slice");
        place.commit();
        assert_eq!(subscriber.recv().await.unwrap().to_vec(), b"slice");
    });
}

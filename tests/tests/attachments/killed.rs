//! Either side is killed, or the publisher stopped while it attaches.

use std::time::Duration;

use memlane::{Reason, RecvError, RecvTimeoutError, Subscriber};
use memlane_tests::{Policy, Role, Scene, attachments, check_attachments, none_is_kept, unbound};

/// One that is killed is not waited for, and what was on its way to it is closed.
#[test]
fn a_killed_subscriber_is_not_waited_for() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 14).bind_to(&address).unwrap();
    let reader = scene.spawn("reader", &(address.to_string(), Policy::Block, 3_000_u64));
    publisher.wait_for_subscribers(1).unwrap();
    reader.stop();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    publisher
        .send_with(b"a socket", &vec![theirs.into()].into())
        .unwrap();
    while publisher.try_send_with(b"more", &attachments(1, 3)).is_ok() {}
    let waiting = std::thread::spawn(move || {
        for number in 0..200 {
            publisher
                .send_with(b"more", &attachments(number, 3))
                .unwrap();
        }
        publisher
    });
    reader.kill_and_reap();
    drop(waiting.join().unwrap());
    none_is_kept();
    // Nobody has the other end any more.
    let mut end = [0];
    let read = rustix::net::recv(&ours, &mut end, rustix::net::RecvFlags::empty());
    assert_eq!(read.unwrap().1, 0);
}

pub(crate) fn publisher(role: &Role) {
    let address: String = role.hear();
    let address = address.parse().expect("an address");
    let mut publisher = unbound(1 << 16).bind_to(&address).expect("a place");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("one");
    for number in 0..40_u64 {
        let fds = attachments(number, 2);
        publisher
            .send_with(&number.to_le_bytes(), &fds)
            .expect("room");
    }
    // On its way, for a message that never comes.
    let mut place = publisher.reserve(8).expect("room");
    place.attach(&attachments(40, 2)).expect("room");
    role.tell(&());
    role.hear::<()>();
}

/// What a killed publisher had committed is received, attachments included; what it had attached to nothing is closed.
#[test]
fn a_killed_publisher_leaves_what_it_has_committed() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let publisher = scene.spawn("publisher", &address.to_string());
    publisher.hear::<()>();
    let mut subscriber = Subscriber::builder().connect_to(&address).unwrap();
    publisher.hear::<()>();
    publisher.kill_and_reap();
    for number in 0..40_u64 {
        let mut message = subscriber.recv().unwrap();
        assert_eq!(message.to_vec(), number.to_le_bytes());
        check_attachments(number, 2, message.take_attachments().unwrap());
    }
    let over = subscriber.recv().unwrap_err();
    assert!(
        matches!(
            over,
            RecvError::Disconnected {
                reason: Reason::Died
            }
        ),
        "{over}"
    );
}

/// Attaches something, and sends it when it is told to.
pub(crate) fn hesitant(role: &Role) {
    let address: String = role.hear();
    let address = address.parse().expect("an address");
    let mut publisher = unbound(1 << 14).bind_to(&address).expect("a place");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("one");
    for number in 0..3_u64 {
        let mut place = publisher.reserve(8).expect("room");
        place.attach(&attachments(number, 2)).expect("room");
        place.copy_from_slice(&number.to_le_bytes());
        role.tell(&());
        role.hear::<()>();
        place.commit();
    }
    publisher.close();
}

/// One that is stopped between what it attaches and the message: neither is there before it goes on, and then both are.
#[test]
fn a_publisher_that_is_stopped_while_it_attaches() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let publisher = scene.spawn("hesitant", &address.to_string());
    publisher.hear::<()>();
    let mut subscriber = Subscriber::builder().connect_to(&address).unwrap();
    for number in 0..3_u64 {
        publisher.hear::<()>();
        publisher.stop();
        let empty = subscriber.recv_timeout(Duration::from_millis(5)).map(drop);
        assert!(
            matches!(empty, Err(RecvTimeoutError::TimedOut)),
            "{empty:?}"
        );
        publisher.go_on();
        publisher.tell(&());
        let mut message = subscriber.recv().unwrap();
        assert_eq!(message.to_vec(), number.to_le_bytes());
        check_attachments(number, 2, message.take_attachments().unwrap());
    }
    publisher.finish();
    assert!(matches!(
        subscriber.recv().map(drop),
        Err(RecvError::Disconnected {
            reason: Reason::Closed
        })
    ));
}

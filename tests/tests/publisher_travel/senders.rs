//! Senders that move, beside others that do not.

use std::time::Duration;

use memlane::{Address, Link, PublisherTicket, RecvTimeoutError, SendError, Subscriber};
use memlane_tests::{PATIENCE, Scene, alive, unbound, wait_until};

#[test]
fn a_sender_moves_beside_another() {
    let scene = Scene::new();
    let address = scene.address("queue");
    let mut receiver = Subscriber::builder().bind_to(&address).unwrap();
    let connect =
        |address: Address| std::thread::spawn(move || unbound(4096).connect_to(&address).unwrap());
    let (one, other) = (connect(address.clone()), connect(address));
    let mut received = Vec::new();
    while !(one.is_finished() && other.is_finished()) {
        assert!(receiver.recv_timeout(Duration::from_millis(1)).is_err());
    }
    let (mut one, mut other) = (one.join().unwrap(), other.join().unwrap());
    let (to, from) = Link::pair().unwrap();
    let senders = std::thread::spawn(move || {
        let mut from = from.adopting();
        for round in 0..500_u64 {
            for number in 0..10 {
                one.send(&[1, round * 10 + number].map(u64::to_le_bytes).concat())
                    .unwrap();
                other
                    .send(&[2, round * 10 + number].map(u64::to_le_bytes).concat())
                    .unwrap();
            }
            to.send(&one.ticket().unwrap()).unwrap();
            let successor = std::thread::spawn(move || {
                let ticket: PublisherTicket = from.recv().unwrap();
                (ticket.arrive().unwrap(), from)
            });
            one.depart().unwrap();
            (one, from) = successor.join().unwrap();
        }
        (one, other)
    });
    let mut next = [0, 0];
    while next != [5000, 5000] {
        let message = receiver.recv_timeout(PATIENCE).unwrap().to_vec();
        let word = |at| u64::from_le_bytes(*message[at..].first_chunk().unwrap());
        let (sender, number) = (word(0) as usize - 1, word(8));
        assert_eq!(number, next[sender]);
        next[sender] += 1;
        received.push(sender);
        alive();
    }
    let (one, mut other) = senders.join().unwrap();
    assert_eq!(receiver.senders(), 2);
    drop(one);
    assert!(matches!(
        receiver.recv_timeout(Duration::from_millis(20)),
        Err(RecvTimeoutError::TimedOut)
    ));
    wait_until("one has left", || {
        let _ = receiver.try_recv();
        receiver.senders() == 1
    });
    drop(receiver);
    wait_until("the receiver is gone", || {
        matches!(other.send(b"x"), Err(SendError::Disconnected))
    });
}

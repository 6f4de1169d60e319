//! Queues whose receiver, or one of whose senders, is stopped, which is not dead.

use std::time::Duration;

use memlane::{
    Address, Publisher, Receiver, RecvTimeoutError, SendTimeoutError, Sender, TryRecvError,
    TrySendError,
};
use memlane_tests::{
    PATIENCE, Role, Scene, alive, fill, number, play, thread_id, wait_asleep, wait_until,
};

#[test]
fn other_process() {
    play(&[("receiver", receiver), ("sender", sender)]);
}

/// Message `number` of a sender.
fn message(name: u64, number: u64) -> [u8; 24] {
    let mut message = [0; 24];
    message[..8].copy_from_slice(&name.to_le_bytes());
    fill(number, &mut message[8..]);
    message
}

/// How many messages of each sender have come, each in its turn.
#[derive(Debug, Default)]
struct Ledger([u64; 2]);

impl Ledger {
    fn note(&mut self, message: &[u8]) {
        let name = message[0];
        let next = &mut self.0[usize::from(name)];
        assert_eq!(number(&message[8..]), *next, "of {name}");
        *next += 1;
    }

    fn empty(&mut self, receiver: &mut Receiver) {
        loop {
            match receiver.try_recv() {
                Ok(message) => self.note(&message.to_vec()),
                Err(TryRecvError::Empty) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn connect(address: &Address) -> Sender {
    let builder = Publisher::builder().ring_bytes(4096).timeout(PATIENCE);
    builder.connect_to(address).unwrap()
}

/// Receives from two until both have left; how many of each.
fn receiver(role: &Role) {
    let address: String = role.hear();
    let mut receiver = Receiver::builder()
        .bind_to(&address.parse().unwrap())
        .unwrap();
    role.tell(&());
    let mut ledger = Ledger::default();
    let mut there = false;
    while !there || receiver.senders() > 0 {
        match receiver.recv_timeout(Duration::from_millis(1)) {
            Ok(message) => ledger.note(&message.to_vec()),
            Err(RecvTimeoutError::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
        if !there && receiver.senders() == 2 {
            there = true;
            role.tell(&());
        }
        alive();
    }
    role.tell(&ledger.0);
}

/// Senders wait for one that is stopped, as long as they are told to, and lose nothing.
#[test]
fn a_receiver_that_is_stopped() {
    let scene = Scene::new();
    let address = scene.address("jobs");
    let child = scene.spawn("receiver", &address.to_string());
    child.hear::<()>();
    let mut senders = [connect(&address), connect(&address)];
    child.hear::<()>();
    child.stop();
    let mut sent = [0; 2];
    for (name, sender) in senders.iter_mut().enumerate() {
        let mut next = |sender: &mut Sender, timeout| {
            let message = message(name as u64, sent[name]);
            let done = sender.send_timeout(&message, timeout);
            sent[name] += u64::from(done.is_ok());
            done
        };
        let short = Duration::from_millis(5);
        let full = loop {
            if let Err(error) = next(sender, short) {
                break error;
            }
        };
        assert!(matches!(full, SendTimeoutError::TimedOut), "{full:?}");
        let full = sender.try_send(&[0; 24]).unwrap_err();
        assert!(matches!(full, TrySendError::Full), "{full:?}");
        assert!(sent[name] > 50);
    }
    // One of them sleeps when it goes on.
    let [mut first, second] = senders;
    let (tell, told) = std::sync::mpsc::channel();
    let blocked = std::thread::spawn(move || {
        tell.send(thread_id()).unwrap();
        first.send(&message(0, sent[0])).unwrap();
        first
    });
    wait_asleep(std::process::id(), told.recv().unwrap());
    child.go_on();
    drop(blocked.join().unwrap());
    drop(second);
    assert_eq!(child.hear::<[u64; 2]>(), [sent[0] + 1, sent[1]]);
    child.finish();
}

/// Sends so many at each word, and says so.
fn sender(role: &Role) {
    let (address, name): (String, u64) = role.hear();
    let mut sender = connect(&address.parse().unwrap());
    let mut number = 0;
    while let Some(more) = role.hear::<Option<u64>>() {
        for _ in 0..more {
            sender.send(&message(name, number)).unwrap();
            number += 1;
        }
        role.tell(&());
    }
}

/// One that is stopped in the midst of what it sends holds up nobody else, and is no less a sender.
#[test]
fn a_sender_that_is_stopped() {
    let scene = Scene::new();
    let address = scene.address("jobs");
    let mut receiver = Receiver::builder().bind_to(&address).unwrap();
    let senders = [0_u64, 1].map(|name| scene.spawn("sender", &(address.to_string(), name)));
    let mut ledger = Ledger::default();
    wait_until("both are there", || {
        ledger.empty(&mut receiver);
        receiver.senders() == 2
    });
    // More than its ring takes: it is somewhere in there.
    senders[0].tell(&Some(5_000_u64));
    while ledger.0[0] < 1_000 {
        ledger.note(&receiver.recv_timeout(PATIENCE).unwrap().to_vec());
    }
    senders[0].stop();
    ledger.empty(&mut receiver);
    let stopped_at = ledger.0[0];
    assert!(stopped_at < 5_000, "{stopped_at}");
    for round in 1..=20 {
        senders[1].tell(&Some(100_u64));
        while ledger.0[1] < 100 * round {
            ledger.note(&receiver.recv_timeout(PATIENCE).unwrap().to_vec());
        }
        senders[1].hear::<()>();
    }
    let empty = receiver.recv_timeout(Duration::from_millis(2)).map(drop);
    assert!(
        matches!(empty, Err(RecvTimeoutError::TimedOut)),
        "{empty:?}"
    );
    assert_eq!((ledger.0[0], receiver.senders()), (stopped_at, 2));
    senders[0].go_on();
    while ledger.0[0] < 5_000 {
        ledger.note(&receiver.recv_timeout(PATIENCE).unwrap().to_vec());
    }
    senders[0].hear::<()>();
    for sender in senders {
        sender.tell(&None::<u64>);
        sender.finish();
    }
    wait_until("both have left", || {
        ledger.empty(&mut receiver);
        receiver.senders() == 0
    });
    let stats = receiver.stats();
    assert_eq!((stats.messages, stats.evicted), (7_000, 0));
}

//! Queues: many senders, one receiver.

use std::{collections::BTreeMap, thread};

use memlane::{
    Access, Address, Async, Encoded, Error, Link, PayloadError, Publisher, Receiver,
    RecvTimeoutError, SendError, Sender, Slice, Subscriber, TryRecvError, TrySendError, Watched,
};
use memlane_region::{Shared, WordsMut, page_size};
use memlane_tests::{
    Control, Dice, PATIENCE, Policy, Role, Scene, Tasks, play, wait_asleep, wait_until,
    wire::{Answer, Greeting, Opening, VERSION, Welcome},
};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

#[test]
fn other_process() {
    play(&[
        ("sender", sender),
        ("slow sender", slow_sender),
        ("holder", holder),
        ("named sender", named_sender),
    ]);
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Task {
    address: String,
    name: u64,
    messages: u64,
    wait: Policy,
    dies: bool,
}

impl Task {
    fn connect(&self) -> Sender {
        let address: Address = self.address.parse().unwrap();
        Publisher::builder()
            .ring_bytes(4096)
            .pool_bytes(1 << 20)
            .wait(self.wait.into())
            .connect_to(&address)
            .unwrap()
    }

    /// Message `number` of this sender: its length depends on both.
    fn message(&self, number: u64) -> Vec<u8> {
        let mut message = [self.name, number].map(u64::to_ne_bytes).concat();
        let long = match number % 100 {
            99 => 20_000,
            _ => (self.name * 7 + number * 13) % 300,
        };
        message.resize(16 + long as usize, (self.name ^ number) as u8);
        message
    }
}

/// Sends them all, and leaves or is killed.
fn sender(role: &Role) {
    let task: Task = role.hear();
    let mut sender = task.connect();
    for number in 0..task.messages {
        sender.send(&task.message(number)).unwrap();
    }
    if task.dies {
        role.tell(&());
        let () = role.hear();
        unreachable!("it is killed");
    }
}

struct Ledger(BTreeMap<u64, u64>);

impl Ledger {
    /// Each sender's messages come in its order, whole.
    fn note(&mut self, message: &[u8]) {
        let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().unwrap());
        let task = Task {
            address: String::new(),
            name: word(0),
            messages: 0,
            wait: Policy::Block,
            dies: false,
        };
        let next = self.0.entry(task.name).or_default();
        assert_eq!(word(8), *next, "of sender {}", task.name);
        assert_eq!(message, task.message(*next));
        *next += 1;
    }
}

fn bind(scene: &Scene, wait: Policy) -> Receiver {
    let builder = Subscriber::builder().wait(wait.into());
    builder.bind_to(&scene.address("jobs")).unwrap()
}

#[test]
fn everything_arrives_from_everybody_in_order() {
    let scene = Scene::new();
    for wait in [Policy::Block, Policy::Adaptive, Policy::Poll] {
        let mut receiver = bind(&scene, wait);
        let mut ledger = Ledger(BTreeMap::new());
        let senders: Vec<_> = (0..4)
            .map(|name| {
                let task = Task {
                    address: scene.address("jobs").to_string(),
                    name,
                    messages: 5_000,
                    wait: [Policy::Block, Policy::Adaptive][name as usize % 2],
                    dies: name == 3,
                };
                scene.spawn("sender", &task)
            })
            .collect();
        for _ in 0..20_000 {
            ledger.note(&receiver.recv_timeout(PATIENCE).unwrap().to_vec());
        }
        for (name, sender) in senders.into_iter().enumerate() {
            match name {
                3 => {
                    let () = sender.hear();
                    sender.kill_and_reap();
                }
                _ => sender.finish(),
            }
        }
        // Nothing more comes, and in the end nobody is there.
        wait_until("every sender has left", || {
            assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
            receiver.senders() == 0
        });
        let stats = receiver.stats();
        assert_eq!((stats.messages, stats.left, stats.evicted), (20_000, 4, 0));
    }
}

/// One message for each word, so that the receiver sleeps between.
fn slow_sender(role: &Role) {
    let task: Task = role.hear();
    let mut sender = task.connect();
    for number in 0..task.messages {
        let () = role.hear();
        sender.send(&task.message(number)).unwrap();
    }
}

#[test]
fn a_sleeping_receiver_is_woken_by_each_of_many() {
    let scene = Scene::new();
    let mut receiver = bind(&scene, Policy::Block);
    let mut ledger = Ledger(BTreeMap::new());
    let senders: Vec<_> = (0..3)
        .map(|name| {
            let task = Task {
                address: scene.address("jobs").to_string(),
                name,
                messages: 60,
                wait: Policy::Block,
                dies: false,
            };
            scene.spawn("slow sender", &task)
        })
        .collect();
    let (asks, asked) = std::sync::mpsc::channel();
    let me = memlane_tests::thread_id();
    let conductor = thread::spawn(move || {
        let mut dice = Dice::new();
        let mut left = [60; 3];
        while left.iter().any(|left| *left > 0) {
            let at = dice.below(3) as usize;
            if left[at] > 0 {
                left[at] -= 1;
                wait_asleep(std::process::id(), me);
                senders[at].tell(&());
                let () = asked.recv().unwrap();
            }
        }
        senders.into_iter().for_each(|sender| sender.finish());
    });
    for _ in 0..180 {
        ledger.note(&receiver.recv().unwrap().to_vec());
        asks.send(()).unwrap();
    }
    conductor.join().unwrap();
    assert!(receiver.stats().sleeps >= 180);
    wait_until("every sender has left", || {
        let _ = receiver.try_recv();
        receiver.senders() == 0
    });
}

/// A queue and senders inside of this process.
fn queue(wait: Policy, senders: usize) -> (Receiver, Vec<Sender>) {
    let builder = Subscriber::builder().wait(wait.into());
    let mut receiver = builder.unbound().unwrap();
    let links: Vec<_> = (0..senders)
        .map(|_| {
            let (ours, theirs) = Link::pair().unwrap();
            receiver.attach(ours).unwrap();
            theirs
        })
        .collect();
    let senders = thread::scope(|scope| {
        let connecting: Vec<_> = links
            .into_iter()
            .map(|link| {
                scope.spawn(|| {
                    let builder = Publisher::builder().ring_bytes(4096);
                    builder.over(link).unwrap()
                })
            })
            .collect();
        while receiver.senders() < senders {
            assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        }
        let joined = connecting.into_iter().map(|sender| sender.join().unwrap());
        joined.collect::<Vec<_>>()
    });
    (receiver, senders)
}

#[test]
fn a_flood_does_not_hold_up_the_others() {
    let _scene = Scene::new();
    for wait in [Policy::Block, Policy::Adaptive, Policy::Poll] {
        flood(wait);
    }
}

fn flood(wait: Policy) {
    let (mut receiver, mut senders) = queue(wait, 8);
    // Every lane may have been armed by now. Seven have one message each, the eighth is never empty.
    let full = |sender: &mut Sender| while sender.try_send(&[0; 64]).is_ok() {};
    full(&mut senders[7]);
    for (name, sender) in senders[..7].iter_mut().enumerate() {
        sender.try_send(&[name as u8 + 1]).unwrap();
    }
    let mut found = [false; 7];
    let mut flood = 0;
    while found.contains(&false) {
        match &*receiver.recv().unwrap().to_vec() {
            [name] => found[usize::from(*name) - 1] = true,
            _ => flood += 1,
        }
        full(&mut senders[7]);
        assert!(flood <= 8 * 32, "{found:?} after {flood} of the flood");
    }
}

#[test]
fn a_receiver_that_is_gone_is_an_error() {
    let scene = Scene::new();
    let (receiver, mut senders) = queue(Policy::Adaptive, 1);
    let mut sender = senders.remove(0);
    sender.send(b"one").unwrap();
    drop(receiver);
    // What it had not noticed yet went nowhere.
    wait_until("the receiver's end is noticed", || {
        matches!(sender.send(b"two"), Err(SendError::Disconnected))
    });
    assert!(matches!(
        sender.try_send(b""),
        Err(TrySendError::Disconnected)
    ));
    assert!(matches!(sender.reserve(3), Err(SendError::Disconnected)));
    assert!(matches!(
        sender.reserve(1 << 20),
        Err(SendError::Disconnected)
    ));

    // One that waits for room is woken by the end of its receiver.
    let task = scene.address("jobs").to_string();
    let child = scene.spawn("holder", &task);
    let () = child.hear();
    let address: Address = task.parse().unwrap();
    let builder = Publisher::builder().ring_bytes(4096);
    let mut sender = builder.connect_to(&address).unwrap();
    while sender.try_send(&[0; 100]).is_ok() {}
    let me = memlane_tests::thread_id();
    let killer = thread::spawn(move || {
        wait_asleep(std::process::id(), me);
        child.kill_and_reap();
    });
    while sender.send(&[0; 100]).is_ok() {}
    killer.join().unwrap();
    drop(sender);
    let _ = memlane::transport::remove_stale(&address);
}

/// Takes senders in, and receives nothing.
fn holder(role: &Role) {
    let address: String = role.hear();
    let mut receiver = Subscriber::builder()
        .bind_to(&address.parse().unwrap())
        .unwrap();
    role.tell(&());
    while receiver.senders() == 0 {
        let _ = receiver.recv_timeout(std::time::Duration::from_millis(1));
    }
    let () = role.hear();
}

#[test]
fn the_wrong_counterpart_is_told_what_is_there() {
    let scene = Scene::new();
    let publisher = Publisher::builder()
        .bind_to(&scene.address("camera"))
        .unwrap();
    let error = Publisher::builder().connect_to(&scene.address("camera"));
    let error = error.unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no receiver to send to: a publisher is there, which sends: subscribe to it (Subscriber::connect)"
    );
    drop(publisher);

    let mut receiver = bind(&scene, Policy::Block);
    let address = scene.address("jobs");
    let client = thread::spawn(move || Subscriber::builder().connect_to(&address));
    wait_until("the subscriber is refused", || {
        let _ = receiver.try_recv();
        receiver.stats().refused == 1
    });
    let error = client.join().unwrap().unwrap_err().to_string();
    assert!(
        error.ends_with(
            "a receiver is there, which receives: connect a sender to it (Sender::connect)"
        ),
        "{error}"
    );

    // Two ends of one kind over a link.
    let (ours, theirs) = Link::pair().unwrap();
    receiver.attach(ours).unwrap();
    let subscriber = thread::spawn(|| Subscriber::builder().over(theirs));
    wait_until("the second subscriber is refused", || {
        let _ = receiver.try_recv();
        receiver.stats().refused == 2
    });
    assert!(matches!(
        subscriber.join().unwrap(),
        Err(Error::Refused { .. })
    ));

    // And of other users' rules.
    let nobody = Access::when(|_| false);
    drop(receiver);
    let mut receiver = Subscriber::builder()
        .access(nobody)
        .bind_to(&scene.address("jobs"))
        .unwrap();
    let address = scene.address("jobs");
    let client = thread::spawn(move || Publisher::builder().connect_to(&address));
    wait_until("the sender is turned away", || {
        let _ = receiver.try_recv();
        receiver.stats().refused == 1
    });
    let error = client.join().unwrap().unwrap_err().to_string();
    assert!(
        error.contains("its access rule does not admit this process"),
        "{error}"
    );
}

#[test]
fn there_are_so_many_senders_and_no_more() {
    let scene = Scene::new();
    let mut receiver = Subscriber::builder()
        .max_senders(2)
        .bind_to(&scene.address("jobs"))
        .unwrap();
    let address = scene.address("jobs");
    let connecting = thread::spawn(move || {
        let connect = || Publisher::builder().connect_to(&address);
        let both = [connect().unwrap(), connect().unwrap()];
        let error = connect().unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no receiver to send to: the receiver has 2 senders, and takes no more"
        );
        drop(both);
        // Whose places are free once they have been seen to be gone.
        loop {
            match connect() {
                Ok(sender) => return sender,
                Err(error) => assert!(matches!(error, Error::NoReceiver { .. }), "{error}"),
            }
        }
    });
    wait_until("a third sender has come", || {
        let _ = receiver.try_recv();
        connecting.is_finished()
    });
    let mut sender = connecting.join().unwrap();
    sender.send(b"one").unwrap();
    assert_eq!(receiver.recv().unwrap().to_vec(), b"one");
}

#[test]
fn values_are_compared_and_arrive() {
    let scene = Scene::new();
    let mut receiver = Subscriber::builder()
        .of::<Encoded<(u64, String)>>()
        .bind_to(&scene.address("jobs"))
        .unwrap();
    let address = scene.address("jobs");
    let sending = thread::spawn(move || {
        let bytes = Publisher::builder().connect_to(&address);
        let Err(Error::NoReceiver { why }) = bytes else {
            panic!("{bytes:?}")
        };
        assert!(
            why.ends_with("expects encoded (u64, String), and this sender carries bytes"),
            "{why}"
        );
        let sender = Publisher::builder().of::<Encoded<(u64, String)>>();
        let mut sender = sender.connect_to(&address).unwrap();
        sender.send(&(7, "seven".to_owned())).unwrap();
    });
    assert_eq!(
        receiver.recv_timeout(PATIENCE).unwrap(),
        (7, "seven".to_owned())
    );
    sending.join().unwrap();
    wait_until("the sender has left", || {
        let empty = receiver.try_recv();
        assert!(matches!(
            empty,
            Err(PayloadError::Lane(TryRecvError::Empty))
        ));
        receiver.get_ref().senders() == 0
    });
}

#[test]
fn in_a_loop() {
    let _scene = Scene::new();
    let (receiver, mut senders) = queue(Policy::Block, 3);
    let mut receiver = Watched::new(receiver).unwrap();
    let readable = |receiver: &Watched<Receiver>| {
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(receiver, PollFlags::IN)], Some(&now)).unwrap() == 1
    };
    for round in 0..100_u64 {
        while receiver.try_recv().is_ok() {}
        assert!(!readable(&receiver), "round {round}");
        for sender in &mut senders[..1 + round as usize % 3] {
            sender.send(&round.to_ne_bytes()).unwrap();
            sender.send(&round.to_ne_bytes()).unwrap();
        }
        // Readable until it has been found empty, however many are taken at a time.
        for _ in 0..2 * (1 + round % 3) {
            assert!(readable(&receiver), "round {round}");
            assert_eq!(receiver.try_recv().unwrap().to_vec(), round.to_ne_bytes());
        }
    }
    let mut receiver = receiver.into_inner();
    let empty = receiver.recv_timeout(std::time::Duration::from_millis(1));
    assert!(matches!(empty, Err(RecvTimeoutError::TimedOut)));
}

/// What has been sent before a call is found by it, whatever time it has, also on lanes that ring.
#[test]
fn a_call_without_time_finds_what_is_there() {
    let _scene = Scene::new();
    for policy in Policy::ALL {
        let (mut receiver, mut senders) = queue(policy, 5);
        for round in 0..20_u64 {
            for sender in senders.iter_mut().rev() {
                if policy != Policy::Poll {
                    let sleeps = receiver.stats().sleeps;
                    while receiver.stats().sleeps == sleeps {
                        let short = std::time::Duration::from_millis(1);
                        assert!(receiver.recv_timeout(short).is_err());
                    }
                }
                sender.send(&round.to_ne_bytes()).unwrap();
                let found = receiver.recv_timeout(std::time::Duration::ZERO);
                assert_eq!(found.unwrap().to_vec(), round.to_ne_bytes());
            }
        }
    }
}

#[test]
fn in_a_task() {
    let _scene = Scene::new();
    let (receiver, senders) = queue(Policy::Adaptive, 2);
    let sending = thread::spawn(move || {
        for (name, mut sender) in senders.into_iter().enumerate() {
            for number in 0..1_000_u64 {
                sender
                    .send(&[name as u64, number].map(u64::to_ne_bytes).concat())
                    .unwrap();
            }
        }
    });
    let mut receiver = Async::new(receiver).unwrap();
    Control::run(async {
        for _ in 0..2_000 {
            let _message = receiver.recv().await.unwrap();
        }
    });
    sending.join().unwrap();
}

/// A sender whose message is in memory that was never announced is dropped, and the others go on.
#[test]
fn a_message_that_cannot_be_had_ends_its_sender_alone() {
    let _scene = Scene::new();
    let (mut receiver, mut senders) = queue(Policy::Block, 1);
    let (ours, theirs) = Link::pair().unwrap();
    receiver.attach(ours).unwrap();
    let (mut ring, descriptor) = Shared::create("rogue", page_size(), 4096).unwrap();
    theirs.send(&Opening { version: VERSION }).unwrap();
    // An offer.
    theirs.send(&4_u32).unwrap();
    assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
    let _: Opening = theirs.recv_timeout(PATIENCE).unwrap();
    let _: Greeting = theirs.recv_timeout(PATIENCE).unwrap();
    let welcome = Welcome::new(descriptor.into(), 4096);
    theirs.send(&Answer::Welcome(welcome)).unwrap();
    for (at, word) in [(8, 7), (16, 1), (24, 5)] {
        ring.store(at, word);
    }
    ring.store_release(0, 2 << 32 | 32);
    wait_until("it is dropped", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        receiver.stats().evicted == 1
    });
    senders[0].send(b"a job").unwrap();
    assert_eq!(receiver.recv().unwrap().to_vec(), b"a job");
    assert_eq!(receiver.senders(), 1);
}

/// Sends where it comes from, and does not leave before it is told to.
fn named_sender(role: &Role) {
    let address: String = role.hear();
    let mut sender = Publisher::builder()
        .connect_to(&address.parse().unwrap())
        .unwrap();
    for number in 0..NAMED {
        sender
            .send(
                &[u64::from(std::process::id()), number]
                    .map(u64::to_ne_bytes)
                    .concat(),
            )
            .unwrap();
    }
    role.tell(&());
    let () = role.hear();
}

const NAMED: u64 = 500;

/// Whose a message is, the kernel knows.
#[test]
fn each_message_tells_its_sender() {
    let scene = Scene::new();
    let mut receiver = bind(&scene, Policy::Adaptive);
    let address = scene.address("jobs").to_string();
    let senders: Vec<_> = (0..3)
        .map(|_| scene.spawn("named sender", &address))
        .collect();
    let mut found: BTreeMap<u64, (memlane::Key, u64)> = BTreeMap::new();
    for received in 0..3 * NAMED {
        let mut polled = None;
        let copy = |(from, message): (memlane::Key, memlane::Message<'_>)| (from, message.to_vec());
        let (from, bytes) = match received % 3 {
            0 => copy(receiver.recv_from().unwrap()),
            1 => copy(receiver.recv_timeout_from(PATIENCE).unwrap()),
            _ => {
                wait_until("a message", || match receiver.try_recv_from() {
                    Ok((from, message)) => {
                        let bytes = message.to_vec();
                        polled = Some((from, bytes));
                        true
                    }
                    Err(TryRecvError::Empty) => false,
                    Err(error) => panic!("{error}"),
                });
                polled.take().unwrap()
            }
        };
        assert_eq!(receiver.last(), Some(from));
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let peer = receiver.peer(from).unwrap().unwrap();
        assert_eq!(peer.pid().map(u64::from), Some(word(0)));
        assert_eq!(peer.uid(), rustix::process::getuid().as_raw());
        // The same for all of one, and never another's.
        let (key, count) = found.entry(word(0)).or_insert((from, 0));
        assert_eq!((*key, *count), (from, word(8)));
        *count += 1;
        let sequence = receiver.get(from).unwrap().sequence();
        assert_eq!(sequence, *count);
    }
    assert_eq!(found.len(), 3);
    let keys: std::collections::HashSet<_> = receiver.keys().collect();
    assert_eq!(keys, found.values().map(|(key, _)| *key).collect());
    // One that is gone has no peer any more, and its key is nobody's.
    for sender in senders {
        let () = sender.hear();
        sender.tell(&());
        sender.finish();
    }
    wait_until("all have left", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        receiver.senders() == 0
    });
    assert!(found.values().all(|(key, _)| receiver.peer(*key).is_none()));
    let late = scene.spawn("named sender", &address);
    let (from, message) = receiver.recv_from().unwrap();
    drop(message);
    assert!(found.values().all(|(key, _)| *key != from));
    late.kill_and_reap();
}

/// The link is held here, too: its hang-up says nothing, and the process does.
#[test]
fn the_end_of_a_known_process_is_the_end_of_its_lane() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let copy = rustix::io::fcntl_dupfd_cloexec(&theirs, 3).unwrap();
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let mut receiver = Receiver::builder().unbound().unwrap();
    receiver.attach_process(ours, &pidfd).unwrap();
    let sending = thread::spawn(move || Sender::builder().over(theirs).unwrap());
    wait_until("a sender", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        receiver.senders() == 1
    });
    let mut sender = sending.join().unwrap();
    sender.send(b"the last").unwrap();
    child.kill().unwrap();
    assert_eq!(receiver.recv().unwrap().to_vec(), b"the last");
    wait_until("its end", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        receiver.senders() == 0
    });
    let _ = child.wait();
    drop((sender, copy));
}

#[test]
fn each_value_tells_its_sender() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let mut receiver = Receiver::builder()
        .of::<Encoded<String>>()
        .unbound()
        .unwrap();
    receiver.get_mut().attach(ours).unwrap();
    let sending = thread::spawn(move || {
        let mut sender = Sender::builder()
            .of::<Encoded<String>>()
            .over(theirs)
            .unwrap();
        for line in ["one", "two", "three"] {
            sender.send(&line.to_owned()).unwrap();
        }
        sender
    });
    let (first, line) = receiver.recv_from().unwrap();
    assert_eq!(line, "one");
    let mut receiver = receiver.try_map(Watched::new).unwrap();
    let (second, line) = receiver.recv_timeout_from(PATIENCE).unwrap();
    assert_eq!((second, line.as_str()), (first, "two"));
    let receiver = receiver.try_map(|end| Async::new(end.into_inner()));
    let mut receiver = receiver.unwrap();
    let (third, line) = Control::run(receiver.recv_from()).unwrap();
    assert_eq!((third, line.as_str()), (first, "three"));
    assert_eq!(receiver.get_ref().get_ref().last(), Some(first));
    drop(sending.join().unwrap());

    let (ours, theirs) = Link::pair().unwrap();
    let mut receiver = Receiver::builder().of::<Slice<u32>>().unbound().unwrap();
    receiver.get_mut().attach(ours).unwrap();
    let sending = thread::spawn(move || {
        let mut sender = Sender::builder().of::<Slice<u32>>().over(theirs).unwrap();
        sender.send(&[1, 2]).unwrap();
    });
    let (from, slice) = receiver.recv_from().unwrap();
    assert_eq!(slice.to_vec(), [1, 2]);
    drop(slice);
    assert!(matches!(
        receiver.try_recv_from(),
        Err(PayloadError::Lane(TryRecvError::Empty))
    ));
    assert_eq!(receiver.get_ref().last(), Some(from));
    sending.join().unwrap();
}

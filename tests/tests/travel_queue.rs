//! Receivers that move from process to process, while senders come, send and go.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use memlane::{
    Address, Error, Publisher, Receiver, ReceiverTicket, RecvTimeoutError, Remains, Sender,
    Subscriber,
};
use memlane_tests::{
    Child, Dice, PATIENCE, Policy, Role, Route, Scene, alive, check, circle, fill, length, play,
    wait_until, who_has_it,
};
use memlane_transport::Error as LinkError;
use serde::{Deserialize, Serialize};

#[test]
fn other_process() {
    play(&[
        ("traveller", traveller),
        ("sender", sender),
        ("comer and goer", comer_and_goer),
    ]);
}

// ---- those who send ----

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Task {
    address: String,
    name: u64,
    longest: usize,
}

impl Task {
    fn connect(&self) -> Sender {
        let address: Address = self.address.parse().unwrap();
        let builder = Publisher::builder().ring_bytes(8192).pool_bytes(1 << 20);
        builder.connect_to(&address).unwrap()
    }
}

/// Sends message `number` of this sender: its name, and what others check.
fn send(sender: &mut Sender, name: u64, number: u64, longest: usize) {
    let mut message = vec![0; 8 + length(number, longest).max(8)];
    message[..8].copy_from_slice(&name.to_ne_bytes());
    fill(number, &mut message[8..]);
    if let Err(error) = sender.send_timeout(&message, PATIENCE) {
        panic!("{name}, {number}: {error}, {:?}", sender.stats());
    }
}

/// Sends until it is told to stop, at a moderate pace; how many.
fn sender(role: &Role) {
    let task: Task = role.hear();
    let mut sender = task.connect();
    role.tell(&());
    let mut number = 0;
    while role.has_said::<()>().is_none() {
        for _ in 0..8 {
            send(&mut sender, task.name, number, task.longest);
            number += 1;
        }
        alive();
        std::thread::sleep(Duration::from_micros(100));
    }
    role.tell(&number);
    let () = role.hear();
}

/// One sender after the other, under a name of its own each, until it is told to stop; how many messages each has sent.
fn comer_and_goer(role: &Role) {
    let task: Task = role.hear();
    role.tell(&());
    let (mut dice, mut sent) = (Dice::new(), Vec::new());
    while role.has_said::<()>().is_none() {
        let mut sender = task.connect();
        let messages = dice.below(30);
        for number in 0..messages {
            let name = task.name + sent.len() as u64;
            send(&mut sender, name, number, task.longest);
        }
        sent.push(messages);
        alive();
    }
    role.tell(&sent);
}

/// The next message of each sender.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Ledger(BTreeMap<u64, u64>);

impl Ledger {
    fn note(&mut self, message: &[u8]) {
        let name = u64::from_ne_bytes(message[..8].try_into().unwrap());
        let next = self.0.entry(name).or_default();
        check(*next, &message[8..]);
        *next += 1;
    }

    fn receive(&mut self, receiver: &mut Receiver, messages: u64) {
        for _ in 0..messages {
            self.note(&receiver.recv_timeout(PATIENCE).unwrap().to_vec());
        }
    }

    /// Departs, and receives what has to be received before.
    fn depart(&mut self, mut receiver: Receiver) {
        let begun = Instant::now();
        while let Err(remains) = receiver.depart() {
            assert!(begun.elapsed() < PATIENCE, "{remains}");
            let remains: Box<Remains<Receiver>> = remains;
            receiver = remains.end;
            assert!(matches!(remains.error, Error::Stays { .. }));
            while let Ok(message) = receiver.try_recv() {
                self.note(&message.to_vec());
            }
            alive();
        }
    }
}

// ---- a receiver that moves ----

type Passed = memlane_tests::Passed<ReceiverTicket, Ledger>;

/// Has a receiver for a while, again and again.
fn traveller(role: &Role) {
    let Route {
        from,
        to,
        kind: policy,
    }: Route<Policy> = role.hear();
    let from = from.adopting();
    let mut dice = Dice::new();
    let mut kept = None;
    loop {
        alive();
        let (ticket, moves) = match from.recv().unwrap() {
            Passed::Ticket(ticket, moves) => (ticket, moves),
            Passed::Next(_) => unreachable!("it follows a ticket"),
            Passed::End => break,
        };
        let builder = Subscriber::builder().wait(policy.into()).timeout(PATIENCE);
        let mut receiver = builder.arrive_receiver(ticket).unwrap();
        // The other may have lanes still, which come when they can.
        let mut early = Vec::new();
        let mut ledger = loop {
            match from.try_recv() {
                Ok(Passed::Next(ledger)) => break ledger,
                Ok(_) => unreachable!("it follows a ticket"),
                Err(error) => assert!(matches!(error, LinkError::WouldBlock), "{error}"),
            }
            if let Ok(message) = receiver.recv_timeout(Duration::from_millis(1)) {
                early.push(message.to_vec());
            }
        };
        early.iter().for_each(|message| ledger.note(message));
        ledger.receive(&mut receiver, dice.below(20));
        if moves == 0 {
            kept = Some((receiver, ledger));
            break;
        }
        let ticket = receiver.ticket().unwrap();
        ledger.receive(&mut receiver, dice.below(3));
        to.send(&Passed::Ticket(ticket, moves - 1)).unwrap();
        match dice.below(3) {
            0 => {}
            1 => ledger.receive(&mut receiver, dice.below(20)),
            _ => {
                while !receiver.is_awaited().unwrap() {
                    ledger.receive(&mut receiver, 1);
                }
            }
        }
        ledger.depart(receiver);
        to.send(&Passed::Next(ledger)).unwrap();
    }
    // Once around the circle, if the others do not know yet.
    let _ = to.send(&Passed::End);
    role.tell(&kept.is_some());
    let Some((mut receiver, mut ledger)) = kept else {
        return role.tell(&Ledger::default());
    };
    let mut over = false;
    while !over || receiver.senders() > 0 {
        match receiver.recv_timeout(Duration::from_millis(1)) {
            Ok(message) => ledger.note(&message.to_vec()),
            Err(RecvTimeoutError::TimedOut) => over |= role.has_said::<()>().is_some(),
            Err(error) => panic!("{error}"),
        }
    }
    role.tell(&ledger);
}

/// Processes in a circle, among which a receiver moves.
struct Circle {
    children: Vec<Child>,
}

impl Circle {
    fn start(
        scene: &Scene,
        mut receiver: Receiver,
        mut ledger: Ledger,
        policies: &[Policy],
        moves: u64,
    ) -> Circle {
        let children = circle(scene, policies, |first| {
            let ticket = receiver.ticket().unwrap();
            first.send(&Passed::Ticket(ticket, moves - 1)).unwrap();
            ledger.depart(receiver);
            first.send(&Passed::Next(ledger)).unwrap();
        });
        Circle { children }
    }

    /// Waits until all moves are made.
    fn arrived(&mut self) {
        let mut kept = Vec::new();
        for child in &self.children {
            kept.push(loop {
                match child.has_said::<bool>() {
                    Some(kept) => break kept,
                    None => alive(),
                }
                std::thread::sleep(Duration::from_millis(1));
            });
        }
        self.children.swap(0, who_has_it(&kept));
    }

    /// What was received in all, once there are no senders any more.
    fn finish(self) -> Ledger {
        self.children[0].tell(&());
        let ledgers: Vec<Ledger> = self.children.iter().map(Child::hear).collect();
        self.children.into_iter().for_each(Child::finish);
        ledgers.into_iter().next().unwrap()
    }
}

fn moves_among_three(longest: usize, moves: u64) {
    let scene = Scene::new();
    let address = scene.address("jobs");
    let mut receiver = Subscriber::builder().bind_to(&address).unwrap();
    let task = |name| Task {
        address: address.to_string(),
        name,
        longest,
    };
    let senders: Vec<_> = (0..3)
        .map(|name| scene.spawn("sender", &task(name)))
        .collect();
    let mut ledger = Ledger::default();
    wait_until("all are there", || {
        while let Ok(message) = receiver.try_recv() {
            ledger.note(&message.to_vec());
        }
        receiver.senders() == 3
    });
    let passer = scene.spawn("comer and goer", &task(1000));
    senders.iter().for_each(Child::hear::<()>);
    let () = passer.hear();
    let policies = [Policy::Block, Policy::Adaptive, Policy::Block];
    let mut circle = Circle::start(&scene, receiver, ledger, &policies, moves);
    circle.arrived();
    passer.tell(&());
    let counts: Vec<u64> = passer.hear();
    passer.finish();
    let mut sent: BTreeMap<u64, u64> = BTreeMap::new();
    for (name, count) in counts.iter().enumerate() {
        if *count > 0 {
            sent.insert(1000 + name as u64, *count);
        }
    }
    for (name, sender) in senders.into_iter().enumerate() {
        sender.tell(&());
        sent.insert(name as u64, sender.hear());
        sender.tell(&());
        sender.finish();
    }
    println!("{} came and went", counts.len());
    assert_eq!(circle.finish().0, sent);
    // Whoever had it last has removed the name.
    assert_eq!(scene.services(), Vec::<String>::new());
}

#[test]
fn three_thousand_moves_with_three_senders() {
    moves_among_three(40, 3000);
}

#[test]
fn moves_with_long_messages() {
    moves_among_three(20_000, 500);
}

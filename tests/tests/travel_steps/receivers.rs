//! Either end of a receiver that moves.

use std::{thread, time::Duration};

use memlane::{
    Address, Error, Link, Publisher, Receiver, ReceiverTicket, SendError, Sender, TryRecvError,
    transport::Listener,
};
use memlane_tests::{Child, PATIENCE, Role, Scene, alive, number, wait_until, wire::VERSION};
use serde::{Deserialize, Serialize};

use crate::{Fate, message, send, successors::RawTicket};

fn connect(address: &Address) -> Sender {
    let builder = Publisher::builder().ring_bytes(4096).timeout(PATIENCE);
    builder.connect_to(address).unwrap()
}

#[track_caller]
fn expect(receiver: &mut Receiver, numbers: std::ops::Range<u64>) {
    for expected in numbers {
        let message = receiver.recv_timeout(PATIENCE).unwrap().to_vec();
        assert_eq!(number(&message), expected);
    }
}

/// Lets another sender in, and receives from it: whose name it is.
#[track_caller]
fn has_the_name(receiver: &mut Receiver, address: &Address) {
    let address = address.clone();
    let connecting = thread::spawn(move || {
        let mut sender = connect(&address);
        send(&mut sender, 77..78);
    });
    expect(receiver, 77..78);
    connecting.join().unwrap();
}

// ---- the successor ----

/// How far it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Comes {
    /// It has the ticket.
    Ticketed,
    /// It has said that it is there.
    Arrived,
    /// It has been given a lane's ticket, which it does not use,
    Passed,
    /// and heard that it is its turn.
    Begun,
}

const COMES: [Comes; 4] = [Comes::Ticketed, Comes::Arrived, Comes::Passed, Comes::Begun];

/// What a receiver says to its successor.
#[derive(Debug, Deserialize)]
#[allow(dead_code)]
enum Handed {
    Lane {
        label: String,
        lossy: bool,
        ticket: RawTicket,
    },
    Departs,
    Stays,
}

/// Takes a ticket, and gets that far.
pub(crate) fn successor(role: &Role) {
    let (ticket, until): ((u32, Link, Option<Listener>), Comes) = role.hear();
    let (VERSION, link, _listener) = ticket else {
        panic!("{ticket:?}");
    };
    role.halt(Comes::Ticketed, until);
    // It arrives.
    link.send(&0_u32).unwrap();
    role.halt(Comes::Arrived, until);
    // They come in any order.
    let hear = |what: fn(&Handed) -> bool| while !what(&link.recv_timeout(PATIENCE).unwrap()) {};
    if until == Comes::Passed {
        hear(|said| matches!(said, Handed::Lane { .. }));
        role.halt(Comes::Passed, until);
    }
    hear(|said| matches!(said, Handed::Departs));
    role.halt(Comes::Begun, until);
    role.hear::<()>();
}

/// A receiver with a name and a sender, and whoever it is to move to.
struct Leaving {
    old: Receiver,
    sender: Sender,
    address: Address,
    child: Child,
    step: Comes,
}

impl Leaving {
    fn start(scene: &Scene, step: Comes) -> Leaving {
        let address = scene.address(&format!("jobs-{step:?}"));
        let mut old = Receiver::builder().bind_to(&address).unwrap();
        let connecting = thread::spawn({
            let address = address.clone();
            move || connect(&address)
        });
        wait_until("the sender is there", || {
            assert!(matches!(old.try_recv(), Err(TryRecvError::Empty)));
            old.senders() == 1
        });
        let mut sender = connecting.join().unwrap();
        send(&mut sender, 0..10);
        expect(&mut old, 0..5);
        let ticket = old.ticket().unwrap();
        let child = scene.spawn("receiver's successor", &(&ticket, step));
        drop(ticket);
        Leaving {
            old,
            sender,
            address,
            child,
            step,
        }
    }

    /// Departs; the successor falls once it has come to its step.
    fn depart(self, fate: Fate) -> (Leaving, Error) {
        let Leaving {
            old,
            sender,
            address,
            child,
            step,
        } = self;
        thread::scope(|scope| {
            let leaving = scope.spawn(move || {
                let remains = old.depart().unwrap_err();
                (remains.end, remains.error)
            });
            child.hear::<()>();
            match fate {
                Fate::Killed => child.kill(),
                Fate::Stopped => child.stop(),
            }
            let (old, error) = leaving.join().unwrap();
            let left = Leaving {
                old,
                sender,
                address,
                child,
                step,
            };
            (left, error)
        })
    }

    /// All that was to move is here, and goes on.
    fn has_stayed(self) {
        let Leaving {
            mut old,
            mut sender,
            address,
            child,
            ..
        } = self;
        // It had the listener, too.
        child.kill_and_reap();
        expect(&mut old, 5..10);
        send(&mut sender, 10..20);
        expect(&mut old, 10..20);
        has_the_name(&mut old, &address);
        drop(sender);
        wait_until("all have left", || {
            let _ = old.try_recv();
            old.senders() == 0
        });
    }
}

/// One that is killed, whether it has heard that it is its turn or not, has taken nothing: not a lane, nor the name.
#[test]
fn a_successor_that_is_killed() {
    let scene = Scene::new();
    for step in COMES {
        let (mut left, mut error) = Leaving::start(&scene, step).depart(Fate::Killed);
        // It may have heard first that there is nobody for its lane.
        while !error.to_string().contains("is gone") {
            assert!(matches!(error, Error::Stays { .. }), "{step:?}: {error}");
            let remains = left.old.depart().unwrap_err();
            (left.old, error) = (remains.end, remains.error);
            alive();
        }
        left.has_stayed();
    }
}

/// One that is stopped is waited for, for up to 5 s (so all steps are tried at once); then all remains here, but the name, which is the
/// successor's from when it has been departed to, until it is gone.
#[test]
fn a_successor_that_is_stopped() {
    let scene = Scene::new();
    let all = COMES.map(|step| Leaving::start(&scene, step));
    thread::scope(|scope| {
        for leaving in all {
            scope.spawn(move || {
                let (left, error) = leaving.depart(Fate::Stopped);
                alive();
                let Leaving {
                    mut old,
                    mut sender,
                    address,
                    child,
                    step,
                } = left;
                assert!(matches!(error, Error::Stays { .. }), "{step:?}: {error}");
                // What comes meanwhile is received here.
                expect(&mut old, 5..10);
                send(&mut sender, 10..15);
                expect(&mut old, 10..15);
                child.kill_and_reap();
                let remains = old.depart().unwrap_err();
                let why = remains.to_string();
                assert!(why.contains("is gone"), "{step:?}: {why}");
                let mut old = remains.end;
                has_the_name(&mut old, &address);
                send(&mut sender, 15..20);
                expect(&mut old, 15..20);
            });
        }
    });
}

// ---- the old end ----

/// How far it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Goes {
    /// It has made a ticket.
    Ticketed,
    /// Its successor waits at every lane.
    Awaited,
    /// It has departed.
    Departed,
}

const GOES: [Goes; 3] = [Goes::Ticketed, Goes::Awaited, Goes::Departed];

/// Receives five messages, and moves that far, which it says, or that there is nobody to move to any more; then it stays, and receives
/// as many messages as it is told to.
pub(crate) fn old_end(role: &Role) {
    let (address, until, to): (String, Goes, Link) = role.hear();
    let mut old = Receiver::builder()
        .bind_to(&address.parse().unwrap())
        .unwrap();
    role.tell(&());
    expect(&mut old, 0..5);
    to.send(&old.ticket().unwrap()).unwrap();
    drop(to);
    let mut awaited = true;
    if until >= Goes::Awaited {
        awaited = old.wait_until_awaited(PATIENCE).is_ok();
    }
    if until == Goes::Departed {
        old.depart().unwrap();
        role.tell(&true);
        return role.hear();
    }
    role.tell(&awaited);
    if !awaited {
        return;
    }
    role.hear::<()>();
    loop {
        match old.is_awaited() {
            Ok(_) => thread::yield_now(),
            Err(Error::Stays { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    role.tell(&());
    let numbers: (u64, u64) = role.hear();
    expect(&mut old, numbers.0..numbers.1);
    role.tell(&());
    while role.has_said::<()>().is_none() {
        // Whoever comes is let in.
        let _ = old.recv_timeout(Duration::from_millis(1));
        alive();
    }
}

struct Going {
    child: Child,
    address: Address,
    sender: Sender,
    ticket: ReceiverTicket,
}

impl Going {
    fn start(scene: &Scene, step: Goes) -> Going {
        let address = scene.address("jobs");
        let (to, from) = Link::pair().unwrap();
        let orders = (address.to_string(), step, to);
        let child = scene.spawn("receiver", &orders);
        drop(orders);
        child.hear::<()>();
        let mut sender = connect(&address);
        send(&mut sender, 0..10);
        let ticket = from.adopting().recv_timeout(PATIENCE).unwrap();
        Going {
            child,
            address,
            sender,
            ticket,
        }
    }
}

fn arrive(
    ticket: ReceiverTicket,
    timeout: Duration,
) -> thread::JoinHandle<Result<Receiver, Error>> {
    thread::spawn(move || Receiver::builder().timeout(timeout).arrive_receiver(ticket))
}

/// The name is the successor's in any case, and the lanes it had heard of.
#[test]
fn an_old_end_that_is_killed() {
    let scene = Scene::new();
    for step in GOES {
        let Going {
            child,
            address,
            mut sender,
            ticket,
        } = Going::start(&scene, step);
        let arriving = arrive(ticket, PATIENCE);
        assert!(child.hear::<bool>());
        child.kill_and_reap();
        let mut new = arriving.join().unwrap().unwrap();
        // At once its lane's ticket may have been passed on or not.
        let mut first = None;
        wait_until("its lane is there, or over", || {
            if let Ok(message) = new.try_recv() {
                first = Some(number(&message.to_vec()));
            }
            first.is_some() || sender.subscribers() == 0
        });
        if let Some(first) = first {
            assert!(first == 5 || step < Goes::Departed && first < 5, "{first}");
            expect(&mut new, first + 1..10);
            send(&mut sender, 10..20);
            expect(&mut new, 10..20);
        } else {
            assert_eq!(step, Goes::Ticketed);
            // What it has not noticed yet goes nowhere.
            wait_until("the sender notices", || {
                matches!(sender.send(&message(10)), Err(SendError::Disconnected))
            });
        }
        has_the_name(&mut new, &address);
    }
}

/// It stays, if it was stopped for longer than its successor waits; once it has departed it makes no difference.
#[test]
fn an_old_end_that_is_stopped() {
    let scene = Scene::new();
    for step in GOES {
        let mut timeout = Duration::from_millis(50);
        // On a busy machine it is not as far as that in time.
        while !is_stopped(&scene, step, timeout) {
            timeout *= 2;
        }
    }
}

/// False if its successor's time was over before it had got so far.
fn is_stopped(scene: &Scene, step: Goes, timeout: Duration) -> bool {
    let Going {
        child,
        address,
        mut sender,
        ticket,
    } = Going::start(scene, step);
    let departed = step == Goes::Departed;
    let arriving = arrive(ticket, if departed { PATIENCE } else { timeout });
    if !child.hear::<bool>() {
        arriving.join().unwrap().unwrap_err();
        child.finish();
        return false;
    }
    child.stop();
    let arrived = arriving.join().unwrap();
    if departed {
        let mut new = arrived.unwrap();
        expect(&mut new, 5..10);
        has_the_name(&mut new, &address);
        send(&mut sender, 10..20);
        expect(&mut new, 10..20);
        child.go_on();
        child.tell(&());
        child.finish();
        return true;
    }
    let error = arrived.unwrap_err();
    assert!(
        matches!(error, Error::NotDeparted { .. }),
        "{step:?}: {error}"
    );
    child.go_on();
    child.tell(&());
    child.hear::<()>();
    send(&mut sender, 10..20);
    child.tell(&(5_u64, 20_u64));
    child.hear::<()>();
    // It has its name.
    drop(connect(&address));
    child.tell(&());
    drop(sender);
    child.finish();
    true
}

//! Wake-ups through a wait set: none is lost, however often both sides sleep. Longer by `MEMLANE_PING_PONGS`.

use memlane::{
    Publisher, Subscriber, TryRecvError, WaitPolicy, Watched,
    signaling::{Events, Interest, WaitSet},
};
use memlane_tests::{Role, Scene, alive, check, cores, fill, play, rounds, unbound};

#[test]
fn other_process() {
    play(&[("player", player)]);
}

/// Pins this thread to the first or the last of the cores it may use.
fn pin(first: bool) {
    let cores = cores();
    memlane_tests::pin(if first {
        cores[0]
    } else {
        cores[cores.len() - 1]
    });
}

/// One side: what it waits with.
struct Side {
    subscriber: Watched<Subscriber>,
    set: WaitSet,
    events: Events,
    waits: u64,
}

impl Side {
    fn new(subscriber: Subscriber) -> (Side, memlane::signaling::Registration) {
        let subscriber = Watched::new(subscriber).unwrap();
        let set = WaitSet::new().unwrap();
        let registration = set.add(&subscriber, Interest::READABLE).unwrap();
        let side = Side {
            subscriber,
            set,
            events: Events::default(),
            waits: 0,
        };
        (side, registration)
    }

    fn receive(&mut self, number: u64) {
        loop {
            match self.subscriber.try_recv() {
                Ok(message) => return check(number, &message.to_vec()),
                Err(TryRecvError::Empty) => {}
                Err(error) => panic!("ball {number}: {error}"),
            }
            self.waits += 1;
            let ready = self.set.wait(&mut self.events, None).unwrap();
            drop(ready);
        }
    }
}

fn publisher() -> memlane::PublisherBuilder {
    unbound(4096).wait(WaitPolicy::Block)
}

fn player(role: &Role) {
    let (one_core, rounds): (bool, u64) = role.hear();
    pin(one_core);
    let mut back: Publisher = publisher().bind("back").unwrap();
    let (mut side, registration) = Side::new(Subscriber::connect("there").unwrap());
    role.tell(&());
    back.wait_for_subscribers(1).unwrap();
    let mut ball = [0; 64];
    for number in 0..rounds {
        side.receive(number);
        fill(number, &mut ball);
        back.send(&ball).unwrap();
        if number % 1024 == 0 {
            alive();
        }
    }
    role.tell(&side.waits);
    role.hear::<()>();
    drop(registration);
}

fn ping_pong(one_core: bool, rounds: u64) {
    let scene = Scene::new();
    let mut there = publisher().bind_to(&scene.address("there")).unwrap();
    let player = scene.spawn("player", &(one_core, rounds));
    player.hear::<()>();
    // On a thread of its own, since affinity is a thread's and the next test has this one.
    let waits = std::thread::scope(|scope| {
        let playing = scope.spawn(|| {
            pin(true);
            let back = Subscriber::builder().connect_to(&scene.address("back"));
            let (mut side, registration) = Side::new(back.unwrap());
            let mut ball = [0; 64];
            for number in 0..rounds {
                fill(number, &mut ball);
                there.send(&ball).unwrap();
                side.receive(number);
                if number % 1024 == 0 {
                    alive();
                }
            }
            drop(registration);
            side.waits
        });
        playing.join().unwrap()
    });
    let others: u64 = player.hear();
    println!("{rounds} rounds, one core {one_core}: waited {waits} and {others} times");
    assert!(waits > 0 && others > 0);
    player.tell(&());
    player.finish();
}

#[test]
fn on_one_core() {
    ping_pong(true, rounds(20_000));
}

#[test]
fn on_two_cores() {
    ping_pong(false, rounds(5_000));
}

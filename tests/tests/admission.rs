//! Whoever comes to an end that has not the descriptors for it is told so, and hears it at once; those who are there go on.

use std::time::Duration;

use memlane::{Address, Client, Error, Receiver, Sender, Server, Subscriber, WaitPolicy};
use memlane_region::page_size;
use memlane_tests::{
    PATIENCE, Part, Policy, Role, Scene, Shortage, Steady, Wish, alive, fill, length, play, steady,
    unbound,
};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("poor end", poor_end), ("steady", steady)];

#[test]
fn other_process() {
    play(ROLES);
}

/// Who is short of descriptors.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Poor {
    Publisher,
    Receiver,
    Server,
}

/// A limit that its parent tells of: a number of descriptors, and how many they are to be; none for all there were before.
struct Orders<'a> {
    role: &'a Role,
    shortage: Option<Shortage>,
}

impl Orders<'_> {
    /// Does what it has been told. False at the end.
    fn follow(&mut self) -> bool {
        alive();
        match self.role.has_said::<Option<u64>>() {
            None => return true,
            Some(Some(spare)) => self.shortage = Some(Shortage::but(spare)),
            Some(None) if self.shortage.is_some() => self.shortage = None,
            Some(None) => return false,
        }
        self.role.tell(&());
        true
    }
}

fn poor_end(role: &Role) {
    let shortage = None;
    let mut orders = Orders { role, shortage };
    match role.hear() {
        Poor::Publisher => {
            let wait = WaitPolicy::Adaptive;
            let mut publisher = unbound(1 << 14).wait(wait).bind("lane").expect("a place");
            role.tell(&());
            publisher.wait_for_subscribers(1).expect("a subscriber");
            let mut buffer = [0; 100];
            let mut next = 0;
            while orders.follow() {
                for _ in 0..16 {
                    let message = &mut buffer[..length(next, 100).max(8)];
                    fill(next, message);
                    publisher.send(message).expect("room");
                    next += 1;
                }
            }
            assert_eq!(publisher.stats().evicted, 0);
        }
        Poor::Receiver => {
            let mut receiver = Receiver::builder().bind("lane").expect("a place");
            role.tell(&());
            while orders.follow() {
                // Whatever it is, and whoever has sent it.
                let _ = receiver.recv_timeout(Duration::from_millis(1));
            }
        }
        Poor::Server => {
            let mut server = Server::builder().bind("lane").expect("a place");
            role.tell(&());
            while orders.follow() {
                if let Ok(request) = server.recv_timeout(Duration::from_millis(1)) {
                    let reply = request.to_vec();
                    request.reply(&reply).expect("room");
                }
            }
        }
    }
}

/// Somebody who was there before the shortage.
#[expect(clippy::large_enum_variant, reason = "there is one of them")]
enum There {
    Subscriber(Steady),
    Sender(Sender),
    Client(Client),
}

impl There {
    fn come(scene: &Scene, poor: Poor, address: &Address) -> There {
        let wish = Wish {
            policy: Policy::Block,
            trusting: false,
        };
        match poor {
            Poor::Publisher => There::Subscriber(Steady::start(scene, address, wish, 100)),
            Poor::Receiver => There::Sender(sender(address, PATIENCE).expect("a place")),
            Poor::Server => There::Client(client(address, PATIENCE).expect("a place")),
        }
    }

    /// More than there is room for.
    fn goes_on(&mut self) {
        match self {
            There::Subscriber(steady) => steady.advance(50),
            There::Sender(sender) => {
                for _ in 0..2 * page_size() / 64 {
                    sender.send(&[1; 100]).expect("room");
                }
            }
            There::Client(client) => {
                for _ in 0..50 {
                    let reply = client
                        .call_timeout(b"a request", PATIENCE)
                        .expect("a reply");
                    assert_eq!(reply.to_vec(), b"a request");
                }
            }
        }
    }
}

fn sender(address: &Address, timeout: Duration) -> Result<Sender, Error> {
    let small = unbound(page_size());
    small.timeout(timeout).connect_to(address)
}

fn client(address: &Address, timeout: Duration) -> Result<Client, Error> {
    Client::builder().timeout(timeout).connect_to(address)
}

fn come(poor: Poor, address: &Address, timeout: Duration) -> Result<(), Error> {
    match poor {
        Poor::Publisher => {
            let wish = Subscriber::builder().timeout(timeout);
            let mut subscriber = wish.connect_to(address)?;
            drop(subscriber.recv().expect("a message"));
        }
        Poor::Receiver => sender(address, timeout)?.send(b"a message").expect("room"),
        Poor::Server => {
            let mut client = client(address, timeout)?;
            let reply = client.call_timeout(b"a request", PATIENCE);
            drop(reply.expect("a reply"));
        }
    }
    Ok(())
}

/// Too few descriptors for all who come: those who are there go on, the others are told why not, and when there are
/// descriptors again whoever comes is served.
fn serves_those_it_can(poor: Poor) {
    let mut refused = 0;
    for spare in 0..16_u64 {
        let scene = Scene::new();
        let address = scene.address("lane");
        let end = scene.spawn("poor end", &poor);
        end.hear::<()>();
        let mut there = There::come(&scene, poor, &address);
        there.goes_on();
        end.tell(&Some(spare));
        end.hear::<()>();
        for _ in 0..4 {
            match come(poor, &address, PATIENCE) {
                Ok(()) => {}
                Err(error) => {
                    let text = error.to_string();
                    let cause = "it is short of resources: Too many open files";
                    assert!(text.contains(cause), "{spare} spare descriptors: {error:?}");
                    refused += 1;
                }
            }
            there.goes_on();
        }
        end.tell(&None::<u64>);
        end.hear::<()>();
        come(poor, &address, PATIENCE).expect("a place, now that there are descriptors");
        there.goes_on();
        end.tell(&None::<u64>);
        end.finish();
        if let There::Subscriber(steady) = there {
            steady.finish();
        }
    }
    // With none to spare, nobody could be served.
    assert!(refused >= 4, "{refused}");
}

#[test]
fn a_publisher_tells_those_it_cannot_serve() {
    serves_those_it_can(Poor::Publisher);
}

#[test]
fn a_receiver_tells_those_it_cannot_serve() {
    serves_those_it_can(Poor::Receiver);
}

#[test]
fn a_server_tells_those_it_cannot_serve() {
    serves_those_it_can(Poor::Server);
}

//! Many requests of many processes, and replies to them in whatever order.

use std::{collections::BTreeMap, thread};

use memlane::{Address, Answer, CallId, Client, Link, Publisher, Server, TryRecvError};
use memlane_tests::{
    Dice, PATIENCE, Policy, Role, Scene, check, fill, length, wait_asleep, wait_until,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) address: String,
    pub(crate) name: u64,
    pub(crate) requests: u64,
    pub(crate) wait: Policy,
}

impl Task {
    pub(crate) fn connect(&self) -> Client {
        let address: Address = self.address.parse().unwrap();
        Client::builder()
            .requests(Publisher::builder().ring_bytes(4096).pool_bytes(1 << 20))
            .wait(self.wait.into())
            .connect_to(&address)
            .unwrap()
    }

    /// The number that request `number` of this client has among those of all.
    pub(crate) fn global(&self, number: u64) -> u64 {
        self.name << 32 | number
    }
}

const LONGEST: usize = 20_000;

/// Asks for echoes: a number, and how long a reply is to be; keeps many under way, and waits for them in whatever order.
pub(crate) fn asker(role: &Role) {
    let task: Task = role.hear();
    let mut client = task.connect();
    let mut dice = Dice::new();
    let mut calls = BTreeMap::new();
    let mut ids: BTreeMap<CallId, u64> = BTreeMap::new();
    let mut next = 0;
    let mut answered = 0;
    while answered < task.requests {
        if next < task.requests && calls.len() + ids.len() < 100 && dice.below(3) > 0 {
            let number = task.global(next);
            let mut request = vec![0; 8 + length(number, LONGEST)];
            fill(number, &mut request);
            let call = client.send(&request).unwrap();
            match dice.below(2) {
                0 => drop(calls.insert(next, call)),
                _ => drop(ids.insert(call.detach(), next)),
            }
            next += 1;
            continue;
        }
        let reply = match dice.below(2) {
            0 if !ids.is_empty() => match client.recv().unwrap() {
                (id, Answer::Last(reply)) => {
                    let bytes = reply.to_vec();
                    match ids.remove(&id) {
                        Some(number) => Some((number, bytes)),
                        None => {
                            let number = calls.iter().find(|(_, call)| call.id() == id);
                            let number = *number.unwrap().0;
                            // Its last reply is here: dropping it cancels nothing.
                            drop(calls.remove(&number));
                            Some((number, bytes))
                        }
                    }
                }
                other => panic!("{other:?}"),
            },
            _ => {
                let numbers: Vec<_> = calls.keys().copied().collect();
                match numbers.is_empty() {
                    true => None,
                    false => {
                        let number = dice.pick(&numbers);
                        let call = calls.remove(&number).unwrap();
                        Some((number, client.wait(call).unwrap().to_vec()))
                    }
                }
            }
        };
        if let Some((number, bytes)) = reply {
            check(task.global(number) ^ 1 << 63, &bytes);
            answered += 1;
            memlane_tests::alive();
        }
    }
    let stats = client.stats();
    assert_eq!(
        (stats.requests, stats.replies, stats.given_up, stats.strays),
        (task.requests, task.requests, 0, 0)
    );
    assert_eq!(client.outstanding(), 0);
}

/// Answers all of them, in no order.
fn echo_at_random(server: &mut Server, requests: u64) {
    let mut dice = Dice::new();
    let mut later = Vec::new();
    let mut received = 0;
    let reply_to = |number: u64| {
        let mut reply = vec![0; 8 + length(number ^ 0x55, LONGEST)];
        fill(number ^ 1 << 63, &mut reply);
        reply
    };
    while received < requests || !later.is_empty() {
        if received < requests && (later.is_empty() || dice.below(3) > 0) {
            // It sleeps where there is nothing else to do, if it is one that does.
            let request = match later.is_empty() {
                true => Some(server.recv_timeout(PATIENCE).unwrap()),
                false => match server.try_recv() {
                    Ok(request) => Some(request),
                    Err(TryRecvError::Empty) => None,
                    Err(error) => panic!("{error}"),
                },
            };
            if let Some(request) = request {
                let bytes = request.to_vec();
                let number = memlane_tests::number(&bytes);
                check(number, &bytes);
                received += 1;
                match dice.below(3) {
                    0 => request.reply(&reply_to(number)).unwrap(),
                    _ => later.push((number, request.defer())),
                }
                continue;
            }
        }
        let at = dice.below(later.len() as u64) as usize;
        let (number, responder) = later.swap_remove(at);
        match dice.below(4) {
            // As another thread would.
            0 => responder.post(reply_to(number)),
            _ => responder.reply(server, &reply_to(number)).unwrap(),
        }
    }
    // What was posted last.
    assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
    assert_eq!(server.outstanding(), 0);
}

#[test]
fn every_request_has_its_reply_in_whatever_order() {
    let scene = Scene::new();
    for wait in [Policy::Block, Policy::Adaptive, Policy::Poll] {
        let mut server = Server::builder()
            .replies(Publisher::builder().ring_bytes(4096).pool_bytes(1 << 20))
            .wait(wait.into())
            .reply_timeout(PATIENCE)
            .bind_to(&scene.address("echo"))
            .unwrap();
        let clients: Vec<_> = (0..3)
            .map(|name| {
                let task = Task {
                    address: scene.address("echo").to_string(),
                    name,
                    requests: 2_000,
                    wait: [Policy::Block, Policy::Adaptive][name as usize % 2],
                };
                scene.spawn("asker", &task)
            })
            .collect();
        echo_at_random(&mut server, 6_000);
        clients.into_iter().for_each(|client| client.finish());
        wait_until("every client has left", || {
            assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
            server.clients() == 0
        });
        let stats = server.stats();
        assert_eq!((stats.requests, stats.left, stats.evicted), (6_000, 3, 0));
    }
}

/// Asks, and waits for the reply, so that both sides sleep between.
pub(crate) fn one_by_one(role: &Role) {
    let task: Task = role.hear();
    let mut client = task.connect();
    for number in 0..task.requests {
        let mut request = [0; 64];
        fill(number, &mut request);
        let reply = client.call(&request).unwrap().to_vec();
        check(number, &reply);
        if number % 1000 == 0 {
            memlane_tests::alive();
        }
    }
}

#[test]
fn both_sides_sleep_and_are_woken() {
    let scene = Scene::new();
    for wait in [Policy::Block, Policy::Adaptive] {
        let mut server = Server::builder()
            .wait(wait.into())
            .bind_to(&scene.address("echo"))
            .unwrap();
        let task = Task {
            address: scene.address("echo").to_string(),
            name: 0,
            requests: 5_000,
            wait,
        };
        let client = scene.spawn("one by one", &task);
        for number in 0..5_000 {
            let request = server.recv_timeout(PATIENCE).unwrap();
            let bytes = request.to_vec();
            check(number, &bytes);
            request.reply(&bytes).unwrap();
        }
        client.finish();
        wait_until("the client has left", || {
            let _ = server.try_recv();
            server.clients() == 0
        });
    }
}

#[test]
fn a_server_that_sleeps_is_woken_by_what_is_posted() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let asking = thread::spawn(move || {
        let mut client = Client::builder().over(theirs).unwrap();
        client.call(b"").unwrap().to_vec()
    });
    let mut server = Server::builder()
        .wait(memlane::WaitPolicy::Block)
        .unbound()
        .unwrap();
    server.attach(ours).unwrap();
    let responder = server.recv().unwrap().defer();
    let me = memlane_tests::thread_id();
    let posting = thread::spawn(move || {
        wait_asleep(std::process::id(), me);
        responder.post("posted");
    });
    // Nothing else comes, until the client has its reply and leaves.
    wait_until("the client has left", || {
        let _ = server.recv_timeout(PATIENCE / 6);
        server.clients() == 0
    });
    posting.join().unwrap();
    assert_eq!(asking.join().unwrap(), b"posted");
}

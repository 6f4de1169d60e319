//! Introductions between processes, some of which stop, die, or keep no rules.

mod common;

use std::os::fd::OwnedFd;

use common::{Reaped, alone, child, inode, memfd, parent, role, until};
use memlane_transport::broker::{Arrival, Broker, Client, Declined, Event};
use memlane_transport::{Error, Fd, FdRef, Link};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

struct Scene {
    broker: Broker,
    events: Vec<Event>,
}

impl Scene {
    fn new() -> Scene {
        Scene {
            broker: Broker::new(|_, _| true).unwrap(),
            events: Vec::new(),
        }
    }

    fn spawn(&mut self, test: &str, role: &str) -> Reaped {
        let link = self.broker.admit(role).unwrap();
        // The command holds a copy of the child's end as long as it lives.
        Reaped::spawn(&mut child(test, role, OwnedFd::from(link)))
    }

    fn drive(&mut self, what: &str, mut condition: impl FnMut(&Scene) -> bool) {
        until(what, || {
            let events = self.broker.drive().unwrap();
            self.events.extend(events);
            condition(self)
        });
    }

    fn drive_until_all_left(&mut self) {
        self.drive("all have left", |scene| scene.broker.names().count() == 0);
    }

    fn introductions(&self, asker: &str, asked: &str) -> usize {
        let found = self.events.iter().filter(
            |event| matches!(event, Event::Introduced { from, to } if from == asker && to == asked),
        );
        found.count()
    }

    fn expelled(&self) -> usize {
        let expelled = |event: &&Event| matches!(event, Event::Expelled { .. });
        self.events.iter().filter(expelled).count()
    }
}

fn broker() -> Client {
    Client::new(parent())
}

fn introduced(client: &mut Client) -> (String, Link) {
    match client.recv().unwrap() {
        Arrival::Introduced { name, link } => (name, link),
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_children_talk_when_the_broker_is_gone() {
    const TEST: &str = "two_children_talk_when_the_broker_is_gone";
    match role().as_deref() {
        Some("asker") => {
            let mut client = broker();
            let link = client.introduce("asked").unwrap();
            assert!(client.recv().unwrap_err().is_disconnected());
            let file = memfd();
            link.send(&("look", FdRef::new(&file))).unwrap();
            assert_eq!(link.recv::<(u64, u64)>().unwrap(), inode(&file));
            assert!(link.recv::<()>().unwrap_err().is_disconnected());
            return;
        }
        Some("asked") => {
            let mut client = broker();
            let (name, link) = introduced(&mut client);
            assert_eq!(name, "asker");
            assert!(client.recv().unwrap_err().is_disconnected());
            let (word, file): (String, Fd) = link.recv().unwrap();
            assert_eq!(word, "look");
            link.send(&inode(&file)).unwrap();
            return;
        }
        _ => {}
    }
    let _alone = alone();
    let mut scene = Scene::new();
    let mut children = ["asker", "asked"].map(|role| scene.spawn(TEST, role));
    scene.drive("an introduction", |scene| {
        scene.introductions("asker", "asked") == 1
    });
    drop(scene);
    children.iter_mut().for_each(Reaped::succeed);
}

/// A stopped client holds up nobody: not those that ask for it, nor those that do not.
#[test]
fn a_stopped_client() {
    const TEST: &str = "a_stopped_client";
    const ROUNDS: usize = 200;
    match role().as_deref() {
        Some("asker") => {
            let mut client = broker();
            let mut busy = 0;
            for round in 0..ROUNDS {
                match client.introduce("stopped") {
                    Ok(_) => {}
                    Err(Error::Declined {
                        reason: Declined::Busy,
                        ..
                    }) => busy += 1,
                    Err(error) => panic!("{error:?}"),
                }
                let link = client.introduce("asked").unwrap();
                link.send(&round).unwrap();
                assert_eq!(link.recv::<usize>().unwrap(), round + 1);
            }
            assert!(busy > ROUNDS / 2, "{busy}");
            return;
        }
        Some("asked") => {
            let mut client = broker();
            for _ in 0..ROUNDS {
                let (_, link) = introduced(&mut client);
                let round: usize = link.recv().unwrap();
                link.send(&(round + 1)).unwrap();
            }
            return;
        }
        Some("stopped") => {
            let mut client = broker();
            let mut count = 0;
            while let Ok(Arrival::Introduced { link, .. }) = client.recv() {
                assert!(link.recv::<()>().unwrap_err().is_disconnected());
                count += 1;
            }
            assert!(count > 0, "{count}");
            return;
        }
        _ => {}
    }
    let _alone = alone();
    let mut scene = Scene::new();
    let mut stopped = scene.spawn(TEST, "stopped");
    let pid = Pid::from_child(&stopped.0);
    kill_process(pid, Signal::STOP).unwrap();
    waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
    let mut others = ["asker", "asked"].map(|role| scene.spawn(TEST, role));
    scene.drive("the others have left", |scene| {
        scene.broker.names().count() == 1
    });
    others.iter_mut().for_each(Reaped::succeed);
    assert_eq!(scene.introductions("asker", "asked"), ROUNDS);
    assert_eq!(scene.expelled(), 0);
    drop(scene);
    kill_process(pid, Signal::CONT).unwrap();
    stopped.succeed();
}

/// Killed at any moment, with requests on their way to the broker and introductions on their way back.
#[test]
fn clients_that_are_killed() {
    const TEST: &str = "clients_that_are_killed";
    match role().as_deref() {
        Some("survivor") => {
            let mut client = broker();
            while let Ok(arrival) = client.recv() {
                drop(arrival);
            }
            return;
        }
        Some(victim) => {
            let mut client = broker();
            let mut links = Vec::new();
            loop {
                for name in ["survivor", "left", "right", "nobody"] {
                    if name != victim {
                        let _ = client.request(name);
                    }
                    while let Ok(arrival) = client.try_recv() {
                        links.push(arrival);
                    }
                    links.truncate(50);
                }
            }
        }
        None => {}
    }
    let alone = alone();
    let mut scene = Scene::new();
    let mut survivor = scene.spawn(TEST, "survivor");
    for round in 0..20 {
        let mut victims = ["left", "right"].map(|role| scene.spawn(TEST, role));
        let before = scene.introductions("left", "survivor");
        scene.drive("they are under way", |scene| {
            scene.introductions("left", "survivor") > before + round % 3
        });
        victims.iter_mut().for_each(Reaped::kill);
        scene.drive("they have left", |scene| scene.broker.names().count() == 1);
        scene.events.clear();
    }
    drop(scene);
    survivor.succeed();
    alone.settled();
}

/// Children that send what no client may: they lose their links, and nobody else notices.
#[test]
fn hostile_clients() {
    const TEST: &str = "hostile_clients";
    match role().as_deref() {
        Some("asker") => {
            let mut client = broker();
            for round in 0..100_u8 {
                let link = client.introduce("asked").unwrap();
                link.send(&round).unwrap();
                assert_eq!(link.recv::<u8>().unwrap(), round);
            }
            return;
        }
        Some("asked") => {
            let mut client = broker();
            let mut served = 0;
            while served < 100 {
                let (name, link) = introduced(&mut client);
                if name == "asker" {
                    link.send(&link.recv::<u8>().unwrap()).unwrap();
                    served += 1;
                }
            }
            return;
        }
        Some("flooder") => {
            let link = parent();
            // Until the broker has enough of its unread answers, and then a while longer.
            let mut full = 0;
            while full < 100 {
                let request = (1_u8, 0_u32, 0_u64, "asked");
                match link.send_timeout(&request, std::time::Duration::from_millis(1)) {
                    Ok(()) => {}
                    Err(Error::TimedOut) => full += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
            return;
        }
        Some("impostor") => {
            let link = parent();
            link.send(&(1_u8, 2_u32, 0_u64, 0_u32)).unwrap();
            assert!(link.recv::<()>().unwrap_err().is_disconnected());
            return;
        }
        Some("smuggler") => {
            let link = parent();
            let file = memfd();
            // Refused to the sender (Linux 6.16), or by hanging up.
            let sent = link.send(&(1_u8, 3_u32, "asker", FdRef::new(&file)));
            assert!(sent.is_err() || link.recv::<()>().unwrap_err().is_disconnected());
            return;
        }
        _ => {}
    }
    let alone = alone();
    let mut scene = Scene::new();
    let roles = ["flooder", "impostor", "smuggler"];
    let mut hostile = roles.map(|role| scene.spawn(TEST, role));
    scene.drive("they have left", |scene| scene.broker.names().count() == 0);
    hostile.iter_mut().for_each(Reaped::succeed);
    assert!((1..=2).contains(&scene.expelled()), "{:?}", scene.events);

    let mut children = ["asked", "asker"].map(|role| scene.spawn(TEST, role));
    let mut hostile = roles.map(|role| scene.spawn(TEST, role));
    scene.drive_until_all_left();
    children.iter_mut().for_each(Reaped::succeed);
    hostile.iter_mut().for_each(Reaped::succeed);
    assert_eq!(scene.introductions("asker", "asked"), 100);
    drop(scene);
    alone.settled();
}

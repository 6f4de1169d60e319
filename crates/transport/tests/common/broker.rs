//! What the tests of brokers share: the numbers of the messages, and what comes out of a broker.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;

use memlane_transport::Link;
use memlane_transport::broker::{Arrival, Broker, Client, Declined, Event};

pub const INTRODUCE: u32 = 0;
pub const ACCEPTED: u32 = 1;
pub const DECLINED: u32 = 2;
pub const INTRODUCED: u32 = 3;

pub fn anybody() -> Broker {
    Broker::new(|_, _| true).unwrap()
}

pub fn client(broker: &mut Broker, name: &str) -> Client {
    Client::new(broker.admit(name).unwrap())
}

pub fn accepted(client: &mut Client) -> Link {
    match client.try_recv().unwrap() {
        Arrival::Accepted { link, .. } => link,
        other => panic!("{other:?}"),
    }
}

pub fn declined(client: &mut Client) -> Declined {
    match client.try_recv().unwrap() {
        Arrival::Declined { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

pub fn introduced(client: &mut Client) -> (String, Link) {
    match client.try_recv().unwrap() {
        Arrival::Introduced { name, link } => (name, link),
        other => panic!("{other:?}"),
    }
}

/// Drives until there is nothing to do, and says how many of each event there were.
pub fn drive(broker: &mut Broker) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    loop {
        let events = broker.drive().unwrap();
        if events.is_empty() {
            return seen;
        }
        for event in events {
            let event = match event {
                Event::Introduced { from, to } => format!("{from} to {to}"),
                Event::Declined {
                    from, to, reason, ..
                } => format!("{from} to {to}: {reason:?}"),
                Event::Left { name } => format!("{name} left"),
                Event::Expelled { name, error } => format!("{name} expelled: {error:?}"),
                other => panic!("{other:?}"),
            };
            *seen.entry(event).or_default() += 1;
        }
    }
}

pub fn only(events: BTreeMap<String, usize>) -> String {
    assert_eq!(events.len(), 1, "{events:?}");
    events.into_keys().next().unwrap()
}

//! Who gets its turn, and what of it is missed.

use memlane::{Key, Publisher, Received, TryRecvError};
use memlane_tests::{Dice, Policy, Scene, fill, length, rounds};

use crate::{
    killed::{LONGEST, Ledger, mark},
    lanes::many,
};

#[test]
fn a_flood_does_not_hold_up_a_trickle() {
    let _scene = Scene::new();
    for policy in Policy::ALL {
        for flooding in 0..2 {
            let (mut subscriptions, mut publishers) = many(policy, 8);
            let full = |publisher: &mut Publisher| {
                for _ in 0..64 {
                    if publisher.try_send(&[0; 64]).is_err() {
                        break;
                    }
                }
            };
            // Seven have one message each, the other one is never empty.
            let (_, mut flood) = publishers.remove(flooding);
            full(&mut flood);
            for (_, publisher) in &mut publishers {
                publisher.try_send(b"a trickle").unwrap();
            }
            let mut left: Vec<Key> = publishers.iter().map(|(key, _)| *key).collect();
            let mut flooded = 0;
            while !left.is_empty() {
                let (from, message) = match subscriptions.recv().unwrap() {
                    Received::Message(from, message) => (from, message.to_vec()),
                    Received::Ended(ended) => panic!("{ended:?}"),
                };
                if message == b"a trickle" {
                    let before = left.len();
                    left.retain(|key| *key != from);
                    assert_eq!(left.len() + 1, before);
                } else {
                    assert!(publishers.iter().all(|(key, _)| *key != from));
                    flooded += 1;
                }
                full(&mut flood);
                assert!(flooded <= 8 * 32, "{left:?} after {flooded} of the flood");
            }
        }
    }
}

/// Of those that are overwritten some is missed, and counted; of the others nothing.
#[test]
fn block_and_overwrite_together() {
    let _scene = Scene::new();
    let (mut subscriptions, mut publishers) = many(Policy::Adaptive, 6);
    let mut dice = Dice::new();
    let mut ledger = Ledger::default();
    let mut sent = [0_u64; 6];
    let keys: Vec<Key> = publishers.iter().map(|(key, _)| *key).collect();
    let at = |key: Key| keys.iter().position(|known| *known == key).unwrap();
    for _ in 0..rounds(4_000) {
        for _ in 0..dice.below(300) {
            let at = dice.below(6) as usize;
            if sent[at] == 999 {
                continue;
            }
            let mark = mark(at as u64, sent[at]);
            let mut message = vec![0; length(mark, LONGEST).max(8)];
            fill(mark, &mut message);
            match publishers[at].1.try_send(&message) {
                Ok(()) => sent[at] += 1,
                Err(error) => assert_eq!(at % 2, 0, "{error}"),
            }
        }
        for _ in 0..dice.below(20) {
            match subscriptions.try_recv() {
                Ok(Received::Message(from, message)) => ledger.note(at(from) as u64, &message),
                Ok(Received::Ended(ended)) => panic!("{ended:?}"),
                Err(error) => {
                    assert!(matches!(error, TryRecvError::Empty), "{error}");
                    break;
                }
            }
        }
        if sent == [999; 6] {
            break;
        }
    }
    drop(publishers.drain(..));
    let (mut ended, mut missed) = (0, 0);
    while ended < 6 {
        match subscriptions.recv().unwrap() {
            Received::Message(from, message) => ledger.note(at(from) as u64, &message),
            Received::Ended(end) => {
                let at = at(end.key);
                assert_eq!(end.label, format!("number {at}"));
                assert_eq!(end.stats.messages + end.stats.missed, sent[at]);
                assert!(at % 2 == 1 || end.stats.missed == 0);
                missed += end.stats.missed;
                ended += 1;
            }
        }
    }
    assert!(missed > 0);
}

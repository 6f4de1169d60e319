//! A reader in another process, that counts.

use std::time::Duration;

use memlane::{
    Async, Message, RecvError, RecvTimeoutError, Subscriber, Trust, TryRecvError, Watched,
};
use memlane_tests::{Dice, Policy, Role, alive, block_on, check, trusting};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::lane::{len, overwritten};

/// How a reader waits for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Recv,
    TryRecv,
    Timeout,
    Watched,
    Task,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) address: String,
    pub(crate) policy: Policy,
    pub(crate) trusting: bool,
    pub(crate) way: Way,
    /// One time in so many it is busy elsewhere.
    pub(crate) seldom: u64,
}

/// What has come so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    /// Of the first message that was this reader's, received or missed.
    pub(crate) first: u64,
    pub(crate) received: u64,
    pub(crate) missed: u64,
}

impl Count {
    pub(crate) fn next(&self) -> u64 {
        self.first + self.received + self.missed
    }

    /// Takes a message, which must be the next one that was not missed, and whole.
    #[track_caller]
    pub(crate) fn note<T: Trust>(&mut self, message: &Message<'_, T>, copy: &mut Vec<u8>) {
        message.copy_into(copy);
        self.missed += message.missed();
        assert_eq!(message.sequence(), self.next(), "miscounted");
        assert_eq!(message.len(), len(self.next()));
        check(self.next(), copy);
        self.received += 1;
    }
}

/// Receives at a pace that changes until the publisher is gone, and tells what came.
pub(crate) fn reader(role: &Role) {
    let orders: Orders = role.hear();
    let address = orders.address.parse().expect("an address");
    let builder = overwritten(orders.policy);
    if orders.trusting {
        let subscriber = trusting(builder).connect_to(&address).expect("a publisher");
        read(role, &orders, subscriber);
    } else {
        let subscriber = builder.connect_to(&address).expect("a publisher");
        read(role, &orders, subscriber);
    }
}

fn read<T: Trust + Unpin>(role: &Role, orders: &Orders, subscriber: Subscriber<T>) {
    let mut count = Count {
        first: subscriber.sequence(),
        ..Count::default()
    };
    let mut dice = Dice::new();
    let mut copy = Vec::new();
    let mut pause = |count: &Count| {
        if dice.below(orders.seldom) == 0 {
            let turns = dice.pick(&[100, 1_000, 10_000, 200_000]);
            dice.dally(turns);
        }
        if count.received.is_multiple_of(1024) {
            alive();
        }
    };
    role.tell(&count.first);
    let (stats, sequence) = match orders.way {
        Way::Watched => {
            let mut subscriber = Watched::new(subscriber).expect("descriptors");
            loop {
                let came = subscriber.try_recv();
                match came.map(|message| count.note(&message, &mut copy)) {
                    Ok(()) => {}
                    Err(TryRecvError::Empty) => {
                        let mut readable = [PollFd::new(&subscriber, PollFlags::IN)];
                        poll(&mut readable, None).expect("poll");
                    }
                    Err(TryRecvError::Disconnected { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
                pause(&count);
            }
            (subscriber.stats(), subscriber.sequence())
        }
        Way::Task => {
            let mut subscriber = Async::new(subscriber).expect("a thread");
            block_on(async {
                loop {
                    match subscriber.recv().await {
                        Ok(message) => count.note(&message, &mut copy),
                        Err(RecvError::Disconnected { .. }) => break,
                        Err(error) => panic!("{error}"),
                    }
                    pause(&count);
                }
            });
            let subscriber = subscriber.get_ref();
            (subscriber.stats(), subscriber.sequence())
        }
        way => {
            let mut subscriber = subscriber;
            loop {
                let ended = match way {
                    Way::Recv => match subscriber.recv() {
                        Ok(message) => {
                            count.note(&message, &mut copy);
                            false
                        }
                        Err(RecvError::Disconnected { .. }) => true,
                        Err(error) => panic!("{error}"),
                    },
                    Way::TryRecv => match subscriber.try_recv() {
                        Ok(message) => {
                            count.note(&message, &mut copy);
                            false
                        }
                        Err(TryRecvError::Empty) => {
                            std::thread::yield_now();
                            false
                        }
                        Err(TryRecvError::Disconnected { .. }) => true,
                        Err(error) => panic!("{error}"),
                    },
                    _ => match subscriber.recv_timeout(Duration::from_millis(1)) {
                        Ok(message) => {
                            count.note(&message, &mut copy);
                            false
                        }
                        Err(RecvTimeoutError::TimedOut) => false,
                        Err(RecvTimeoutError::Disconnected { .. }) => true,
                        Err(error) => panic!("{error}"),
                    },
                };
                if ended {
                    break;
                }
                pause(&count);
            }
            (subscriber.stats(), subscriber.sequence())
        }
    };
    // Those at the very end no message has told of.
    assert_eq!(stats.messages, count.received);
    assert!(stats.missed >= count.missed);
    count.missed = stats.missed;
    assert_eq!(sequence, count.next());
    role.tell(&count);
}

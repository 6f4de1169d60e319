//! Many lanes into one reader: looked at by turns, slept on together.

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use memlane_signaling::{Pacer, WaitPolicy, remaining};
use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    io::Errno,
};

use super::{
    lanes::{Lane, Lanes},
    more::More,
};
use crate::{
    Message, NOW, Subscriber, Trust,
    subscriber::{Next, NoMessage},
};

/// Lanes, each with a publisher of its own, that are received from by turns.
///
/// A lane is *hot* while it is looked at without being armed, and *armed* once it has been found empty by a reader that was about
/// to sleep: from then on its publisher rings for the next message. An armed lane stays armed while others are received from; one
/// of them is glanced at for each message, so that none waits for longer than it takes to receive as many messages as there
/// are lanes. While messages come there is one system call for [`UNASKED`] of them, for sources that are no lanes.
///
/// The descriptor of a reader that is watched is readable *unless* every lane is armed, and was seen empty after that: then it has
/// answered that there is nothing, and the next message rings. A lane ceases to be armed in one of two ways, and neither may make
/// the descriptor unreadable:
///
/// - A ring of it is taken. From then on nothing of the kernel's tells of its messages, so [`More`] does, until all lanes are
///   armed again.
/// - Its message is seen first ([`Lanes::glance`]). The ring for that is on its way, or has come and lies in the doorbell, where
///   it keeps the descriptor readable: so flag and doorbell are left as they are ([`Heed::Rings`]). Disarmed, the lane might not be
///   rung for at all; and emptied, the doorbell has nothing to tell. To show [`More`] instead would be two system calls a wake-up.
///
/// A call that waits ends with a descriptor that is readable in any case, and need not mind.
#[derive(Debug)]
pub(crate) struct Gather<T: Trust> {
    lanes: Lanes<T>,
    pacer: Pacer,
    epoll: Arc<OwnedFd>,
    more: Option<More>,
    /// The owner's sources that have something, in turn.
    others: VecDeque<u64>,
    /// Messages since the kernel was last asked.
    unasked: u32,
    /// The wait that has begun has spun, in vain.
    spun: bool,
    /// Lanes on their way here: of those who are just being let in, and of whoever leaves.
    pub(super) joining: usize,
    pub(super) arriving: usize,
    pub(crate) stats: GatherStats,
}

/// What a gathering reader has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GatherStats {
    pub(crate) messages: u64,
    pub(crate) sleeps: u64,
    pub(crate) wakeups: u64,
}

/// What came of looking, or of waiting.
#[derive(Debug)]
pub(crate) enum Found {
    /// A message in this lane, to be [delivered](Gather::deliver).
    Record(Key, Next),
    /// Nothing more will come of this lane, which is to be [removed](Gather::remove).
    Ended(Key, NoMessage),
    /// A source of the owner's.
    Other(u64),
}

/// What tells of the messages of a lane that is hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heed {
    /// It is looked at.
    Looks,
    /// A loop of the user's is told of it by its ring, which nobody has taken.
    Rings,
}

/// What came of arming all lanes.
pub(super) enum Armed {
    All,
    Found(Found),
    /// A lane that is overwritten is to be looked at again.
    Overtaken,
}

/// Names a publisher among [many](crate::Subscriptions), or a sender of a [queue](crate::Receiver::recv_from), and never another
/// one of the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    fn new(index: u32, generation: u32) -> Key {
        Key(u64::from(generation) << 32 | u64::from(index))
    }

    pub(crate) fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

/// Tokens of the owner's sources begin here: no generation gets that far.
pub(crate) const OTHERS: u64 = 1 << 63;
/// Those of who goes on where others stop begin here.
pub(crate) const ARRIVALS: u64 = OTHERS | 1 << 62;
/// Token of what a watched reader keeps itself readable with.
const MORE: u64 = u64::MAX;
/// So many events are taken at a time; more wait for the next turn, and the kernel hands them out by turns.
const EVENTS: usize = 64;
/// So many messages are received before the kernel is asked what else there is.
const UNASKED: u32 = 1024;

impl<T: Trust> Gather<T> {
    pub(crate) fn new(policy: WaitPolicy) -> io::Result<Gather<T>> {
        Ok(Gather {
            lanes: Lanes::default(),
            pacer: Pacer::new(policy),
            epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?),
            more: None,
            others: VecDeque::new(),
            unasked: 0,
            spun: false,
            joining: 0,
            arriving: 0,
            stats: GatherStats::default(),
        })
    }

    /// How many lanes there are.
    pub(crate) fn len(&self) -> usize {
        self.lanes.slots.len() - self.lanes.free.len()
    }

    /// How many there are, with those on their way here.
    pub(super) fn places(&self) -> usize {
        self.len() + self.joining + self.arriving
    }

    /// Adds a lane, which may have messages already.
    pub(crate) fn add(&mut self, subscriber: Subscriber<T>) -> io::Result<Key> {
        let index = self.lanes.place();
        let generation = self.lanes.generation;
        let key = Key::new(index, generation);
        if let Some(waiter) = subscriber.waiter() {
            let added = epoll::add(
                &*self.epoll,
                &**waiter.descriptor(),
                EventData::new_u64(key.0),
                EventFlags::IN,
            );
            if let Err(errno) = added {
                self.lanes.free.push(index);
                return Err(errno.into());
            }
        }
        self.lanes.generation = (generation + 1) & (u32::MAX >> 1);
        self.lanes.slots[index as usize] = Some(Lane {
            subscriber,
            key,
            armed: false,
            queued: false,
        });
        self.lanes.hot.push_back(key);
        self.stay_ready();
        Ok(key)
    }

    /// Lets go of a lane.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Subscriber<T>> {
        let lane = self.lanes.get(key)?;
        if let Some(waiter) = lane.subscriber.waiter() {
            let _ = epoll::delete(&*self.epoll, &**waiter.descriptor());
        }
        let mut lane = self.lanes.slots[key.index()].take()?;
        self.lanes.free.push(key.index() as u32);
        // Also one that is not armed: its flag may have been left as it was.
        lane.subscriber.disarm();
        Some(lane.subscriber)
    }

    /// The lanes, in no order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.lanes.slots.iter().flatten().map(|lane| lane.key)
    }

    /// The subscriber of a lane.
    pub(crate) fn get(&self, key: Key) -> Option<&Subscriber<T>> {
        let lane = self.lanes.slots.get(key.index())?.as_ref()?;
        (lane.key == key).then_some(&lane.subscriber)
    }

    /// The subscriber of a lane: not to be received from.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Subscriber<T>> {
        self.lanes.get(key).map(|lane| &mut lane.subscriber)
    }

    /// The message that was found.
    #[inline]
    pub(crate) fn deliver(&mut self, key: Key, record: Next) -> Result<Message<'_, T>, NoMessage> {
        self.stats.messages += 1;
        let lane = self.lanes.get(key).expect("found a moment ago");
        lane.subscriber.deliver(Ok(record))
    }

    /// The message that was found: a payload in the ring.
    #[inline(always)]
    pub(crate) fn in_ring(&mut self, key: Key, len: usize) -> Message<'_, T> {
        self.stats.messages += 1;
        let lane = self.lanes.get(key).expect("found a moment ago");
        lane.subscriber.in_ring(len)
    }

    /// The lane of a message that was found.
    #[inline]
    pub(crate) fn lane(&mut self, key: Key) -> Option<&mut Subscriber<T>> {
        Some(&mut self.lanes.get(key)?.subscriber)
    }

    /// Watches a source of the owner's.
    pub(crate) fn watch_other(
        &self,
        source: impl AsFd,
        token: u64,
        flags: EventFlags,
    ) -> io::Result<()> {
        debug_assert!((OTHERS..MORE).contains(&token));
        Ok(epoll::add(
            &*self.epoll,
            source,
            EventData::new_u64(token),
            flags,
        )?)
    }

    /// Watches it no more: before it is closed.
    pub(crate) fn forget_other(&self, source: impl AsFd) {
        let _ = epoll::delete(&*self.epoll, source);
    }

    /// For an edge-triggered source that may have more: tells of it once more.
    pub(crate) fn rewatch_other(
        &self,
        source: impl AsFd,
        token: u64,
        flags: EventFlags,
    ) -> io::Result<()> {
        Ok(epoll::modify(
            &*self.epoll,
            source,
            EventData::new_u64(token),
            flags,
        )?)
    }

    /// The next message, if that is nothing but a payload in the ring of the lane whose turn it is, and is there or comes before a
    /// wait would sleep: the lane, and the length. All that a reader of one busy lane needs; whatever else there is or comes is
    /// left to [`wait`](Gather::wait).
    #[inline(always)]
    pub(crate) fn next_payload(&mut self) -> Option<(Key, usize)> {
        if !self.others.is_empty() || self.more.is_some() || self.unasked >= UNASKED {
            return None;
        }
        self.unasked += 1;
        let found = self.lanes.payload();
        found.or_else(|| self.spin().then(|| self.lanes.payload()).flatten())
    }

    /// Spins until there is something, as the policy says. If it is in vain, the wait goes on from there.
    #[inline(never)]
    fn spin(&mut self) -> bool {
        if self.spun {
            return false;
        }
        if self.lanes.glimpse() {
            // Nobody has to wait for it: a pacer would learn from that what is not so, or yield before it looks.
            return true;
        }
        // Before it waits for more: publishers may be waiting for just that.
        if self.lanes.release_all() {
            return false;
        }
        let Gather { pacer, lanes, .. } = self;
        let found = pacer.spin(|| lanes.glimpse().then_some(())).is_some();
        self.spun = !found;
        found
    }

    /// What there is now. `None`: nothing, and, for a reader that is watched, its descriptor is readable when there is.
    #[inline]
    pub(crate) fn find(&mut self) -> io::Result<Option<Found>> {
        let heed = match self.more {
            None => Heed::Looks,
            Some(_) => Heed::Rings,
        };
        match self.look(heed)? {
            None => self.find_slowly(),
            found => Ok(found),
        }
    }

    /// What the lanes have, and, when it is time to ask the kernel, whatever else there is.
    #[inline]
    fn look(&mut self, heed: Heed) -> io::Result<Option<Found>> {
        if self.unasked < UNASKED {
            self.unasked += 1;
            let found = self.lanes.find(heed);
            if found.is_some() || self.others.is_empty() {
                return Ok(found);
            }
        }
        self.ask()
    }

    /// What the kernel knows of, while lanes may have more.
    #[cold]
    fn ask(&mut self) -> io::Result<Option<Found>> {
        let found = self.take(Some(&NOW))?;
        if found.is_some() {
            // That took the rings which may have been all that kept the descriptor readable. Where nothing was found, the lanes
            // are looked at once more, and armed.
            self.stay_ready();
        }
        Ok(found)
    }

    /// No lane has a message that nobody rings for.
    #[cold]
    fn find_slowly(&mut self) -> io::Result<Option<Found>> {
        if self.more.is_none() {
            return self.take(Some(&NOW));
        }
        // Rings of the past are taken first, and the lanes armed after that: what comes from then on makes the descriptor
        // readable, and nothing else does.
        if let Some(more) = &mut self.more {
            more.set(false);
        }
        let found = match self.take(Some(&NOW))? {
            None => match self.lanes.arm() {
                Armed::All => return Ok(None),
                Armed::Found(found) => Some(found),
                Armed::Overtaken => None,
            },
            found => found,
        };
        self.stay_ready();
        Ok(found)
    }

    /// Waits for something; `None` once the deadline has passed.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> io::Result<Option<Found>> {
        let found = self.wait_until(deadline);
        self.stay_ready();
        found
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> io::Result<Option<Found>> {
        loop {
            // Whatever the policy: one that sleeps at once looks first.
            if let Some(found) = self.look(Heed::Looks)? {
                self.spun = false;
                return Ok(Some(found));
            }
            let Gather {
                pacer, lanes, spun, ..
            } = &mut *self;
            if !std::mem::take(spun) && pacer.spin(|| lanes.glimpse().then_some(())).is_some() {
                if let Some(found) = self.lanes.find(Heed::Looks) {
                    return Ok(Some(found));
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                // However late it has come to look: of lanes that are armed nothing but rings tells.
                return self.take(Some(&NOW));
            }
            if self.pacer.policy() == WaitPolicy::Poll {
                if let Some(found) = self.take(Some(&NOW))? {
                    return Ok(Some(found));
                }
                continue;
            }
            if let Some(more) = &mut self.more {
                // Made readable for a loop, it would never sleep.
                more.set(false);
            }
            match self.lanes.arm() {
                Armed::All => {}
                Armed::Found(found) => return Ok(Some(found)),
                Armed::Overtaken => continue,
            }
            self.stats.sleeps += 1;
            let since = Instant::now();
            let timeout = deadline.map(remaining);
            let found = self.take(timeout.as_ref())?;
            if !self.lanes.hot.is_empty() {
                self.stats.wakeups += 1;
                self.pacer.slept(since.elapsed(), true);
            }
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Takes what has happened: lanes that were rung are hot again, and looked at.
    fn take(&mut self, timeout: Option<&Timespec>) -> io::Result<Option<Found>> {
        self.unasked = 0;
        let mut events = [MaybeUninit::uninit(); EVENTS];
        let timeout = if self.others.is_empty() {
            timeout
        } else {
            Some(&NOW)
        };
        let ready = match epoll::wait(&*self.epoll, &mut events, timeout) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        for event in ready {
            match event.data.u64() {
                MORE => {}
                token if token >= OTHERS => {
                    // Those that are level-triggered are told of again before they had their turn.
                    if !self.others.contains(&token) {
                        self.others.push_back(token);
                    }
                }
                key => self.lanes.rung(Key(key)),
            }
        }
        Ok(match self.others.pop_front() {
            Some(token) => Some(Found::Other(token)),
            None => self.lanes.find(Heed::Looks),
        })
    }

    /// Readable until the lanes have been seen empty, if a loop of the user's waits for it.
    fn stay_ready(&mut self) {
        if let Some(more) = &mut self.more {
            more.set(true);
        }
    }

    /// Readable once more, also for a loop that is told of edges: a look has ended before it had seen everything.
    #[cold]
    pub(crate) fn look_again(&mut self) {
        if let Some(more) = &mut self.more {
            more.set(false);
            more.set(true);
        }
    }

    /// Its descriptor is for a loop of the user's from now on.
    pub(crate) fn watch(&mut self) -> io::Result<()> {
        if self.more.is_none() {
            let more = More::new()?;
            epoll::add(
                &*self.epoll,
                &more.fd,
                EventData::new_u64(MORE),
                EventFlags::IN,
            )?;
            self.more = Some(more);
        }
        self.stay_ready();
        Ok(())
    }

    pub(crate) fn unwatch(&mut self) {
        if let Some(more) = self.more.take() {
            let _ = epoll::delete(&*self.epoll, &more.fd);
        }
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }

    pub(crate) fn policy(&self) -> WaitPolicy {
        self.pacer.policy()
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Gather};
    use crate::{Link, Publisher, Subscriber, Untrusted, WaitPolicy};

    #[test]
    fn what_other_lanes_have_already_is_nothing_that_a_wait_learns_from() {
        let mut gather: Gather<Untrusted> = Gather::new(WaitPolicy::Adaptive).unwrap();
        let mut publishers = [(); 3].map(|()| {
            let (ours, theirs) = Link::pair().unwrap();
            let publisher = Publisher::builder().unbound().unwrap();
            publisher.attach(ours).unwrap();
            gather
                .add(Subscriber::builder().over(theirs).unwrap())
                .unwrap();
            publisher
        });
        let pacer = format!("{:?}", gather.pacer);
        for turn in 0..30_u8 {
            publishers[usize::from(turn) % 3].send(&[turn]).unwrap();
            let message = match gather.next_payload() {
                Some((key, len)) => gather.in_ring(key, len),
                None => match gather.wait(None).unwrap() {
                    Some(Found::Record(key, record)) => gather.deliver(key, record).unwrap(),
                    found => panic!("{found:?}"),
                },
            };
            assert_eq!(message.to_vec(), [turn]);
            drop(message);
            assert_eq!(format!("{:?}", gather.pacer), pacer);
        }
        assert_eq!((gather.stats.messages, gather.stats.sleeps), (30, 0));
    }
}

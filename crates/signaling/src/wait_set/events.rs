use std::{
    collections::{HashMap, VecDeque},
    fmt,
    mem::MaybeUninit,
};

use rustix::event::epoll::{self, EventFlags};

use super::{Key, Readiness, Shared};

/// Where a wait puts what it finds: made once, used for every wait of a loop.
///
/// It belongs to no set, and is empty between waits.
pub struct Events {
    pub(super) raw: Box<[MaybeUninit<epoll::Event>]>,
    pub(super) findings: Findings,
}

/// More would only delay the timers and notifications that come meanwhile.
const MOST: usize = 4096;

impl Events {
    /// Room for so many sources a wait; at least 1 and at most 4096.
    ///
    /// It is what bounds how long a wait's worth of work can get. No source is left out for long by a small one: the kernel
    /// begins where the last wait ended.
    pub fn with_capacity(capacity: usize) -> Events {
        let capacity = capacity.clamp(1, MOST);
        Events {
            raw: (0..capacity).map(|_| MaybeUninit::uninit()).collect(),
            findings: Findings {
                list: VecDeque::with_capacity(capacity),
                ..Findings::default()
            },
        }
    }

    /// How many sources a wait reports at most. As many timers may come in addition.
    pub fn capacity(&self) -> usize {
        self.raw.len()
    }
}

/// Room for 256.
impl Default for Events {
    fn default() -> Events {
        Events::with_capacity(256)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("capacity", &self.capacity())
            .finish()
    }
}

/// What was found, before it is known whether it is still wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) flags: EventFlags,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// A source that the kernel reports again.
    Level,
    /// A source that the kernel has reported for good.
    Edge,
    Timer {
        setting: u64,
        expirations: u64,
    },
}

impl Found {
    pub(super) fn source(token: u64, flags: EventFlags) -> Found {
        let (key, level) = Key::of(token);
        let what = if level { What::Level } else { What::Edge };
        Found { key, flags, what }
    }

    pub(super) fn timer(key: Key, setting: u64, expirations: u64) -> Found {
        Found {
            key,
            flags: EventFlags::empty(),
            what: What::Timer {
                setting,
                expirations,
            },
        }
    }

    /// The source is there, the timer is set as it was.
    fn holds(&self, shared: &Shared) -> bool {
        match self.what {
            What::Timer { setting, .. } => shared.timers().holds(self.key, setting),
            _ => shared.registry.contains(self.key),
        }
    }

    /// Takes in what is known of the same source or timer from another wait.
    fn merge(&mut self, other: Found) {
        self.flags |= other.flags;
        self.what = match (self.what, other.what) {
            (
                What::Timer {
                    setting,
                    expirations,
                },
                What::Timer {
                    setting: other,
                    expirations: more,
                },
            ) if setting == other => What::Timer {
                setting,
                expirations: expirations + more,
            },
            (_, newer) => newer,
        };
    }

    /// Nobody reports it again.
    fn is_the_only_one(&self) -> bool {
        !matches!(self.what, What::Level)
    }
}

/// What one wait found, each source and each timer once.
#[derive(Default)]
pub(super) struct Findings {
    list: VecDeque<Found>,
    /// Where in the list those are that another wait found, and did not take. Empty, as a rule.
    returned: HashMap<Key, usize>,
    /// The first that the loop did not take last time. It comes first now, or a loop that takes one at a time would take the
    /// same again and again.
    next: Option<Key>,
}

impl Findings {
    pub(super) fn add(&mut self, found: Found) {
        if !self.returned.is_empty() {
            if let Some(&place) = self.returned.get(&found.key) {
                return self.list[place].merge(found);
            }
        }
        self.list.push_back(found);
    }

    pub(super) fn add_returned(&mut self, found: Found) {
        let place = self.list.len();
        self.add(found);
        if self.list.len() > place {
            self.returned.insert(found.key, place);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn any_holds(&self, shared: &Shared) -> bool {
        self.list.iter().any(|found| found.holds(shared))
    }

    /// What nobody reports again.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Found> + '_ {
        self.list.drain(..).filter(Found::is_the_only_one)
    }

    /// Goes on where the loop left off.
    pub(super) fn resume(&mut self) {
        if let Some(next) = self.next.take() {
            if let Some(place) = self.list.iter().position(|found| found.key == next) {
                self.list.rotate_left(place);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.returned.clear();
    }
}

/// A source that is ready, or a timer that has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    key: Key,
    readiness: Readiness,
    expirations: u64,
}

impl Event {
    /// Whose.
    pub fn key(&self) -> Key {
        self.key
    }

    /// What for; nothing, of a timer.
    pub fn readiness(&self) -> Readiness {
        self.readiness
    }

    /// Of a timer, how often it has expired since it was last reported: 1, or more of one that is
    /// [periodic](crate::Timer::set_every). 0 of everything else.
    pub fn expirations(&self) -> u64 {
        self.expirations
    }
}

/// What a wait found, to be taken one by one.
///
/// What is not taken is not lost: the next wait of any thread reports it. What was removed, cancelled or set anew meanwhile
/// (by the loop itself, for the event before, or by another thread) is not reported any more.
pub struct Ready<'a> {
    pub(super) shared: &'a Shared,
    pub(super) findings: &'a mut Findings,
    pub(super) notified: bool,
    pub(super) timed_out: bool,
}

impl Ready<'_> {
    /// Somebody has [notified](crate::WaitSet::notify) the set.
    pub fn is_notified(&self) -> bool {
        self.notified
    }

    /// The time has passed, and there was nothing.
    pub fn is_timed_out(&self) -> bool {
        self.timed_out
    }
}

impl Iterator for Ready<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            let found = self.findings.list.pop_front()?;
            if found.holds(self.shared) {
                return Some(Event {
                    key: found.key,
                    readiness: Readiness(found.flags),
                    expirations: match found.what {
                        What::Timer { expirations, .. } => expirations,
                        _ => 0,
                    },
                });
            }
        }
    }
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        self.findings.next = self.findings.list.front().map(|found| found.key);
        if self.findings.list.iter().any(Found::is_the_only_one) {
            self.shared.put_back(self.findings.drain());
        }
        self.findings.clear();
    }
}

impl fmt::Debug for Ready<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready")
            .field("left", &self.findings.len())
            .field("notified", &self.notified)
            .field("timed_out", &self.timed_out)
            .finish()
    }
}

//! Many lanes that move to another process: the end of whoever leaves.
//!
//! Each lane moves as that of a subscriber does, by itself. What the two processes have to say to each other goes over a link:
//! the tickets, and that the successor is there.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use memlane_transport::{Error as LinkError, Link};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{
    arriving::Arriving,
    gather::{Gather, Key},
    joining::Joining,
};
use crate::{Error, Subscriber, Ticket, Trust};

/// For how long those at the other ends of lanes are waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// For how long those are waited for that are not there yet at all.
const GRACE: Duration = Duration::from_millis(100);

/// What a publisher has at least to answer that it has been departed from, of that: who has not answered by then is lost to this end.
const ANSWER: Duration = Duration::from_secs(1);

/// There is no successor yet.
const UNATTENDED: &str = "nobody has come in time to go on";

/// What no descriptor tells of is tried again after that.
const PAUSE: Duration = Duration::from_millis(10);

/// From whoever leaves.
#[derive(Debug, Serialize)]
pub(super) enum HandedRef<'a> {
    /// A lane, which begins when it has been departed from.
    Lane {
        label: &'a str,
        lossy: bool,
        ticket: &'a Ticket,
    },
    /// It receives and lets in nobody any more, but what it has left of lanes.
    Departs,
    /// It stays.
    Stays,
}

/// [`HandedRef`], received.
#[derive(Debug, Deserialize)]
pub(super) enum Handed {
    Lane {
        label: String,
        lossy: bool,
        ticket: Ticket,
    },
    Departs,
    Stays,
}

/// From the successor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    /// It is there.
    Arrives,
}

/// A move that has begun.
#[derive(Debug)]
pub(crate) struct Leaving {
    link: Link,
    arrives: bool,
    departs: bool,
    lanes: HashMap<Key, Stage>,
    /// Why there is nobody to go on.
    void: Option<&'static str>,
}

/// How far a lane is.
#[derive(Debug)]
enum Stage {
    /// Its publisher is to give a ticket, and has been asked for one, or has no room for that yet.
    Asked { asked: bool, since: Instant },
    /// Which has come, and waits for room on the link.
    Ticket { ticket: Ticket, since: Instant },
    /// It has been passed on.
    Passed { since: Instant },
    /// Its successor waits.
    Awaited,
    /// The last word has been said.
    Departing { since: Instant },
    /// It does not move, and why.
    Stays(String),
}

/// What comes next of a lane that is departed from.
enum Step {
    /// Something will come, or not in time.
    Waits,
    /// It has moved, or is gone.
    Over,
    /// It cannot be left now, and why.
    Remains(String),
}

impl Leaving {
    pub(crate) fn new(link: Link) -> Leaving {
        Leaving {
            link,
            arrives: false,
            departs: false,
            lanes: HashMap::new(),
            void: None,
        }
    }

    /// Gets on with it, as far as that takes no waiting.
    ///
    /// # Errors
    ///
    /// There is nobody to go on any more: everything stays.
    pub(crate) fn advance<T: Trust>(
        &mut self,
        gather: &mut Gather<T>,
        labels: &HashMap<Key, String>,
    ) -> Result<(), Error> {
        self.hear();
        if let Some(why) = self.void {
            self.stay(gather);
            return Err(Error::stays(why));
        }
        self.lanes.retain(|key, _| gather.get(*key).is_some());
        for key in gather.keys().collect::<Vec<_>>() {
            if let Some(lane) = gather.get_mut(key) {
                self.pass_on(lane, key, labels);
            }
        }
        Ok(())
    }

    /// Whether all that can move has somebody who waits for it.
    pub(crate) fn is_awaited(&self) -> bool {
        let settled = |stage: &Stage| match stage {
            Stage::Awaited | Stage::Stays(_) => true,
            Stage::Asked { since, .. } | Stage::Ticket { since, .. } | Stage::Passed { since } => {
                since.elapsed() > PATIENCE
            }
            Stage::Departing { .. } => false,
        };
        self.arrives && self.lanes.values().all(settled)
    }

    /// Whether the successor has been told that it is its turn.
    pub(crate) fn departs(&self) -> bool {
        self.departs
    }

    /// Whether there is nobody to go on.
    pub(crate) fn is_void(&self) -> bool {
        self.void.is_some()
    }

    /// Takes everything back.
    pub(crate) fn stay<T: Trust>(&mut self, gather: &mut Gather<T>) {
        if !self.departs {
            let _ = self.link.try_send(&HandedRef::Stays);
        }
        for (key, _) in self.lanes.drain() {
            if let Some(lane) = gather.get_mut(key) {
                lane.do_not_leave();
            }
        }
    }

    /// Hears what the successor has said, and whether it is gone.
    pub(crate) fn hear(&mut self) {
        while self.void.is_none() {
            match self.link.try_recv() {
                Ok(Said::Arrives) => self.arrives = true,
                Err(LinkError::WouldBlock) => return,
                Err(_) => self.void = Some("whoever had its ticket is gone"),
            }
        }
    }

    /// As far as a lane gets before it is departed from.
    fn pass_on<T: Trust>(
        &mut self,
        lane: &mut Subscriber<T>,
        key: Key,
        labels: &HashMap<Key, String>,
    ) {
        let label = labels.get(&key).map_or("", String::as_str);
        let mut stage = self.lanes.remove(&key).unwrap_or_else(|| Stage::Asked {
            asked: false,
            since: Instant::now(),
        });
        loop {
            let next = match &mut stage {
                Stage::Asked { asked: true, .. } => match lane.given_ticket() {
                    Ok(None) => break,
                    Ok(Some(ticket)) => Stage::Ticket {
                        ticket,
                        since: Instant::now(),
                    },
                    Err(error) => Stage::Stays(why(&error)),
                },
                Stage::Asked { asked, .. } => match lane.ask_for_ticket() {
                    Ok(true) => {
                        *asked = true;
                        continue;
                    }
                    Ok(false) => break,
                    Err(error) => Stage::Stays(why(&error)),
                },
                Stage::Ticket { ticket, .. } => {
                    let lossy = lane.is_lossy();
                    match self.link.try_send(&HandedRef::Lane {
                        label,
                        lossy,
                        ticket,
                    }) {
                        Ok(()) => Stage::Passed {
                            since: Instant::now(),
                        },
                        // If there is nobody, that is heard.
                        Err(LinkError::WouldBlock) => break,
                        Err(error) if error.is_disconnected() => break,
                        // Its label is too long, say, or what its publisher has given is nothing that can be sent.
                        Err(error) => Stage::Stays(error.to_string()),
                    }
                }
                Stage::Passed { .. } => match lane.is_awaited() {
                    Ok(true) => Stage::Awaited,
                    Ok(false) => break,
                    Err(error) => Stage::Stays(why(&error)),
                },
                Stage::Awaited => match lane.is_awaited() {
                    Ok(_) => break,
                    Err(error) => Stage::Stays(why(&error)),
                },
                Stage::Departing { .. } | Stage::Stays(_) => break,
            };
            stage = next;
        }
        self.lanes.insert(key, stage);
    }

    /// Leaves every lane that can be left, each by itself; `joining` are those who are just being let in, `arriving` those that
    /// have not begun here yet.
    ///
    /// # Errors
    ///
    /// Something is left, and goes on here.
    pub(crate) fn depart<T: Trust>(
        &mut self,
        gather: &mut Gather<T>,
        labels: &mut HashMap<Key, String>,
        mut joining: Option<&mut Joining<T>>,
        arriving: &mut Option<Box<Arriving<T>>>,
    ) -> Result<(), Error> {
        let (begun, deadline) = (Instant::now(), Instant::now() + PATIENCE);
        loop {
            self.hear();
            if !self.departs && self.void.is_none() {
                self.departs = self.link.try_send(&HandedRef::Departs).is_ok();
            }
            let comes = joining.as_deref_mut().is_some_and(|joining| {
                // Without a successor they are let in here.
                self.void.is_none() && joining.finish_begun(gather)
            });
            let take = |arriving: &mut Box<Arriving<T>>| !arriving.take(gather, labels);
            arriving.take_if(take);
            let comes = comes || arriving.is_some() && self.void.is_none();
            let mut waits = !self.departs && self.void.is_none();
            let mut remains = None;
            if comes && begun.elapsed() < GRACE {
                waits = true;
            } else if comes {
                // However slow or hostile a client is.
                remains = Some("lanes are just coming here".to_owned());
            }
            let mut awaited = Vec::new();
            for key in gather.keys().collect::<Vec<_>>() {
                let buries = joining.is_some();
                match self.leave(gather, key, labels, buries, deadline - ANSWER) {
                    Step::Waits => awaited.push(key),
                    Step::Over => drop(gather.remove(key)),
                    Step::Remains(why) => remains = Some(why),
                }
            }
            waits |= !awaited.is_empty();
            if !waits {
                if let Some(why) = self.void {
                    self.stay(gather);
                    return Err(Error::stays(why));
                }
                return remains.map_or(Ok(()), |why| Err(Error::stays(why)));
            }
            if Instant::now() >= deadline {
                self.lose_departing(gather);
                let why = match self.arrives {
                    true => "those at the other ends of some lanes have not answered in time",
                    false => UNATTENDED,
                };
                return Err(Error::stays(why));
            }
            let lanes = awaited.iter().filter_map(|key| gather.get(*key));
            let lanes = lanes.map(|lane| lane.link().as_fd());
            let joining = joining.iter().flat_map(|joining| joining.begun());
            let fds = lanes.chain(joining.map(AsFd::as_fd));
            let fds = fds.chain(arriving.iter().flat_map(|arriving| arriving.sources()));
            wait_for_any(fds.chain([self.link.as_fd()]));
        }
    }

    /// A lane, at departure, which has to begin by then.
    fn leave<T: Trust>(
        &mut self,
        gather: &mut Gather<T>,
        key: Key,
        labels: &HashMap<Key, String>,
        buries: bool,
        last: Instant,
    ) -> Step {
        let Some(lane) = gather.get_mut(key) else {
            return Step::Over;
        };
        // Of one that is gone everything has been heard by now, and is to be received.
        let heard = lane.hear_out();
        if let Some(Stage::Departing { since }) = self.lanes.get(&key) {
            let since = *since;
            match (&heard, lane.has_departed()) {
                (_, Ok(true)) => {
                    self.lanes.remove(&key);
                    return Step::Over;
                }
                // What was in its way has come here by now.
                (_, Err(_)) => {
                    self.lanes.remove(&key);
                }
                (Err(error), Ok(false)) => {
                    lane.return_from_departure();
                    self.lanes.insert(key, Stage::Stays(why(error)));
                }
                (Ok(()), Ok(false)) if since.elapsed() > PATIENCE => {
                    // It does as it was told when it gets on.
                    self.lanes.remove(&key);
                    return Step::Over;
                }
                (Ok(()), Ok(false)) => return Step::Waits,
            }
        }
        if self.void.is_some() {
            return Step::Remains(String::new());
        }
        if let Err(error) = heard {
            // What it has sent is received here.
            return match buries && lane.is_empty() {
                true => Step::Over,
                false => Step::Remains(why(&error)),
            };
        }
        self.pass_on(lane, key, labels);
        let why = match self.lanes.get_mut(&key) {
            // Not before its successor is there: if its publisher ended meanwhile, nobody would have the rest.
            // Nor before that one knows that it is its turn, nor so late that nothing is heard of it any more.
            Some(Stage::Awaited) if !self.departs || Instant::now() >= last => return Step::Waits,
            Some(stage @ Stage::Awaited) => match lane.begin_departure() {
                Ok(true) => {
                    let since = Instant::now();
                    *stage = Stage::Departing { since };
                    return Step::Waits;
                }
                Ok(false) => return Step::Waits,
                Err(error) => why(&error),
            },
            Some(Stage::Passed { since }) if since.elapsed() > PATIENCE && !self.arrives => {
                UNATTENDED.to_owned()
            }
            Some(
                Stage::Asked { since, .. } | Stage::Ticket { since, .. } | Stage::Passed { since },
            ) if since.elapsed() > PATIENCE => {
                "whoever is at the other end of a lane has not answered in time".to_owned()
            }
            Some(Stage::Stays(why)) => why.clone(),
            _ => return Step::Waits,
        };
        Step::Remains(why)
    }

    /// Those of which it is not known whose they are: nobody can read on there but a successor.
    fn lose_departing<T: Trust>(&mut self, gather: &mut Gather<T>) {
        self.lanes.retain(|key, stage| {
            let departing = matches!(stage, Stage::Departing { .. });
            if departing {
                drop(gather.remove(*key));
            }
            !departing
        });
    }
}

/// Why a lane stays: what is made of that says so, too.
fn why(error: &Error) -> String {
    match error {
        Error::Stays { why } => why.clone(),
        Error::HungUp => "whoever is at the other end of a lane has hung up".to_owned(),
        error => error.to_string(),
    }
}

/// Waits until one of them may have something, for a short while.
fn wait_for_any<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>) {
    let fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let mut fds: Vec<PollFd<'_>> = fds.collect();
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: PAUSE.as_nanos() as i64,
    };
    match poll(&mut fds, Some(&pause)) {
        Ok(_) | Err(Errno::INTR) => {}
        // Out of memory, say: it is asked again all the same.
        Err(_) => std::thread::sleep(PAUSE),
    }
}

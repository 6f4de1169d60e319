//! An end of many lanes on its way to where another one stops, without waiting.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, epoll::EventFlags, poll};

use super::{
    arriving::Arriving,
    gather::{Gather, Key},
};
use crate::{
    Connecting, Error, NOW, Trust, after,
    connecting::{Attempts, Begun, Connects},
};

/// For how long a successor waits for lanes that are late, before it receives from the others.
const GRACE: Duration = Duration::from_millis(50);

/// An end of many lanes that goes on where another one stops.
pub trait Arrives: Sized {
    /// Readable when there is more to see to.
    fn watches(&self) -> &Arc<OwnedFd>;

    /// Sees to all that has come: what may be still to come.
    fn take(&mut self) -> More;

    /// The other receives no more.
    fn begin(&mut self) -> Result<(), Error>;
}

/// What may be still to come of an end that stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// That it stops.
    Departure,
    /// Lanes that are late.
    Lanes,
    Nothing,
    /// It has said that it goes on itself.
    Stays,
}

/// What an end does with its parts to see to all that has come.
pub(crate) fn take<T: Trust>(
    gather: &mut Gather<T>,
    labels: &mut HashMap<Key, String>,
    arriving: &mut Option<Box<Arriving<T>>>,
) -> More {
    let Some(lanes) = arriving else {
        return More::Nothing;
    };
    let more = lanes.take(gather, labels);
    if lanes.stays() {
        More::Stays
    } else if !more {
        *arriving = None;
        More::Nothing
    } else if lanes.has_departed() {
        More::Lanes
    } else {
        More::Departure
    }
}

/// One on its way.
#[derive(Debug)]
pub struct Arrival<E> {
    /// None once it is over.
    end: Option<E>,
    waited: Duration,
    /// Watches what the end watches.
    attempts: Attempts,
    departed: bool,
}

impl<E: Arrives + Connects<Begun = Arrival<E>>> Arrival<E> {
    pub(crate) fn begin(end: E, waited: Duration) -> Result<Connecting<E>, Error> {
        let mut attempts = Attempts::new(after(waited))?;
        attempts.watch(&**end.watches(), EventFlags::IN)?;
        attempts.set_timer()?;
        Ok(Connecting::new(Arrival {
            end: Some(end),
            waited,
            attempts,
            departed: false,
        }))
    }
}

impl<E: Arrives> Begun for Arrival<E> {
    type End = E;

    fn advance(&mut self) -> Result<Option<E>, Error> {
        let late = self.attempts.look();
        let Some(end) = &mut self.end else {
            return Ok(None);
        };
        let done = match end.take() {
            More::Nothing => true,
            More::Stays => return Err(Error::HungUp),
            More::Departure if late => {
                let waited = self.waited;
                return Err(Error::NotDeparted { waited });
            }
            More::Departure => false,
            More::Lanes if self.departed => late,
            More::Lanes => {
                self.departed = true;
                self.attempts.set_deadline(Instant::now() + GRACE);
                false
            }
        };
        if !done {
            let mut watched = [PollFd::new(end.watches(), PollFlags::IN)];
            if !matches!(poll(&mut watched, Some(&NOW)), Ok(0)) {
                // There is more, of which whoever waits for edges is not told.
                self.attempts.later();
            }
            self.attempts.set_timer()?;
            return Ok(None);
        }
        end.begin()?;
        self.attempts.forget(&**end.watches());
        Ok(self.end.take())
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        self.attempts.descriptor()
    }
}

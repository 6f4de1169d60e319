//! What a subscriber that is overwritten has been told of the publisher's memory. If it is stopped, there is no room for more on its
//! link some time; since nobody waits for it, it is told the rest once there is.

use crate::protocol::NoticeRef;

/// A part of the publisher's memory, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Segment(u32),
    Ring(u32),
}

/// As far as it has been told.
#[derive(Debug, Default)]
pub(super) struct Told {
    parts: Vec<Part>,
    behind: bool,
}

impl Told {
    /// Whether there is more to tell.
    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// It has been told of these, before it joined.
    pub(super) fn begin(&mut self, parts: impl Iterator<Item = Part>) {
        self.parts.extend(parts);
    }

    /// Tells it, if it knows all that came before; `send` says whether there was room. Whether it falls behind by this.
    pub(super) fn tell<E>(
        &mut self,
        notice: &NoticeRef<'_>,
        send: impl FnOnce(&NoticeRef<'_>) -> Result<bool, E>,
    ) -> Result<bool, E> {
        if self.behind {
            return Ok(false);
        }
        self.behind = !send(notice)?;
        if !self.behind {
            self.note(notice);
        }
        Ok(self.behind)
    }

    /// It knows a part that is none of what there is: if it was not told that this is given up, it is told with the rest.
    pub(super) fn owe(&mut self, part: Part) {
        if self.behind && !self.parts.contains(&part) {
            self.parts.push(part);
        }
    }

    /// Tells it what it does not know of what there is, and what there is no more, as long as there is room. Whether that was
    /// all.
    pub(super) fn catch_up<'a, E>(
        &mut self,
        there_is: impl Iterator<Item = (Part, NoticeRef<'a>)> + Clone,
        mut send: impl FnMut(&NoticeRef<'_>) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let known = self.parts.clone();
        let gone = |part: &Part| there_is.clone().all(|(there, _)| there != *part);
        let given_up = known.iter().copied().filter(gone).map(|part| match part {
            Part::Segment(id) => NoticeRef::Removed { id },
            Part::Ring(id) => NoticeRef::RingRemoved { id },
        });
        let new = there_is.clone().filter(|(part, _)| !known.contains(part));
        for notice in given_up.chain(new.map(|(_, notice)| notice)) {
            if !send(&notice)? {
                return Ok(false);
            }
            self.note(&notice);
        }
        self.behind = false;
        Ok(true)
    }

    fn note(&mut self, notice: &NoticeRef<'_>) {
        match *notice {
            NoticeRef::Added { id, .. } => self.parts.push(Part::Segment(id)),
            NoticeRef::Ring { id, .. } => self.parts.push(Part::Ring(id)),
            NoticeRef::Removed { id } => self.parts.retain(|part| *part != Part::Segment(id)),
            NoticeRef::RingRemoved { id } => self.parts.retain(|part| *part != Part::Ring(id)),
            // Of its end, of a message, or of a move.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, convert::Infallible, os::fd::OwnedFd};

    use memlane_transport::SharedFd;

    use super::*;

    /// What was sent, for as long as there was room.
    fn short(sent: &RefCell<Vec<String>>, notice: &NoticeRef<'_>, room: usize) -> bool {
        let mut sent = sent.borrow_mut();
        let fits = sent.len() < room;
        if fits {
            sent.push(match notice {
                NoticeRef::Ring { id, .. } => format!("+{id}"),
                NoticeRef::RingRemoved { id } => format!("-{id}"),
                other => format!("{other:?}"),
            });
        }
        fits
    }

    #[test]
    fn what_there_is_no_more_is_not_told_of() {
        let memory = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let memory = SharedFd::from(memory);
        let ring = |id| NoticeRef::Ring {
            id,
            memory: &memory,
        };
        let sent = RefCell::default();
        let mut told = Told::default();
        let tell = |told: &mut Told, notice: &NoticeRef<'_>, room| {
            let behind = told.tell(notice, |notice| {
                Ok::<_, Infallible>(short(&sent, notice, room))
            });
            behind.unwrap()
        };
        assert!(!tell(&mut told, &ring(1), 2));
        assert!(!tell(&mut told, &ring(2), 2));
        // The third finds no room, and what comes after it waits, even if there is some.
        assert!(tell(&mut told, &ring(3), 2));
        assert!(told.is_behind());
        assert!(!tell(&mut told, &NoticeRef::RingRemoved { id: 1 }, 9));
        assert!(!tell(&mut told, &NoticeRef::RingRemoved { id: 3 }, 9));
        assert!(!tell(&mut told, &ring(4), 9));
        // By now there are 2, 4 and 5: first what is gone, then what is new, in as many goes as it takes.
        let there_is = [2, 4, 5].map(|id| (Part::Ring(id), id));
        let there_is = || there_is.into_iter().map(|(part, id)| (part, ring(id)));
        let catch_up = |told: &mut Told, room| {
            let all = told.catch_up(there_is(), |notice| {
                Ok::<_, Infallible>(short(&sent, notice, room))
            });
            all.unwrap()
        };
        assert!(!catch_up(&mut told, 4));
        assert!(told.is_behind());
        assert!(catch_up(&mut told, 9));
        assert!(!told.is_behind());
        assert_eq!(*sent.borrow(), ["+1", "+2", "-1", "+4", "+5"]);
    }
}

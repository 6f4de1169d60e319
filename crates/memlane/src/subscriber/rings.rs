use std::os::fd::OwnedFd;

use memlane_region::{Remote, page_size};
use memlane_transport::dispose;

use crate::protocol::MAX_RINGS;

/// The publisher's rings, as far as they are mapped here; those of the one that goes on in its place included.
#[derive(Debug)]
pub(super) struct Rings {
    /// Bytes of each, once that is known, and of all that may be mapped.
    capacity: Option<usize>,
    quota: usize,
    /// Announced before it was.
    waiting: Vec<(u32, OwnedFd)>,
    mapped: Vec<(u32, Remote)>,
    first: Option<(u32, Remote)>,
    /// Why one is not here, though it was announced.
    refused: Option<String>,
}

impl Rings {
    pub(super) fn new(quota: usize) -> Rings {
        Rings {
            capacity: None,
            quota,
            waiting: Vec::new(),
            mapped: Vec::new(),
            first: None,
            refused: None,
        }
    }

    /// Begins with the first ring, whose capacity the others have.
    pub(super) fn begin(&mut self, id: u32, first: Remote, capacity: usize) {
        self.first = Some((id, first));
        self.capacity = Some(capacity);
        for (id, memory) in std::mem::take(&mut self.waiting) {
            self.insert(id, memory);
        }
    }

    /// Takes one that was announced.
    pub(super) fn insert(&mut self, id: u32, memory: OwnedFd) {
        let duplicate = self.is_first(id)
            || self.waiting.iter().any(|(other, _)| *other == id)
            || self.mapped.iter().any(|(other, _)| *other == id);
        if duplicate || self.is_full() {
            dispose(memory);
            self.refused = Some(match duplicate {
                true => format!("expected a new ring, got {id} once more"),
                false => format!("expected at most {MAX_RINGS} rings, got another one, {id}"),
            });
            return;
        }
        let Some(capacity) = self.capacity else {
            self.waiting.push((id, memory));
            return;
        };
        // The first one counts, too.
        let known = self.mapped.len() + 1;
        let left = self.quota.saturating_sub(known * capacity);
        let quota = if left < capacity {
            0
        } else {
            capacity + page_size()
        };
        match Remote::open(memory, page_size(), capacity, quota) {
            Ok(memory) => self.mapped.push((id, memory)),
            Err(refused) => {
                dispose(refused.descriptor);
                self.refused = Some(format!("ring {id}: {}", refused.error));
            }
        }
    }

    /// Unmaps one that was given up.
    pub(super) fn remove(&mut self, id: u32) {
        self.mapped.retain(|(other, _)| *other != id);
        if let Some(at) = self.waiting.iter().position(|(other, _)| *other == id) {
            dispose(self.waiting.remove(at).1);
        }
    }

    /// One of them, or the first.
    ///
    /// # Errors
    ///
    /// Why it is not here.
    pub(super) fn get(&self, id: u32) -> Result<Remote, String> {
        let mut known = self.first.iter().chain(&self.mapped);
        let known = known.find(|(other, _)| *other == id);
        known.map(|(_, memory)| memory.clone()).ok_or_else(|| {
            let why = self.refused.clone();
            why.unwrap_or_else(|| format!("expected a ring that was announced, got {id}"))
        })
    }

    /// Whether it is the first, of the publisher whose rings are read now.
    pub(super) fn is_first(&self, id: u32) -> bool {
        self.first.as_ref().is_some_and(|(first, _)| *first == id)
    }

    /// The first, and its id.
    pub(super) fn first(&self) -> Option<(u32, Remote)> {
        self.first.clone()
    }

    /// That one is the first from now on: the rings of its publisher are read.
    pub(super) fn settle(&mut self, id: u32) {
        let Some(at) = self.mapped.iter().position(|(other, _)| *other == id) else {
            return;
        };
        let first = self.mapped.remove(at);
        self.mapped.extend(self.first.replace(first));
    }

    /// Unmaps those of publishers before the one that is read, whose own ids begin with this one.
    pub(super) fn remove_before(&mut self, id: u32) {
        self.mapped.retain(|(other, _)| *other >= id);
    }

    /// Whether there may be no more.
    fn is_full(&self) -> bool {
        // Which one is the first is not known before there is a capacity.
        let first = usize::from(self.capacity.is_some());
        self.waiting.len() + self.mapped.len() + first >= MAX_RINGS
    }

    /// One that was announced is not to be had.
    pub(super) fn refuse(&mut self, id: u32, why: String) {
        self.remove(id);
        self.refused = Some(why);
    }

    /// Whether one that was announced could not be had.
    pub(super) fn is_short(&self) -> bool {
        self.refused.is_some()
    }

    /// Whether there is only the first.
    pub(super) fn is_empty(&self) -> bool {
        self.mapped.is_empty()
    }
}

/// What is closed here may be anything.
impl Drop for Rings {
    fn drop(&mut self) {
        for (_, memory) in self.waiting.drain(..) {
            dispose(memory);
        }
    }
}

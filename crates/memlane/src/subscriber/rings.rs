use std::os::fd::OwnedFd;

use memlane_region::{Remote, page_size};
use memlane_transport::dispose;

use crate::protocol::MAX_RINGS;

/// The publisher's rings other than the first, as far as they are mapped here.
#[derive(Debug)]
pub(super) struct Rings {
    /// Bytes of each, once that is known, and of all that may be mapped.
    capacity: Option<usize>,
    quota: usize,
    /// Announced before it was.
    waiting: Vec<(u32, OwnedFd)>,
    mapped: Vec<(u32, Remote)>,
    first: Option<Remote>,
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
    pub(super) fn begin(&mut self, first: Remote, capacity: usize) {
        self.first = Some(first);
        self.capacity = Some(capacity);
        for (id, memory) in std::mem::take(&mut self.waiting) {
            self.insert(id, memory);
        }
    }

    /// Takes one that was announced.
    pub(super) fn insert(&mut self, id: u32, memory: OwnedFd) {
        let known = self.waiting.len() + self.mapped.len();
        let duplicate = id == 0
            || self.waiting.iter().any(|(other, _)| *other == id)
            || self.mapped.iter().any(|(other, _)| *other == id);
        if duplicate || known + 1 >= MAX_RINGS {
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
        let left = self.quota.saturating_sub((known + 1) * capacity);
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
        let known = match id {
            0 => self.first.as_ref(),
            id => {
                let known = self.mapped.iter().find(|(other, _)| *other == id);
                known.map(|(_, memory)| memory)
            }
        };
        known.cloned().ok_or_else(|| {
            let why = self.refused.clone();
            why.unwrap_or_else(|| format!("expected a ring that was announced, got {id}"))
        })
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

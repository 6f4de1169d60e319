use super::{layout, roster::Kept};
use crate::{ring::Reader, words::WordsMut};

/// Where the last records are that a writer keeps for readers who join later.
#[derive(Debug)]
pub(super) struct History {
    /// The position of record *s* is at *s* modulo the length.
    positions: Box<[u64]>,
    /// The oldest one that is kept, as those are told who join.
    kept: Kept,
}

impl History {
    /// Notes a record.
    #[inline]
    pub(super) fn note(&mut self, sequence: u64, position: u64) {
        let records = self.positions.len() as u64;
        self.positions[(sequence % records) as usize] = position;
    }

    pub(super) fn kept(&self) -> Kept {
        self.kept
    }

    fn position(&self, sequence: u64) -> u64 {
        self.positions[(sequence % self.positions.len() as u64) as usize]
    }
}

impl<M: WordsMut, R: Reader> super::RingWriter<M, R> {
    /// Keeps the last `records` records from now on, or as many of them as fit into seven eighths of the ring, for readers who
    /// ask for them when they join ([`Roster::join_behind`](super::Roster::join_behind)). Costs a store for each record.
    ///
    /// # Panics
    ///
    /// If `records` is 0.
    pub fn keep(&mut self, records: usize) {
        assert!(records > 0, "a history of no records");
        // More than that there never are.
        let most = (self.capacity / layout::HEADER) as usize;
        let records = records.min(most);
        let kept = Kept {
            position: self.position,
            sequence: self.sequence,
            most: records as u64,
        };
        self.history = Some(Box::new(History {
            positions: vec![0; records].into(),
            kept,
        }));
        self.roster.set_history(kept);
    }

    /// How many records are kept now.
    pub fn kept(&self) -> u64 {
        let history = self.history.as_ref();
        history.map_or(0, |history| self.sequence - history.kept.sequence)
    }

    /// Gives up the older half of what is kept; what that was in memory, another one is free to take. Whether anything was.
    pub fn forget(&mut self) -> bool {
        self.advance_history(0);
        let kept = self.kept();
        self.keep_from(history_start(self.sequence, kept / 2));
        kept > 0
    }

    /// Gives up what is older than the last records that are to be kept, and what is in the way of `needed`. The position
    /// from which on records are kept.
    pub(super) fn advance_history(&mut self, needed: u64) -> u64 {
        let Some(history) = &self.history else {
            return u64::MAX;
        };
        let mut first = history_start(self.sequence, history.positions.len() as u64);
        first = first.max(history.kept.sequence);
        // An eighth of the ring at a time, so that this is not done for every record.
        let spared = match needed {
            0 => 0,
            needed => (needed + layout::step(self.capacity)).saturating_sub(self.capacity),
        };
        while first < self.sequence && history.position(first) < spared {
            first += 1;
        }
        self.keep_from(first)
    }

    fn keep_from(&mut self, first: u64) -> u64 {
        let (position, sequence) = (self.position, self.sequence);
        let Some(history) = &mut self.history else {
            return u64::MAX;
        };
        if first != history.kept.sequence {
            history.kept = Kept {
                sequence: first,
                position: match first {
                    first if first == sequence => position,
                    first => history.position(first),
                },
                ..history.kept
            };
            self.roster.set_history(history.kept);
        }
        history.kept.position
    }
}

/// The first of the last `records` of so many.
fn history_start(sequence: u64, records: u64) -> u64 {
    sequence.saturating_sub(records)
}

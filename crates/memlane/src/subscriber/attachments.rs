//! Attachments of messages, as they come over the link.

use std::collections::VecDeque;

use memlane_transport::Fds;

use crate::{AttachmentError, protocol::MAX_ATTACHED};

/// What a message has beside its bytes.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) fds: Result<Fds, AttachmentError>,
    /// Links in values are taken as such: the publisher is trusted.
    pub(super) adopts: bool,
}

impl Attached {
    pub(super) fn new(fds: Result<Fds, AttachmentError>, adopts: bool) -> Box<Attached> {
        Box::new(Attached { fds, adopts })
    }
}

/// Attachments that have come, and whose message has not.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    /// By position, which grows; the last attempt of each.
    kept: VecDeque<Kept>,
    /// How many have been taken from the link, and how many of those the publisher has been told are done with.
    taken: u64,
    told: u64,
}

#[derive(Debug)]
struct Kept {
    position: u64,
    tag: u16,
    fds: Fds,
}

impl Attachments {
    /// Keeps what has come. It makes void what came for the same message before, and what came for later ones, which no
    /// publisher sends first. Nor does one send more than this before some are done with.
    pub(super) fn keep(&mut self, position: u64, tag: u16, fds: Fds) {
        self.taken += 1;
        let later = |kept: &Kept| kept.position >= position;
        while self.kept.back().is_some_and(later) {
            self.kept.pop_back();
        }
        if self.kept.len() < MAX_ATTACHED {
            self.kept.push_back(Kept { position, tag, fds });
        }
    }

    /// Forgets what belongs to messages before this position: it was void, or they were missed.
    pub(super) fn forget_before(&mut self, position: u64) {
        let before = |kept: &Kept| kept.position < position;
        while self.kept.front().is_some_and(before) {
            self.kept.pop_front();
        }
    }

    /// Whether there is no use in taking more for the message at this position, since that has come which follows it.
    pub(super) fn are_ahead_of(&self, position: u64) -> bool {
        self.kept
            .back()
            .is_some_and(|kept| kept.position > position)
    }

    fn find(&self, position: u64, tag: u16) -> Option<usize> {
        let found = |kept: &Kept| kept.position == position && kept.tag == tag;
        self.kept.iter().position(found)
    }

    /// Whether those of this message have come.
    pub(super) fn have(&self, position: u64, tag: u16) -> bool {
        self.find(position, tag).is_some()
    }

    /// Those of this message, if they have come. Those before are forgotten.
    pub(super) fn take(&mut self, position: u64, tag: u16) -> Option<Fds> {
        let found = self.find(position, tag)?;
        self.kept.drain(..found);
        self.kept.pop_front().map(|kept| kept.fds)
    }

    /// How many have been taken from the link, for another to go on at this position; none if some of them belong to messages
    /// from there on.
    pub(super) fn all_done(&self, position: u64) -> Option<u64> {
        let later = |kept: &Kept| kept.position >= position;
        (!self.kept.iter().any(later)).then_some(self.taken)
    }

    /// With how many a subscriber that is at this position is done, if the publisher does not know: with those taken from the
    /// link, but for the ones that belong to later messages.
    pub(super) fn untold(&mut self, position: u64) -> Option<u64> {
        let later = |kept: &&Kept| kept.position > position;
        let done = self.taken - self.kept.iter().filter(later).count() as u64;
        (done > self.told).then(|| {
            self.told = done;
            done
        })
    }
}

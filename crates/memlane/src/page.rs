//! Where the control words of a lane lie. Each word has one writer for ever.

#[cfg(test)]
use memlane_signaling::CARRIED;

/// In the first page of the publisher's region: what it waits for, 0 if it does not
/// ([`RingWriter::want`](memlane_region::ring::RingWriter::want)). The publisher stores, subscribers load.
pub(crate) const WANTED: usize = 0;

/// Such a word of a publisher that waits for a hold slot, or until attachments are taken: no cursor ever gets there.
pub(crate) const A_SLOT: u64 = u64::MAX;

/// In the first page of the publisher's region: how often it has said that it is alive
/// ([`Publisher::assert_alive`](crate::Publisher::assert_alive)). The publisher stores, subscribers load that wait for signs
/// of life. A cache line of its own: what is beside it is loaded all the time.
pub(crate) const ALIVE: usize = 128;

/// In the first page of the publisher's region: how far it is, for lossy readers
/// ([`RingWriter::with_laps`](memlane_region::ring::RingWriter::with_laps)), [`LAP_WORDS`](memlane_region::ring::LAP_WORDS)
/// bytes in one cache line. The publisher stores, lossy subscribers load.
pub(crate) const LAPS: usize = 256;

/// In a subscriber's control page: its cursor. The subscriber stores, the publisher loads.
pub(crate) const CURSOR: usize = 0;

/// In a subscriber's control page, beside the cursor: how many hold slots it has ever used, from the first on. The
/// subscriber stores, the publisher loads.
pub(crate) const HOLDS_USED: usize = 8;

/// In a subscriber's control page: its armed flag. The subscriber stores, the publisher loads, after every
/// message. Two cache lines away from the cursor (processors prefetch them in pairs), which changes all
/// the time.
pub(crate) const SUBSCRIBER_ARMED: usize = 128;

/// In a subscriber's control page: how many notices of attachments it has taken from its link. The subscriber stores, the
/// publisher loads when it is about to send another.
pub(crate) const TAKEN: usize = 256;

/// In a subscriber's control page: its hold slots, [`HOLD_SLOTS`](memlane_region::pool::HOLD_SLOTS) words. The
/// subscriber stores, the publisher loads when it looks for chunks that are free again.
pub(crate) const HOLDS: usize = 512;

/// The smallest page holds them all.
const _: () = assert!(HOLDS + 8 * memlane_region::pool::HOLD_SLOTS <= 4096);

#[cfg(test)]
documented!(
    WANTED,
    A_SLOT,
    ALIVE,
    LAPS,
    CURSOR,
    HOLDS_USED,
    SUBSCRIBER_ARMED,
    CARRIED,
    TAKEN,
    HOLDS
);

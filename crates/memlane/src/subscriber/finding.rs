//! What comes next.

use memlane_region::{
    Remote,
    ring::{Look, RingReader},
};
use memlane_transport::Link;

use super::{NoMessage, Why, chunks::Chunks, lossy::Lossy, page::Page};

/// So many rings with nothing in them are gone through in one go: more than notices of a publisher that moves fit a link.
const MAX_SWITCHES: usize = 1024;

/// The next message, which is found, and will be found again until it is given out.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// In the ring: its length.
    InRing(usize),
    /// More than that: it is [noted](Chunks::noted).
    Noted,
    /// Taken from a ring that does not wait.
    Taken,
}

/// What comes next in a ring, or in one that does not wait.
#[inline(always)]
pub(super) fn next(
    ring: &mut RingReader<Remote, Page>,
    lossy: &mut Option<Box<Lossy>>,
    chunks: &mut Chunks,
    link: &Link,
) -> Result<Option<Next>, NoMessage> {
    if lossy.is_none() {
        match ring.look() {
            Look::Payload(len) => return Ok(Some(Next::InRing(len))),
            Look::Nothing => return Ok(None),
            Look::Other => {}
        }
    }
    next_of_others(ring, lossy, chunks, link)
}

/// What comes next where that is more than a payload in a ring. Kept apart from the hot path, which would move the many forms of
/// it through memory.
#[inline(never)]
fn next_of_others(
    ring: &mut RingReader<Remote, Page>,
    lossy: &mut Option<Box<Lossy>>,
    chunks: &mut Chunks,
    link: &Link,
) -> Result<Option<Next>, NoMessage> {
    if let Some(lossy) = lossy {
        let found = lossy.poll(chunks, link, ring.page().holds());
        if let Some(home) = chunks.homes.come() {
            ring.page_mut().settle(*home);
        }
        return found;
    }
    match ring.poll_record() {
        Ok(None) if ring.ends() => go_on(ring, chunks, link),
        Ok(None) => Ok(None),
        Ok(Some(record)) => Ok(Some(chunks.note(record))),
        Err(corrupt) => Err(Why::Corrupt(corrupt).into()),
    }
}

/// What comes next where a ring ends: it is in another. That may end there and then, if its publisher has moved on at once. Where there
/// are more of them than it goes through in one go, the ring [ends](RingReader::ends) still.
#[cold]
fn go_on(
    ring: &mut RingReader<Remote, Page>,
    chunks: &mut Chunks,
    link: &Link,
) -> Result<Option<Next>, NoMessage> {
    for _ in 0..MAX_SWITCHES {
        let Some(following) = ring.switched() else {
            return Ok(None);
        };
        // If that is another publisher's, what is the other's goes before more of this one's comes.
        chunks.take_ring(following, link, ring.position());
        chunks.come_to(following);
        // After that has said where this reader is: a publisher that goes on without it, and did not know by then, has said so.
        chunks.take_all(link, ring.position()).map_err(Why::Chunk)?;
        if let Some(done) = chunks.attachments.untold(ring.position()) {
            ring.page().took(done);
        }
        if let Some(reason) = chunks.ended(ring.position()) {
            ring.stop();
            if ring.page().holds().taken() == 0 {
                // What was left to this reader is the publisher's again.
                link.hang_up();
            } else if chunks.is_broken() {
                ring.leave();
            }
            return Err(Why::Disconnected(reason).into());
        }
        ring.follow(chunks.ring(following).map_err(Why::Chunk)?);
        chunks.reads = following;
        if let Some(home) = chunks.homes.come() {
            ring.page_mut().settle(*home);
        }
        match ring.poll_record() {
            Ok(None) if ring.ends() => {}
            Ok(None) => return Ok(None),
            Ok(Some(record)) => return Ok(Some(chunks.note(record))),
            Err(corrupt) => return Err(Why::Corrupt(corrupt).into()),
        }
    }
    Ok(None)
}

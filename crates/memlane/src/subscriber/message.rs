use std::{fmt, marker::PhantomData, ops::Deref};

use memlane_region::{Remote, pool::HOLD_SLOTS, ring::RingReader};
use memlane_transport::Fds;

use super::{
    Held, Trust,
    elsewhere::{Bytes, Elsewhere, Place},
    page::Page,
    trust::Trusted,
};
use crate::AttachmentError;

/// A message, in place, in the publisher's memory. Dropping it releases that memory to be written again. (A short one of a
/// subscriber that is [overwritten](crate::Overflow::Overwrite) is a copy already.)
///
/// Its bytes are copied out, since the publisher, if it is broken or hostile, may be changing them: what is
/// checked must be the copy. Over a [`Trusted`] publisher it is a `&[u8]` as well.
#[must_use = "a message is released when it is dropped"]
pub struct Message<'a, T: Trust = super::Untrusted> {
    /// Of a reader that is overwritten, one that never found anything, and has nothing to release.
    ring: &'a mut RingReader<Remote, Page>,
    len: usize,
    sequence: u64,
    /// What is more than a payload in the ring.
    elsewhere: Option<&'a mut Elsewhere>,
    trust: PhantomData<T>,
}

impl<'a, T: Trust> Message<'a, T> {
    #[inline(always)]
    pub(super) fn in_ring(
        ring: &'a mut RingReader<Remote, Page>,
        len: usize,
        sequence: u64,
    ) -> Message<'a, T> {
        Message {
            ring,
            len,
            sequence,
            elsewhere: None,
            trust: PhantomData,
        }
    }

    #[inline(always)]
    pub(super) fn elsewhere(
        ring: &'a mut RingReader<Remote, Page>,
        len: usize,
        sequence: u64,
        elsewhere: &'a mut Elsewhere,
    ) -> Message<'a, T> {
        Message {
            ring,
            len,
            sequence,
            elsewhere: Some(elsewhere),
            trust: PhantomData,
        }
    }

    /// How many messages its publisher had sent before it: the first one of all is 0. (Too few, by what the other had received,
    /// for a subscriber that [took the place](crate::Ticket) of one that was killed; and in a queue, each sender counts its own.)
    #[inline]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How many messages were missed right before it: between the one that was received before, or the moment that it
    /// subscribed, and this one. Always 0, unless the subscriber is [overwritten](crate::Overflow::Overwrite).
    #[inline]
    pub fn missed(&self) -> u64 {
        self.elsewhere.as_ref().map_or(0, |more| more.missed)
    }

    /// Its length in bytes, which does not change.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)] // below
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes. Messages may be empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies it into `dst`, or as much of it as `dst` holds; how many bytes that was.
    #[inline(always)]
    pub fn copy_to(&self, dst: &mut [u8]) -> usize {
        let len = self.len.min(dst.len());
        self.read(0, &mut dst[..len]);
        len
    }

    /// Copies `dst.len()` bytes from `offset` on.
    ///
    /// # Panics
    ///
    /// If the message ends before that.
    #[inline]
    pub fn read_at(&self, offset: usize, dst: &mut [u8]) {
        let len = dst.len();
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes from {offset} on, of a message of {}",
            self.len
        );
        self.read(offset, dst);
    }

    /// A copy of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut copy = vec![0; self.len];
        self.read(0, &mut copy);
        copy
    }

    /// Replaces the contents of `copy` by a copy of it, without allocating where they fit.
    #[inline]
    pub fn copy_into(&self, copy: &mut Vec<u8>) {
        copy.resize(self.len, 0);
        self.read(0, copy);
    }

    /// Whether it came with attachments that have not been [taken](Message::take_attachments).
    pub fn has_attachments(&self) -> bool {
        let elsewhere = self.elsewhere.as_ref();
        elsewhere.is_some_and(|elsewhere| elsewhere.attached.is_some())
    }

    /// The attachments of the message, in the order in which they were attached, close-on-exec; none if it has none, or if they
    /// were taken before. Of which kind they are, nobody has checked: [`transport::Typed`](crate::transport::Typed) and
    /// [`region`](crate::region) do that. What is not taken is closed when the message is dropped, by
    /// [`dispose`](crate::transport::dispose), as is what is dropped in the [`Fds`].
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let mut subscriber = memlane::Subscriber::builder().over(link.1)?;
    /// # let (memory, bell) = (memlane::region::Region::copy_of("samples", b"x")?.freeze()?, rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?);
    /// # let memory = std::os::fd::AsFd::as_fd(&memory).try_clone_to_owned()?;
    /// # publisher.send_with(b"two", &vec![memory, bell].into())?;
    /// use memlane::transport::{EventFd, MemoryFd};
    ///
    /// let mut message = subscriber.recv()?;
    /// let mut attachments = message.take_attachments()?.into_fds().expect("nobody else has them").into_iter();
    /// let memory: MemoryFd = attachments.next().expect("a first one").try_into()?; // or an error that says what it is
    /// let bell: EventFd = attachments.next().expect("a second one").try_into()?;
    /// # drop((memory, bell));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`AttachmentError`]: they cannot be had. The message's bytes can.
    pub fn take_attachments(&mut self) -> Result<Fds, AttachmentError> {
        self.take_attached().map(|(fds, _)| fds)
    }

    /// The attachments, and whether links among them are taken as such.
    pub(crate) fn take_attached(&mut self) -> Result<(Fds, bool), AttachmentError> {
        let elsewhere = self.elsewhere.as_mut();
        match elsewhere.and_then(|elsewhere| elsewhere.attached.take()) {
            None => Ok((Fds::default(), false)),
            Some(attached) => Ok((attached.fds?, attached.adopts)),
        }
    }

    /// Keeps it beyond the next one, and its attachments. A long message stays where it is, a short one is copied.
    ///
    /// # Errors
    ///
    /// The message, if it is a long one and 64 of them are held already (63, if the subscriber is
    /// [overwritten](crate::Overflow::Overwrite)): drop one of those, or copy this one.
    pub fn hold(mut self) -> Result<Held<T>, Message<'a, T>> {
        let holds = self.ring.page().holds();
        let Some(elsewhere) = &mut self.elsewhere else {
            return Ok(Held::copy(self.to_vec(), None));
        };
        match &elsewhere.place {
            Place::Ring | Place::Copy => {
                let attached = elsewhere.attached.take();
                Ok(Held::copy(self.to_vec(), attached))
            }
            Place::Chunk(chunk) => match chunk.chunk().hold(holds) {
                // Before the record is released, which dropping `self` does.
                Ok(held) => Ok(Held::chunk(held, elsewhere.attached.take())),
                Err(_) => Err(self),
            },
            // The next one needs a slot before it is looked at.
            Place::Held(_) if holds.taken() == HOLD_SLOTS => Err(self),
            Place::Held(_) => match std::mem::take(&mut elsewhere.place) {
                Place::Held(chunk) => Ok(Held::chunk(chunk, elsewhere.attached.take())),
                _ => unreachable!("looked at above"),
            },
        }
    }

    #[inline(always)]
    fn read(&self, offset: usize, dst: &mut [u8]) {
        match &self.elsewhere {
            None => self.ring.read(offset, dst),
            Some(elsewhere) => self.read_elsewhere(elsewhere, offset, dst),
        }
    }

    #[inline(never)]
    fn read_elsewhere(&self, elsewhere: &Elsewhere, offset: usize, dst: &mut [u8]) {
        match elsewhere.bytes() {
            Bytes::Ring => self.ring.read(offset, dst),
            Bytes::Chunk(chunk) => chunk.read(offset, dst),
            Bytes::Copy(bytes) => dst.copy_from_slice(&bytes[offset..][..dst.len()]),
        }
    }
}

impl Deref for Message<'_, Trusted> {
    type Target = [u8];

    #[allow(unsafe_code)]
    #[inline(always)]
    fn deref(&self) -> &[u8] {
        let elsewhere = self.elsewhere.as_ref();
        // SAFETY: whoever made this subscriber a trusted one promised that the publisher does not write a
        // record, or the chunk it names, before it is released (`SubscriberBuilder::trust_publisher`), and it is
        // released on drop; nor a chunk that a slot keeps, as one does while `self` lives.
        unsafe {
            match elsewhere.map_or(Bytes::Ring, |elsewhere| elsewhere.bytes()) {
                Bytes::Ring => self.ring.payload(self.len),
                Bytes::Chunk(chunk) => chunk.bytes(),
                Bytes::Copy(bytes) => &bytes[..self.len],
            }
        }
    }
}

impl<T: Trust> Drop for Message<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.ring.release();
        if let Some(elsewhere) = &mut self.elsewhere {
            elsewhere.clear();
        }
    }
}

impl<T: Trust> fmt::Debug for Message<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("len", &self.len)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

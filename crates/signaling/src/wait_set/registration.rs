use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::epoll::{self, EventData},
    io::Errno,
};

use super::{Interest, Key, Shared, Trigger};

/// A source's place in a [`WaitSet`](crate::WaitSet). Dropping it takes the source out.
///
/// It has a descriptor of its own for the source, which nobody else can close: that is the one the kernel watches, and it is
/// taken out (EPOLL_CTL_DEL) before it is closed, whatever became of the one it was made from. So a number that is used again
/// is never taken for the source that had it before, and a peer that keeps a copy of the source keeps no events coming.
///
/// The source itself stays open until the registration is dropped: drop both to hang up on somebody.
pub struct Registration {
    shared: Arc<Shared>,
    key: Key,
    watched: OwnedFd,
}

impl Registration {
    pub(super) fn new(
        shared: &Arc<Shared>,
        source: BorrowedFd<'_>,
        interest: Interest,
        trigger: Trigger,
    ) -> Result<Registration, AddError> {
        let watched = source.try_clone_to_owned().map_err(AddError::of_clone)?;
        let key = shared.registry.insert();
        let added = epoll::add(
            &shared.epoll,
            &watched,
            token(key, trigger),
            interest.flags(trigger),
        );
        if let Err(error) = added {
            shared.registry.remove(key);
            return Err(AddError::of_add(error));
        }
        Ok(Registration {
            shared: shared.clone(),
            key,
            watched,
        })
    }

    /// Under which it reports.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Watches for something else, or in another way, from now on; and looks anew: what is ready is reported, also where it
    /// was before ([`Trigger::Edge`]), and again ([`Trigger::OneShot`]).
    ///
    /// # Errors
    ///
    /// The kernel's; none is known.
    pub fn modify(&self, interest: Interest, trigger: Trigger) -> io::Result<()> {
        Ok(epoll::modify(
            &self.shared.epoll,
            &self.watched,
            token(self.key, trigger),
            interest.flags(trigger),
        )?)
    }

    /// Takes the source out. Waits that begin after this do not report it; one that is under way may have begun to.
    ///
    /// Dropping does the same.
    pub fn remove(self) {}
}

/// The source.
impl AsFd for Registration {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // First, or a wait would find it ready, and not there, again and again. It cannot fail: the descriptor is this value's.
        let _ = epoll::delete(&self.shared.epoll, &self.watched);
        self.shared.registry.remove(self.key);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("key", &self.key)
            .field("watched", &self.watched)
            .finish()
    }
}

fn token(key: Key, trigger: Trigger) -> EventData {
    EventData::new_u64(key.token(trigger == Trigger::Level))
}

/// Why a source was not added. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// It is of a kind that is always ready.
    #[error(
        "expected a descriptor that can be waited for (a socket, pipe, eventfd, pidfd, lane end ...), got a regular file, a \
         directory, or another that is always ready"
    )]
    AlwaysReady,
    /// It is the set itself, or waits for it, or there are too many sets in one another.
    #[error(
        "expected a source that does not wait for this set, and at most 5 sets in one another, got one that would exceed that"
    )]
    Nested,
    /// A limit was reached: descriptors of this process or of the machine, watched descriptors of this user, memory.
    #[error("{what}: {error}")]
    Limit {
        /// Which.
        what: &'static str,
        /// The kernel's error.
        error: io::Error,
    },
    /// The kernel's, for another reason.
    #[error("watching a descriptor: {0}")]
    Os(#[source] io::Error),
}

impl AddError {
    fn of_clone(error: io::Error) -> AddError {
        let what = match Errno::from_io_error(&error) {
            // INVAL: not even the lowest number that is asked for is below the limit.
            Some(Errno::MFILE | Errno::INVAL) => {
                "a source takes one more descriptor of this process (RLIMIT_NOFILE)"
            }
            Some(Errno::NFILE) => {
                "a source takes one more descriptor of this machine (fs.file-max)"
            }
            Some(Errno::NOMEM) => "a source takes memory of the kernel",
            _ => return AddError::Os(error),
        };
        AddError::Limit { what, error }
    }

    fn of_add(error: Errno) -> AddError {
        let what = match error {
            Errno::PERM => return AddError::AlwaysReady,
            Errno::LOOP | Errno::INVAL => return AddError::Nested,
            Errno::NOSPC => "a source takes one of this user's watches (fs.epoll.max_user_watches)",
            Errno::NOMEM => "a source takes memory of the kernel",
            _ => return AddError::Os(error.into()),
        };
        AddError::Limit {
            what,
            error: error.into(),
        }
    }
}

/// With the kind of what happened.
impl From<AddError> for io::Error {
    fn from(error: AddError) -> io::Error {
        let kind = match &error {
            AddError::AlwaysReady | AddError::Nested => io::ErrorKind::InvalidInput,
            AddError::Limit { error, .. } | AddError::Os(error) => error.kind(),
        };
        io::Error::new(kind, error)
    }
}

use std::{
    fmt,
    ops::{BitOr, BitOrAssign},
};

use rustix::event::epoll::EventFlags;

/// What a source is watched for; `|` makes one of several. That it was hung up on both ways, or that it has an error, is
/// reported always.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[doc(alias = "epoll_event")]
pub struct Interest(EventFlags);

impl Interest {
    /// That there is something to read, or to accept; that an eventfd counts, a process has ended, a lane's end wants to be
    /// looked at.
    #[doc(alias = "EPOLLIN")]
    pub const READABLE: Interest = Interest(EventFlags::IN);
    /// That there is room to write.
    #[doc(alias = "EPOLLOUT")]
    pub const WRITABLE: Interest = Interest(EventFlags::OUT);
    /// That there is something exceptional (urgent bytes, a change in sysfs).
    #[doc(alias = "EPOLLPRI")]
    pub const PRIORITY: Interest = Interest(EventFlags::PRI);
    /// That the other end of a socket will send nothing more. By itself: presence, while whatever is there to read can wait.
    #[doc(alias = "EPOLLRDHUP")]
    pub const HANG_UP: Interest = Interest(EventFlags::RDHUP);

    pub(super) fn flags(self, trigger: Trigger) -> EventFlags {
        self.0
            | match trigger {
                Trigger::Level => EventFlags::empty(),
                Trigger::Edge => EventFlags::ET,
                Trigger::OneShot => EventFlags::ONESHOT,
            }
    }
}

impl BitOr for Interest {
    type Output = Interest;

    fn bitor(self, other: Interest) -> Interest {
        Interest(self.0 | other.0)
    }
}

impl BitOrAssign for Interest {
    fn bitor_assign(&mut self, other: Interest) {
        *self = *self | other;
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interest(")?;
        bitflags_names(self.0, f)?;
        f.write_str(")")
    }
}

/// When a source is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// By each wait, for as long as it is ready. Nothing is lost by taking a part of what is there. Where several threads wait,
    /// several may be told of the same.
    #[default]
    Level,
    /// Once each time that something is added. Take all there is, until the call says that it would block. One thread is told
    /// of each.
    Edge,
    /// Once, by one thread, and then not before [`Registration::modify`](crate::Registration::modify) arms it again: for
    /// threads that share the work.
    OneShot,
}

/// What a source is ready for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Readiness(pub(super) EventFlags);

impl Readiness {
    /// It can be read from. At the end of what there is to read, too.
    pub fn is_readable(self) -> bool {
        self.0.contains(EventFlags::IN)
    }

    /// It can be written to.
    pub fn is_writable(self) -> bool {
        self.0.contains(EventFlags::OUT)
    }

    /// Something exceptional is there.
    pub fn is_priority(self) -> bool {
        self.0.contains(EventFlags::PRI)
    }

    /// The other end was closed, or will at least send nothing more (the latter only where there was
    /// [interest](Interest::HANG_UP)). What it sent before can still be read.
    pub fn is_hung_up(self) -> bool {
        self.0.intersects(EventFlags::HUP | EventFlags::RDHUP)
    }

    /// It has an error, which the next call on it tells.
    pub fn is_error(self) -> bool {
        self.0.contains(EventFlags::ERR)
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readiness(")?;
        bitflags_names(self.0, f)?;
        f.write_str(")")
    }
}

fn bitflags_names(flags: EventFlags, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let names = [
        (EventFlags::IN, "readable"),
        (EventFlags::OUT, "writable"),
        (EventFlags::PRI, "priority"),
        (EventFlags::HUP | EventFlags::RDHUP, "hang-up"),
        (EventFlags::ERR, "error"),
    ];
    let mut first = true;
    for (_, name) in names.iter().filter(|(flag, _)| flags.intersects(*flag)) {
        write!(f, "{}{name}", if first { "" } else { " | " })?;
        first = false;
    }
    Ok(())
}

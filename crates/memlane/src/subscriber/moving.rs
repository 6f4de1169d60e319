//! What a publisher says of moves.

use memlane_transport::Fd;

use crate::protocol::Notice;

/// What a publisher says of a subscriber's move to another process, or from one.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// Of the ticket that was asked for last; what is said of others is late.
    pub(super) number: u32,
    /// The link that was asked for.
    pub(super) ticket: Option<Fd>,
    /// Somebody waits to begin.
    pub(super) awaited: bool,
    /// Somebody else has the lane.
    pub(super) departed: bool,
    /// Why there is no move.
    pub(super) stays: Option<String>,
    /// Where to begin: position, sequence, ring.
    pub(super) begin: Option<(u64, u64, u32)>,
}

impl Moving {
    /// Of another ticket, from now on.
    pub(super) fn next(&mut self) -> u32 {
        *self = Moving {
            number: self.number.wrapping_add(1),
            ..Moving::default()
        };
        self.number
    }

    /// Takes a notice, or gives back one that has nothing to do with moves.
    pub(super) fn take(&mut self, notice: Notice) -> Result<(), Notice> {
        match notice {
            Notice::Ticket { number, link } if number == self.number => self.ticket = Some(link),
            Notice::Awaited { number } if number == self.number => self.awaited = true,
            Notice::Departed => self.departed = true,
            Notice::Stays { number, why } if number == self.number => self.stays = Some(why),
            Notice::Ticket { .. } | Notice::Awaited { .. } | Notice::Stays { .. } => {}
            Notice::Begin {
                start,
                sequence,
                at,
            } => self.begin = Some((start, sequence, at)),
            other => return Err(other),
        }
        Ok(())
    }
}

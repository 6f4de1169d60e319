//! What it takes for a reader to sleep until there is a new value: a flag that says it does, in a page that it alone
//! writes, and a doorbell that the writer rings if the flag is set.
//!
//! ```text
//! reader                                      writer
//!   Sleeper::new, send the Offer  --------->    Peer::open, join the cell's roster
//!   until_changed                 <---------    "you have joined"
//!                                               after each update: wake
//! ```

use anyhow::ensure;
use memlane_region::{
    Remote, Shared,
    latest::{LatestReader, Watcher},
    page_size,
};
use memlane_signaling::{Armed, Backing, Doorbell, Ringer, Rung, Waiter, Woken};
use memlane_transport::{Fd, Link};
use serde::{Deserialize, Serialize};

/// Where in the page the flag is.
const ARMED: usize = 0;

/// What a reader that wants to sleep sends to the writer.
#[derive(Serialize, Deserialize)]
pub(crate) struct Offer {
    page: Fd,
    doorbell: Fd,
}

/// The reader's side.
pub(crate) struct Sleeper {
    page: Shared,
    armed: Armed,
    waiter: Waiter,
    doorbell: Doorbell,
}

impl Sleeper {
    /// Over the link it learns of the writer's death. It must not sleep before the writer has taken the offer: an
    /// update just before that would wake nobody.
    pub(crate) fn new(link: &Link) -> anyhow::Result<(Sleeper, Offer)> {
        let (page, descriptor) = Shared::create("pose-reader", 1, 0)?;
        let (doorbell, ringer) = Doorbell::new(Backing::Socket)?;
        let waiter = Waiter::new(&doorbell)?;
        waiter.watch_link(link)?;
        let offer = Offer {
            page: descriptor.into(),
            doorbell: ringer.into(),
        };
        let sleeper = Sleeper {
            page,
            armed: Armed::new(),
            waiter,
            doorbell,
        };
        Ok((sleeper, offer))
    }

    /// Sleeps until there is a newer value than the one that `reader` has read last.
    pub(crate) fn until_changed(&mut self, reader: &LatestReader) -> anyhow::Result<()> {
        while !reader.changed() {
            self.armed.arm(self.page.word(ARMED));
            // Once more: the writer may have looked at the flag before it was set.
            let woken = if reader.changed() {
                Woken::Rung
            } else {
                self.waiter.wait(&mut self.doorbell, None)?
            };
            self.armed.disarm(self.page.word(ARMED));
            ensure!(
                woken != Woken::Gone || reader.changed(),
                "the writer is gone"
            );
        }
        Ok(())
    }
}

/// The writer's side: a reader that may be asleep.
pub(crate) struct Peer {
    page: Remote,
    ringer: Ringer,
    rung: Rung,
}

impl Peer {
    /// Checks what a reader has sent: neither descriptor can make this process fault or wait, whatever the reader does.
    pub(crate) fn open(offer: Offer) -> anyhow::Result<Peer> {
        Ok(Peer {
            page: Remote::open(offer.page.into(), page_size(), 0, 1 << 20)?,
            ringer: Ringer::open(offer.doorbell.into(), Backing::Socket)?,
            rung: Rung::new(),
        })
    }
}

impl Watcher for Peer {
    fn wake(&self) {
        if self.rung.due(self.page.load_word(ARMED)) {
            self.ringer.ring();
        }
    }
}

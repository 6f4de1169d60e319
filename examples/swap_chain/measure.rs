//! How often a buffer that both know goes there and back in a second. Nobody looks at its bytes.

use std::time::{Duration, Instant};

use memlane::{Publisher, Subscriber, WaitPolicy};
use memlane_region::exchange::{Arrival, Borrower, Buffer, Lender, Return};
use memlane_transport::Link;
use serde::{Deserialize, Serialize};

use crate::Job;

const LEN: usize = 64 << 10;
const MOST: usize = 4;
const OVER_LINK: u64 = 200_000;
const OVER_LANES: Duration = Duration::from_secs(3);
/// Over a lane: that no more comes.
const ENOUGH: [u8; 1] = [0];

/// What the other process is told to do next.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Turn {
    OverLink { rounds: u64 },
    OverLanes,
    End,
}

pub(crate) fn run() -> anyhow::Result<()> {
    let job = Job {
        frame: LEN,
        buffers: MOST as u64,
        frames: 0,
    };
    let (link, other) = crate::start("measured", job)?;
    let (forth, theirs_forth) = Link::pair()?;
    let (back, theirs_back) = Link::pair()?;
    link.send(&(&theirs_forth, &theirs_back))?;
    drop((theirs_forth, theirs_back));
    let mut publisher = Publisher::builder().wait(WaitPolicy::Poll).unbound()?;
    publisher.attach(forth)?;
    let mut subscriber = Subscriber::builder().wait(WaitPolicy::Poll).over(back)?;
    publisher.wait_for_subscribers(1)?;

    let mut lender = Lender::new(MOST * LEN);
    let mut free: Vec<Buffer> = (0..MOST)
        .map(|_| lender.create("frame", LEN))
        .collect::<Result<_, _>>()?;
    // The first time over the link, with the descriptors.
    over_link(&link, &mut lender, &mut free, MOST as u64)?;
    let mut aside = Vec::new();
    for under_way in [1, 3, MOST] {
        free.append(&mut aside);
        aside = free.split_off(under_way);
        let times = over_link(&link, &mut lender, &mut free, OVER_LINK)?;
        times.report("link", under_way);
    }
    for under_way in [1, 3, MOST] {
        free.append(&mut aside);
        aside = free.split_off(under_way);
        link.send(&Turn::OverLanes)?;
        let (start, mut rounds) = (Instant::now(), 0_u64);
        let mut times = Times::new();
        // A look at the clock now and then.
        while !rounds.is_multiple_of(1000) || start.elapsed() < OVER_LANES {
            let buffer = match free.pop() {
                Some(buffer) => buffer,
                None => returned(&mut lender, &mut subscriber)?,
            };
            publisher.send(&lender.lend(buffer, LEN).to_bytes())?;
            rounds += 1;
            times.round();
        }
        while lender.lent() > 0 {
            free.push(returned(&mut lender, &mut subscriber)?);
        }
        times.report("lanes", under_way);
        publisher.send(&ENOUGH)?;
    }
    link.send(&Turn::End)?;
    other.finish()
}

/// How long stretches of a hundred rounds took: where other programs want the cores, too, most stretches still have them.
struct Times {
    start: Instant,
    rounds: u32,
    last: Instant,
    stretches: Vec<Duration>,
}

impl Times {
    const STRETCH: u32 = 100;

    fn new() -> Times {
        let start = Instant::now();
        Times {
            start,
            rounds: 0,
            last: start,
            stretches: Vec::new(),
        }
    }

    fn round(&mut self) {
        self.rounds += 1;
        if self.rounds.is_multiple_of(Times::STRETCH) {
            let now = Instant::now();
            self.stretches.push(now - self.last);
            self.last = now;
        }
    }

    fn report(mut self, what: &str, under_way: usize) {
        let mean = self.start.elapsed() / self.rounds.max(1);
        let middle = self.stretches.len() / 2;
        let (_, median, _) = self.stretches.select_nth_unstable(middle);
        let median = *median / Times::STRETCH;
        println!(
            "over {what}, {under_way} under way: {:9.0} there and back a second, {median:?} each (mean {mean:?})",
            1.0 / median.as_secs_f64(),
        );
    }
}

/// Hands over and gets back `rounds` times, as many under way as there are buffers.
fn over_link(
    link: &Link,
    lender: &mut Lender,
    free: &mut Vec<Buffer>,
    rounds: u64,
) -> anyhow::Result<Times> {
    link.send(&Turn::OverLink { rounds })?;
    let mut times = Times::new();
    for _ in 0..rounds {
        let buffer = match free.pop() {
            Some(buffer) => buffer,
            None => lender.recv(link)?,
        };
        lender.lend(buffer, LEN).send(link)?;
        times.round();
    }
    while lender.lent() > 0 {
        free.push(lender.recv(link)?);
    }
    Ok(times)
}

/// The buffer that comes back next over the lane.
fn returned(lender: &mut Lender, subscriber: &mut Subscriber) -> anyhow::Result<Buffer> {
    let mut bytes = [0; 16];
    let len = subscriber.recv()?.copy_to(&mut bytes);
    Ok(lender.take_back(Return::from_bytes(&bytes[..len])?)?)
}

/// The other process.
pub(crate) fn other() -> anyhow::Result<()> {
    // The parent is trusted, so that links are taken from it.
    let link = Link::inherited()?.adopting();
    let (forth, back): (Link, Link) = link.recv()?;
    let mut publisher = Publisher::builder().wait(WaitPolicy::Poll).unbound()?;
    publisher.attach(back)?;
    let mut subscriber = Subscriber::builder().wait(WaitPolicy::Poll).over(forth)?;
    let mut borrower = Borrower::new(MOST * LEN);
    loop {
        match link.recv()? {
            Turn::OverLink { rounds } => {
                for _ in 0..rounds {
                    link.send(&borrower.recv(&link)?.give_back())?;
                }
            }
            Turn::OverLanes => loop {
                let mut bytes = [0; 24];
                let len = subscriber.recv()?.copy_to(&mut bytes);
                if bytes[..len] == ENOUGH {
                    break;
                }
                let arrival = Arrival::from_bytes(&bytes[..len])?;
                if let Some(borrowed) = borrower.receive(arrival)? {
                    publisher.send(&borrowed.give_back().to_bytes())?;
                }
            },
            Turn::End => return Ok(()),
        }
    }
}

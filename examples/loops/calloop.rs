//! A subscriber in a calloop, the callback loop of Wayland programs, beside a timer.
//!
//! ```text
//! $ cargo run --release --example loop_calloop [-- MESSAGES]
//! 613 messages
//! 1219 messages
//! 2000 messages, and the end
//! ```
//!
//! The child publishes. The loop is level-triggered, so that a callback may take one message and come back for the next; that
//! is how others get their turns, however fast messages come.

use std::{
    env,
    os::fd::OwnedFd,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use calloop::{
    EventLoop, Interest, LoopSignal, Mode, PostAction,
    generic::Generic,
    timer::{TimeoutAction, Timer},
};
use memlane::{Link, Publisher, Subscriber, TryRecvError, Watched};

/// The argument that makes a process the publisher.
const PUBLISH: &str = "publish";
const TICK: Duration = Duration::from_millis(100);

/// What the callbacks share.
struct Counter {
    received: u64,
    result: anyhow::Result<()>,
    stop: LoopSignal,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = arguments.next();
    let publishes = argument.as_deref() == Some(PUBLISH);
    if publishes {
        argument = arguments.next();
    }
    let messages = argument.map_or(Ok(2000), |text| text.parse());
    let messages = messages.context("a number of messages was expected")?;
    if publishes {
        publish(messages)
    } else {
        subscribe(messages)
    }
}

fn publish(messages: u64) -> anyhow::Result<()> {
    let mut publisher = Publisher::builder().unbound()?;
    publisher.attach(Link::inherited()?)?;
    publisher.wait_for_subscribers(1)?;
    for number in 0..messages {
        publisher.send(&number.to_le_bytes())?;
        if number.is_multiple_of(16) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

fn subscribe(messages: u64) -> anyhow::Result<()> {
    let (link, theirs) = Link::pair()?;
    let mut child = Command::new(env::current_exe()?)
        .args([PUBLISH, &messages.to_string()])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let subscriber = Watched::new(Subscriber::builder().over(link)?)?;

    let mut events = EventLoop::<Counter>::try_new()?;
    let source = Generic::new(subscriber, Interest::READ, Mode::Level);
    let inserted = events
        .handle()
        .insert_source(source, |_, subscriber, counter| {
            // SAFETY: the subscriber is neither dropped nor exchanged, and so its descriptor stays the same.
            let subscriber = unsafe { subscriber.get_mut() };
            Ok(counter.receive(subscriber))
        });
    inserted.map_err(|error| error.error)?;
    let tick = Timer::from_duration(TICK);
    let inserted = events.handle().insert_source(tick, |_, (), counter| {
        println!("{} messages", counter.received);
        TimeoutAction::ToDuration(TICK)
    });
    inserted.map_err(|error| error.error)?;

    let mut counter = Counter {
        received: 0,
        result: Ok(()),
        stop: events.get_signal(),
    };
    events.run(None, &mut counter, |_| {})?;
    counter.result?;
    println!("{} messages, and the end", counter.received);
    ensure!(counter.received == messages, "{messages} were sent");
    ensure!(child.wait()?.success(), "the publisher has failed");
    Ok(())
}

impl Counter {
    fn receive(&mut self, subscriber: &mut Subscriber) -> PostAction {
        let result = match subscriber.try_recv() {
            Ok(message) => {
                let expected = self.received.to_le_bytes();
                self.received += 1;
                if message.to_vec() == expected {
                    return PostAction::Continue;
                }
                Err(anyhow::anyhow!("another message than {expected:?}"))
            }
            Err(TryRecvError::Empty) => return PostAction::Continue,
            Err(TryRecvError::Disconnected { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        };
        self.result = result;
        self.stop.stop();
        PostAction::Remove
    }
}

//! Receivers of a latest value that move from process to process.

mod death;
mod hostile;
mod moves;

use memlane::{Link, WatchReceiver, WatchReceiverBuilder, WatchSender};
use memlane_tests::play;

#[test]
fn other_process() {
    play(&[
        ("traveller", moves::traveller),
        ("predecessor", death::predecessor),
        ("successor", death::successor),
        ("sender", death::sender),
    ]);
}

/// Another receiver of this sender's.
fn receiver(sender: &WatchSender, builder: WatchReceiverBuilder) -> WatchReceiver {
    let (ours, theirs) = Link::pair().unwrap();
    sender.attach(ours).unwrap();
    builder.over(theirs).unwrap()
}

/// One of each.
fn pair() -> (WatchSender, WatchReceiver) {
    let sender = WatchSender::builder().unbound().unwrap();
    let receiver = receiver(&sender, WatchReceiver::builder());
    (sender, receiver)
}

/// What a receiver that moves is told: that it does not.
#[track_caller]
fn wait_until_it_stays(receiver: &mut WatchReceiver) -> String {
    loop {
        match receiver.is_awaited() {
            // By one that does not wait for long.
            Ok(_) => memlane_tests::alive(),
            Err(error) => return error.to_string(),
        }
    }
}

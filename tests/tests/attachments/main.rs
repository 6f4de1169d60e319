//! Messages with descriptors, regions and links attached.

mod forms;
mod killed;
mod limits;
mod slow;
mod streams;

use memlane_tests::play;

#[test]
fn other_process() {
    play(&[
        ("reader", streams::reader),
        ("skipper", slow::skipper),
        ("publisher", killed::publisher),
        ("hesitant", killed::hesitant),
        ("poor", limits::poor),
        ("commoner", limits::commoner),
    ]);
}

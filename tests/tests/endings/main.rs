//! Every way in which a publisher can end: what it had committed is received by whoever waits, in whatever way, and then
//! comes the end, with the reason.

mod draining;
mod publisher;
mod told;
mod waits;

use memlane_tests::{play, steady};

#[test]
fn other_process() {
    play(&[
        ("publisher", publisher::publisher),
        ("reader", draining::reader),
        ("late reader", draining::late_reader),
        ("steady", steady),
    ]);
}

//! Subscribers that are overwritten: they hold nobody up, are told exactly what they missed, and never see a torn message.

mod asleep;
mod counted;
mod hostile;
mod killed;
mod lane;
mod one_process;
mod reader;
mod stopped;

use memlane_tests::{play, steady};

#[test]
fn other_process() {
    play(&[
        ("reader", reader::reader),
        ("keeper", killed::keeper),
        ("publisher", killed::publisher),
        ("echo", asleep::echo),
        ("steady", steady),
    ]);
}

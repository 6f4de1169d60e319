//! Publishers that move from process to process, in the middle of a stream, with all who subscribe to them.

mod death;
mod followers;
mod hostile;
mod moves;
mod senders;
mod steps;
mod unread;

use memlane_tests::{play, steady};

#[test]
fn other_process() {
    play(&[
        ("traveller", moves::traveller),
        ("steady", steady),
        ("newcomer", moves::newcomer),
        ("predecessor", death::predecessor),
        ("successor", death::successor),
        ("subscriber", death::subscriber),
        ("predecessor by hand", steps::predecessor),
        ("successor by hand", steps::successor),
    ]);
}

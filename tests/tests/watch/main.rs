//! The newest value of a process, for others that look at it or wait for a newer one.

mod ends;
mod hostile;
mod lane;
mod loops;
mod receivers;
mod values;

use memlane_tests::play;

#[test]
fn other_process() {
    play(&[
        ("sender", ends::sender),
        ("echo", receivers::echo),
        ("receiver", receivers::receiver),
        ("flood", receivers::flood),
    ]);
}

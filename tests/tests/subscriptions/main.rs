//! Many publishers, one subscriber.

mod killed;
mod lanes;
mod loops;
mod members;
mod turns;

use memlane_tests::play;

#[test]
fn other_process() {
    play(&[("publishers", killed::publishers), ("one", killed::one)]);
}

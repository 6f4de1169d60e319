//! Subscribers that are slow, or stopped, beside others that are not: what is kept for them, what becomes of it, and who waits
//! for whom.

mod dropped;
mod history;
mod hostile;
mod lane;
mod pool;
mod spills;

use memlane_tests::play;

#[test]
fn other_process() {
    play(&[("subscriber", lane::subscriber)]);
}

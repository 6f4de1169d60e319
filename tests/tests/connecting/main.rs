//! Ends that connect without waiting, in loops and in tasks; and a client that many tasks have.

mod begin;
mod shared;

use memlane_tests::{Smol, play_after};

#[test]
fn other_process() {
    play_after(
        Smol::start,
        &[
            ("services", begin::services),
            ("by name", begin::by_name),
            ("server", shared::server),
        ],
    );
}

//! Lanes to and from another implementation: the program in tests/python, which knows the documents and not the code.
//!
//! Skipped where there is no `python3`; with `MEMLANE_REQUIRE_PYTHON=1` that is a failure.

#![cfg(target_arch = "x86_64")]

mod ends;
mod lanes;
mod program;

use memlane_tests::play;

#[test]
fn other_process() {
    play(&[("publisher", ends::publisher)]);
}

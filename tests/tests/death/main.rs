//! Either side is killed, stopped or dropped, at any moment: what was committed is received, whoever is left goes on,
//! and nothing stays behind.
//!
//! `MEMLANE_KILLS` says how many are killed per test of those that kill many.

mod chance;
mod copied_links;
mod dropped;
mod publishers;
mod stopped;
mod subscribers;

use memlane_tests::{play, steady};

#[test]
fn other_process() {
    play(&[
        ("publisher", publishers::publisher),
        ("subscriber", subscribers::subscriber),
        ("orderly publisher", dropped::orderly_publisher),
        ("sharing publisher", copied_links::sharing_publisher),
        ("sharing subscriber", copied_links::sharing_subscriber),
        ("steady", steady),
    ]);
}

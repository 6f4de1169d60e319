//! Subscribers and publishers that are broken or mean harm, and speak the protocol by hand. Each can end its own lane;
//! everyone else gets every message, nobody hangs or panics, and nothing leaks.

mod by_hand;
mod props;
mod rings;
mod subscribers;
mod villain;
mod welcomes;

use memlane_tests::{play, steady};

#[test]
fn other_process() {
    play(&[
        ("villain", villain::villain),
        ("rogue", welcomes::rogue),
        ("steady", steady),
    ]);
}

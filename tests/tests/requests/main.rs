//! Requests and replies: many under way, out of order, in streams, cancelled, late; and whose other side ends.

mod counterparts;
mod ends;
mod given_up;
mod limits;
mod pair;
mod streams;
mod typed;
mod under_way;

use memlane_tests::play;

#[test]
fn other_process() {
    play(&[
        ("asker", under_way::asker),
        ("one by one", under_way::one_by_one),
        ("late asker", given_up::late_asker),
        ("server", ends::server),
        ("client", ends::client),
        ("flooder", ends::flooder),
        ("good client", ends::good_client),
    ]);
}

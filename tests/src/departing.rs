//! Ends of many lanes that leave.

use std::thread;

use memlane::Remains;

use crate::wait_until;

/// Has an end depart while its successor `arrives` and `goes_on`, as it would in another process: lanes that are late come with its
/// calls, and would be waited for in vain without. The successor, and what remains.
///
/// # Panics
///
/// If that does not end.
#[track_caller]
pub fn departing<E: Send + 'static, S>(
    end: E,
    depart: impl FnOnce(E) -> Result<(), Box<Remains<E>>> + Send + 'static,
    arrives: impl FnOnce() -> S,
    mut goes_on: impl FnMut(&mut S),
) -> (S, Result<(), Box<Remains<E>>>) {
    let departing = thread::spawn(move || depart(end));
    let mut successor = arrives();
    wait_until("it departs", || {
        goes_on(&mut successor);
        departing.is_finished()
    });
    (successor, departing.join().expect("no panic"))
}

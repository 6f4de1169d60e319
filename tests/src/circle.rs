//! Processes in a circle, among which an end of a lane moves.

use memlane::Link;
use serde::{Deserialize, Serialize};

use crate::{Child, Scene};

/// What a process gets from the one before it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Passed<T, N> {
    /// An end, and how many more moves there are to be after this one.
    Ticket(T, u64),
    /// What comes first at the successor.
    Next(N),
    /// There are no more moves.
    End,
}

/// Whom a process gets the end from, whom it gives it to, and what it does with it.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Route<K> {
    pub from: Link,
    pub to: Link,
    pub kind: K,
}

/// Starts processes in the role `traveller`, of these kinds. `begin` has the end of the first kind, and gives it to the second over
/// this link; then the first one is started, too.
pub fn circle<K: Clone + Serialize>(
    scene: &Scene,
    kinds: &[K],
    begin: impl FnOnce(&Link),
) -> Vec<Child> {
    let start = |from, to, kind: &K| {
        let kind = kind.clone();
        scene.spawn("traveller", &Route { from, to, kind })
    };
    let (first, mut from) = Link::pair().expect("a link");
    let mut children = Vec::new();
    for kind in &kinds[1..] {
        let (to, next) = Link::pair().expect("a link");
        children.push(start(from, to, kind));
        from = next;
    }
    begin(&first);
    children.push(start(from, first, &kinds[0]));
    children
}

/// All moves are made: which of them has the end, as each has said.
#[track_caller]
pub fn who_has_it(kept: &[bool]) -> usize {
    assert_eq!(kept.iter().filter(|kept| **kept).count(), 1, "{kept:?}");
    kept.iter().position(|kept| *kept).expect("one")
}

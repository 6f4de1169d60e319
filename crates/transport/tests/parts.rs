//! Messages of several packets from a peer that cannot count.

mod common;

use std::os::fd::OwnedFd;

use common::raw::{
    KINDS, body, borrowed, ended, field, link_to_raw, memory, more, receipt, witnesses,
};
use common::{all_writers_closed, alone, descriptors, memfd, packet, raw_send};
use memlane_transport::{Error, Fd, Limits};

/// A packet of a sequence: announced descriptors, fields, body, descriptors that come.
type Step = (u16, Vec<u8>, Vec<u8>, usize);

fn part(total: u32, count: u16) -> Step {
    (count, more(total), Vec::new(), usize::from(count))
}

fn last(count: u16) -> Step {
    (
        count,
        Vec::new(),
        body(&Vec::<u16>::new()),
        usize::from(count),
    )
}

/// Sends the packets to links that take 20 descriptors. The link ends with this error; all descriptors are closed then, with
/// the link still there.
fn refuse(steps: &[Step]) -> Error {
    let mut error = None;
    for kind in KINDS {
        let (link, peer) = link_to_raw(kind);
        let link = link.with_limits(Limits::new().descriptors(20));
        let mut all = Vec::new();
        for (announced, fields, content, count) in steps {
            let (readers, writers) = witnesses(*count);
            raw_send(
                &peer,
                &packet(*announced, fields, content),
                &borrowed(&writers),
            );
            all.extend(readers);
        }
        let found = link.recv::<Vec<Fd>>().unwrap_err();
        ended(&link, &peer, &found);
        all.iter().for_each(all_writers_closed);
        error = Some(found);
    }
    error.unwrap()
}

fn do_not_add_up(steps: &[Step], announced: usize, received: usize) {
    let error = refuse(steps);
    assert!(
        matches!(error, Error::Parts { announced: a, received: r } if (a, r) == (announced, received)),
        "{error:?}"
    );
}

#[test]
fn with_something_else_than_descriptors() {
    let _alone = alone();
    for (fields, content) in [
        (more(3), vec![0]),
        ([more(3), memory(10)].concat(), Vec::new()),
        ([receipt(), more(3)].concat(), Vec::new()),
    ] {
        let error = refuse(&[(2, fields, content, 2)]);
        assert!(
            matches!(error, Error::MalformedField { tag: 0x01, .. }),
            "{error:?}"
        );
    }
    let error = refuse(&[part(5, 2), (2, more(5), vec![1], 2)]);
    assert!(
        matches!(error, Error::MalformedField { tag: 0x01, .. }),
        "{error:?}"
    );
}

#[test]
fn totals_that_are_wrong() {
    let _alone = alone();
    // Reached before the last packet, or by the first already.
    do_not_add_up(&[part(2, 2)], 2, 2);
    do_not_add_up(&[part(2, 3)], 2, 3);
    do_not_add_up(&[part(4, 2), part(4, 2)], 4, 4);
    do_not_add_up(&[part(4, 3), part(4, 3)], 4, 6);
    do_not_add_up(&[part(0, 0)], 0, 0);
    do_not_add_up(&[part(0, 1)], 0, 1);
    // The last packet brings too few or too many.
    do_not_add_up(&[part(4, 2), last(1)], 4, 3);
    do_not_add_up(&[part(4, 2), last(3)], 4, 5);
    do_not_add_up(&[part(4, 2), last(0)], 4, 2);
}

#[test]
fn totals_that_change() {
    let _alone = alone();
    do_not_add_up(&[part(6, 2), part(7, 2)], 6, 4);
    do_not_add_up(&[part(6, 2), part(5, 2)], 6, 4);
    do_not_add_up(&[part(6, 2), part(u32::MAX, 1)], 6, 3);
}

/// So a message without end cannot be one of packets without descriptors.
#[test]
fn without_descriptors() {
    let _alone = alone();
    do_not_add_up(&[part(5, 0)], 5, 0);
    do_not_add_up(&[part(5, 2), part(5, 0)], 5, 2);
}

/// What the last packet's fields take from the end is there, or the message is refused.
#[test]
fn with_fields_that_speak_of_descriptors_that_are_not_there() {
    let _alone = alone();
    for (fields, content) in [(receipt(), body(&())), (memory(3), Vec::new())] {
        let error = refuse(&[(0, fields, content, 0)]);
        assert!(matches!(error, Error::MissingService { .. }), "{error:?}");
    }
}

/// Refused as soon as the number is known: before the descriptors have come.
#[test]
fn more_than_the_receiver_takes() {
    let _alone = alone();
    for total in [23, 1000, u32::MAX] {
        let error = refuse(&[part(total, 1)]);
        assert!(
            matches!(error, Error::PeerTooManyDescriptors { limit: 20, count } if count == total as usize),
            "{error:?}"
        );
    }
    // Two more than the limit may be there for a receipt and a body, and only for them.
    for total in [21, 22] {
        let error = refuse(&[part(total, 20), last(total as u16 - 20)]);
        assert!(
            matches!(error, Error::PeerTooManyDescriptors { limit: 20, count } if count == total as usize),
            "{error:?}"
        );
    }
}

/// A peer that sends part after part holds as many of the receiver's descriptors as a message may have, and no more.
#[test]
fn without_end() {
    let _alone = alone();
    for kind in KINDS {
        let (link, peer) = link_to_raw(kind);
        let link = link.with_limits(Limits::new().descriptors(20));
        let file: Vec<OwnedFd> = vec![memfd()];
        let before = descriptors().len();
        let optional = field(0x80, &[]);
        for came in 1..=21 {
            let fields = [more(22), optional.clone()].concat();
            raw_send(&peer, &packet(1, &fields, &[]), &borrowed(&file));
            assert!(matches!(link.try_recv::<Vec<Fd>>(), Err(Error::WouldBlock)));
            assert_eq!(descriptors().len(), before + came);
        }
        raw_send(&peer, &packet(1, &more(22), &[]), &borrowed(&file));
        let error = link.recv::<Vec<Fd>>().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Parts {
                    announced: 22,
                    received: 22
                }
            ),
            "{error:?}"
        );
        assert_eq!(
            descriptors().len(),
            before,
            "closed with the link still there"
        );
    }
}

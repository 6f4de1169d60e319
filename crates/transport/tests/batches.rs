//! Many descriptors at once, and the same ones again and again.

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use common::{alone, inode, memfd, packet, raw_send};
use memlane_transport::{Error, Fd, Fds, Limits, Link, SharedFd};
use serde::{Serialize, Serializer};

fn files(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| memfd()).collect()
}

#[test]
fn a_batch_is_a_sequence_of_descriptors() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    for count in [0, 1, 2, 253, 254, 300] {
        let files = files(count);
        let inodes: Vec<_> = files.iter().map(inode).collect();
        let batch = Fds::from(files);
        let single = SharedFd::from(memfd());
        let counted = SharedFd::from(std::sync::Arc::new(memfd()));
        // In the middle of other descriptors, so that it does not start at the first.
        left.send(&(&counted, &batch, &single)).unwrap();
        let (first, received, last): (Fd, Fds, Fd) = right.recv().unwrap();
        assert_eq!(received.iter().map(inode).collect::<Vec<_>>(), inodes);
        assert_eq!(
            (inode(first), inode(last)),
            (inode(&counted), inode(&single))
        );

        left.send(&batch).unwrap();
        let received: Vec<Fd> = right.recv().unwrap();
        assert_eq!(received.iter().map(inode).collect::<Vec<_>>(), inodes);

        left.send(&received).unwrap();
        let received: Fds = right.recv().unwrap();
        assert_eq!((received.len(), received.is_empty()), (count, count == 0));
        let received = received.into_vec().unwrap();
        assert_eq!(received.iter().map(inode).collect::<Vec<_>>(), inodes);
    }
}

#[test]
fn a_batch_that_is_shared_is_not_taken_apart() {
    let _alone = alone();
    let batch = Fds::from(files(2));
    let clone = batch.clone();
    let batch = batch.into_vec().unwrap_err();
    drop(clone);
    assert_eq!(batch.into_vec().unwrap().len(), 2);
}

/// Indices in any order, as other implementations may write them; each at most once.
#[test]
fn a_batch_in_another_order() {
    let alone = alone();
    let (link, peer) = Link::pair().unwrap();
    let files = files(4);
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let send = |link: &Link, indices: &[u8]| {
        let mut body = vec![indices.len() as u8];
        body.extend(indices);
        raw_send(link, &packet(4, &[], &body), &fds);
    };
    for order in [[3, 2, 1, 0], [2, 3, 0, 1], [0, 1, 3, 2], [1, 0, 2, 3]] {
        send(&peer, &order);
        let received: Fds = link.recv().unwrap();
        let expected: Vec<_> = order.map(|at| inode(&files[usize::from(at)])).into();
        assert_eq!(received.iter().map(inode).collect::<Vec<_>>(), expected);
    }
    for (wrong, twice) in [
        ([0, 1, 2, 4], false),
        ([0, 1, 1, 2], true),
        ([2, 3, 4, 0], false),
    ] {
        let (link, peer) = Link::pair().unwrap();
        send(&peer, &wrong);
        let error = link.recv::<Fds>().unwrap_err();
        let expected = match &error {
            Error::DescriptorTwice { index: 1 } => twice,
            Error::MissingDescriptor { index: 4, .. } => !twice,
            _ => false,
        };
        assert!(expected, "{wrong:?}: {error:?}");
    }
    drop((link, peer, files));
    alone.settled();
}

#[test]
fn a_batch_beyond_the_limit() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let left = left.with_limits(Limits::new().descriptors(10));
    let error = left
        .send(&(Fd::from(memfd()), Fds::from(files(10))))
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooManyDescriptors {
                count: 11,
                limit: 10
            }
        ),
        "{error:?}"
    );
    left.send(&Fds::from(files(10))).unwrap();
    assert_eq!(right.recv::<Fds>().unwrap().len(), 10);
}

/// Whatever happens to the value while it is serialised: what arrives is what was there.
#[test]
fn a_value_that_lets_go_of_what_it_sends() {
    struct Fickle(RefCell<Vec<Option<SharedFd>>>);

    impl Serialize for Fickle {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let taken: Vec<_> = self.0.borrow_mut().iter_mut().map(Option::take).collect();
            // Dropped on return, before the message leaves.
            taken.serialize(serializer)
        }
    }

    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let files = files(20);
    let expected: BTreeSet<_> = files.iter().map(inode).collect();
    let fickle = Fickle(RefCell::new(
        files
            .into_iter()
            .map(|fd| Some(SharedFd::from(fd)))
            .collect(),
    ));
    left.send(&fickle).unwrap();
    // Numbers that were free in between would be these by now.
    let _others = self::files(20);
    let received: Vec<Option<Fd>> = right.recv().unwrap();
    let received: BTreeSet<_> = received
        .iter()
        .map(|fd| inode(fd.as_ref().unwrap()))
        .collect();
    assert_eq!(received, expected);
}

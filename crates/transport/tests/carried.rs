//! Values whose descriptors go another way than their bytes.

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use common::{alone, inode, memfd};
use memlane_transport::codec::{self, DecodeError, EncodeError};
use memlane_transport::{EventFd, Fd, FdRef, Fds, Link, MemoryFd, SharedFd};
use serde::Serialize;

type Decoded = (String, Vec<Fd>, Option<Fd>);

#[test]
fn all_that_lends_descriptors_is_carried() {
    let alone = alone();
    let (own, shared, borrowed) = (Fd::from(memfd()), SharedFd::from(memfd()), memfd());
    let batch: Fds = [memfd(), memfd()].into_iter().collect();
    let expected: Vec<_> = [own.as_fd(), shared.as_fd(), borrowed.as_fd()]
        .into_iter()
        .chain(batch.iter())
        .map(inode)
        .collect();
    let value = ("all", (&own, &shared, FdRef::new(&borrowed)), &batch);
    let mut buffer = [0; 64];
    let (len, fds) = codec::encode_carrying(&value, &mut buffer, 5).unwrap();
    let mut appended = b"before".to_vec();
    let again = codec::append_carrying(&value, &mut appended, 64, 5).unwrap();
    assert_eq!(&appended[6..], &buffer[..len]);
    for fds in [fds, again] {
        // The value can go, and what came of it stays.
        assert_eq!(fds.iter().map(inode).collect::<Vec<_>>(), expected);
        let decoded: (String, (Fd, Fd, Fd), Fds) =
            codec::decode_carried(&buffer[..len], fds, false).unwrap();
        let (name, (a, b, c), rest) = decoded;
        let found = [a.as_fd(), b.as_fd(), c.as_fd()];
        let found: Vec<_> = found.into_iter().chain(rest.iter()).map(inode).collect();
        assert_eq!((&*name, found), ("all", expected.clone()));
    }
    drop((own, shared, borrowed, batch));
    alone.settled();
}

/// A batch that is all there is costs no duplicates; a value without descriptors costs nothing.
#[test]
fn a_batch_is_carried_as_it_is() {
    let alone = alone();
    let batch: Fds = (0..300).map(|_| memfd()).collect();
    let numbers = |fds: &Fds| fds.iter().map(|fd| fd.as_raw_fd()).collect::<Vec<_>>();
    let (_, fds) = codec::encode_carrying(&("x", &batch), &mut [0; 2048], 300).unwrap();
    assert_eq!(numbers(&fds), numbers(&batch));
    let weak = batch.downgrade();
    assert!(weak.is(&fds) && weak.is(&batch) && !weak.is(&Fds::default()));
    assert!(!weak.is(&vec![memfd()].into()));
    drop(batch);
    assert_eq!(weak.upgrade().expect("one is left").len(), 300);
    drop(fds);
    assert!(weak.upgrade().is_none());
    let (_, none) = codec::encode_carrying(&("x", Fds::default()), &mut [0; 16], 0).unwrap();
    assert!(none.is_empty() && !none.downgrade().is(&none));
    assert!(none.into_fds().unwrap().is_empty());
    alone.settled();
}

#[test]
fn what_does_not_fit_is_refused_and_closed() {
    let alone = alone();
    let three: Vec<Fd> = (0..3).map(|_| memfd().into()).collect();
    let mut buffer = b"before".to_vec();
    let error = codec::append_carrying(&three, &mut buffer, 64, 2).unwrap_err();
    let too_many = matches!(
        error,
        EncodeError::TooManyDescriptors { count: 3, limit: 2 }
    );
    assert!(too_many, "{error}");
    assert_eq!(buffer, b"before");
    let error = codec::encode_carrying(&three, &mut [0; 2], 3).unwrap_err();
    assert!(
        matches!(error, EncodeError::TooLarge { size: 4, limit: 2 }),
        "{error}"
    );

    struct Refuses<'a>(&'a Fd);
    impl Serialize for Refuses<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let _ = (self.0, self.0).serialize(serializer)?;
            Err(serde::ser::Error::custom("thinks better of it"))
        }
    }
    let error = codec::encode_carrying(&Refuses(&three[0]), &mut [0; 64], 3).unwrap_err();
    assert!(error.to_string().contains("thinks better of it"), "{error}");
    drop(three);
    alone.settled();
}

/// Each an error that says what is wrong, and what came is closed.
#[test]
fn what_makes_no_sense_is_refused_and_closed() {
    let alone = alone();
    let fds = |count: usize| (0..count).map(|_| memfd()).collect::<Fds>();
    let decode = |bytes: &[u8], count| codec::decode_carried::<Decoded>(bytes, fds(count), false);
    decode(&[1, b'x', 2, 0, 1, 1, 2], 3).unwrap();
    decode(&[1, b'x', 2, 2, 0, 1, 1], 3).unwrap();
    let descriptor = |error: DecodeError, says: &str| {
        let DecodeError::Descriptor(text) = &error else {
            panic!("{error:?}")
        };
        assert!(text.contains(says), "{text}");
    };
    descriptor(decode(&[1, b'x', 1, 1, 0], 1).unwrap_err(), "descriptor 1");
    descriptor(
        decode(&[1, b'x', 2, 0, 0, 0], 2).unwrap_err(),
        "0 was taken already",
    );
    descriptor(decode(&[1, b'x', 1, 0, 0], 0).unwrap_err(), "descriptor 0");
    let error = decode(&[1, b'x', 1, 0, 0], 3).unwrap_err();
    let surplus = matches!(
        error,
        DecodeError::SurplusDescriptors {
            received: 3,
            taken: 1
        }
    );
    assert!(surplus, "{error}");
    let error = decode(&[1, b'x', 1, 0, 0, 7], 1).unwrap_err();
    assert!(
        matches!(error, DecodeError::Trailing { count: 1 }),
        "{error}"
    );
    assert!(decode(&[1, b'x', 1, 0], 1).is_err());
    let kind = |error| descriptor(error, "expected");
    kind(codec::decode_carried::<EventFd>(&[0], fds(1), false).unwrap_err());
    kind(codec::decode_carried::<MemoryFd>(&[0], fds(1), true).unwrap_err());
    alone.settled();
}

/// Links are taken as such, or not, as who decodes says.
#[test]
fn links_are_adopted_if_that_is_said() {
    let alone = alone();
    let (here, there) = Link::pair().unwrap();
    let mut buffer = [0; 16];
    for adopts in [false, true] {
        let (len, fds) = codec::encode_carrying(&there, &mut buffer, 1).unwrap();
        match codec::decode_carried::<Link>(&buffer[..len], fds, adopts) {
            Ok(link) => {
                assert!(adopts);
                here.send(&7).unwrap();
                assert_eq!(link.recv::<i32>().unwrap(), 7);
            }
            Err(error) => {
                assert!(!adopts);
                assert!(
                    error.to_string().contains("not taken from this peer"),
                    "{error}"
                );
            }
        }
    }
    drop((here, there));
    alone.settled();
}

/// What is received is disposed of one by one, too, where it is taken apart.
#[test]
fn received_batches_are_taken_apart() {
    let alone = alone();
    let (here, there) = Link::pair().unwrap();
    let sent: Fds = (0..4).map(|_| memfd()).collect();
    here.send(&sent).unwrap();
    let received: Fds = there.recv().unwrap();
    let clone = received.clone();
    let received = received.into_fds().unwrap_err();
    drop(clone);
    let fds = received.into_fds().unwrap();
    assert_eq!(fds.len(), 4);
    let owned: Vec<OwnedFd> = fds.into_iter().map(OwnedFd::from).collect();
    assert!(
        owned
            .iter()
            .zip(sent.iter())
            .all(|(a, b)| inode(a) == inode(b))
    );
    drop((owned, sent, here, there));
    alone.settled();
}

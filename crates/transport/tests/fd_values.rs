//! `Fd` and `FdRef` as serde values: on a link only, each descriptor in one place, whatever a `Serialize` does meanwhile.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{alone, descriptors, inode, memfd};
use memlane_transport::{Fd, FdRef, Link, codec};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[test]
fn outside_of_a_link() {
    let _alone = alone();
    let file = memfd();
    let error = codec::encode(&FdRef::new(&file), 100).unwrap_err();
    assert!(
        error.to_string().contains("serialised only by a link"),
        "{error}"
    );
    let error = codec::encode(&Fd::from(file), 100).unwrap_err();
    assert!(
        error.to_string().contains("serialised only by a link"),
        "{error}"
    );
    let error = codec::decode::<Fd>(&[0]).unwrap_err();
    assert!(
        error.to_string().contains("deserialised only by a link"),
        "{error}"
    );
}

#[test]
fn sending_borrows() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let value = (memfd().into(), 1_u8);
    let value: &(Fd, u8) = &value;
    left.send(value).unwrap();
    left.send(value).unwrap();
    drop(right);
    assert!(left.send(value).is_err());
    // Still there, and still the same.
    assert_eq!(rustix::fs::fstat(&value.0).unwrap().st_size, 0);
}

/// Makes a descriptor on the spot and drops it before the packet leaves.
struct OnTheSpot<'a>(&'a OwnedFd);

impl Serialize for OnTheSpot<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Fd::from(self.0.try_clone().unwrap()).serialize(serializer)
    }
}

#[test]
fn a_descriptor_made_while_serialising_is_kept_until_sent() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let (first, second) = (memfd(), memfd());
    let before = descriptors();
    left.send(&[OnTheSpot(&first), OnTheSpot(&second)]).unwrap();
    assert_eq!(descriptors(), before);
    let [one, two]: [Fd; 2] = right.recv().unwrap();
    assert_eq!((inode(&one), inode(&two)), (inode(&first), inode(&second)));
}

/// Sends on another link while it is being serialised.
struct Chatty<'a> {
    link: &'a Link,
    file: OwnedFd,
}

impl Serialize for Chatty<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.link
            .send(&(FdRef::new(&self.file), FdRef::new(&self.file)))
            .unwrap();
        FdRef::new(&self.file).serialize(serializer)
    }
}

/// Receives from another link while it is being deserialised.
struct Curious(OwnedFd);

impl<'de> Deserialize<'de> for Curious {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (left, right) = Link::pair().unwrap();
        let file = memfd();
        left.send(&FdRef::new(&file)).unwrap();
        let own: Fd = right.recv().unwrap();
        assert_eq!(inode(own), inode(&file));
        Ok(Curious(Fd::deserialize(deserializer)?.into()))
    }
}

#[test]
fn messages_within_messages() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let (inner_left, inner_right) = Link::pair().unwrap();
    let (file, first, last) = (memfd(), memfd(), memfd());
    let number = inode(&file);
    let chatty = Chatty {
        link: &inner_left,
        file,
    };
    left.send(&(FdRef::new(&first), chatty, FdRef::new(&last)))
        .unwrap();
    let (one, two, three): (Fd, Curious, Fd) = right.recv().unwrap();
    assert_eq!(
        (inode(one), inode(two.0), inode(three)),
        (inode(&first), number, inode(&last))
    );
    let (one, two): (Fd, Fd) = inner_right.recv().unwrap();
    assert_eq!((inode(one), inode(two)), (number, number));
}

#[derive(Debug)]
struct Panics;

impl Serialize for Panics {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("while serialising")
    }
}

impl<'de> Deserialize<'de> for Panics {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("while deserialising")
    }
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let file = memfd();
    catch_unwind(AssertUnwindSafe(|| {
        left.send(&(Fd::from(memfd()), FdRef::new(&file), Panics))
    }))
    .unwrap_err();
    assert!(
        codec::encode(&FdRef::new(&file), 100).is_err(),
        "the thread is outside of a link again"
    );
    left.send(&(FdRef::new(&file), FdRef::new(&file), FdRef::new(&file)))
        .unwrap();
    catch_unwind(AssertUnwindSafe(|| right.recv::<(Fd, Panics)>())).unwrap_err();
    assert!(
        codec::decode::<Fd>(&[0]).is_err(),
        "the thread is outside of a link again"
    );
    left.send(&FdRef::new(&file)).unwrap();
    assert_eq!(inode(right.recv::<Fd>().unwrap()), inode(&file));
}

#[test]
fn views() {
    let _alone = alone();
    let file = memfd();
    let number = inode(&file);
    let fd = Fd::from(file);
    assert!(format!("{fd:?}").starts_with("Fd("));
    assert_eq!(inode(FdRef::from(fd.as_fd())), number);
    assert_eq!(inode(OwnedFd::from(fd)), number);
}

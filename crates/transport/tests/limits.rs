//! A message that cannot be sent is refused whole, before anything has left, and the link goes on.

mod common;

use common::{alone, memfd};
use memlane_transport::{Error, Fd, FdRef, Limits, Link};

fn goes_on(left: &Link, right: &Link) {
    assert!(matches!(right.try_recv::<()>(), Err(Error::WouldBlock)));
    left.send(&1_u8).unwrap();
    assert_eq!(right.recv::<u8>().unwrap(), 1);
}

#[test]
fn one_descriptor_too_many() {
    let _alone = alone();
    let file = memfd();
    for limit in [0, 1, 253, 254, 1024] {
        let (left, right) = Link::pair().unwrap();
        let left = left.with_limits(Limits::new().descriptors(limit));
        let error = left.send(&vec![FdRef::new(&file); limit + 1]).unwrap_err();
        assert!(
            matches!(error, Error::TooManyDescriptors { count, limit: l } if count == limit + 1 && l == limit),
            "{error}"
        );
        assert!(!error.ends_link());
        goes_on(&left, &right);
        left.send(&vec![FdRef::new(&file); limit]).unwrap();
        assert_eq!(right.recv::<Vec<Fd>>().unwrap().len(), limit);
    }
}

#[test]
fn one_byte_too_many() {
    let _alone = alone();
    for limit in [1000, 16 << 10, 100_000] {
        let (left, right) = Link::pair().unwrap();
        let left = left.with_limits(Limits::new().body(limit));
        // A length from 2^16 on takes five bytes, a shorter one three.
        let length = if limit > 1 << 16 { 5 } else { 3 };
        let most = "x".repeat(limit - length);
        left.send(&most).unwrap();
        assert_eq!(right.recv::<String>().unwrap(), most);

        let error = left.send(&"x".repeat(limit - length + 1)).unwrap_err();
        assert!(
            matches!(error, Error::BodyTooLarge { size, limit: l } if size == limit + 1 && l == limit),
            "{error}"
        );
        goes_on(&left, &right);
    }
}

#[test]
fn a_value_that_refuses_to_be_encoded() {
    struct Refuses;
    impl serde::Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not today"))
        }
    }
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let error = left.send(&(Fd::from(memfd()), Refuses)).unwrap_err();
    let Error::Encode(source) = error else {
        panic!("{error}")
    };
    assert!(source.to_string().contains("not today"), "{source}");
    goes_on(&left, &right);
}

//! A message that cannot be sent is refused whole, before anything has left, and the link goes on.

mod common;

use common::{alone, memfd};
use memlane_transport::{Error, Fd, FdRef, Link, MAX_BODY, MAX_DESCRIPTORS};

fn goes_on(left: &Link, right: &Link) {
    assert!(matches!(right.try_recv::<()>(), Err(Error::WouldBlock)));
    left.send(&1_u8).unwrap();
    assert_eq!(right.recv::<u8>().unwrap(), 1);
}

#[test]
fn one_descriptor_too_many() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let file = memfd();
    let error = left
        .send(&vec![FdRef::new(&file); MAX_DESCRIPTORS + 1])
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooManyDescriptors {
                count: 254,
                limit: 253
            }
        ),
        "{error}"
    );
    assert!(!error.ends_link());
    goes_on(&left, &right);
    left.send(&vec![FdRef::new(&file); MAX_DESCRIPTORS])
        .unwrap();
    assert_eq!(right.recv::<Vec<Fd>>().unwrap().len(), MAX_DESCRIPTORS);
}

#[test]
fn one_byte_too_many() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    // Three bytes for the length.
    let most = "x".repeat(MAX_BODY - 3);
    left.send(&most).unwrap();
    assert_eq!(right.recv::<String>().unwrap(), most);

    let error = left.send(&"x".repeat(MAX_BODY - 2)).unwrap_err();
    assert!(
        matches!(error, Error::BodyTooLarge { size, limit: MAX_BODY } if size == MAX_BODY + 1),
        "{error}"
    );
    goes_on(&left, &right);
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

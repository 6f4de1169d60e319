//! Regions as parts of a link's messages.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use memlane_region::{
    Frozen, Live, LiveView, MESSAGE_QUOTA, Moved, Region,
    exchange::{Borrower, Lender},
};
use memlane_transport::{Error, Fd, FdRef, Link};
use serde::{Deserialize, Serialize};

mod support;

fn region(name: &'static str, bytes: &[u8]) -> Region {
    Region::copy_of(name, bytes).unwrap()
}

/// What the receiver of a message says against it.
#[track_caller]
fn refused<T: serde::de::DeserializeOwned + std::fmt::Debug>(message: &impl Serialize) -> String {
    let (left, right) = Link::pair().unwrap();
    left.send(message).unwrap();
    let error = right.recv::<T>().unwrap_err();
    assert!(matches!(error, Error::Decode { .. }), "{error:?}");
    assert!(error.ends_link());
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(matches!(right.recv::<T>(), Err(Error::Ended { .. })));
    source
}

#[test]
fn frozen_regions_many_times_and_to_many() {
    {
        let (left, right) = Link::pair().unwrap();
        let frozen = region("message frozen", b"the same for all")
            .freeze()
            .unwrap();
        for _ in 0..3 {
            left.send(&frozen).unwrap();
        }
        left.send(&(1_u8, &frozen, [&frozen, &frozen])).unwrap();
        // What has been sent stays.
        drop(frozen);
        for _ in 0..3 {
            let frozen: Frozen = right.recv().unwrap();
            assert_eq!(&frozen[..], b"the same for all");
            // And can be sent on.
            right.send(&frozen).unwrap();
        }
        let (one, frozen, more): (u8, Frozen, Vec<Frozen>) = {
            let (one, frozen, [a, b]): (u8, Frozen, [Frozen; 2]) = right.recv().unwrap();
            (one, frozen, vec![a, b])
        };
        assert_eq!((one, frozen.len(), more.len()), (1, 16, 2));
        for _ in 0..3 {
            let frozen: Frozen = left.recv().unwrap();
            assert_eq!(&frozen[..3], b"the");
        }
    }
    assert_eq!(support::held("message frozen"), (0, 0));
}

#[test]
fn live_regions_and_views_of_them() {
    {
        let (left, right) = Link::pair().unwrap();
        let shares: [fn(Region) -> Live; 2] = [
            |region| region.share().unwrap(),
            |region| region.share_freezable().unwrap(),
        ];
        for share in shares {
            let mut live = share(region("message live", b"once"));
            left.send(&("frame", &live)).unwrap();
            let (name, view): (String, LiveView) = right.recv().unwrap();
            assert_eq!(name, "frame");
            right.send(&view).unwrap();
            drop(view);
            let view: LiveView = left.recv().unwrap();
            live.copy_from_slice(b"then");
            let mut bytes = [0; 4];
            view.read(0, &mut bytes);
            assert_eq!(&bytes, b"then");
        }
    }
    assert_eq!(support::held("message live"), (0, 0));
}

#[test]
fn regions_change_hands() {
    {
        let (left, right) = Link::pair().unwrap();
        for _ in 0..2 {
            let moved = region("message moved", b"yours now").into_moved();
            left.send(&moved).unwrap();
            drop(moved);
        }
        let moved: Moved = right.recv().unwrap();
        assert_eq!(&moved.claim(1 << 20).unwrap()[..], b"yours now");
        let moved: Moved = right.recv().unwrap();
        // SAFETY: the sender is this test, and it dropped the region.
        let mut own = unsafe { moved.own(1 << 20) }.unwrap();
        own[..5].copy_from_slice(b"mine ");
        // Sent on.
        right.send(&own.into_moved()).unwrap();
        let moved: Moved = left.recv().unwrap();
        assert_eq!(&moved.claim(1 << 20).unwrap()[..], b"mine  now");
    }
    assert_eq!(support::held("message moved"), (0, 0));
}

#[derive(Serialize)]
enum Sent<'a> {
    Still { what: &'a str, image: &'a Frozen },
    Stream(Option<&'a Live>, FdRef<'a>),
}

#[derive(Debug, Deserialize)]
enum Received {
    Still { what: String, image: Frozen },
    Stream(Option<LiveView>, Fd),
}

#[test]
fn anywhere_in_a_value() {
    let (left, right) = Link::pair().unwrap();
    let image = region("message value", b"pixels").freeze().unwrap();
    let live = region("message value", b"moving").share().unwrap();
    let null = File::open("/dev/null").unwrap();
    left.send(&Sent::Still {
        what: "still",
        image: &image,
    })
    .unwrap();
    left.send(&Sent::Stream(Some(&live), FdRef::new(&null)))
        .unwrap();
    match right.recv().unwrap() {
        Received::Still { what, image } => {
            assert_eq!((what.as_str(), &image[..]), ("still", &b"pixels"[..]))
        }
        other => panic!("{other:?}"),
    }
    match right.recv().unwrap() {
        Received::Stream(Some(view), null) if null.as_fd().as_raw_fd() >= 0 => {
            assert_eq!(view.len(), 6)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_refused_says_why() {
    {
        let live = region("message refused", b"live").share().unwrap();
        let moved = region("message refused", b"moved").into_moved();
        let error = refused::<Frozen>(&live);
        assert!(
            error.contains("expected a region sealed with SHRINK|GROW|WRITE"),
            "{error}"
        );
        let error = refused::<LiveView>(&moved);
        assert!(error.contains("expected a region sealed with"), "{error}");
        let error = refused::<(String, Frozen)>(&("in a pair", &live));
        assert!(error.contains("expected a region sealed with"), "{error}");
        let null = Fd::from(OwnedFd::from(File::open("/dev/null").unwrap()));
        for error in [
            refused::<Frozen>(&null),
            refused::<LiveView>(&null),
            refused::<Moved>(&null),
        ] {
            assert!(error.contains("not shared memory"), "{error}");
        }
        let sparse =
            rustix::fs::memfd_create("message refused", rustix::fs::MemfdFlags::ALLOW_SEALING)
                .unwrap();
        rustix::fs::ftruncate(&sparse, MESSAGE_QUOTA as u64 + 1).unwrap();
        let seals = rustix::fs::SealFlags::SHRINK
            | rustix::fs::SealFlags::GROW
            | rustix::fs::SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&sparse, seals).unwrap();
        let error = refused::<Frozen>(&FdRef::new(&sparse));
        assert!(
            error.contains("over this peer's quota of 1073741824 bytes"),
            "{error}"
        );
    }
    assert_eq!(support::held("message refused"), (0, 0));
}

#[test]
fn what_is_no_memory_is_not_sent_as_a_region() {
    let (left, right) = Link::pair().unwrap();
    let null = Moved::from(OwnedFd::from(File::open("/dev/null").unwrap()));
    let error = left.send(&null).unwrap_err();
    assert!(matches!(error, Error::Encode(_)), "{error}");
    left.send(&1_u8).unwrap();
    assert_eq!(right.recv::<u8>().unwrap(), 1);
}

#[test]
fn outside_of_a_link_they_are_no_values() {
    let frozen = region("message alone", b"x").freeze().unwrap();
    let error = memlane_transport::codec::encode(&frozen, 100).unwrap_err();
    assert!(error.to_string().contains("only by a link"), "{error}");
}

#[test]
fn an_exchange_over_a_link() {
    {
        let (owner, peer) = Link::pair().unwrap();
        let mut lender = Lender::new(1 << 20);
        let mut borrower = Borrower::new(1 << 20);
        let mut buffer = lender.create("message exchange", 4096).unwrap();
        for round in 0..100_u8 {
            buffer[0] = round;
            lender.lend(buffer, 1).send(&owner).unwrap();
            let borrowed = borrower.recv(&peer).unwrap();
            let mut byte = [0];
            borrowed.read(0, &mut byte);
            assert_eq!(byte, [round]);
            peer.send(&borrowed.give_back()).unwrap();
            buffer = lender.recv(&owner).unwrap();
        }
        owner.send(&lender.retire(buffer).unwrap()).unwrap();
        let mut buffer = lender.create("message exchange", 4096).unwrap();
        buffer[0] = 0xaa;
        lender.lend(buffer, 4096).send(&owner).unwrap();
        let borrowed = borrower.recv(&peer).unwrap();
        assert_eq!((borrowed.id(), borrower.mapped()), (0, 4096));
        drop(peer);
        // Nobody is there: the buffer is not lost.
        let buffer = lender.create("message exchange", 4096).unwrap();
        let unsent = lender.lend(buffer, 1).send(&owner).unwrap_err();
        assert!(matches!(unsent.error, Error::Disconnected), "{unsent}");
        assert_eq!((unsent.buffer.id(), lender.lent()), (1, 1));
    }
    assert_eq!(support::held("message exchange"), (0, 0));
}

#[test]
fn a_lender_that_sends_something_else() {
    let (owner, peer) = Link::pair().unwrap();
    #[derive(Serialize)]
    enum Forged<'a> {
        #[allow(dead_code)]
        Known((u32, u64, u64)),
        New((u32, u64, u64), FdRef<'a>),
    }
    let null = File::open("/dev/null").unwrap();
    owner
        .send(&Forged::New((0, 1, 1), FdRef::new(&null)))
        .unwrap();
    let error = Borrower::new(1 << 20).recv(&peer).unwrap_err();
    assert!(
        matches!(
            error,
            memlane_region::exchange::Error::Link(Error::Decode { .. })
        ),
        "{error:?}"
    );

    // Memory that is not sealed is refused by the borrower, and the link goes on.
    let (owner, peer) = Link::pair().unwrap();
    let unsealed = region("message unsealed", b"x").into_moved();
    owner
        .send(&Forged::New((0, 1, 1), FdRef::new(&unsealed.as_fd())))
        .unwrap();
    let error = Borrower::new(1 << 20).recv(&peer).unwrap_err();
    assert!(
        matches!(error, memlane_region::exchange::Error::Refused(_)),
        "{error:?}"
    );
    peer.send(&1_u8).unwrap();
}

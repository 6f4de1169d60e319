//! Regions that go to a peer and come back: the books of both ends, and what a hostile end cannot do to the other.
//!
//! Both ends are in one process here; two processes are in the package of cross-crate tests.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
};

use memlane_region::{
    Region,
    exchange::{Arrival, Borrowed, Borrower, Buffer, Error, Lender, Lent, MAX_REGIONS, Return},
};

mod support;

use support::Numbers;

const LEN: usize = 8192;

/// What the message says, at the other end.
fn arrival(lent: &Lent<'_>) -> Arrival {
    let bytes = lent.to_bytes();
    match lent.descriptor() {
        None => Arrival::from_bytes(&bytes).unwrap(),
        Some(fd) => Arrival::with_descriptor(&bytes, fd.try_clone_to_owned().unwrap()).unwrap(),
    }
}

fn hand_over(lender: &mut Lender, borrower: &mut Borrower, buffer: Buffer) -> Borrowed {
    let used = buffer.len();
    let arrival = arrival(&lender.lend(buffer, used));
    borrower.receive(arrival).unwrap().unwrap()
}

/// As a lender says it: `kind` is 0 for a known region, 1 for a new one, 2 for one that is retired.
fn message(id: u32, kind: u8, generation: u64, used: u64) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..4].copy_from_slice(&id.to_le_bytes());
    bytes[4] = kind;
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    bytes[16..].copy_from_slice(&used.to_le_bytes());
    bytes
}

fn returned(id: u32, generation: u64) -> Return {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&id.to_le_bytes());
    bytes[8..].copy_from_slice(&generation.to_le_bytes());
    Return::from_bytes(&bytes).unwrap()
}

fn known(
    borrower: &mut Borrower,
    id: u32,
    generation: u64,
    used: u64,
) -> Result<Option<Borrowed>, Error> {
    borrower.receive(Arrival::from_bytes(&message(id, 0, generation, used))?)
}

fn retired(borrower: &mut Borrower, id: u32, generation: u64) -> Result<Option<Borrowed>, Error> {
    borrower.receive(Arrival::from_bytes(&message(id, 2, generation, 0))?)
}

fn new(
    borrower: &mut Borrower,
    id: u32,
    generation: u64,
    used: u64,
    fd: OwnedFd,
) -> Result<Option<Borrowed>, Error> {
    let arrival = Arrival::with_descriptor(&message(id, 1, generation, used), fd);
    borrower.receive(arrival.unwrap())
}

fn live(len: usize) -> OwnedFd {
    let live = Region::create("exchange hostile", len)
        .unwrap()
        .share()
        .unwrap();
    live.as_fd().try_clone_to_owned().unwrap()
}

#[test]
fn there_and_back() {
    let mut lender = Lender::new(1 << 20);
    let mut borrower = Borrower::new(1 << 20);
    let mut buffer = lender.create("exchange there", LEN).unwrap();
    assert!(buffer.iter().all(|&byte| byte == 0));
    for round in 0..10_u8 {
        buffer.fill(round);
        let used = LEN - usize::from(round);
        let lent = lender.lend(buffer, used);
        // The memory itself goes once.
        assert_eq!(lent.descriptor().is_some(), round == 0);
        let borrowed = borrower.receive(arrival(&lent)).unwrap().unwrap();
        assert_eq!(borrowed.len(), used);
        let mut bytes = [0xff; 3];
        borrowed.read(used - 3, &mut bytes);
        assert_eq!(bytes, [round; 3]);
        // SAFETY: the lender does not write it before it has it back.
        let bytes = unsafe { borrowed.bytes() };
        assert!(bytes.len() == used && bytes.iter().all(|&byte| byte == round));
        assert_eq!(lender.lent(), 1);
        buffer = lender.take_back(borrowed.give_back()).unwrap();
        assert_eq!(lender.lent(), 0);
    }
    assert_eq!((lender.held(), borrower.mapped()), (LEN, LEN));
    assert_eq!(support::held("exchange there"), (1, 2));
    let over = lender.retire(buffer).unwrap();
    assert_eq!(support::held("exchange there"), (0, 1));
    let arrival = Arrival::from_bytes(&over.to_bytes()).unwrap();
    assert!(borrower.receive(arrival).unwrap().is_none());
    assert_eq!(support::held("exchange there"), (0, 0));
    assert_eq!((lender.held(), borrower.mapped()), (0, 0));
}

#[test]
#[should_panic(expected = "not in the 10 handed over")]
fn what_was_not_handed_over_is_not_read() {
    let mut lender = Lender::new(LEN);
    let mut borrower = Borrower::new(LEN);
    let buffer = lender.create("exchange part", LEN).unwrap();
    let arrival = arrival(&lender.lend(buffer, 10));
    let borrowed = borrower.receive(arrival).unwrap().unwrap();
    borrowed.read(8, &mut [0; 3]);
}

#[test]
#[should_panic(expected = "another lender")]
fn a_buffer_stays_with_its_lender() {
    let mut first = Lender::new(LEN);
    let mut second = Lender::new(LEN);
    let _mine = second.create("exchange mine", LEN).unwrap();
    let buffer = first.create("exchange other", LEN).unwrap();
    let _ = second.lend(buffer, 1);
}

#[test]
fn a_hand_over_that_was_not_sent_is_taken_back() {
    let mut lender = Lender::new(LEN);
    let mut borrower = Borrower::new(LEN);
    let mut buffer = lender.create("exchange unsent", LEN).unwrap();
    for _ in 0..3 {
        let lent = lender.lend(buffer, LEN);
        assert!(lent.descriptor().is_some());
        buffer = lent.cancel();
    }
    let borrowed = hand_over(&mut lender, &mut borrower, buffer);
    buffer = lender.take_back(borrowed.give_back()).unwrap();
    // A known one stays known.
    buffer = lender.lend(buffer, LEN).cancel();
    let lent = lender.lend(buffer, LEN);
    assert!(lent.descriptor().is_none());
    let borrowed = borrower.receive(arrival(&lent)).unwrap().unwrap();
    let _buffer = lender.take_back(borrowed.give_back()).unwrap();
}

#[test]
fn returns_that_are_not_believed() {
    let mut lender = Lender::new(1 << 20);
    let mut borrower = Borrower::new(1 << 20);
    let buffer = lender.create("exchange returns", LEN).unwrap();
    let other = lender.create("exchange returns", LEN).unwrap();
    assert_eq!((buffer.id(), other.id()), (0, 1));
    let borrowed = hand_over(&mut lender, &mut borrower, buffer);
    let first = borrowed.give_back();
    for id in [2, 3, u32::MAX] {
        let error = lender.take_back(returned(id, 1)).unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
    }
    // Never handed over.
    for generation in [0, 1, u64::MAX] {
        let error = lender.take_back(returned(1, generation)).unwrap_err();
        assert!(matches!(error, Error::NotLent { id: 1 }), "{error}");
    }
    for generation in [0, 2, u64::MAX] {
        let error = lender.take_back(returned(0, generation)).unwrap_err();
        let expected =
            matches!(error, Error::OtherLoan { id: 0, expected: 1, found } if found == generation);
        assert!(expected, "{error}");
    }
    let buffer = lender.take_back(first).unwrap();
    // Twice.
    let error = lender.take_back(first).unwrap_err();
    assert!(matches!(error, Error::NotLent { id: 0 }), "{error}");
    let borrowed = hand_over(&mut lender, &mut borrower, buffer);
    // Of the loan before.
    let error = lender.take_back(first).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OtherLoan {
                expected: 2,
                found: 1,
                ..
            }
        ),
        "{error}"
    );
    let last = borrowed.give_back();
    let buffer = lender.take_back(last).unwrap();
    let _ = lender.retire(buffer);
    for generation in 0..5 {
        let error = lender.take_back(returned(0, generation)).unwrap_err();
        assert!(matches!(error, Error::Foreign { id: 0 }), "{error}");
    }
    // The id comes again, and the numbers go on.
    let buffer = lender.create("exchange returns", LEN).unwrap();
    assert_eq!(buffer.id(), 0);
    let _ = lender.lend(buffer, 1).to_bytes();
    assert!(matches!(
        lender.take_back(first),
        Err(Error::OtherLoan { .. })
    ));
    assert!(matches!(
        lender.take_back(last),
        Err(Error::OtherLoan { .. })
    ));
    drop(other);
}

#[test]
fn messages_that_are_none() {
    for len in (0..40).filter(|&len| len != 24) {
        let error = Arrival::from_bytes(&vec![0; len]).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
    for len in (0..40).filter(|&len| len != 16) {
        let error = Return::from_bytes(&vec![0; len]).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
    for at in 4..8 {
        let mut bytes = message(1, 0, 1, 1);
        bytes[at] = 3;
        assert!(Arrival::from_bytes(&bytes).is_err());
        assert!(Arrival::with_descriptor(&bytes, live(1)).is_err());
        let mut bytes = [0; 16];
        bytes[at] = 1;
        assert!(Return::from_bytes(&bytes).is_err());
    }
    // Memory where none belongs, and none where it does.
    assert!(Arrival::with_descriptor(&message(1, 0, 1, 1), live(1)).is_err());
    assert!(Arrival::with_descriptor(&message(1, 2, 1, 1), live(1)).is_err());
    assert!(matches!(
        Arrival::from_bytes(&message(1, 1, 1, 1)),
        Err(Error::Unknown { id: 1 })
    ));
    let there = returned(7, 9);
    assert_eq!(Return::from_bytes(&there.to_bytes()).unwrap(), there);
}

#[test]
fn lies_of_a_lender() {
    let mut borrower = Borrower::new(4 * LEN);
    // Nothing is known.
    for id in [0, 1, MAX_REGIONS as u32, u32::MAX] {
        assert!(matches!(
            known(&mut borrower, id, 1, 1),
            Err(Error::Unknown { .. })
        ));
        assert!(matches!(
            retired(&mut borrower, id, 1),
            Err(Error::Unknown { .. })
        ));
    }
    // More used than there is.
    for used in [LEN as u64 + 1, u64::MAX] {
        let error = new(&mut borrower, 5, 1, used, live(LEN)).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Used {
                    id: 5,
                    len: LEN,
                    ..
                }
            ),
            "{error}"
        );
    }
    // Ids without bound.
    for id in [MAX_REGIONS as u32, u32::MAX] {
        let error = new(&mut borrower, id, 1, 1, live(LEN)).unwrap_err();
        assert!(matches!(error, Error::Regions), "{error}");
    }
    let borrowed = new(&mut borrower, 5, 7, LEN as u64, live(LEN))
        .unwrap()
        .unwrap();
    // While it is borrowed.
    assert!(matches!(
        known(&mut borrower, 5, 8, 1),
        Err(Error::Held { id: 5 })
    ));
    assert!(matches!(
        retired(&mut borrower, 5, 8),
        Err(Error::Held { id: 5 })
    ));
    let error = new(&mut borrower, 5, 8, 1, live(LEN)).unwrap_err();
    assert!(matches!(error, Error::Redefined { id: 5 }), "{error}");
    let _ = borrowed.give_back();
    // Afterwards.
    let error = new(&mut borrower, 5, 8, 1, live(LEN)).unwrap_err();
    assert!(matches!(error, Error::Redefined { id: 5 }), "{error}");
    for generation in [0, 6, 7] {
        let error = known(&mut borrower, 5, generation, 1).unwrap_err();
        assert!(matches!(error, Error::Replayed { last: 7, .. }), "{error}");
        let error = retired(&mut borrower, 5, generation).unwrap_err();
        assert!(matches!(error, Error::Replayed { last: 7, .. }), "{error}");
    }
    for used in [LEN as u64 + 1, u64::MAX] {
        assert!(matches!(
            known(&mut borrower, 5, 8, used),
            Err(Error::Used { .. })
        ));
    }
    // None of which has changed anything.
    let borrowed = known(&mut borrower, 5, 8, LEN as u64).unwrap().unwrap();
    let _ = borrowed.give_back();
    assert!(retired(&mut borrower, 5, 9).unwrap().is_none());
    assert_eq!(borrower.mapped(), 0);
    assert!(matches!(
        known(&mut borrower, 5, 10, 1),
        Err(Error::Unknown { .. })
    ));
    let error = new(&mut borrower, 5, 9, 1, live(LEN)).unwrap_err();
    assert!(matches!(error, Error::Replayed { last: 9, .. }), "{error}");
    let _ = new(&mut borrower, 5, 10, 1, live(LEN))
        .unwrap()
        .unwrap()
        .give_back();
}

#[test]
fn memory_of_a_lender_that_is_refused() {
    let mut borrower = Borrower::new(4 * LEN);
    let mut refused = |fd: OwnedFd| match new(&mut borrower, 0, 1, 1, fd).unwrap_err() {
        Error::Refused(refused) => refused.error,
        error => panic!("{error}"),
    };
    let unsealed = OwnedFd::from(
        Region::create("exchange unsealed", LEN)
            .unwrap()
            .into_moved(),
    );
    assert!(matches!(
        refused(unsealed),
        memlane_region::Error::Seals { .. }
    ));
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(
        refused(null.into()),
        memlane_region::Error::NotSharedMemory
    ));
    assert!(matches!(
        refused(live(4 * LEN + 1)),
        memlane_region::Error::Quota { .. }
    ));
    // Each within the quota, all together not.
    for id in 0..4 {
        let _ = new(&mut borrower, id, 1, 1, live(LEN))
            .unwrap()
            .unwrap()
            .give_back();
    }
    let error = new(&mut borrower, 4, 1, 1, live(1)).unwrap_err();
    let expected =
        matches!(error, Error::Limit { len: 1, held, limit } if held == 4 * LEN && limit == held);
    assert!(expected, "{error}");
    assert_eq!(borrower.mapped(), 4 * LEN);
    assert!(retired(&mut borrower, 2, 2).unwrap().is_none());
    let _ = new(&mut borrower, 4, 1, 1, live(LEN))
        .unwrap()
        .unwrap()
        .give_back();
}

#[test]
fn the_limits_of_a_lender() {
    let mut lender = Lender::new(3 * LEN);
    let first = lender.create("exchange limit", LEN).unwrap();
    let second = lender.create("exchange limit", LEN).unwrap();
    let error = lender.create("exchange limit", LEN + 1).unwrap_err();
    assert!(matches!(error, Error::Limit { .. }), "{error}");
    let _ = lender.lend(first, 1).to_bytes();
    assert!(matches!(
        lender.create("exchange limit", LEN + 1),
        Err(Error::Limit { .. })
    ));
    // The peer has never had it.
    assert!(lender.retire(second).is_none());
    let _two = lender.create("exchange limit", 2 * LEN).unwrap();
    assert_eq!(lender.held(), 3 * LEN);
    let error = lender.create("exchange limit", 0).unwrap_err();
    assert!(matches!(error, Error::Region(_)), "{error}");

    let mut lender = Lender::new(usize::MAX);
    for _ in 0..2 * MAX_REGIONS {
        let buffer = lender.create("exchange many", 1).unwrap();
        assert!(lender.retire(buffer).is_none());
    }
}

#[test]
fn a_peer_that_is_gone() {
    let mut lender = Lender::new(4 * LEN);
    let mut borrower = Borrower::new(4 * LEN);
    let mut held = Vec::new();
    for _ in 0..3 {
        let buffer = lender.create("exchange gone", LEN).unwrap();
        held.push(hand_over(&mut lender, &mut borrower, buffer));
    }
    let here = lender.take_back(held.remove(0).give_back()).unwrap();
    let late = held.remove(0).give_back();
    drop(borrower);
    drop(held);
    let mut buffers = lender.reclaim();
    assert_eq!((buffers.len(), lender.lent()), (2, 0));
    assert!(matches!(lender.take_back(late), Err(Error::NotLent { .. })));
    assert!(lender.reclaim().is_empty());
    // Its successor knows nothing.
    buffers.push(here);
    let mut borrower = Borrower::new(4 * LEN);
    for buffer in buffers {
        let lent = lender.lend(buffer, 1);
        assert!(lent.descriptor().is_some());
        let borrowed = borrower.receive(arrival(&lent)).unwrap().unwrap();
        drop(lender.take_back(borrowed.give_back()).unwrap());
    }
    drop(borrower);
    assert_eq!(support::held("exchange gone"), (0, 0));
}

/// Random returns, true ones among them: a buffer comes back exactly when it was out under that number.
#[test]
fn random_returns() {
    let mut numbers = Numbers(4);
    let mut lender = Lender::new(8 * LEN);
    let mut here: Vec<Buffer> = (0..8)
        .map(|_| lender.create("exchange random", LEN).unwrap())
        .collect();
    let mut out: HashMap<u32, u64> = HashMap::new();
    let mut loans = [0_u64; 8];
    let mut believed = 0;
    for _ in 0..100_000 {
        if numbers.below(3) == 0 && !here.is_empty() {
            let buffer = here.swap_remove(numbers.below(here.len() as u64) as usize);
            let id = buffer.id();
            let _ = lender.lend(buffer, 0).to_bytes();
            loans[id as usize] += 1;
            out.insert(id, loans[id as usize]);
        }
        let id = numbers.below(10) as u32;
        let near = loans.get(id as usize).copied().unwrap_or(0);
        let generation = (near + 1).saturating_sub(numbers.below(4));
        match lender.take_back(returned(id, generation)) {
            Ok(buffer) => {
                assert_eq!(buffer.id(), id);
                assert_eq!(out.remove(&id), Some(generation));
                here.push(buffer);
                believed += 1;
            }
            Err(_) => assert_ne!(out.get(&id), Some(&generation)),
        }
        assert_eq!((lender.lent(), here.len()), (out.len(), 8 - out.len()));
    }
    assert!(believed > 1000, "{believed}");
}

/// Random messages of a lender: what is mapped stays within the quota, and is counted right.
#[test]
fn random_hand_overs() {
    let mut numbers = Numbers(5);
    let mut borrower = Borrower::new(6 * LEN);
    let mut held: Vec<Borrowed> = Vec::new();
    let (mut taken, mut ended) = (0, 0);
    for _ in 0..20_000 {
        let id = numbers.below(10) as u32;
        let generation = numbers.below(2000);
        let used = numbers.below(LEN as u64 + 2);
        let result = match numbers.below(4) {
            0 => new(&mut borrower, id, generation, used, live(LEN)),
            1 => retired(&mut borrower, id, generation),
            _ => known(&mut borrower, id, generation, used),
        };
        match result {
            Ok(Some(borrowed)) => {
                assert!(held.iter().all(|other| other.id() != id));
                assert_eq!((borrowed.id(), borrowed.len() as u64), (id, used));
                held.push(borrowed);
                taken += 1;
            }
            Ok(None) => ended += 1,
            Err(_) => {}
        }
        if numbers.below(2) == 0 && !held.is_empty() {
            let _ = held
                .swap_remove(numbers.below(held.len() as u64) as usize)
                .give_back();
        }
        let mapped = borrower.mapped();
        assert!(mapped <= 6 * LEN && mapped % LEN == 0 && mapped >= held.len() * LEN);
    }
    assert!(taken > 50 && ended > 10, "{taken} {ended}");
    assert_eq!(support::held("exchange hostile").1, borrower.mapped() / LEN);
}

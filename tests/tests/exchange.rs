//! Buffers that go to another process and come back: what that costs when both know them, and what becomes of them when
//! the other process is killed, or lies.

use std::fs;

use memlane_region::{
    Region,
    exchange::{Arrival, Borrowed, Borrower, Buffer, Error, Lender, Return},
};
use memlane_tests::{Census, Dice, Part, Role, Scene, alive, play};
use memlane_transport::FdRef;
use serde::Serialize;

const ROLES: &[(&str, Part)] = &[
    ("reader", reader),
    ("hoarder", hoarder),
    ("forger", forger),
    ("lying lender", lying_lender),
];

#[test]
fn other_process() {
    play(ROLES);
}

const LEN: usize = 64 << 10;
const BUFFERS: usize = 3;
const QUOTA: usize = 1 << 30;

/// The first thing that a child hears, where it needs no other.
const BEGIN: u8 = 0;

/// Page faults of this thread that took no I/O: proc_pid_stat(5), field 10.
fn minor_faults() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/stat").expect("/proc");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let faults = fields.split(' ').nth(7).expect("minflt");
    faults.parse().expect("a number")
}

fn buffers(lender: &mut Lender, count: usize, len: usize) -> Vec<Buffer> {
    (0..count)
        .map(|_| lender.create("exchange", len).expect("memory"))
        .collect()
}

/// The byte that a buffer is filled with in a round.
fn pattern(round: u64) -> u8 {
    (round % 251) as u8
}

/// Reads every page of what it gets, and gives it back.
fn reader(role: &Role) {
    let (warm, rounds): (u64, u64) = role.hear();
    let mut borrower = Borrower::new(QUOTA);
    let mut bytes = vec![0; LEN];
    let mut before = None;
    for round in 0..warm + rounds {
        if round == warm {
            before = Some((Census::take(), minor_faults()));
        }
        let arrival = role.hear();
        let borrowed = borrower.receive(arrival).expect("honest").expect("lent");
        borrowed.read(0, &mut bytes[..borrowed.len()]);
        for at in [0, borrowed.len() / 2, borrowed.len() - 1] {
            assert_eq!(bytes[at], pattern(round));
        }
        role.tell(&borrowed.give_back());
    }
    let (census, faults) = before.expect("more rounds than it takes to warm up");
    role.tell(&(minor_faults() - faults));
    assert_eq!(Census::take(), census);
}

/// A hundred thousand hand-overs of known buffers: no descriptor, no mapping, no page fault on either side.
#[test]
fn known_buffers_cost_nothing_but_messages() {
    let scene = Scene::new();
    let (warm, rounds) = (10 * BUFFERS as u64, 100_000_u64);
    let child = scene.spawn("reader", &(warm, rounds));
    let mut lender = Lender::new(BUFFERS * LEN);
    let mut free = buffers(&mut lender, BUFFERS, LEN);
    let mut before = None;
    for round in 0..warm + rounds {
        let mut buffer = match free.pop() {
            Some(buffer) => buffer,
            None => lender.take_back(child.hear()).expect("honest"),
        };
        if round == warm {
            before = Some((Census::take(), minor_faults()));
        }
        buffer.fill(pattern(round));
        let lent = lender.lend(buffer, LEN);
        assert_eq!(lent.descriptor().is_some(), round < BUFFERS as u64);
        child.tell(&lent);
    }
    while lender.lent() > 0 {
        free.push(lender.take_back(child.hear()).expect("honest"));
    }
    let (census, faults) = before.expect("as many rounds");
    let here = minor_faults() - faults;
    let there: u64 = child.hear();
    assert_eq!(Census::take(), census);
    // The kernel may take a page out of a page table at any time; it is not 16 of them for every hand-over.
    println!("minor page faults in {rounds} hand-overs: {here} here, {there} there");
    assert!(here < 1000 && there < 1000, "{here} {there}");
    child.finish();
    assert_eq!(free.len(), BUFFERS);
}

/// Takes what comes, and keeps it.
fn hoarder(role: &Role) {
    let _begin: u8 = role.hear();
    let mut borrower = Borrower::new(QUOTA);
    let mut held: Vec<Borrowed> = Vec::new();
    loop {
        let arrival = role.hear();
        held.extend(borrower.receive(arrival).expect("honest"));
        role.tell(&held.len());
    }
}

/// Bytes of shared memory in use on this machine.
fn shmem() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").expect("/proc");
    let line = info.lines().find(|line| line.starts_with("Shmem:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1));
    kibibytes
        .and_then(|number| number.parse::<u64>().ok())
        .expect("a number")
        << 10
}

/// A peer is killed with buffers in its hands, again and again: the owner has them back, and their memory goes when the
/// owner drops them.
#[test]
fn a_killed_borrower_keeps_nothing() {
    const LARGE: usize = 16 << 20;
    let scene = Scene::new();
    let before = Census::take();
    let shared = shmem();
    let kills = 20;
    for _ in 0..kills {
        let child = scene.spawn("hoarder", &BEGIN);
        let mut lender = Lender::new(QUOTA);
        let mut free = buffers(&mut lender, 4, LARGE);
        let here = free.pop();
        for (held, buffer) in free.into_iter().enumerate() {
            child.tell(&lender.lend(buffer, LARGE));
            assert_eq!(child.hear::<usize>(), held + 1);
        }
        child.kill_and_reap();
        let back = lender.reclaim();
        assert_eq!((back.len(), lender.lent()), (3, 0));
        drop((here, back));
        before.settle();
        alive();
    }
    // All of it would be 1.3 GB; others use shared memory, too.
    let left = shmem().saturating_sub(shared);
    assert!(left < 640 << 20, "{left} bytes");
}

/// Returns what it has, among a thousand returns that are not.
fn forger(role: &Role) {
    let _begin: u8 = role.hear();
    let mut dice = Dice::new();
    let mut borrower = Borrower::new(QUOTA);
    let mut past: Vec<Return> = Vec::new();
    for _ in 0..100 {
        let arrival = role.hear();
        let borrowed = borrower.receive(arrival).expect("honest").expect("lent");
        let id = borrowed.id();
        let true_one = borrowed.give_back();
        let forged = (0..1000).map(|_| match dice.below(4) {
            0 if !past.is_empty() => dice.pick(&past),
            // Any generation but those to come, which it could guess.
            1 => made_up(id, 1 << 40 | dice.below(1 << 40)),
            2 => made_up(dice.below(1 << 32) as u32, 0),
            _ => made_up(BUFFERS as u32 + dice.below(9) as u32, dice.below(100)),
        });
        let forged: Vec<Return> = forged.collect();
        role.tell(&(forged, true_one));
        past.push(true_one);
    }
}

fn made_up(id: u32, generation: u64) -> Return {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&id.to_le_bytes());
    bytes[8..].copy_from_slice(&generation.to_le_bytes());
    Return::from_bytes(&bytes).expect("well-formed")
}

#[test]
fn forged_returns_change_nothing() {
    let scene = Scene::new();
    let child = scene.spawn("forger", &BEGIN);
    let mut lender = Lender::new(QUOTA);
    let mut free = buffers(&mut lender, BUFFERS, 4096);
    for round in 0..100 {
        let mut buffer = free.remove(0);
        buffer.fill(round);
        child.tell(&lender.lend(buffer, 1));
        let (forged, true_one): (Vec<Return>, Return) = child.hear();
        for returned in forged {
            let error = lender.take_back(returned).expect_err("forged");
            let typed = matches!(
                error,
                Error::Foreign { .. } | Error::NotLent { .. } | Error::OtherLoan { .. }
            );
            assert!(typed, "{error}");
            assert_eq!(lender.lent(), 1);
        }
        let buffer = lender.take_back(true_one).expect("the true one");
        assert!(buffer.iter().all(|&byte| byte == round));
        free.push(buffer);
    }
    child.finish();
}

/// What a lender's messages look like on the wire.
#[derive(Serialize)]
enum Forged<'a> {
    Known((u32, u64, u64)),
    New((u32, u64, u64), FdRef<'a>),
    Retired((u32, u64, u64)),
}

/// Says what a lender must not, and one thing in between that it may.
fn lying_lender(role: &Role) {
    let _begin: u8 = role.hear();
    let live = |len| {
        let region = Region::create("exchange", len).expect("memory");
        region.share().expect("a live region")
    };
    let (one, two) = (live(LEN), live(LEN));
    let unsealed = Region::create("exchange", LEN)
        .expect("memory")
        .into_moved();
    let (large, used) = (live(2 * QUOTA_OF_LIES), LEN as u64);
    let (one, two, large) = (FdRef::new(&one), FdRef::new(&two), FdRef::new(&large));
    role.tell(&Forged::Known((0, 1, 1)));
    role.tell(&Forged::Retired((0, 1, 1)));
    role.tell(&Forged::New((0, 1, used + 1), one));
    role.tell(&Forged::New((0, 1, 1), FdRef::new(&unsealed)));
    role.tell(&Forged::New((0, 1, 1), large));
    role.tell(&Forged::New((u32::MAX, 1, 1), one));
    role.tell(&Forged::New((0, 1, used), one));
    role.tell(&Forged::New((0, 2, used), two));
    role.tell(&Forged::Known((0, 1, used)));
    role.tell(&Forged::Known((0, 2, used + 1)));
    role.tell(&Forged::New((1, 1, used), two));
    role.tell(&Forged::New((2, 1, used), one));
    let _end: u8 = role.hear();
}

const QUOTA_OF_LIES: usize = 2 * LEN;

#[test]
fn a_lying_lender_maps_nothing() {
    let scene = Scene::new();
    let child = scene.spawn("lying lender", &BEGIN);
    let mut borrower = Borrower::new(QUOTA_OF_LIES);
    let before = Census::take();
    let mut said = Vec::new();
    for message in 0..12 {
        let arrival: Arrival = child.hear();
        said.push(match borrower.receive(arrival) {
            Ok(borrowed) => {
                let _ = borrowed.expect("lent").give_back();
                "taken"
            }
            Err(Error::Unknown { .. }) => "unknown",
            Err(Error::Used { .. }) => "used",
            Err(Error::Refused(_)) => "refused",
            Err(Error::Regions) => "regions",
            Err(Error::Redefined { .. }) => "redefined",
            Err(Error::Replayed { .. }) => "replayed",
            Err(Error::Limit { .. }) => "limit",
            Err(error) => panic!("{error}"),
        });
        if message < 6 {
            assert_eq!(Census::take(), before, "{said:?}");
        }
    }
    let expected = [
        "unknown",
        "unknown",
        "used",
        "refused",
        "refused",
        "regions",
        "taken",
        "redefined",
        "replayed",
        "used",
        "taken",
        "limit",
    ];
    assert_eq!(said, expected);
    assert_eq!(borrower.mapped(), QUOTA_OF_LIES);
    drop(borrower);
    assert_eq!(Census::take(), before);
    child.tell(&BEGIN);
    child.finish();
}

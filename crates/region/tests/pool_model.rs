//! Random operations on a pool against a model of it: what each message said, and who may read it. No chunk is loaned
//! while anybody may read it, nothing that is free is missed, and nothing is lost at the end.
#![cfg(not(memlane_loom))]

mod support;

use std::time::{Duration, Instant};

use memlane_region::{
    HeapWords,
    pool::{ChunkRef, HeldChunk, HoldError, Loan, Pool, PoolError, PoolOptions},
    ring::Record,
};
use proptest::{collection::vec, prelude::*, sample::Index};
use support::{
    held, payload,
    pool::{Mine, Ring, Side},
};

const NAME: &str = "pool-model";
const MAX: usize = 24 << 10;

#[derive(Clone, Debug)]
enum Operation {
    Loan(usize),
    /// Shortens a loan, and sends it.
    Send(Index, Index),
    Drop(Index),
    /// A reader takes the next record, and holds what it names or does not.
    Take(Index, bool),
    /// A reader drops something that it holds.
    Release(Index, Index),
    Join(bool),
    Die(Index),
    Trim(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let any = any::<Index>;
    prop_oneof![
        8 => prop_oneof![0..200usize, 0..MAX, Just(MAX)].prop_map(Loan),
        8 => (any(), any()).prop_map(|(loan, len)| Send(loan, len)),
        2 => any().prop_map(Drop),
        14 => (any(), prop::bool::weighted(0.3)).prop_map(|(reader, hold)| Take(reader, hold)),
        5 => (any(), any()).prop_map(|(reader, hold)| Release(reader, hold)),
        1 => prop::bool::weighted(0.3).prop_map(Join),
        1 => any().prop_map(Die),
        1 => (0..20u64).prop_map(Trim),
    ]
}

/// What a message said: its chunk, and the number that its payload is made of.
#[derive(Clone, Copy)]
struct Said {
    named: ChunkRef,
    size: usize,
}

struct Member {
    side: Side,
    held: Vec<(Said, HeldChunk<Mine>)>,
}

struct Model {
    pool: Pool,
    ring: Ring,
    words: HeapWords,
    zero: bool,
    start: Instant,
    loans: Vec<Loan>,
    sent: Vec<Said>,
    members: Vec<Member>,
}

/// The size of the class of a message: by the words of the documentation.
fn size(len: usize) -> usize {
    let sizes = [1, 2, 3, 4, 5, 6, 7, 8].map(|pages| pages << 12);
    *sizes.iter().find(|&&size| size >= len).unwrap()
}

fn assert_said(said: Said, chunk: memlane_region::pool::Chunk<'_>) {
    let mut copy = vec![0; chunk.len()];
    chunk.read(0, &mut copy);
    let expected = payload(said.named.sequence, copy.len());
    assert!(copy == expected, "{:?} says something else", said.named);
}

impl Model {
    fn new(limit: usize, zero: bool) -> Model {
        let words = HeapWords::new(512);
        let options = PoolOptions::new(limit)
            .max_loan(MAX)
            .zero(zero)
            .memory(NAME);
        Model {
            pool: Pool::new(options).unwrap(),
            ring: Ring::new(words.map()),
            words,
            zero,
            start: Instant::now(),
            loans: Vec::new(),
            sent: Vec::new(),
            members: Vec::new(),
        }
    }

    /// Readers are told of changes.
    fn follow(&mut self) {
        for change in self.pool.take_changes() {
            for member in &mut self.members {
                member.side.follow(&self.pool, &[change]);
            }
        }
    }

    /// Every message that an honest reader may still read says what it said.
    fn check(&self) {
        for member in &self.members {
            for (said, hold) in &member.held {
                assert_said(*said, hold.chunk());
            }
            if member.side.lossy {
                continue;
            }
            let from = member.side.ring.position();
            for said in self.sent.iter().filter(|said| said.named.sequence > 0) {
                if position(said) >= from && position(said) >= member.side.joined.start {
                    assert_said(*said, member.side.chunks.resolve(said.named).unwrap());
                }
            }
        }
    }

    /// Bytes of the chunks that some reader has.
    fn held(&self) -> usize {
        let has = |member: &Member, said: &Said| {
            let pending = !member.side.lossy
                && position(said) >= member.side.ring.position()
                && position(said) >= member.side.joined.start;
            pending
                || (member.held.iter()).any(|(held, _)| held.named.sequence == said.named.sequence)
        };
        let held = self
            .sent
            .iter()
            .filter(|said| self.members.iter().any(|m| has(m, said)));
        held.map(|said| said.size).sum()
    }

    fn run(&mut self, operation: Operation) {
        match operation {
            Operation::Loan(len) => match self.pool.loan(len, &mut self.ring) {
                Ok(mut loan) => {
                    assert_eq!(loan.len(), len);
                    assert!(!self.zero || loan.iter().all(|&byte| byte == 0), "not zero");
                    // Whoever reads this chunk by mistake sees it.
                    loan.fill(0xA5);
                    self.loans.push(loan);
                    self.follow();
                    self.check();
                }
                Err(PoolError::Exhausted { held, loaned, .. }) => {
                    let mine: usize = self.loans.iter().map(|loan| size(loan.len())).sum();
                    assert_eq!(loaned, mine);
                    let lossy = self.members.iter().any(|member| member.side.lossy);
                    assert!(held == self.held() || lossy && held > self.held());
                }
                Err(error) => panic!("{error}"),
            },
            Operation::Send(loan, len) if !self.loans.is_empty() => {
                let mut loan = self.loans.swap_remove(loan.index(self.loans.len()));
                let size = size(loan.len());
                loan.truncate(len.index(loan.len() + 1));
                let sequence = self.sent.last().map_or(1, |said| said.named.sequence + 1);
                let said = payload(sequence, loan.len());
                loan.copy_from_slice(&said);
                let position = self.ring.position();
                match self.pool.send(loan, &mut self.ring) {
                    Ok(named) => {
                        assert_eq!(named.sequence, sequence);
                        assert_eq!(position, self::position(&Said { named, size }));
                        self.sent.push(Said { named, size });
                    }
                    // Dropped: a loan of a shorter length would not be of the class it looks like.
                    Err(unsent) => assert!(unsent.loan[..] == said[..]),
                }
            }
            Operation::Drop(loan) if !self.loans.is_empty() => {
                drop(self.loans.swap_remove(loan.index(self.loans.len())));
            }
            Operation::Take(at, hold) if !self.members.is_empty() => {
                let at = at.index(self.members.len());
                take(&mut self.members[at], &self.sent, hold);
            }
            Operation::Release(at, hold) if !self.members.is_empty() => {
                let at = at.index(self.members.len());
                let held = &mut self.members[at].held;
                if !held.is_empty() {
                    let (said, hold) = held.swap_remove(hold.index(held.len()));
                    assert_said(said, hold.chunk());
                }
            }
            Operation::Join(lossy) if self.members.len() < 4 => {
                let side = Side::join(NAME, &self.pool, &self.ring, &self.words, lossy);
                let held = Vec::new();
                self.members.push(Member { side, held });
            }
            Operation::Die(at) if !self.members.is_empty() => {
                let member = self.members.swap_remove(at.index(self.members.len()));
                self.ring.roster().leave(member.side.joined.id);
                // The page stays as it is: nobody stores 0 into its slots.
                for (_, hold) in member.held {
                    std::mem::forget(hold);
                }
            }
            Operation::Trim(seconds) => {
                let now = self.start + Duration::from_secs(seconds);
                self.pool.trim(now, Duration::from_secs(5), &mut self.ring);
                self.follow();
                self.check();
            }
            _ => {}
        }
    }
}

/// Every record is 32 bytes, the first at 0.
fn position(said: &Said) -> u64 {
    (said.named.sequence - 1) * 32
}

fn take(member: &mut Member, sent: &[Said], hold: bool) -> bool {
    let side = &mut member.side;
    let Some(found) = side.ring.poll_record().unwrap() else {
        return false;
    };
    let Record::Chunk(found) = found else {
        panic!("{found:?}")
    };
    let said = sent[found.sequence as usize - 1];
    assert_eq!(said.named, found);
    if side.lossy {
        // The segment may be gone, too.
        let chunk = side.chunks.resolve(found);
        match chunk.ok().map(|chunk| chunk.announce(&side.holds)) {
            Some(Ok(held)) => {
                assert_said(said, held.chunk());
                if hold {
                    member.held.push((said, held));
                }
            }
            None | Some(Err(HoldError::Full | HoldError::Gone { .. })) => {}
            Some(Err(error)) => panic!("{error}"),
        }
    } else {
        let chunk = side.chunks.resolve(found).unwrap();
        assert_said(said, chunk);
        if hold && side.holds.taken() < 64 {
            member.held.push((said, chunk.hold(&side.holds).unwrap()));
        }
    }
    member.side.ring.release();
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn against_the_model(
        limit in 8..40usize,
        zero: bool,
        operations in vec(operation(), 1..300),
    ) {
        let mut model = Model::new(limit << 12, zero);
        model.run(Operation::Join(false));
        for operation in operations {
            model.run(operation);
        }
        model.check();
        // All is read and released; all is free.
        model.loans.clear();
        for member in &mut model.members {
            while take(member, &model.sent, false) {}
            member.held.clear();
            model.ring.roster().leave(member.side.joined.id);
        }
        model.pool.trim(model.start, Duration::ZERO, &mut model.ring);
        assert_eq!(model.pool.bytes(), 0);
        // The dead have forgotten what they mapped.
    }
}

/// Nothing stays mapped or open.
#[test]
fn nothing_is_left() {
    const NAME: &str = "pool-left";
    let words = HeapWords::new(512);
    let mut pool = Pool::new(PoolOptions::new(1 << 20).memory(NAME)).unwrap();
    let mut ring = Ring::new(words.map());
    let side = Side::join(NAME, &pool, &ring, &words, false);
    let loan = pool.loan(1, &mut ring).unwrap();
    pool.send(loan, &mut ring).unwrap();
    drop((pool, ring, side));
    assert_eq!(held(NAME), (0, 0));
}

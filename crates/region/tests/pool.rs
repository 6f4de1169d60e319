//! A pool step by step: what is loaned, what it costs, when it comes back.
#![cfg(not(memlane_loom))]

mod support;

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use memlane_region::{
    Error, HeapWords, WordsMut, page_size,
    pool::{
        Change, ChunkRef, Geometry, HOLD_SLOTS, HoldError, MAX_SEGMENTS, Pool, PoolError,
        PoolOptions, PoolReader, Unresolved,
    },
    ring::{Carried, LossyReader, NoRoom, Polled, Record, RingReader, RingWriter, TAGS},
};
use support::{
    HeapPage, held,
    pool::{Mine, Ring, Side},
};

const QUARTER: usize = 1 << 18;

fn pool(name: &'static str, limit: usize, max_loan: usize) -> Pool {
    Pool::new(PoolOptions::new(limit).max_loan(max_loan).memory(name)).unwrap()
}

/// A pool, a ring, and so many lossless readers.
fn lane(
    name: &'static str,
    options: PoolOptions,
    readers: usize,
) -> (Pool, Ring, Vec<Side>, HeapWords) {
    let words = HeapWords::new(8192);
    let pool = Pool::new(options.memory(name)).unwrap();
    let ring = Ring::new(words.map());
    let sides = (0..readers)
        .map(|_| Side::join(name, &pool, &ring, &words, false))
        .collect();
    (pool, ring, sides, words)
}

fn send(pool: &mut Pool, ring: &mut Ring, len: usize) -> ChunkRef {
    let loan = pool.loan(len, ring).unwrap();
    pool.send(loan, ring).unwrap()
}

fn receive(side: &mut Side) -> ChunkRef {
    match side.ring.poll_record() {
        Ok(Some(Record::Chunk(found))) => found,
        other => panic!("expected a chunk, got {other:?}"),
    }
}

fn loaned(pool: &mut Pool, ring: &mut Ring, len: usize) -> Result<(), (usize, usize)> {
    match pool.loan(len, ring) {
        Ok(_) => Ok(()),
        Err(PoolError::Exhausted { held, loaned, .. }) => Err((held, loaned)),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn lengths_and_limits() {
    const NAME: &str = "pool-lengths";
    let page = page_size();
    let mut pool = pool(NAME, 1 << 20, QUARTER);
    let mut loans = Vec::new();
    for len in [0, 1, page, page + 1, 5 * page, QUARTER] {
        let mut loan = pool.loan(len, &mut ()).unwrap();
        assert_eq!(loan.len(), len);
        assert!(loan.iter().all(|&byte| byte == 0), "new memory is zero");
        loan.fill(1);
        loan.truncate(len / 2);
        loan.truncate(len);
        assert_eq!(loan.len(), len / 2);
        loans.push(loan);
    }
    assert!(pool.bytes() <= 1 << 20);
    for len in [QUARTER + 1, usize::MAX] {
        match pool.loan(len, &mut ()) {
            Err(PoolError::TooLarge { len: got, max }) => assert_eq!((got, max), (len, QUARTER)),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        Pool::new(PoolOptions::new(1 << 20).max_loan((1 << 20) + 1)),
        Err(Error::Length { .. })
    ));
    // Nine pages take a chunk of ten.
    let page = page_size();
    assert!(matches!(
        Pool::new(PoolOptions::new(9 * page).max_loan(9 * page)),
        Err(Error::Length { .. })
    ));
    assert!(matches!(
        Pool::new(PoolOptions::new(1 << 20).max_loan(usize::MAX)),
        Err(Error::Length { .. })
    ));
    // A loan outlives its pool.
    drop(pool);
    loans[5][0] = 7;
    drop(loans);
    assert_eq!(held(NAME), (0, 0));
}

#[test]
fn loans_go_to_other_threads_and_come_back_when_dropped() {
    let page = page_size();
    let mut pool = pool("pool-threads", page, page);
    for _ in 0..3 {
        let mut loan = pool.loan(page, &mut ()).unwrap();
        assert_eq!(
            loaned(&mut pool, &mut Ring::new(HeapWords::new(128)), 1),
            Err((0, page))
        );
        std::thread::spawn(move || loan.fill(3)).join().unwrap();
    }
    assert_eq!(pool.bytes(), page);
}

#[test]
fn a_chunk_is_free_once_the_slowest_reader_has_released_it() {
    let page = page_size();
    let options = PoolOptions::new(page).max_loan(page);
    let (mut pool, mut ring, mut sides, _) = lane("pool-slowest", options, 2);
    assert_eq!(pool.want(), None);
    send(&mut pool, &mut ring, 1);
    assert_eq!(pool.want(), Some(8 | 1));
    for side in &mut sides {
        assert_eq!(loaned(&mut pool, &mut ring, 1), Err((page, 0)));
        assert_eq!(
            pool.held_by(side.joined.start, &*side.joined.reader).bytes,
            page
        );
        receive(side);
        side.ring.release();
        assert_eq!(
            pool.held_by(side.joined.start, &*side.joined.reader).chunks,
            0
        );
    }
    assert_eq!(loaned(&mut pool, &mut ring, 1), Ok(()));
    // Held beyond its record.
    send(&mut pool, &mut ring, 1);
    let held = sides[0].chunks.is_empty();
    assert!(held, "nobody has told this reader of the segment");
    let changes = pool.take_changes();
    assert_eq!(changes, [Change::Added(0)]);
    sides
        .iter_mut()
        .for_each(|side| side.follow(&pool, &changes));
    let found = receive(&mut sides[0]);
    let hold = sides[0]
        .chunks
        .resolve(found)
        .unwrap()
        .hold(&sides[0].holds)
        .unwrap();
    sides.iter_mut().for_each(|side| {
        receive(side);
        side.ring.release();
    });
    assert_eq!(loaned(&mut pool, &mut ring, 1), Err((page, 0)));
    assert_eq!(pool.want(), None);
    let joined = sides[0].joined.clone();
    assert_eq!(pool.held_by(joined.start, &*joined.reader).chunks, 1);
    drop(hold);
    assert_eq!(loaned(&mut pool, &mut ring, 1), Ok(()));
    // Whoever leaves has nothing.
    send(&mut pool, &mut ring, 1);
    assert_eq!(loaned(&mut pool, &mut ring, 1), Err((page, 0)));
    sides
        .iter()
        .for_each(|side| assert!(ring.roster().leave(side.joined.id)));
    assert_eq!(loaned(&mut pool, &mut ring, 1), Ok(()));
}

#[test]
fn a_lossy_reader_loses_what_it_has_not_announced() {
    let page = page_size();
    let name = "pool-lossy";
    let (mut pool, mut ring, _, words) = lane(name, PoolOptions::new(2 * page).max_loan(page), 0);
    let mut side = Side::join(name, &pool, &ring, &words, true);
    // Two chunks; the first is announced, the second is not.
    let first = send(&mut pool, &mut ring, 1);
    let second = send(&mut pool, &mut ring, 1);
    side.follow(
        &pool,
        &pool
            .segments()
            .map(|s| Change::Added(s.id))
            .collect::<Vec<_>>(),
    );
    let announced = side
        .chunks
        .resolve(first)
        .unwrap()
        .announce(&side.holds)
        .unwrap();
    // Without room for a third, a look takes the older half, and, since a slot keeps that, the other one.
    assert_eq!(loaned(&mut pool, &mut ring, 1), Ok(()));
    let third = send(&mut pool, &mut ring, 1);
    let (gone, there) = (
        side.chunks.resolve(second).unwrap(),
        side.chunks.resolve(third).unwrap(),
    );
    assert_eq!(
        gone.announce(&side.holds).unwrap_err(),
        HoldError::Gone {
            expected: second.sequence,
            found: third.sequence
        }
    );
    assert_eq!(side.holds.taken(), 1);
    drop(there.announce(&side.holds).unwrap());
    // What was announced stays, though its word is 0 by now.
    assert!(matches!(
        side.chunks.resolve(first).unwrap().announce(&side.holds),
        Err(HoldError::Gone { found: 0, .. })
    ));
    drop(announced);
    assert_eq!(loaned(&mut pool, &mut ring, 1), Ok(()));
}

#[test]
fn slots_are_used_up_and_used_again() {
    let name = "pool-slots";
    let (mut pool, mut ring, mut sides, _) = lane(name, PoolOptions::new(1 << 20), 1);
    send(&mut pool, &mut ring, 1);
    let side = &mut sides[0];
    let changes = pool.take_changes();
    side.follow(&pool, &changes);
    let found = receive(side);
    let chunk = side.chunks.resolve(found).unwrap();
    let mut holds: Vec<_> = (0..HOLD_SLOTS)
        .map(|_| chunk.hold(&side.holds).unwrap())
        .collect();
    assert_eq!(chunk.hold(&side.holds).unwrap_err(), HoldError::Full);
    assert_eq!(chunk.announce(&side.holds).unwrap_err(), HoldError::Full);
    let reader = side.joined.reader.clone();
    assert_eq!(pool.held_by(0, &*reader).chunks, 1, "64 holds of one chunk");
    holds.swap_remove(13);
    holds.push(chunk.hold(&side.holds).unwrap());
    drop(holds);
    assert_eq!(side.holds.taken(), 0);
}

#[test]
fn with_zero_a_loan_is_zero_and_so_is_what_follows_a_message() {
    let page = page_size();
    let options = PoolOptions::new(page).max_loan(page).zero(true);
    let (mut pool, mut ring, mut sides, _) = lane("pool-zero", options, 1);
    let side = &mut sides[0];
    for (asked, sent) in [
        (page, page),
        (100, 60),
        (page, 10),
        (page, 0),
        (50, 50),
        (page, page),
    ] {
        let mut dropped = pool.loan(asked, &mut ring).unwrap();
        assert!(dropped.iter().all(|&byte| byte == 0));
        dropped.fill(0xDD);
        drop(dropped);
        let mut loan = pool.loan(asked, &mut ring).unwrap();
        assert!(loan.iter().all(|&byte| byte == 0));
        loan.fill(0xEE);
        loan.truncate(sent);
        pool.send(loan, &mut ring).unwrap();
        let changes = pool.take_changes();
        side.follow(&pool, &changes);
        let mut found = receive(side);
        assert_eq!(found.len, sent as u64);
        // More of the chunk than the message.
        found.len = page as u64;
        let mut all = vec![1; page];
        side.chunks.resolve(found).unwrap().read(0, &mut all);
        assert!(all[..sent].iter().all(|&byte| byte == 0xEE));
        assert!(
            all[sent..].iter().all(|&byte| byte == 0),
            "leftovers behind {sent} bytes"
        );
        side.ring.release();
    }
}

#[test]
fn without_room_in_the_ring_the_loan_comes_back() {
    let (mut pool, mut ring, _sides, words) = lane("pool-full", PoolOptions::new(1 << 20), 1);
    assert_eq!(memlane_region::Words::capacity(&words), 8192);
    while ring.append(&[0; 1000]).is_ok() {}
    while ring.append(&[]).is_ok() {}
    let mut loan = pool.loan(10, &mut ring).unwrap();
    loan.fill(5);
    let unsent = pool.send(loan, &mut ring).unwrap_err();
    assert_eq!(unsent.why, NoRoom::Full);
    assert!(unsent.loan.iter().all(|&byte| byte == 5));
}

#[test]
#[should_panic(expected = "another pool's")]
fn loans_of_another_pool() {
    let mut ring = Ring::new(HeapWords::new(128));
    let (mut one, mut other) = (
        pool("pool-a", 1 << 20, QUARTER),
        pool("pool-b", 1 << 20, QUARTER),
    );
    let loan = one.loan(1, &mut ring).unwrap();
    other.loan(1, &mut ring).unwrap();
    let _ = other.send(loan, &mut ring);
}

/// As long as readers keep up, a pool with many chunks uses few of them, and gives the others back.
#[test]
fn quiet_segments_are_given_back() {
    const NAME: &str = "pool-quiet";
    let page = page_size();
    let (mut pool, mut ring, mut sides, _) = lane(NAME, PoolOptions::new(64 << 20), 1);
    let side = &mut sides[0];
    // A burst: 4 MiB at once.
    let burst: Vec<_> = (0..1024)
        .map(|_| pool.loan(page, &mut ring).unwrap())
        .collect();
    let most = pool.bytes();
    assert!(most >= 4 << 20);
    let added = pool.take_changes();
    side.follow(&pool, &added);
    drop(burst);
    let start = Instant::now();
    let quiet = Duration::from_secs(10);
    for second in 0..100 {
        for _ in 0..100 {
            send(&mut pool, &mut ring, page);
            receive(side);
            side.ring.release();
        }
        pool.trim(start + Duration::from_secs(second), quiet, &mut ring);
        if second < 10 {
            assert_eq!(pool.bytes(), most);
        }
    }
    assert!(
        pool.bytes() <= 2 << 20,
        "{} bytes are left of {most}",
        pool.bytes()
    );
    let removed = pool.take_changes();
    assert_eq!(removed.len(), added.len() - 1);
    side.follow(&pool, &removed);
    assert_eq!(side.chunks.len(), 1);
    // Beside the control page, which both map.
    assert_eq!(held(NAME).1, 2 + 2);
    // What is in use stays, whatever the time.
    let loan = pool.loan(1, &mut ring).unwrap();
    assert_eq!(pool.trim(start, Duration::ZERO, &mut ring), 0);
    drop(loan);
    assert!(pool.trim(start, Duration::ZERO, &mut ring) > 0);
    assert_eq!(pool.bytes(), 0);
    assert_eq!(pool.segments().count(), 0);
}

/// The limit is for all sizes together: what is free of one makes room for another.
#[test]
fn sizes_make_room_for_one_another() {
    let limit = 7 << 20;
    let mut pool = pool("pool-sizes", limit, 4 << 20);
    let mut ring = Ring::new(HeapWords::new(128));
    for round in 0..20 {
        for len in [1, 5000, 100_000, 1 << 20, 3 << 20, 4 << 20] {
            let loan = pool.loan(len, &mut ring).unwrap();
            assert!(pool.bytes() <= limit, "round {round}, {len} bytes");
            drop(loan);
        }
    }
    // Changes nobody asked for do not pile up.
    assert!(pool.take_changes().len() <= MAX_SEGMENTS);
    let keep = pool.loan(4 << 20, &mut ring).unwrap();
    let before = pool.bytes();
    assert_eq!(loaned(&mut pool, &mut ring, 4 << 20), Err((0, 4 << 20)));
    assert_eq!(pool.bytes(), before, "nothing is given up in vain");
    drop(keep);
}

#[test]
fn references_that_make_no_sense() {
    let (mut pool, mut ring, mut sides, _) = lane("pool-references", PoolOptions::new(1 << 20), 1);
    let right = send(&mut pool, &mut ring, 100);
    let side = &mut sides[0];
    assert_eq!(
        side.chunks.resolve(right).unwrap_err(),
        Unresolved::Segment { segment: 0 }
    );
    let changes = pool.take_changes();
    side.follow(&pool, &changes);
    let geometry = pool.segment(0).unwrap().geometry;
    assert_eq!(side.chunks.resolve(right).unwrap().len(), 100);
    assert_eq!(side.chunks.resolve(right).unwrap().chunk_ref(), right);
    let wrong = [
        ChunkRef {
            chunk: geometry.chunks,
            ..right
        },
        ChunkRef {
            chunk: u32::MAX,
            ..right
        },
        ChunkRef {
            len: geometry.chunk_size + 1,
            ..right
        },
        ChunkRef {
            len: u64::MAX,
            ..right
        },
        ChunkRef {
            sequence: 0,
            ..right
        },
    ];
    for found in wrong {
        let corrupt = side.chunks.resolve(found).unwrap_err();
        assert_eq!(corrupt, Unresolved::Corrupt { found, geometry });
        assert_ne!(corrupt.to_string(), "");
    }
    let last = ChunkRef {
        chunk: geometry.chunks - 1,
        len: geometry.chunk_size,
        ..right
    };
    let mut all = vec![1; geometry.chunk_size as usize];
    side.chunks.resolve(last).unwrap().read(0, &mut all);
    assert!(all.iter().all(|&byte| byte == 0));
    let chunk = side.chunks.resolve(right).unwrap();
    for (offset, len) in [(0, 101), (101, 0), (usize::MAX, 1)] {
        let read = std::panic::catch_unwind(|| chunk.read(offset, &mut vec![0; len]));
        assert!(read.is_err(), "read {len} bytes at {offset}");
    }
}

#[test]
fn announcements_that_make_no_sense() {
    const NAME: &str = "pool-announced";
    let page = page_size() as u64;
    let mut pool = pool(NAME, 8 << 20, QUARTER);
    drop(pool.loan(1, &mut ()).unwrap());
    let bytes = pool.bytes();
    let segment = pool.segment(0).unwrap();
    let geometry = segment.geometry;
    let mut reader = PoolReader::new(bytes * 3 / 2);
    let mut insert = |id, geometry| {
        let descriptor = segment.descriptor.as_fd().try_clone_to_owned().unwrap();
        reader
            .insert(id, descriptor, geometry)
            .map_err(|refused| refused.error)
    };
    for (chunks, chunk_size) in [
        (0, page),
        (1, 0),
        (1, page - 8),
        (u32::MAX, 1 << 62),
        (1, !0 - page + 1),
    ] {
        let error = insert(0, Geometry { chunks, chunk_size }).unwrap_err();
        assert!(matches!(error, Error::Length { .. }), "{error}");
    }
    for wrong in [
        Geometry {
            chunks: geometry.chunks + 1,
            ..geometry
        },
        Geometry {
            chunk_size: 2 * page,
            ..geometry
        },
        Geometry {
            chunks: 1,
            ..geometry
        },
    ] {
        let error = insert(0, wrong).unwrap_err();
        assert!(
            matches!(error, Error::Size { .. } | Error::Quota { .. }),
            "{error}"
        );
    }
    insert(0, geometry).unwrap();
    assert!(matches!(
        insert(0, geometry),
        Err(Error::DuplicateSegment { id: 0 })
    ));
    // The quota is for all segments together.
    assert!(matches!(insert(1, geometry), Err(Error::Quota { .. })));
    assert!(reader.remove(0) && !reader.remove(0) && reader.is_empty());

    let mut many = PoolReader::new(1 << 30);
    let mut insert = |id| {
        let descriptor = segment.descriptor.as_fd().try_clone_to_owned().unwrap();
        many.insert(id, descriptor, geometry)
    };
    // In any order.
    (0..MAX_SEGMENTS as u32)
        .rev()
        .for_each(|id| insert(id).unwrap());
    let refused = insert(u32::MAX).unwrap_err();
    assert!(matches!(
        refused.error,
        Error::TooManySegments { max: MAX_SEGMENTS }
    ));
    drop((refused, many, reader, pool));
    assert_eq!(held(NAME), (0, 0));
}

/// In a ring: inline records and chunks in turn; a chunk's release is exported at once.
#[test]
fn records_of_both_kinds() {
    let words = HeapWords::new(4096);
    let mut writer: RingWriter<_, HeapPage> = RingWriter::new(words.map());
    let page = HeapPage::default();
    let start = writer.roster().join(page.clone().into()).unwrap().start;
    let mut reader = RingReader::new(words.map(), page.clone(), start);
    for n in 0..1000 {
        let sent = ChunkRef {
            segment: n,
            chunk: !n,
            sequence: (1 + u64::from(n)) << 30,
            len: u64::MAX - u64::from(n),
        };
        writer.append(&n.to_ne_bytes()).unwrap();
        writer.append_chunk(sent).unwrap();
        assert_eq!(reader.poll_record(), Ok(Some(Record::Inline(4))));
        reader.release();
        assert_eq!(reader.poll_record(), Ok(Some(Record::Chunk(sent))));
        assert_eq!(reader.poll_record(), Ok(Some(Record::Chunk(sent))));
        reader.release();
        let cursor = page.cursor.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(cursor, writer.position());
        assert_eq!(reader.position(), cursor);
    }
    // For a reader that knows of no pool it is nonsense, and stays so.
    writer
        .append_chunk(ChunkRef::from_words([1, 2, 3]))
        .unwrap();
    let corrupt = reader.poll().unwrap_err();
    assert_eq!(reader.poll_record(), Err(corrupt));
    // So is a record of this kind and another length.
    for header in [16 | 2 << 32, 40 | 2 << 32, 32 | 2 << 32 | 1 << 40] {
        let mut words = HeapWords::new(128);
        words.store(0, header);
        let mut reader = RingReader::new(words, HeapPage::default(), 0);
        let corrupt = reader.poll_record().unwrap_err();
        assert_eq!(corrupt.header, header);
        assert_eq!(reader.poll_record(), Err(corrupt));
    }
}

/// Among others, of both kinds, for readers of both kinds.
#[test]
fn messages_with_attachments_say_so() {
    const LAPS: usize = 256;
    let words = HeapWords::with_header(4096, 4096);
    let mut writer: RingWriter<_, HeapPage> = RingWriter::with_laps(words.map(), LAPS);
    let page = HeapPage::default();
    let joined = writer.roster().join(page.clone().into()).unwrap();
    let mut reader = RingReader::new(words.map(), page.clone(), joined.start);
    let mut lossy = LossyReader::new(words.map(), LAPS, joined.start, joined.sequence);
    let mut buffer = [0; 64];
    let cursor = || page.cursor.load(std::sync::atomic::Ordering::Relaxed);
    for n in 0..1000_u16 {
        let tag = (u32::from(n) * 77 % u32::from(TAGS)) as u16;
        let chunk = ChunkRef::from_words([n.into(), 1 + u64::from(n), 3]);
        let payload = n.to_ne_bytes().repeat(usize::from(n % 16));
        let mut expected = vec![Record::Inline(1), Record::Chunk(chunk)];
        writer.append(&[7]).unwrap();
        writer.append_chunk(chunk).unwrap();
        let position = writer.position();
        writer.reserve(payload.len()).unwrap();
        writer.write(0, &payload);
        writer.commit_attached(payload.len(), tag);
        expected.push(Record::Attached {
            tag,
            message: Carried::Inline(payload.len()),
        });
        for (at, record) in expected.into_iter().enumerate() {
            let polled = lossy.poll(&mut buffer).unwrap();
            let Polled::Message(taken) = polled else {
                panic!("{polled:?}")
            };
            assert_eq!(reader.poll_record(), Ok(Some(record)));
            assert_eq!((taken.record, taken.position), (record, reader.position()));
            if at == 2 {
                assert_eq!(taken.position, position);
                assert_eq!(buffer[..payload.len()], payload);
                let mut copy = vec![0; payload.len()];
                reader.read(0, &mut copy);
                assert_eq!(copy, payload);
            }
            reader.release();
            // Whoever waits for descriptors to be taken hears of it at once.
            assert!(at == 0 || cursor() == reader.position());
        }
    }
    // For a reader that knows of no attachments it is nonsense, and stays so.
    writer.reserve(8).unwrap();
    writer.commit_attached(8, 1);
    let corrupt = reader.poll().unwrap_err();
    assert_eq!(reader.poll_record(), Err(corrupt));
    // So are a tag without the bit, and what is wrong without it.
    for header in [
        16 | 1 << 32 | 2 << 48,
        16 | 3 << 32 | 1 << 48,
        16 | 2 << 32 | 1 << 48,
        17 | 1 << 32 | 1 << 48,
    ] {
        let mut words = HeapWords::new(128);
        words.store(0, header);
        let mut reader = RingReader::new(words, HeapPage::default(), 0);
        let corrupt = reader.poll_record().unwrap_err();
        assert_eq!(corrupt.header, header);
        assert_eq!(reader.poll_record(), Err(corrupt));
    }
}

/// In a chunk, with a pool that keeps account of it.
#[test]
fn a_loan_is_sent_with_attachments() {
    const NAME: &str = "pool-attached";
    let (mut pool, mut ring, mut sides, _) = lane(NAME, PoolOptions::new(1 << 20), 1);
    let mut loan = pool.loan(5, &mut ring).unwrap();
    loan.copy_from_slice(b"hello");
    let sent = pool.send_with(loan, Some(TAGS - 1), &mut ring).unwrap();
    let side = &mut sides[0];
    let changes = pool.take_changes();
    side.follow(&pool, &changes);
    let record = Record::Attached {
        tag: TAGS - 1,
        message: Carried::Chunk(sent),
    };
    assert_eq!(side.ring.poll_record(), Ok(Some(record)));
    let mut copy = [0; 5];
    side.chunks.resolve(sent).unwrap().read(0, &mut copy);
    assert_eq!(&copy, b"hello");
    side.ring.release();
    drop((pool, ring, sides));
    assert_eq!(held(NAME), (0, 0));
}

#[test]
fn a_held_chunk_outlives_everything() {
    const NAME: &str = "pool-outlives";
    let (mut pool, mut ring, mut sides, _) = lane(NAME, PoolOptions::new(1 << 20), 1);
    let mut loan = pool.loan(5, &mut ring).unwrap();
    loan.copy_from_slice(b"hello");
    pool.send(loan, &mut ring).unwrap();
    let mut side = sides.pop().unwrap();
    let changes = pool.take_changes();
    side.follow(&pool, &changes);
    let found = receive(&mut side);
    let hold = side
        .chunks
        .resolve(found)
        .unwrap()
        .hold::<Mine>(&side.holds)
        .unwrap();
    drop((pool, ring, side, sides));
    let copy = std::thread::spawn(move || {
        let mut copy = [0; 5];
        hold.chunk().read(0, &mut copy);
        // SAFETY: nobody writes any more.
        assert_eq!(unsafe { hold.chunk().bytes() }, &copy);
        copy
    });
    assert_eq!(&copy.join().unwrap(), b"hello");
    assert_eq!(held(NAME), (0, 0));
}

//! What the pieces cost inside one process: no other core takes part, so nothing here says how fast a lane is.
//! It says where instructions go, and when a change makes them more.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memlane::{Link, Publisher, Subscriber, WaitPolicy};
use memlane_region::{Remote, Shared, Words, WordsMut, page_size};
use memlane_signaling::{Backing, Doorbell, Ringer};
use memlane_transport::FdRef;

const SIZES: [usize; 5] = [8, 64, 1 << 10, 16 << 10, 64 << 10];
const RING: usize = 1 << 20;

/// One message through a lane, both ends in this thread: `send`, `recv`, copied out.
fn lane(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lane");
    for (name, policy) in [
        ("poll", WaitPolicy::Poll),
        ("adaptive", WaitPolicy::Adaptive),
    ] {
        let (ours, theirs) = Link::pair().unwrap();
        let mut publisher = Publisher::builder()
            .ring_bytes(RING)
            .wait(policy)
            .unbound()
            .unwrap();
        publisher.attach(ours).unwrap();
        let mut subscriber = Subscriber::builder().wait(policy).over(theirs).unwrap();
        for size in SIZES {
            let message = vec![7; size];
            let mut copy = vec![0; size];
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| {
                    publisher.send(black_box(&message)).unwrap();
                    subscriber.recv().unwrap().copy_to(black_box(&mut copy))
                });
            });
        }
    }
}

/// Copying out of memory that a peer may be writing, beside a plain copy of private memory.
fn copy_out(criterion: &mut Criterion) {
    let (mut mine, descriptor) = Shared::create("bench", 1, RING).unwrap();
    mine.write(0, 0, &vec![7; RING]);
    let theirs = Remote::open(descriptor, page_size(), RING, RING + page_size()).unwrap();
    let private = vec![7_u8; RING];
    let mut group = criterion.benchmark_group("copy");
    for size in SIZES {
        let mut copy = vec![0; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("out of shared memory", size), |bencher| {
            bencher.iter(|| theirs.read(black_box(8), 0, black_box(&mut copy)));
        });
        group.bench_function(BenchmarkId::new("plain", size), |bencher| {
            bencher.iter(|| copy.copy_from_slice(black_box(&private[8..8 + size])));
        });
    }
}

/// A doorbell that nobody waits on: the price of a ring, without that of the wake-up.
fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for backing in [Backing::EventFd, Backing::Socket] {
        let (doorbell, end) = Doorbell::new(backing).unwrap();
        let ringer = Ringer::open(end, backing).unwrap();
        group.bench_function(format!("{backing:?}"), |bencher| {
            bencher.iter_batched(
                || doorbell.drain(),
                |()| ringer.ring(),
                BatchSize::PerIteration,
            );
        });
    }
}

/// A typed message over a link and back out of it, without and with a descriptor.
fn link(criterion: &mut Criterion) {
    let (left, right) = Link::pair().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut group = criterion.benchmark_group("link");
    group.bench_function("a number", |bencher| {
        bencher.iter(|| {
            left.send(&7_u64).unwrap();
            right.recv::<u64>().unwrap()
        });
    });
    group.bench_function("a descriptor", |bencher| {
        bencher.iter(|| {
            left.send(&FdRef::new(&null)).unwrap();
            right.recv::<memlane_transport::Fd>().unwrap()
        });
    });
}

/// Making and mapping the regions of a lane: a control page, and a ring with its pages touched.
fn region(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("region");
    group.bench_function("control page, made", |bencher| {
        bencher.iter(|| Shared::create("bench", 1, 0).unwrap());
    });
    group.bench_function("control page, made and opened", |bencher| {
        bencher.iter(|| {
            let (mine, descriptor) = Shared::create("bench", 1, 0).unwrap();
            (
                mine,
                Remote::open(descriptor, page_size(), 0, page_size()).unwrap(),
            )
        });
    });
    group.bench_function("1 MiB ring, made and prefaulted", |bencher| {
        bencher.iter(|| {
            let (mine, descriptor) = Shared::create("bench", 1, RING).unwrap();
            mine.prefault().unwrap();
            (mine, descriptor)
        });
    });
}

// What criterion_group! expands to has no documentation.
#[allow(missing_docs)]
mod group {
    use super::*;

    criterion_group!(pieces, lane, copy_out, ring, link, region);
}
criterion_main!(group::pieces);

//! Whatever the value, it arrives; whatever the bytes, nothing breaks.

mod common;

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use common::{Alone, alone, inode, memfd, raw_send};
use memlane_transport::{Error, EventFd, Fd, Link, MemoryFd, SocketKind, StreamFd};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};
use serde::{Deserialize, Serialize};

/// A value with descriptors anywhere: numbers of files before it is sent, a [`File`] each while it is, and identities to
/// compare afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Value<F> {
    Nothing,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
    File(F),
    Files(Vec<F>),
    Maybe(Option<Box<Value<F>>>),
    List(Vec<Value<F>>),
    Map(BTreeMap<String, Value<F>>),
    Pair(Box<(Value<F>, Value<F>)>),
    Named {
        left: Box<Value<F>>,
        file: Option<F>,
        right: Box<Value<F>>,
    },
}

impl<F> Value<F> {
    /// The same with other descriptors.
    fn map<G>(&self, change: &mut impl FnMut(&F) -> G) -> Value<G> {
        match self {
            Value::Nothing => Value::Nothing,
            Value::Number(number) => Value::Number(*number),
            Value::Text(text) => Value::Text(text.clone()),
            Value::Bytes(bytes) => Value::Bytes(bytes.clone()),
            Value::File(file) => Value::File(change(file)),
            Value::Files(files) => Value::Files(files.iter().map(change).collect()),
            Value::Maybe(value) => {
                Value::Maybe(value.as_ref().map(|value| Box::new(value.map(change))))
            }
            Value::List(list) => Value::List(list.iter().map(|item| item.map(change)).collect()),
            Value::Map(map) => Value::Map(
                map.iter()
                    .map(|(key, item)| (key.clone(), item.map(change)))
                    .collect(),
            ),
            Value::Pair(pair) => Value::Pair(Box::new((pair.0.map(change), pair.1.map(change)))),
            Value::Named { left, file, right } => Value::Named {
                left: Box::new(left.map(change)),
                file: file.as_ref().map(&mut *change),
                right: Box::new(right.map(change)),
            },
        }
    }
}

/// A descriptor, of a kind that is checked or of any.
#[derive(Debug, Serialize, Deserialize)]
enum File {
    Any(Fd),
    Memory(MemoryFd),
    Event(EventFd),
    Stream(StreamFd),
}

/// Which file of [`Files`], and whether its kind is part of the message.
type Number = (usize, bool);

const FILES: usize = 20;

/// Files of four kinds in turn.
struct Files {
    files: Vec<OwnedFd>,
    _others: Vec<UnixStream>,
}

impl Files {
    fn new() -> Files {
        let mut others = Vec::new();
        let files = (0..FILES)
            .map(|number| match number % 4 {
                0 => memfd(),
                1 => {
                    let memory = rustix::fs::memfd_create(
                        "memlane-test",
                        rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING,
                    )
                    .unwrap();
                    fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
                    memory
                }
                2 => rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap(),
                _ => {
                    let (ours, other) = UnixStream::pair().unwrap();
                    others.push(other);
                    ours.into()
                }
            })
            .collect();
        Files {
            files,
            _others: others,
        }
    }

    fn sent(&self, value: &Value<Number>) -> Value<File> {
        value.map(&mut |(number, typed)| {
            let file = self.files[*number].try_clone().unwrap();
            match number % 4 {
                1 if *typed => File::Memory(file.try_into().unwrap()),
                2 if *typed => File::Event(file.try_into().unwrap()),
                3 if *typed => File::Stream(file.try_into().unwrap()),
                _ => File::Any(file.into()),
            }
        })
    }

    fn expected(&self, value: &Value<Number>) -> Value<Identity> {
        value.map(&mut |(number, _)| identity(&self.files[*number]))
    }
}

fn found(value: &Value<File>) -> Value<Identity> {
    value.map(&mut |file| match file {
        File::Any(fd) => identity(fd),
        File::Memory(fd) => identity(fd),
        File::Event(fd) => identity(fd),
        File::Stream(fd) => identity(fd),
    })
}

/// Inode, and since all eventfds have the same, their own number (proc_pid_fdinfo(5), Linux 5.2).
type Identity = ((u64, u64), String);

fn identity(fd: impl AsFd) -> Identity {
    let fd = fd.as_fd();
    let info = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = std::fs::read_to_string(info).unwrap();
    let number = info.lines().find(|line| line.starts_with("eventfd-id"));
    (inode(fd), number.unwrap_or_default().to_owned())
}

/// Values of any shape; a third of them has up to `files` descriptors in one place, the others some.
fn value(files: usize) -> impl Strategy<Value = Value<Number>> {
    let file = || (0..FILES, any::<bool>());
    // The last ones are about where a body no longer fits a packet.
    let size = prop_oneof![8 => 0..40_usize, 2 => 16_340..16_400_usize, 1 => Just(70_000)];
    let leaf = prop_oneof![
        1 => Just(Value::Nothing),
        2 => any::<i64>().prop_map(Value::Number),
        2 => ".{0,20}".prop_map(Value::Text),
        2 => (size, any::<u8>()).prop_map(|(size, byte)| Value::Bytes(vec![byte; size])),
        6 => file().prop_map(Value::File),
        1 => vec(file(), 0..5).prop_map(Value::Files),
    ];
    let many = vec(file(), 0..=files).prop_map(Value::Files);
    let tree = leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            proptest::option::of(inner.clone().prop_map(Box::new)).prop_map(Value::Maybe),
            vec(inner.clone(), 0..6).prop_map(Value::List),
            btree_map("[a-z]{0,4}", inner.clone(), 0..4).prop_map(Value::Map),
            (inner.clone(), inner.clone()).prop_map(|pair| Value::Pair(Box::new(pair))),
            (inner.clone(), proptest::option::of(file()), inner).prop_map(|(left, file, right)| {
                let (left, right) = (Box::new(left), Box::new(right));
                Value::Named { left, file, right }
            }),
        ]
    });
    let both = (many, tree.clone()).prop_map(|pair| Value::Pair(Box::new(pair)));
    prop_oneof![2 => tree, 1 => both]
}

fn kind() -> impl Strategy<Value = SocketKind> {
    prop_oneof![Just(SocketKind::Packets), Just(SocketKind::Stream)]
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        // A leak takes a minute to be sure of.
        max_shrink_iters: 200,
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    }
}

/// Each value is there three times: at the sender, in flight, at the receiver.
fn room_for_descriptors() {
    const MOST: u64 = 8192;
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert!(
        limit.maximum.is_none_or(|most| most >= MOST),
        "expected to be allowed {MOST} descriptors (ulimit -Hn), got {:?}",
        limit.maximum
    );
    limit.current = limit
        .maximum
        .map_or(Some(16_384), |most| Some(most.min(16_384)));
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
}

proptest! {
    #![proptest_config(cases(150))]

    /// On both kinds of links, with and without receipts, through buffers that hold all or next to nothing.
    #[test]
    fn values_arrive(
        values in vec(value(600), 1..4),
        kind in kind(),
        small in any::<bool>(),
        receipts in any::<bool>(),
    ) {
        room_for_descriptors();
        let _alone = alone();
        let files = Files::new();
        let (left, right) = Link::pair_of(kind).unwrap();
        if small {
            // Of a packet the kernel takes all or nothing, so one must fit.
            let size = if kind == SocketKind::Stream { 1 } else { 20_000 };
            sockopt::set_socket_send_buffer_size(&left, size).unwrap();
        }
        let received: Vec<Value<Identity>> = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                for value in &values {
                    let value = files.sent(value);
                    if receipts {
                        let receipt = left.transfer(&value).unwrap();
                        drop(value);
                        receipt.wait_timeout(Duration::from_secs(60)).unwrap();
                    } else {
                        left.send(&value).unwrap();
                    }
                }
            });
            let received = values.iter().map(|_| found(&right.recv().unwrap())).collect();
            sender.join().unwrap();
            received
        });
        for (value, received) in values.iter().zip(received) {
            prop_assert_eq!(files.expected(value), received);
        }
        prop_assert!(matches!(right.try_recv::<()>(), Err(Error::WouldBlock)));
    }
}

/// A packet as it is on the socket.
#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The packets that a link sends for `values`.
fn packets(values: &[Value<Number>], files: &Files) -> Vec<Packet> {
    let (link, socket) = Link::pair().unwrap();
    let socket = socket.into_fd();
    let mut packets = Vec::new();
    for value in values {
        // The first packets tell the receiver nothing that is not in the last one, so all are taken as they come.
        link.send(&files.sent(value)).unwrap();
        while let Some(packet) = raw_receive(&socket) {
            packets.push(packet);
        }
    }
    packets
}

fn raw_receive(socket: impl AsFd) -> Option<Packet> {
    let mut bytes = vec![0; 20_000];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let into = &mut [IoSliceMut::new(&mut bytes)];
    let size = recvmsg(socket, into, &mut control, flags).ok()?.bytes;
    bytes.truncate(size);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Some(Packet { bytes, fds })
}

fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

proptest! {
    #![proptest_config(cases(100))]

    /// A stream has no packets: however its bytes were written, they are the same messages.
    #[test]
    fn splits_do_not_matter(
        values in vec(value(40), 1..4),
        cuts in vec(any::<Index>(), 0..40),
        at_the_end in any::<bool>(),
    ) {
        let _alone = alone();
        let files = Files::new();
        let mut bytes = Vec::new();
        let mut fds = BTreeMap::new();
        for packet in packets(&values, &files) {
            if !packet.fds.is_empty() {
                fds.insert(bytes.len(), packet.fds);
            }
            bytes.extend(packet.bytes);
        }
        // Descriptors come with the first byte of a write, and must come with the first of a packet.
        let mut starts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        starts.extend([0, bytes.len()]);
        starts.extend(fds.keys());
        starts.sort_unstable();
        starts.dedup();
        let (link, peer) = Link::pair_of(SocketKind::Stream).unwrap();
        let mut received = Vec::new();
        for write in starts.windows(2) {
            let with = fds.remove(&write[0]).unwrap_or_default();
            raw_send(&peer, &bytes[write[0]..write[1]], &borrowed(&with));
            if !at_the_end || write[1] == bytes.len() {
                while let Ok(value) = link.try_recv() {
                    received.push(found(&value));
                }
            }
        }
        let expected: Vec<_> = values.iter().map(|value| files.expected(value)).collect();
        prop_assert_eq!(expected, received);
        prop_assert!(matches!(link.try_recv::<()>(), Err(Error::WouldBlock)));
    }
}

/// What can happen to packets on their way to a receiver that is being attacked.
#[derive(Clone, Debug)]
enum Harm {
    /// A byte, near the start where most of the meaning is, or anywhere.
    Byte(Index, u8),
    Early(usize, u8),
    Cut(Index),
    Longer(Vec<u8>),
    LoseFile(Index),
    MoreFiles(usize),
    LosePacket,
    Twice,
    Swap,
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        2 => (any::<Index>(), 1..=255_u8).prop_map(|(at, add)| Harm::Byte(at, add)),
        6 => (0..24_usize, 1..=255_u8).prop_map(|(at, add)| Harm::Early(at, add)),
        1 => any::<Index>().prop_map(Harm::Cut),
        1 => vec(any::<u8>(), 1..20).prop_map(Harm::Longer),
        1 => any::<Index>().prop_map(Harm::LoseFile),
        1 => (1..4_usize).prop_map(Harm::MoreFiles),
        1 => Just(Harm::LosePacket),
        1 => Just(Harm::Twice),
        1 => Just(Harm::Swap),
    ]
}

fn suffer(packets: &mut Vec<Packet>, which: &Index, harm: &Harm) {
    if packets.is_empty() {
        return;
    }
    let at = which.index(packets.len());
    let next = (at + 1) % packets.len();
    let packet = &mut packets[at];
    let size = packet.bytes.len();
    let add = |byte: &mut u8, add: u8| *byte = byte.wrapping_add(add);
    match harm {
        Harm::Byte(index, by) if size > 0 => add(&mut packet.bytes[index.index(size)], *by),
        Harm::Early(index, by) if *index < size => add(&mut packet.bytes[*index], *by),
        Harm::Cut(index) if size > 0 => packet.bytes.truncate(index.index(size)),
        Harm::Longer(bytes) => packet.bytes.extend(bytes),
        Harm::LoseFile(index) if !packet.fds.is_empty() => {
            packet.fds.remove(index.index(packet.fds.len()));
        }
        Harm::MoreFiles(count) => {
            packet.fds.extend((0..*count).map(|_| memfd()));
            packet.fds.truncate(253);
        }
        Harm::LosePacket => drop(packets.remove(at)),
        Harm::Twice => {
            let bytes = packet.bytes.clone();
            let fds = packet.fds.iter().map(|fd| fd.try_clone().unwrap());
            let fds = fds.collect();
            packets.insert(at, Packet { bytes, fds });
        }
        Harm::Swap => packets.swap(at, next),
        _ => {}
    }
}

/// Receives all there is, as `T`; what is wrong ends the link and leaves nothing behind.
fn receives<T: serde::de::DeserializeOwned>(
    alone: &Alone,
    (link, peer): (Link, OwnedFd),
    packets: Vec<Packet>,
) -> Result<(), TestCaseError> {
    'packets: for Packet { bytes, fds } in packets {
        raw_send(&peer, &bytes, &borrowed(&fds));
        let nothing = bytes.is_empty() && fds.is_empty();
        loop {
            match link.try_recv::<T>() {
                Ok(_) => {}
                Err(Error::WouldBlock) => break,
                Err(Error::Disconnected) => {
                    prop_assert!(nothing);
                    break 'packets;
                }
                Err(error) => {
                    prop_assert!(error.ends_link(), "{:?}", error);
                    let ended = |result| matches!(result, Err(Error::Ended { .. }));
                    prop_assert!(ended(link.recv::<T>().map(drop)));
                    prop_assert!(ended(link.send(&())));
                    break 'packets;
                }
            }
        }
    }
    drop((link, peer));
    alone.settled();
    Ok(())
}

fn raw_pair(kind: SocketKind) -> (Link, OwnedFd) {
    let (link, peer) = Link::pair_of(kind).unwrap();
    (link, peer.into_fd())
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn harmed_packets_do_no_harm(
        values in vec(value(600), 1..4),
        harms in vec((any::<Index>(), harm()), 1..4),
        kind in kind(),
    ) {
        room_for_descriptors();
        let alone = alone();
        let files = Files::new();
        let mut packets = packets(&values, &files);
        for (which, harm) in &harms {
            suffer(&mut packets, which, harm);
        }
        drop(files);
        receives::<Value<File>>(&alone, raw_pair(kind), packets)?;
    }
}

/// Packets from nothing: mostly valid headers, so that the bodies are looked at.
fn packet() -> impl Strategy<Value = (Vec<u8>, usize)> {
    // Small bytes are lengths, indices and variants.
    let byte = prop_oneof![3 => 0..11_u8, 1 => any::<u8>()];
    (0..5_usize, vec(byte, 0..60), vec(any::<u8>(), 0..6)).prop_flat_map(|(count, body, wild)| {
        let right = common::frame(count as u16, &body);
        let wild = [wild, body].concat();
        prop_oneof![8 => Just(right), 1 => Just(wild)].prop_map(move |bytes| (bytes, count))
    })
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn made_up_packets_do_no_harm((bytes, count) in packet(), kind in kind()) {
        let alone = alone();
        let fds = (0..count).map(|_| memfd()).collect();
        receives::<Value<File>>(&alone, raw_pair(kind), vec![Packet { bytes, fds }])?;
    }
}

//! A stream's peer that cuts, glues and decorates its packets as it likes: descriptors stay with the packet whose first byte
//! they came with, or the link ends (A12, A13, A16).

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::raw::{body, borrowed, ended, link_to_raw, more, send_some, witnesses};
use common::{all_writers_closed, alone, frame, inode, memfd, packet, raw_send};
use memlane_transport::{Error, Fd, Link, SocketKind};
use rustix::net::SendFlags;

fn stream() -> (Link, OwnedFd) {
    link_to_raw(SocketKind::Stream)
}

/// Nothing has come whole.
fn nothing(link: &Link) {
    let error = link.try_recv::<(u8, Fd)>().unwrap_err();
    assert!(matches!(error, Error::WouldBlock), "{error:?}");
}

#[test]
fn glued_packets() {
    let _alone = alone();
    let (link, peer) = stream();
    let file = memfd();
    // Three in one call, none with a descriptor; then one that is glued to a fourth, which brings one.
    let plain = frame(0, &[1]);
    raw_send(
        &peer,
        &[plain.clone(), plain.clone(), plain.clone()].concat(),
        &[],
    );
    raw_send(&peer, &frame(1, &[5, 0]), &[file.as_fd()]);
    raw_send(&peer, &plain, &[]);
    for _ in 0..3 {
        assert_eq!(link.recv::<u8>().unwrap(), 1);
    }
    let (number, fd): (u8, Fd) = link.recv().unwrap();
    assert_eq!((number, inode(fd)), (5, inode(&file)));
    assert_eq!(link.recv::<u8>().unwrap(), 1);
    // Two in one call: both are whole, and the descriptor is the first one's.
    raw_send(&peer, &[frame(1, &[6, 0]), plain].concat(), &[file.as_fd()]);
    assert_eq!(link.recv::<(u8, Fd)>().unwrap().0, 6);
    assert_eq!(link.recv::<u8>().unwrap(), 1);
}

#[test]
fn split_at_every_byte() {
    let _alone = alone();
    let (link, peer) = stream();
    let file = memfd();
    let bytes = packet(1, &[0x80, 3, 1, 2, 3], &[9, 0]);
    for at in 1..bytes.len() {
        raw_send(&peer, &bytes[..at], &[file.as_fd()]);
        nothing(&link);
        raw_send(&peer, &bytes[at..], &[]);
        let (number, fd): (u8, Fd) = link.recv().unwrap();
        assert_eq!((number, inode(fd)), (9, inode(&file)), "split at {at}");
    }
    // And every byte on its own.
    for at in 0..bytes.len() {
        let fds = [file.as_fd()];
        raw_send(&peer, &bytes[at..=at], if at == 0 { &fds } else { &[] });
        if at + 1 < bytes.len() {
            nothing(&link);
        }
    }
    assert_eq!(inode(link.recv::<(u8, Fd)>().unwrap().1), inode(&file));
}

/// Descriptors beside a later byte than a packet's first. Within the header the kernel may glue both pieces into one read,
/// and then they are the packet's as much as any; beyond it they are refused.
#[test]
fn descriptors_that_come_late() {
    let _alone = alone();
    let bytes = frame(1, &[9, 0]);
    for read_between in [false, true] {
        for at in 1..bytes.len() {
            let (link, peer) = stream();
            let (readers, writers) = witnesses(1);
            raw_send(&peer, &bytes[..at], &[]);
            if read_between {
                // With the header whole, the missing descriptor could be refused already.
                let _ = link.try_recv::<(u8, Fd)>().unwrap_err();
            }
            let _ = send_some(&peer, &bytes[at..], &borrowed(&writers), SendFlags::empty());
            drop(writers);
            match link.recv::<(u8, Fd)>() {
                Ok((9, _fd)) => assert!(at < 8 && !read_between, "{at}"),
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    assert!(read_between || at >= 8, "{at}: {error:?}");
                    assert!(
                        matches!(error, Error::LateDescriptors { descriptors: 1 }),
                        "{at}: {error:?}"
                    );
                    ended(&link, &peer, &error);
                }
            }
            all_writers_closed(&readers[0]);
        }
    }
}

#[test]
fn claimed_in_one_packet_and_attached_to_the_next() {
    let _alone = alone();
    for glued in [false, true] {
        let (link, peer) = stream();
        let (readers, writers) = witnesses(1);
        raw_send(&peer, &frame(1, &[1, 0]), &[]);
        if glued {
            // Part of the first packet's bytes come with the descriptor, too.
            let rest = [&frame(0, &[2])[..], &frame(0, &[3])].concat();
            raw_send(&peer, &rest, &borrowed(&writers));
        } else {
            raw_send(&peer, &frame(0, &[2]), &borrowed(&writers));
        }
        drop(writers);
        let error = link.recv::<(u8, Fd)>().unwrap_err();
        assert!(
            matches!(
                error,
                Error::DescriptorCount {
                    announced: 1,
                    received: 0
                }
            ),
            "{error:?}"
        );
        ended(&link, &peer, &error);
        drop(link);
        all_writers_closed(&readers[0]);
    }
    // Claimed by the second, which comes glued to the first that brings it.
    let (link, peer) = stream();
    let (readers, writers) = witnesses(1);
    raw_send(
        &peer,
        &[frame(0, &[1]), frame(1, &[2, 0])].concat(),
        &borrowed(&writers),
    );
    drop(writers);
    let error = link.recv::<u8>().unwrap_err();
    assert!(
        matches!(
            error,
            Error::DescriptorCount {
                announced: 0,
                received: 1
            }
        ),
        "{error:?}"
    );
    all_writers_closed(&readers[0]);
}

/// MSG_OOB: the kernel keeps an urgent byte and its descriptors out of the stream, except where another one follows.
#[test]
fn urgent_bytes() {
    let _alone = alone();
    let bytes = frame(1, &[9, 0]);
    for at in 0..=bytes.len() {
        let (link, peer) = stream();
        let (readers, mut writers) = witnesses(3);
        let urgent = |fd: &OwnedFd| send_some(&peer, b"!", &[fd.as_fd()], SendFlags::OOB);
        if urgent(&writers[0]) == Err(rustix::io::Errno::OPNOTSUPP) {
            eprintln!("skipped: a kernel without CONFIG_AF_UNIX_OOB");
            return;
        }
        nothing(&link);
        // The packet's own descriptor comes beside its first byte, before or behind the urgent one.
        let file = writers.pop().unwrap();
        let own = [file.as_fd()];
        let (first, second) = if at == 0 {
            (&[][..], &own[..])
        } else {
            (&own[..], &[][..])
        };
        raw_send(&peer, &bytes[..at], first);
        urgent(&writers[1]).unwrap();
        send_some(&peer, &bytes[at..], second, SendFlags::empty()).unwrap();
        drop((file, writers));
        let (number, fd): (u8, Fd) = link.recv().unwrap();
        assert_eq!(number, 9, "an urgent byte before byte {at}");
        drop(fd);
        // The link goes on, and what was urgent is gone when the stream has gone past it.
        raw_send(&peer, &frame(0, &[1]), &[]);
        assert_eq!(link.recv::<u8>().unwrap(), 1);
        readers.iter().for_each(all_writers_closed);
    }
    // Two in a row: the first is an ordinary byte then, and no memlane.
    let (link, peer) = stream();
    let (readers, writers) = witnesses(2);
    for writer in &writers {
        send_some(&peer, b"!", &[writer.as_fd()], SendFlags::OOB).unwrap();
    }
    drop(writers);
    raw_send(&peer, &bytes, &[]);
    let error = link.recv::<(u8, Fd)>().unwrap_err();
    assert!(
        matches!(error, Error::NotMemlane { found: b'!', .. }),
        "{error:?}"
    );
    drop(link);
    readers.iter().for_each(all_writers_closed);
}

/// SOCK_SEQPACKET has no urgent bytes.
#[test]
fn urgent_packets_are_refused_by_the_kernel() {
    let _alone = alone();
    let (_link, peer) = link_to_raw(SocketKind::Packets);
    let error = send_some(&peer, &frame(0, &[1]), &[], SendFlags::OOB).unwrap_err();
    assert_eq!(error, rustix::io::Errno::OPNOTSUPP);
}

#[test]
fn the_end_in_the_middle_of_a_packet() {
    let _alone = alone();
    let bytes = packet(1, &[0x80, 1, 7], &[9, 0]);
    for at in 0..bytes.len() {
        for seen_before in [false, true] {
            let (link, peer) = stream();
            let (readers, writers) = witnesses(1);
            if at > 0 {
                raw_send(&peer, &bytes[..at], &borrowed(&writers));
            }
            drop(writers);
            if seen_before {
                nothing(&link);
            }
            drop(peer);
            assert!(
                link.recv::<(u8, Fd)>().unwrap_err().is_disconnected(),
                "{at}"
            );
            // Closed then and there, not when the link goes.
            all_writers_closed(&readers[0]);
        }
    }
}

#[test]
fn the_end_in_the_middle_of_a_message() {
    let _alone = alone();
    for kind in common::raw::KINDS {
        let (link, peer) = link_to_raw(kind);
        let (readers, writers) = witnesses(2);
        raw_send(&peer, &packet(2, &more(3), &[]), &borrowed(&writers));
        drop(writers);
        nothing(&link);
        drop(peer);
        assert!(link.recv::<Vec<Fd>>().unwrap_err().is_disconnected());
        readers.iter().for_each(all_writers_closed);
    }
}

/// A packet is never empty, so a stream never gets a send without bytes, whose descriptors the kernel would throw away (A10).
#[test]
fn the_smallest_messages_bring_their_descriptors() {
    let _alone = alone();
    let (left, right) = Link::pair_of(SocketKind::Stream).unwrap();
    let (readers, writers) = witnesses(1);
    // What the kernel does with one.
    let lost = send_some(&left, &[], &borrowed(&writers), SendFlags::empty());
    assert_eq!(lost, Ok(0));
    nothing(&right);
    assert!(body(&()).is_empty());
    left.send(&()).unwrap();
    right.recv::<()>().unwrap();
    for writer in writers {
        left.send(&Fd::from(writer)).unwrap();
    }
    drop(right.recv::<Fd>().unwrap());
    all_writers_closed(&readers[0]);
}

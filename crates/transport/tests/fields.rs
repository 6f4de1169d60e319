//! Old against new: fields that this version does not know, and known ones that make no sense.

mod common;

use std::os::fd::AsFd;

use common::raw::{
    FROZEN, KINDS, body, borrowed, ended, field, link_to_raw, memory, more, receipt, sealed,
    witnesses,
};
use common::{all_writers_closed, alone, inode, memfd, packet, raw_send};
use memlane_transport::frame::MAX_FIELDS;
use memlane_transport::{Error, Fd, Link, SocketKind};

/// Sends a packet with these fields and `count` descriptors to links of both kinds, which must end, and leak nothing.
fn refuse(announced: u16, fields: &[u8], content: &[u8], count: usize) -> Error {
    let mut last = None;
    for kind in KINDS {
        let (link, peer) = link_to_raw(kind);
        let (readers, writers) = witnesses(count);
        raw_send(
            &peer,
            &packet(announced, fields, content),
            &borrowed(&writers),
        );
        drop(writers);
        let error = link.recv::<Vec<Fd>>().unwrap_err();
        ended(&link, &peer, &error);
        readers.iter().for_each(all_writers_closed);
        last = Some(error);
    }
    last.unwrap()
}

fn malformed(fields: &[u8], bad: u8) {
    let error = refuse(0, fields, &[0], 0);
    assert!(
        matches!(error, Error::MalformedField { tag, .. } if tag == bad),
        "{fields:?}: {error:?}"
    );
}

/// A newer peer: fields that may be ignored, anywhere, around everything this version knows.
#[test]
fn newer_fields_that_may_be_ignored() {
    let _alone = alone();
    let new = field(0x80, b"new");
    let cases: Vec<Vec<u8>> = vec![
        new.clone(),
        field(0xff, &[]),
        // Several, the same one twice, with any bytes in them.
        [&new[..], &new, &field(0xfe, &[0x01, 4, 0, 0, 0, 0])].concat(),
        // As much as a header may announce: one long field, and many short ones.
        field(0x90, &[7; MAX_FIELDS - 2]),
        field(0x81, &[]).repeat(MAX_FIELDS / 2),
    ];
    for kind in KINDS {
        let (link, peer) = link_to_raw(kind);
        let file = memfd();
        for fields in &cases {
            raw_send(
                &peer,
                &packet(1, fields, &body(&("new", 0_u16))),
                &[file.as_fd()],
            );
            let (text, fd): (String, Fd) = link.recv().unwrap();
            assert_eq!((text.as_str(), inode(fd)), ("new", inode(&file)));
        }
        // In a message of several packets, whose body is in memory, and that is to be acknowledged.
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let content = sealed(&body(&("all", 0_u16, 1_u16)), FROZEN);
        raw_send(
            &peer,
            &packet(1, &[&new[..], &more(4), &new].concat(), &[]),
            &[file.as_fd()],
        );
        let size = body(&("all", 0_u16, 1_u16)).len() as u64;
        let fields = [&new[..], &memory(size), &new, &receipt(), &new].concat();
        raw_send(
            &peer,
            &packet(3, &fields, &[]),
            &[file.as_fd(), content.as_fd(), theirs.as_fd()],
        );
        drop(theirs);
        let (text, first, second): (String, Fd, Fd) = link.recv().unwrap();
        assert_eq!(text, "all");
        assert_eq!((inode(first), inode(second)), (inode(&file), inode(&file)));
        assert_eq!(
            std::io::Read::bytes(&ours).count(),
            1,
            "the acknowledgement"
        );
    }
}

#[test]
fn newer_fields_that_must_be_understood() {
    let _alone = alone();
    for tag in [0x00, 0x04, 0x7f] {
        for fields in [
            field(tag, &[]),
            field(tag, &[1; 200]),
            [field(0x80, &[]), field(tag, &[1])].concat(),
        ] {
            for count in [0, 2] {
                let error = refuse(count, &fields, &body(&()), usize::from(count));
                assert!(
                    matches!(error, Error::UnknownField { tag: t } if t == tag),
                    "{error:?}"
                );
                assert!(error.to_string().contains("newer protocol"), "{error}");
            }
        }
    }
}

#[test]
fn known_fields_with_another_length() {
    let _alone = alone();
    for (tag, right) in [(0x01, 4), (0x02, 8), (0x03, 0)] {
        for length in (0..=255_usize).filter(|length| *length != right && *length + 2 <= MAX_FIELDS)
        {
            malformed(&field(tag, &vec![0; length]), tag);
        }
    }
}

#[test]
fn known_fields_twice() {
    let _alone = alone();
    for one in [more(2), memory(8), receipt()] {
        for fields in [one.repeat(2), [&one[..], &field(0x80, &[]), &one].concat()] {
            let error = refuse(1, &fields, &[], 1);
            assert!(
                matches!(error, Error::MalformedField { tag, what } if tag == one[0] && what.contains("twice")),
                "{error:?}"
            );
        }
    }
}

#[test]
fn torn_fields() {
    let _alone = alone();
    for whole in [more(2), memory(8), field(0x80, &[1, 2]), field(0x10, &[1])] {
        for at in 1..whole.len() {
            malformed(&whole[..at], whole[0]);
            malformed(&[&field(0x81, &[]), &whole[..at]].concat(), whole[0]);
        }
    }
    malformed(&[0x03], 0x03);
    malformed(&[0x80, 255], 0x80);
}

#[test]
fn more_fields_than_a_packet_may_have() {
    let _alone = alone();
    for excess in [1, 2, 1000] {
        let error = refuse(1, &vec![0x80; MAX_FIELDS + excess], &[], 1);
        assert!(matches!(error, Error::PacketTooLarge { .. }), "{error:?}");
    }
}

/// A packet whose size is not what its header says. On a stream the bytes that are missing are waited for.
#[test]
fn lengths_that_do_not_add_up() {
    let _alone = alone();
    let whole = packet(0, &field(0x80, &[1]), &[9]);
    for size in (8..whole.len()).chain([whole.len() + 1, whole.len() + 300]) {
        let (link, peer) = link_to_raw(SocketKind::Packets);
        let mut bytes = whole.clone();
        bytes.resize(size, 0);
        raw_send(&peer, &bytes, &[]);
        let error = link.recv::<u8>().unwrap_err();
        assert!(
            matches!(error, Error::PacketSize { announced: 12, received } if received == size),
            "{error:?}"
        );
        ended(&link, &peer, &error);
    }
}

/// This version's packets have nothing that an older or newer one would have to skip.
#[test]
fn what_this_version_writes() {
    let _alone = alone();
    let sent = |send: &dyn Fn(&Link)| {
        let (link, peer) = link_to_raw(SocketKind::Packets);
        send(&link);
        let mut bytes = vec![0; 40_000];
        let (_, size) =
            rustix::net::recv(&peer, &mut bytes[..], rustix::net::RecvFlags::DONTWAIT).unwrap();
        bytes.truncate(size);
        bytes
    };
    assert_eq!(
        sent(&|link| link.send(&7_u8).unwrap()),
        packet(0, &[], &[7])
    );
    let file = Fd::from(memfd());
    assert_eq!(
        sent(&|link| link.send(&file).unwrap()),
        packet(1, &[], &[0])
    );
    assert_eq!(
        sent(&|link| drop(link.transfer(&file).unwrap())),
        packet(2, &receipt(), &[0])
    );
    assert_eq!(
        sent(&|link| link.send(&"x".repeat(20_000)).unwrap()),
        packet(1, &memory(20_003), &[])
    );
    assert_eq!(
        sent(&|link| link.send(&vec![&file; 300]).unwrap()),
        packet(253, &more(300), &[])
    );
}

//! Links and listeners that take no descriptors at all: refused by the kernel where it can (A19), by the receiver where not.

mod common;

use std::os::fd::{AsFd, AsRawFd};

use common::raw::{KINDS, body, borrowed, ended, link_to_raw, witnesses};
use common::{abstract_name, all_writers_closed, alone, frame, memfd, raw_send};
use memlane_transport::{Access, Error, Fd, Limits, Link, Listener};
use rustix::io::Errno;

const NONE: Limits = Limits::new().descriptors(0);

/// SO_PASSRIGHTS, which says whether the kernel knows it.
fn pass_rights(socket: impl AsFd, pass: bool) -> bool {
    let value = libc::c_int::from(pass);
    // SAFETY: an integer and its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            83,
            (&raw const value).cast(),
            4,
        )
    };
    result == 0
}

fn refused_by_the_kernel(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.raw_os_error() == Some(libc::EPERM))
}

#[test]
fn a_listener() {
    let _alone = alone();
    for kind in KINDS {
        let address = abstract_name("no-descriptors");
        let listener = Listener::bind_kind(&address, Access::SameUser, kind).unwrap();
        let known = pass_rights(&listener, true);
        let listener = listener.with_limits(NONE);
        let client = Link::connect(&address).unwrap();
        let (readers, mut writers) = witnesses(1);
        let writer = Fd::from(writers.pop().unwrap());
        if known {
            // Before and after it is accepted; nothing leaves, nothing is lost, and the link goes on.
            assert!(refused_by_the_kernel(&client.send(&writer).unwrap_err()));
            client.send("plain").unwrap();
            let server = listener.accept().unwrap();
            assert!(refused_by_the_kernel(&client.send(&writer).unwrap_err()));
            assert!(refused_by_the_kernel(&client.transfer(&()).unwrap_err()));
            assert_eq!(server.recv::<String>().unwrap(), "plain");
            // Nor does this end send any; what the client takes is the client's affair.
            let error = server.send(&writer).unwrap_err();
            assert!(
                matches!(error, Error::TooManyDescriptors { count: 1, limit: 0 }),
                "{error:?}"
            );
        } else {
            eprintln!("without SO_PASSRIGHTS, before Linux 6.16");
            let server = listener.accept().unwrap();
            client.send(&writer).unwrap();
            let error = server.recv::<Fd>().unwrap_err();
            assert!(matches!(
                error,
                Error::PeerTooManyDescriptors { count: 1, limit: 0 }
            ));
        }
        drop((writer, client));
        all_writers_closed(&readers[0]);
    }
}

/// As on a kernel that does not know the option, or where it was set too late.
#[test]
fn without_the_kernels_help() {
    let _alone = alone();
    for kind in KINDS {
        let (link, peer) = link_to_raw(kind);
        let (readers, writers) = witnesses(2);
        // Queued before the limits.
        raw_send(
            &peer,
            &frame(2, &body(&(0_u16, 1_u16))),
            &borrowed(&writers),
        );
        let link = link.with_limits(NONE);
        drop(writers);
        let error = link.recv::<(Fd, Fd)>().unwrap_err();
        assert!(
            matches!(error, Error::PeerTooManyDescriptors { count: 2, limit: 0 }),
            "{error:?}"
        );
        ended(&link, &peer, &error);
        readers.iter().for_each(all_writers_closed);

        let (link, peer) = link_to_raw(kind);
        let link = link.with_limits(NONE);
        pass_rights(&link, true);
        raw_send(&peer, &frame(0, &[1]), &[]);
        raw_send(&peer, &frame(1, &[0]), &[memfd().as_fd()]);
        assert_eq!(link.recv::<u8>().unwrap(), 1);
        let error = link.recv::<Fd>().unwrap_err();
        assert!(
            matches!(error, Error::PeerTooManyDescriptors { count: 1, limit: 0 }),
            "{error:?}"
        );
    }
}

#[test]
fn what_the_sender_itself_allows() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let left = left.with_limits(NONE);
    let error = left.send(&Fd::from(memfd())).unwrap_err();
    assert!(
        matches!(error, Error::TooManyDescriptors { count: 1, limit: 0 }),
        "{error:?}"
    );
    // Allowed again, in both directions.
    let left = left.with_limits(Limits::new());
    left.send(&Fd::from(memfd())).unwrap();
    right.recv::<Fd>().unwrap();
    right.send(&Fd::from(memfd())).unwrap();
    left.recv::<Fd>().unwrap();
}

/// Set on a link in the middle of a message: the rest does not come, and the sender is told.
#[test]
fn from_the_second_packet_on() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    if !pass_rights(&right, true) {
        eprintln!("skipped: no SO_PASSRIGHTS before Linux 6.16");
        return;
    }
    rustix::net::sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
    let file = Fd::from(memfd());
    let left = left.with_limits(Limits::new().descriptors(5000));
    left.try_send(&vec![&file; 5000]).unwrap();
    assert!(matches!(left.try_flush(), Err(Error::WouldBlock)));
    pass_rights(&right, false);
    let mut bytes = [0; 100];
    while rustix::net::recv(&right, &mut bytes[..], rustix::net::RecvFlags::DONTWAIT)
        != Err(Errno::AGAIN)
    {}
    assert!(refused_by_the_kernel(&left.flush().unwrap_err()));
    let error = left.send(&()).unwrap_err();
    assert!(matches!(error, Error::Ended { .. }), "{error:?}");
    assert!(right.recv::<()>().unwrap_err().is_disconnected());
}

/// A service that gives descriptors and takes none.
#[test]
fn in_one_direction() {
    let _alone = alone();
    for kind in KINDS {
        let (service, client) = Link::pair_of(kind).unwrap();
        let known = pass_rights(&service, true);
        let service = service.with_limits(Limits::new().received_descriptors(0));
        for _ in 0..3 {
            service
                .send(&vec![Fd::from(memfd()), Fd::from(memfd())])
                .unwrap();
            assert_eq!(client.recv::<Vec<Fd>>().unwrap().len(), 2);
        }
        client.send("plain").unwrap();
        assert_eq!(service.recv::<String>().unwrap(), "plain");
        match client.send(&Fd::from(memfd())) {
            Err(error) => assert!(known && refused_by_the_kernel(&error), "{error:?}"),
            Ok(()) => {
                let error = service.recv::<Fd>().unwrap_err();
                assert!(
                    matches!(error, Error::PeerTooManyDescriptors { .. }),
                    "{error:?}"
                );
            }
        }
    }
}

//! Peers that send descriptors and never stop (A5): what they cost is bounded, and nobody else notices.

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::raw::{KINDS, body, borrowed, link_to_raw, more, send_some};
use common::{
    Reaped, abstract_name, alone, child, descriptors, frame, memfd, packet, parent, role, until,
};
use memlane_transport::{Error, Fd, Limits, Link, Listener};
use rustix::net::SendFlags;

/// Messages with 253 descriptors as fast as they go, and parts of messages that never end, against a service that serves an
/// honest client meanwhile.
#[test]
fn of_two_attackers_and_an_honest_client() {
    const ROUNDS: u32 = 500;
    if let Some(role) = role() {
        let start = parent();
        let address: String = start.recv().unwrap();
        let link = Link::connect(&address.parse().unwrap()).unwrap();
        link.send(&role).unwrap();
        if role == "honest" {
            for number in 0..ROUNDS {
                link.send(&(number, Fd::from(memfd()))).unwrap();
                assert_eq!(link.recv::<u32>().unwrap(), number);
            }
            return;
        }
        let file = memfd();
        let fds: Vec<OwnedFd> = (0..253).map(|_| file.try_clone().unwrap()).collect();
        let socket = link.into_fd();
        let bytes = match role.as_str() {
            "messages" => frame(253, &body(&(0..253_u16).collect::<Vec<_>>())),
            _ => packet(253, &more(500), &[]),
        };
        // Until the service hangs up, and this process is killed.
        while send_some(&socket, &bytes, &borrowed(&fds), SendFlags::empty()).is_ok() {}
        start.recv::<()>().unwrap_err();
        return;
    }
    let _alone = alone();
    let address = abstract_name("hoarding");
    let limits = Limits::new().descriptors(300);
    let listener = Listener::bind(&address).unwrap().with_limits(limits);
    let processes: Vec<_> = ["messages", "parts", "honest"]
        .map(|role| {
            let (start, theirs) = Link::pair().unwrap();
            let test = "of_two_attackers_and_an_honest_client";
            let process = Reaped::spawn(&mut child(test, role, theirs));
            start.send(&address.to_string()).unwrap();
            (start, process)
        })
        .into();
    let mut links = Vec::new();
    for _ in 0..3 {
        let link = listener.accept().unwrap();
        let role: String = link.recv().unwrap();
        links.push((role, link));
    }
    let before = descriptors().len();
    let mut most = 0;
    let mut served = 0;
    let mut ended = false;
    while served < ROUNDS {
        for (role, link) in &links {
            match role.as_str() {
                "honest" => match link.try_recv::<(u32, Fd)>() {
                    Ok((number, _fd)) => {
                        assert_eq!(number, served);
                        link.send(&number).unwrap();
                        served += 1;
                    }
                    Err(error) => assert!(matches!(error, Error::WouldBlock), "{error:?}"),
                },
                "messages" => match link.try_recv::<Vec<Fd>>() {
                    Ok(fds) => {
                        assert_eq!(fds.len(), 253);
                        most = most.max(descriptors().len());
                    }
                    Err(error) => assert!(matches!(error, Error::WouldBlock), "{error:?}"),
                },
                // The first packet says how many there will be.
                _ => match link.try_recv::<Vec<Fd>>().unwrap_err() {
                    Error::WouldBlock => {}
                    error => {
                        assert!(
                            matches!(
                                error,
                                Error::PeerTooManyDescriptors { .. } | Error::Ended { .. }
                            ),
                            "{error:?}"
                        );
                        ended = true;
                    }
                },
            }
        }
        most = most.max(descriptors().len());
    }
    until("the attacker with parts is hung up on", || {
        ended |= links.iter().any(|(role, link)| {
            role == "parts" && !matches!(link.try_recv::<Vec<Fd>>(), Err(Error::WouldBlock))
        });
        ended
    });
    // One message of each at a time, whatever waits in the sockets.
    assert!(most <= before + 253 + 302 + 10, "{most}, {before} before");
    drop(links);
    let [(_a, messages), (_b, parts), (_c, mut honest)] =
        <[_; 3]>::try_from(processes).ok().unwrap();
    honest.succeed();
    drop((messages, parts));
}

/// Links whose peers have all begun a message and go no further: each holds what one message may have.
#[test]
fn of_many_who_begin() {
    let _alone = alone();
    let file = vec![memfd()];
    for kind in KINDS {
        let before = descriptors().len();
        let links: Vec<_> = (0..20)
            .map(|_| {
                let (link, peer) = link_to_raw(kind);
                let link = link.with_limits(Limits::new().descriptors(5));
                for _ in 0..6 {
                    send_some(
                        &peer,
                        &packet(1, &more(7), &[]),
                        &borrowed(&file),
                        SendFlags::empty(),
                    )
                    .unwrap();
                }
                assert!(matches!(link.try_recv::<Vec<Fd>>(), Err(Error::WouldBlock)));
                (link, peer)
            })
            .collect();
        assert_eq!(descriptors().len(), before + 20 * (2 + 6));
        // With an end they are messages, or none; without one they go with their links.
        for (link, peer) in &links[..10] {
            send_some(peer, &frame(0, &[0]), &[], SendFlags::empty()).unwrap();
            let error = link.recv::<Vec<Fd>>().unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Parts {
                        announced: 7,
                        received: 6
                    }
                ),
                "{error:?}"
            );
        }
        assert_eq!(descriptors().len(), before + 20 * 2 + 10 * 6);
        drop(links);
        assert_eq!(descriptors().len(), before);
    }
    assert!(file[0].as_fd().try_clone_to_owned().is_ok());
}

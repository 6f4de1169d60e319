//! Other users stay out, on both sides, unless they are let in. Needs root, to become another user.

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Directory, Reaped, abstract_name, accept, alone, child, parent, role};
use memlane_transport::{Access, Address, Admitted, Error, Link, Listener};

const STRANGER: u32 = 65534;

fn stranger(test: &str) -> Option<(Link, Reaped)> {
    let (link, theirs) = Link::pair().unwrap();
    let process = Reaped::spawn_as(STRANGER, &mut child(test, "stranger", theirs))?;
    Some((link, process))
}

#[test]
fn a_client_of_another_user() {
    if role().is_some() {
        let link = parent();
        let address: Address = link.recv::<String>().unwrap().parse().unwrap();
        // The server is root, whom everyone believes.
        let refused = Link::connect(&address).unwrap();
        link.send(&()).unwrap();
        assert!(refused.recv::<()>().unwrap_err().is_disconnected());
        return;
    }
    let _alone = alone();
    let Some((link, mut process)) = stranger("a_client_of_another_user") else {
        return;
    };
    let address = abstract_name("strangers");
    let listener = Listener::bind(&address).unwrap();
    link.send(&address.to_string()).unwrap();
    link.recv::<()>().unwrap();
    let error = listener
        .accept_timeout(Duration::from_secs(60))
        .unwrap_err();
    let Error::AccessDenied {
        found,
        ref groups,
        expected: Admitted::Uid(0),
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(found.uid, STRANGER);
    assert!(groups.is_empty());
    let pid = process.0.id();
    assert_eq!(
        error.to_string(),
        format!("the other end is process {pid} (uid 65534, gid 65534); uid 0 is required")
    );
    process.succeed();
    // The listener goes on.
    let _friend = Link::connect(&address).unwrap();
    accept(&listener);
}

#[test]
fn a_server_of_another_user() {
    if role().is_some() {
        let link = parent();
        let listener = Listener::bind_with(&abstract_name("squatter"), Access::Anyone).unwrap();
        link.send(&listener.address().to_string()).unwrap();
        for _ in 0..4 {
            let refused = accept(&listener);
            assert!(refused.recv::<()>().unwrap_err().is_disconnected());
        }
        accept(&listener).send("welcome").unwrap();
        link.recv::<()>().unwrap();
        return;
    }
    let _alone = alone();
    let Some((link, mut process)) = stranger("a_server_of_another_user") else {
        return;
    };
    let address: Address = link.recv::<String>().unwrap().parse().unwrap();
    let error = Link::connect(&address).unwrap_err();
    assert!(
        matches!(&error, Error::AccessDenied { found, expected: Admitted::UidOrRoot(0), .. } if found.uid == STRANGER),
        "{error:?}"
    );
    for refusing in [
        Access::users([0]),
        Access::groups([0]),
        Access::when(|_| false),
    ] {
        let error = Link::connect_with(&address, refusing).unwrap_err();
        assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}");
    }
    let server = Link::connect_with(&address, Access::users([STRANGER])).unwrap();
    assert_eq!(server.recv::<String>().unwrap(), "welcome");
    assert_eq!(server.credentials().unwrap().uid, STRANGER);
    link.send(&()).unwrap();
    process.succeed();
}

#[test]
fn a_socket_file() {
    if role().is_some() {
        let link = parent();
        let address: Address = link.recv::<String>().unwrap().parse().unwrap();
        let error = Link::connect(&address).unwrap_err();
        let std::io::ErrorKind::PermissionDenied = std::io::Error::from(error).kind() else {
            panic!()
        };
        link.send(&()).unwrap();
        link.recv::<()>().unwrap();
        let link = Link::connect(&address).unwrap();
        assert_eq!(link.recv::<String>().unwrap(), "welcome");
        return;
    }
    let _alone = alone();
    let Some((link, mut process)) = stranger("a_socket_file") else {
        return;
    };
    let directory = Directory::new();
    let address = Address::path(directory.join("service")).unwrap();
    let listener = Listener::bind(&address).unwrap();
    link.send(&address.to_string()).unwrap();
    link.recv::<()>().unwrap();
    drop(listener);
    let listener = Listener::bind_with(&address, Access::Anyone).unwrap();
    link.send(&()).unwrap();
    let client = accept(&listener);
    assert_eq!(client.peer().unwrap().uid(), STRANGER);
    client.send("welcome").unwrap();
    process.succeed();
}

/// Lists and closures at the accepting side, one client of another user after the other.
#[test]
fn rules_for_clients() {
    if role().is_some() {
        let link = parent();
        while let Ok(address) = link.recv::<String>() {
            let client = Link::connect(&address.parse().unwrap()).unwrap();
            let _ = client.recv::<()>();
        }
        return;
    }
    let _alone = alone();
    let Some((link, mut process)) = stranger("rules_for_clients") else {
        return;
    };
    let pid = process.0.id();
    let came = format!("the other end is process {pid} (uid 65534, gid 65534)");
    let seen = Arc::new(Mutex::new(None));
    let see = Arc::clone(&seen);
    let cases = [
        (Access::users([1, STRANGER]), None),
        (Access::groups([STRANGER, 2]), None),
        (Access::when(|peer| peer.uid() == STRANGER), None),
        (
            Access::users([0, 7]),
            Some(format!("{came}; a uid of [0, 7] is required")),
        ),
        (
            Access::users([]),
            Some(format!("{came}; the rule lists no uid")),
        ),
        (
            Access::groups([44]),
            Some(format!("{came}; membership in a group of [44] is required")),
        ),
        (
            Access::when(move |peer| {
                *see.lock().unwrap() = Some((peer.credentials(), peer.pidfd().is_some()));
                false
            }),
            Some(format!("{came}; the rule's closure refused it")),
        ),
        (
            Access::when(|peer| panic!("uid {} came as expected", peer.uid())),
            Some(format!(
                "{came}; the rule's closure panicked, which counts as a no"
            )),
        ),
    ];
    for (number, (access, refusal)) in cases.into_iter().enumerate() {
        let address = abstract_name(&format!("rules-{number}"));
        let listener = Listener::bind_with(&address, access).unwrap();
        let before = common::descriptors().len();
        for _ in 0..3 {
            link.send(&address.to_string()).unwrap();
            let accepted = listener.accept_timeout(Duration::from_secs(60));
            // Nothing is left of one that was refused, and the listener goes on.
            assert_eq!(accepted.err().map(|error| error.to_string()), refusal);
            assert_eq!(common::descriptors().len(), before);
        }
    }
    let (credentials, pidfd) = seen.lock().unwrap().unwrap();
    assert_eq!((credentials.pid, credentials.uid), (Some(pid), STRANGER));
    assert!(pidfd);
    drop(link);
    process.succeed();
}

/// Root is nobody special to a list.
#[test]
fn a_list_means_exactly_those() {
    let _alone = alone();
    let own = rustix::process::geteuid().as_raw();
    let address = abstract_name("exactly");
    let listener = Listener::bind_with(&address, Access::users([own + 1])).unwrap();
    let _client = Link::connect(&address).unwrap();
    let error = listener
        .accept_timeout(Duration::from_secs(60))
        .unwrap_err();
    assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}");
    let error = Link::connect_with(&address, Access::users([own + 1])).unwrap_err();
    assert_eq!(
        std::io::Error::from(error).kind(),
        std::io::ErrorKind::PermissionDenied
    );
}

/// A client in supplementary groups, more than fit a first guess, and gone before it is accepted.
#[test]
fn members_of_groups() {
    if role().is_some() {
        let link = parent();
        let address: Address = link.recv::<String>().unwrap().parse().unwrap();
        common::become_user(STRANGER, &(3000..3100).collect::<Vec<u32>>());
        for _ in 0..3 {
            Link::connect(&address).unwrap();
        }
        return;
    }
    let _alone = alone();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can choose its groups");
        return;
    }
    let address = abstract_name("groups");
    let member = Listener::bind_with(&address, Access::groups([5, 3099])).unwrap();
    let stranger =
        Listener::from_fd(rustix::io::dup(&member).unwrap(), Access::groups([5, 3100])).unwrap();
    let closure = Listener::from_fd(
        rustix::io::dup(&member).unwrap(),
        Access::when(|peer| peer.groups().contains(&3050)),
    )
    .unwrap();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child("members_of_groups", "member", theirs));
    link.send(&address.to_string()).unwrap();
    process.succeed();

    let client = accept(&member);
    let peer = client.peer().unwrap();
    assert_eq!(peer.uid(), STRANGER);
    assert_eq!(peer.groups(), (3000..3100).collect::<Vec<u32>>());
    let gone = peer.take_descriptor(0).unwrap_err();
    assert!(matches!(gone, Error::ProcessEnded), "{gone:?}");
    let gone = peer.same_description(0, &client).unwrap_err();
    assert!(matches!(gone, Error::ProcessEnded), "{gone:?}");

    let error = stranger
        .accept_timeout(Duration::from_secs(60))
        .unwrap_err();
    assert!(
        matches!(&error, Error::AccessDenied { groups, expected: Admitted::Groups(g), .. }
            if groups.len() == 100 && **g == [5, 3100]),
        "{error:?}"
    );
    assert!(error.to_string().contains("3015, and 84 more]"), "{error}");
    accept(&closure);
}

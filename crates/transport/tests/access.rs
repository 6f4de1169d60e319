//! Other users stay out, on both sides, unless they are let in. Needs root, to become another user.

mod common;

use common::{Directory, Reaped, abstract_name, alone, child, parent, role};
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
    let error = listener.accept().unwrap_err();
    let expected = Admitted::Uid(0);
    assert!(
        matches!(error, Error::AccessDenied { uid: STRANGER, expected: e } if e == expected),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "the other end runs as uid 65534, uid 0 is required"
    );
    process.succeed();
    // The listener goes on.
    let _friend = Link::connect(&address).unwrap();
    listener.accept().unwrap();
}

#[test]
fn a_server_of_another_user() {
    if role().is_some() {
        let link = parent();
        let listener = Listener::bind_with(&abstract_name("squatter"), Access::Anyone).unwrap();
        link.send(&listener.address().to_string()).unwrap();
        assert!(
            listener
                .accept()
                .unwrap()
                .recv::<()>()
                .unwrap_err()
                .is_disconnected()
        );
        listener.accept().unwrap().send("welcome").unwrap();
        link.recv::<()>().unwrap();
        return;
    }
    let _alone = alone();
    let Some((link, mut process)) = stranger("a_server_of_another_user") else {
        return;
    };
    let address: Address = link.recv::<String>().unwrap().parse().unwrap();
    let error = Link::connect(&address).unwrap_err();
    let expected = Admitted::UidOrRoot(0);
    assert!(
        matches!(error, Error::AccessDenied { uid: STRANGER, expected: e } if e == expected),
        "{error:?}"
    );
    let server = Link::connect_with(&address, Access::Anyone).unwrap();
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
    let client = listener.accept().unwrap();
    assert_eq!(client.peer().unwrap().uid(), STRANGER);
    client.send("welcome").unwrap();
    process.succeed();
}

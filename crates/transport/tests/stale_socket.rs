//! The file of a socket whose process is gone, and who may remove it.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use common::{Directory, Reaped, abstract_name, alone, child, parent, role};
use memlane_transport::{Address, Error, Link, Listener, remove_stale};

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

/// A socket file that a killed process left.
fn leave_behind(test: &str, path: &Path) {
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child(test, "owner", theirs));
    link.send(path).unwrap();
    assert_eq!(link.recv::<String>().unwrap(), "listening");
    let error = Listener::bind(&Address::path(path).unwrap()).unwrap_err();
    assert!(matches!(error, Error::AddressInUse { .. }), "{error:?}");
    assert!(!remove_stale(&Address::path(path).unwrap()).unwrap());
    Link::connect(&Address::path(path).unwrap()).unwrap();
    process.kill();
    assert!(is_socket(path));
}

/// Listens until it is killed.
fn owner() {
    let link = parent();
    let path: std::path::PathBuf = link.recv().unwrap();
    let _listener = Listener::bind(&Address::path(path).unwrap()).unwrap();
    link.send("listening").unwrap();
    let _ = link.recv::<()>();
}

#[test]
fn is_replaced_by_the_next_to_bind() {
    if role().is_some() {
        return owner();
    }
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let address = Address::path(&path).unwrap();
    leave_behind("is_replaced_by_the_next_to_bind", &path);
    let listener = Listener::bind(&address).unwrap();
    let client = Link::connect(&address).unwrap();
    client.send("hello").unwrap();
    assert_eq!(
        listener.accept().unwrap().recv::<String>().unwrap(),
        "hello"
    );
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn is_removed_by_the_next_to_connect() {
    if role().is_some() {
        return owner();
    }
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    leave_behind("is_removed_by_the_next_to_connect", &path);
    for _ in 0..2 {
        let error = Link::connect(&Address::path(&path).unwrap()).unwrap_err();
        assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        assert!(!is_socket(&path));
    }
}

#[test]
fn is_removed_on_request() {
    if role().is_some() {
        return owner();
    }
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let address = Address::path(&path).unwrap();
    assert!(!remove_stale(&address).unwrap());
    leave_behind("is_removed_on_request", &path);
    assert!(remove_stale(&address).unwrap());
    assert!(!is_socket(&path));
    assert!(!remove_stale(&address).unwrap());
    assert!(!remove_stale(&abstract_name("stale")).unwrap());
    let nowhere = Address::path(directory.join("no/such/directory")).unwrap();
    assert_eq!(
        remove_stale(&nowhere).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
}

#[test]
fn is_not_confused_with_anything_else() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let address = Address::path(&path).unwrap();
    let untouched = |kind: &str| {
        let before = fs::symlink_metadata(&path).unwrap().ino();
        let error = Listener::bind(&address).unwrap_err();
        assert!(
            matches!(&error, Error::NotASocket { found, .. } if *found == kind),
            "{error:?}"
        );
        let error = Link::connect(&address).unwrap_err();
        if kind == "symbolic link" {
            assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
        } else {
            assert!(
                matches!(&error, Error::NotASocket { found, .. } if *found == kind),
                "{error:?}"
            );
        }
        assert!(!remove_stale(&address).unwrap());
        assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), before);
    };
    fs::write(&path, "precious").unwrap();
    untouched("file");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    untouched("directory");
    fs::remove_dir(&path).unwrap();

    // A link to a stale socket: whose it is, is not for us to say.
    let elsewhere = directory.join("elsewhere");
    drop(UnixListener::bind(&elsewhere).unwrap());
    symlink(&elsewhere, &path).unwrap();
    untouched("symbolic link");
    assert!(is_socket(&elsewhere));
}

/// Live sockets of other types, and bound ones that do not listen yet, are in use.
#[test]
fn is_not_one_that_some_process_has() {
    let _alone = alone();
    let directory = Directory::new();
    let in_use = |path: &Path| {
        let address = Address::path(path).unwrap();
        let error = Listener::bind(&address).unwrap_err();
        assert!(matches!(error, Error::AddressInUse { .. }), "{error:?}");
        assert!(!remove_stale(&address).unwrap());
        assert!(is_socket(path));
    };
    let stream = UnixListener::bind(directory.join("stream")).unwrap();
    in_use(&directory.join("stream"));
    // The look did not disturb it: the first to come in is this one.
    stream.set_nonblocking(true).unwrap();
    assert!(stream.accept().is_err());
    UnixStream::connect(directory.join("stream")).unwrap();
    stream.accept().unwrap();

    let _datagram = UnixDatagram::bind(directory.join("datagram")).unwrap();
    in_use(&directory.join("datagram"));
    let error = Link::connect(&Address::path(directory.join("datagram")).unwrap()).unwrap_err();
    assert!(matches!(error, Error::WrongSocket { .. }), "{error:?}");

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, socket};
    let silent = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    bind(
        &silent,
        &SocketAddrUnix::new(directory.join("silent")).unwrap(),
    )
    .unwrap();
    in_use(&directory.join("silent"));
}

//! The file of a listener: closed to others from its first moment, gone with the listener, and only then.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use common::{Directory, Reaped, alone, child, parent, role};
use memlane_transport::{Access, Address, Error, Link, Listener};
use rustix::fs::Mode;

#[test]
fn its_mode_does_not_depend_on_the_umask() {
    if role().is_some() {
        let link = parent();
        let directory: std::path::PathBuf = link.recv().unwrap();
        for mask in [0o000, 0o022, 0o077] {
            rustix::process::umask(Mode::from_raw_mode(mask));
            for (access, mode) in [
                (Access::SameUser, 0o600),
                (Access::Anyone, 0o666),
                (Access::users([1000]), 0o666),
                (Access::groups([1000]), 0o666),
                (Access::when(|_| false), 0o666),
            ] {
                let path = directory.join("service");
                let _listener =
                    Listener::bind_with(&Address::path(&path).unwrap(), access).unwrap();
                assert_eq!(
                    fs::metadata(&path).unwrap().mode() & 0o7777,
                    mode,
                    "umask {mask:o}"
                );
            }
        }
        // A mask that takes from the owner, too, takes: the mode never has more than asked for.
        rustix::process::umask(Mode::from_raw_mode(0o777));
        let path = directory.join("service");
        let _listener = Listener::bind(&Address::path(&path).unwrap()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0);
        return;
    }
    let _alone = alone();
    let directory = Directory::new();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child(
        "its_mode_does_not_depend_on_the_umask",
        "binder",
        theirs,
    ));
    link.send(&directory.0).unwrap();
    process.succeed();
}

#[test]
fn it_goes_with_the_listener() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let address = Address::path(&path).unwrap();
    for _ in 0..3 {
        let listener = Listener::bind(&address).unwrap();
        assert_eq!(listener.address(), &address);
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }
    assert_eq!(
        fs::read_dir(&directory.0).unwrap().count(),
        0,
        "no lock files"
    );
}

#[test]
fn another_file_at_its_path_stays() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let address = Address::path(&path).unwrap();
    let first = Listener::bind(&address).unwrap();
    fs::remove_file(&path).unwrap();
    let second = Listener::bind(&address).unwrap();
    drop(first);
    assert!(path.exists());
    let client = Link::connect(&address).unwrap();
    second.accept().unwrap().send("hello").unwrap();
    assert_eq!(client.recv::<String>().unwrap(), "hello");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "mine").unwrap();
    drop(second);
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

#[test]
fn a_directory_that_went_away_is_no_trouble() {
    let _alone = alone();
    let directory = Directory::new();
    let listener = Listener::bind(&Address::path(directory.join("service")).unwrap()).unwrap();
    fs::remove_dir_all(&directory.0).unwrap();
    drop(listener);
}

#[test]
fn it_stays_when_a_forked_child_drops_the_listener() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let listener = Listener::bind(&Address::path(&path).unwrap()).unwrap();
    // SAFETY: the child only drops the listener, which for a child means close(2), and leaves without cleaning up.
    match unsafe { libc::fork() } {
        0 => {
            drop(listener);
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        child => {
            let mut status = 0;
            // SAFETY: writes an integer.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(status, 0);
        }
    }
    assert!(path.exists());
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_locked_directory() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let address = Address::path(&path).unwrap();
    let lock = fs::File::open(&directory.0).unwrap();
    rustix::fs::flock(lock.as_fd(), rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = Listener::bind(&address).unwrap_err();
    assert!(
        matches!(&error, Error::Locked { directory: found } if *found == directory.0),
        "{error:?}"
    );
    assert!(error.is_retryable());
    assert!(!path.exists());
    drop(lock);
    Listener::bind(&address).unwrap();
}

#[test]
fn paths_that_cannot_be() {
    let _alone = alone();
    let directory = Directory::new();
    let error = Listener::bind(&Address::path(directory.join("no/service")).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(error.to_string().contains("/no"), "{error}");
    // The variants are public: what the constructors refuse is refused here, too.
    let error = Listener::bind(&Address::Path("x".repeat(200).into())).unwrap_err();
    assert!(matches!(error, Error::Address(_)), "{error:?}");
    let error = Link::connect(&Address::Abstract(Vec::new())).unwrap_err();
    assert!(matches!(error, Error::Address(_)), "{error:?}");
}

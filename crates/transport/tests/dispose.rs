//! Refused descriptors are closed, and not by the thread that refused them.

mod common;

use std::os::fd::AsFd;

use common::{Directory, all_writers_closed, alone, descriptors, memfd};
use memlane_transport::{Fd, Link, dispose};

#[test]
fn harmless_kinds_are_closed_at_once() {
    let _alone = alone();
    let before = descriptors();
    dispose(memfd());
    assert_eq!(descriptors(), before);
}

#[test]
fn all_others_are_closed_by_another_thread() {
    let _alone = alone();
    let directory = Directory::new();
    for round in 0..20 {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        dispose(writer);
        all_writers_closed(reader);
        dispose(
            std::fs::File::create(directory.join(&format!("file-{round}")))
                .unwrap()
                .into(),
        );
    }
}

#[test]
fn more_than_there_are_threads() {
    let _alone = alone();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    for _ in 0..500 {
        dispose(writer.as_fd().try_clone_to_owned().unwrap());
    }
    drop(writer);
    all_writers_closed(reader);
}

#[test]
fn from_many_threads() {
    let _alone = alone();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let (reader, writer) = rustix::pipe::pipe().unwrap();
                    dispose(writer);
                    all_writers_closed(reader);
                }
            });
        }
    });
}

/// A received descriptor that nobody took out of its `Fd` is of unknown kind, too.
#[test]
fn a_received_descriptor_that_is_dropped() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    left.send(&Fd::from(writer)).unwrap();
    drop(right.recv::<Fd>().unwrap());
    all_writers_closed(reader);
}

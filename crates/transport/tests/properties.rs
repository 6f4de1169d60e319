//! Whatever the value, it arrives; whatever the bytes, nothing breaks.

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::{alone, descriptors, inode, memfd, raw_send};
use memlane_transport::{Error, Fd, FdRef, Link};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// A value with descriptors, numbered by the file they are.
#[derive(Clone, Debug)]
enum Shape {
    Number(i64),
    Text(String),
    File(usize),
    List(Vec<Shape>),
    Map(std::collections::BTreeMap<String, Shape>),
    Maybe(Option<Box<Shape>>),
    Both { left: Box<Shape>, right: Box<Shape> },
}

#[derive(Serialize)]
enum Sent<'a> {
    Number(i64),
    Text(&'a str),
    File(FdRef<'a>),
    List(Vec<Sent<'a>>),
    Map(std::collections::BTreeMap<&'a str, Sent<'a>>),
    Maybe(Option<Box<Sent<'a>>>),
    Both {
        left: Box<Sent<'a>>,
        right: Box<Sent<'a>>,
    },
}

#[derive(Debug, Deserialize)]
enum Received {
    Number(i64),
    Text(String),
    File(Fd),
    List(Vec<Received>),
    Map(std::collections::BTreeMap<String, Received>),
    Maybe(Option<Box<Received>>),
    Both {
        left: Box<Received>,
        right: Box<Received>,
    },
}

const FILES: usize = 8;

fn shape() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Shape::Number),
        ".{0,20}".prop_map(Shape::Text),
        (0..FILES).prop_map(Shape::File),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Shape::List),
            btree_map("[a-z]{0,4}", inner.clone(), 0..4).prop_map(Shape::Map),
            proptest::option::of(inner.clone().prop_map(Box::new)).prop_map(Shape::Maybe),
            (inner.clone(), inner).prop_map(|(left, right)| Shape::Both {
                left: Box::new(left),
                right: Box::new(right)
            }),
        ]
    })
}

fn sent<'a>(shape: &'a Shape, files: &'a [OwnedFd]) -> Sent<'a> {
    match shape {
        Shape::Number(number) => Sent::Number(*number),
        Shape::Text(text) => Sent::Text(text),
        Shape::File(number) => Sent::File(FdRef::new(&files[*number])),
        Shape::List(list) => Sent::List(list.iter().map(|item| sent(item, files)).collect()),
        Shape::Map(map) => Sent::Map(
            map.iter()
                .map(|(key, item)| (key.as_str(), sent(item, files)))
                .collect(),
        ),
        Shape::Maybe(maybe) => Sent::Maybe(maybe.as_ref().map(|item| Box::new(sent(item, files)))),
        Shape::Both { left, right } => Sent::Both {
            left: Box::new(sent(left, files)),
            right: Box::new(sent(right, files)),
        },
    }
}

fn same(shape: &Shape, received: &Received, files: &[OwnedFd]) -> bool {
    match (shape, received) {
        (Shape::Number(a), Received::Number(b)) => a == b,
        (Shape::Text(a), Received::Text(b)) => a == b,
        (Shape::File(number), Received::File(fd)) => inode(&files[*number]) == inode(fd),
        (Shape::List(a), Received::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, files))
        }
        (Shape::Map(a), Received::Map(b)) => {
            a.keys().eq(b.keys()) && a.values().zip(b.values()).all(|(a, b)| same(a, b, files))
        }
        (Shape::Maybe(a), Received::Maybe(b)) => match (a, b) {
            (Some(a), Some(b)) => same(a, b, files),
            (a, b) => a.is_none() && b.is_none(),
        },
        (Shape::Both { left, right }, Received::Both { left: l, right: r }) => {
            same(left, l, files) && same(right, r, files)
        }
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_arrive(shape in shape()) {
        let _alone = alone();
        let files: Vec<_> = (0..FILES).map(|_| memfd()).collect();
        let (left, right) = Link::pair().unwrap();
        left.send(&sent(&shape, &files)).unwrap();
        let received: Received = right.recv().unwrap();
        prop_assert!(same(&shape, &received, &files), "{:?} became {:?}", shape, received);
    }
}

/// Mostly valid headers, so that the bodies are looked at.
fn packet() -> impl Strategy<Value = (Vec<u8>, usize)> {
    // Small bytes are lengths, indices and variants.
    let byte = prop_oneof![3 => 0..8_u8, 1 => any::<u8>()];
    let header = |count: usize| {
        prop_oneof![
            8 => Just(common::frame(count as u16, &[])),
            1 => vec(any::<u8>(), 0..6),
        ]
    };
    (0..5_usize).prop_flat_map(move |count| {
        (header(count), vec(byte.clone(), 0..60), Just(count)).prop_map(
            |(mut bytes, body, count)| {
                bytes.extend(body);
                (bytes, count)
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn made_up_packets_do_no_harm((bytes, count) in packet()) {
        let alone = alone();
        let before = descriptors();
        let files: Vec<_> = (0..count).map(|_| memfd()).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let (link, peer) = Link::pair().unwrap();
        raw_send(&peer, &bytes, &fds);
        match link.recv::<Received>() {
            Ok(_) => {}
            Err(Error::Disconnected) => prop_assert!(bytes.is_empty() && count == 0),
            Err(error) => {
                prop_assert!(error.ends_link(), "{:?}", error);
                let ended = matches!(link.recv::<Received>(), Err(Error::Ended { .. }));
                prop_assert!(ended);
            }
        }
        drop((files, link, peer));
        // Memory files are closed on the spot.
        prop_assert_eq!(descriptors(), before);
        alone.settled();
    }
}

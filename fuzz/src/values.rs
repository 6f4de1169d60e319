//! Types to receive, and what a value of them is: for comparing descriptors by the file they are.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU64};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use memlane_transport::codec::MAX_DEPTH;
use memlane_transport::{EventFd, Fd, Link, Listener, MemoryFd, StreamFd};
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

/// A value that can carry descriptors.
pub trait Print {
    /// Appends what it is: equal for equal values, descriptors being equal when they are the same file.
    fn print(&self, to: &mut String);

    /// How many values of the recursive type stand within one another: less than all levels, of which there are at most
    /// [`MAX_DEPTH`].
    fn depth(&self) -> usize {
        1
    }
}

/// What `value` is. Panics if it could not have been decoded.
pub fn printed(value: &impl Print) -> String {
    assert!(value.depth() <= MAX_DEPTH, "{} levels", value.depth());
    let mut text = String::new();
    value.print(&mut text);
    text
}

fn print_fd(fd: impl AsFd, to: &mut String) {
    let stat = rustix::fs::fstat(&fd).expect("an open descriptor");
    let flags = rustix::io::fcntl_getfd(&fd).expect("an open descriptor");
    assert!(flags.contains(FdFlags::CLOEXEC), "not close-on-exec");
    let _ = write!(to, "<{}:{}>", stat.st_dev, stat.st_ino);
}

macro_rules! files {
    ($($file:ty),+) => {
        $(impl Print for $file {
            fn print(&self, to: &mut String) {
                print_fd(self, to);
            }
        })+
    };
}

files!(Fd, MemoryFd, EventFd, StreamFd, Link, Listener);

macro_rules! plain {
    ($($plain:ty),+) => {
        $(impl Print for $plain {
            fn print(&self, to: &mut String) {
                let _ = write!(to, "{self:?}");
            }
        })+
    };
}

plain!((), u8, i64, String);

impl<T: Print> Print for Vec<T> {
    fn print(&self, to: &mut String) {
        for item in self {
            to.push(',');
            item.print(to);
        }
        to.push(';');
    }
}

impl<T: Print> Print for Option<T> {
    fn print(&self, to: &mut String) {
        match self {
            None => to.push('-'),
            Some(item) => {
                to.push('+');
                item.print(to);
            }
        }
    }
}

impl<T: Print> Print for Box<T> {
    fn print(&self, to: &mut String) {
        T::print(self, to);
    }

    fn depth(&self) -> usize {
        T::depth(self)
    }
}

impl<K: Print, V: Print> Print for BTreeMap<K, V> {
    fn print(&self, to: &mut String) {
        for (key, value) in self {
            key.print(to);
            to.push(':');
            value.print(to);
        }
        to.push(';');
    }
}

/// A value of every shape, with descriptors of every kind anywhere in it.
#[derive(Debug, Deserialize, Serialize)]
#[allow(missing_docs)]
pub enum Tree {
    Nothing,
    Number(i64),
    Text(String),
    Any(Fd),
    Memory(MemoryFd),
    Event(EventFd),
    Stream(StreamFd),
    Link(Box<Link>),
    Listener(Box<Listener>),
    Maybe(Option<Fd>),
    Files(Vec<Fd>),
    List(Vec<Tree>),
    Map(BTreeMap<String, Tree>),
    Chain(Box<Tree>),
    Both { left: Box<Tree>, right: Box<Tree> },
    Plain(Box<Plain>),
}

impl Print for Tree {
    fn print(&self, to: &mut String) {
        match self {
            Tree::Nothing => to.push('0'),
            Tree::Number(number) => number.print(to),
            Tree::Text(text) => text.print(to),
            Tree::Any(fd) => fd.print(to),
            Tree::Memory(fd) => fd.print(to),
            Tree::Event(fd) => fd.print(to),
            Tree::Stream(fd) => fd.print(to),
            Tree::Link(link) => link.print(to),
            Tree::Listener(listener) => listener.print(to),
            Tree::Maybe(fd) => fd.print(to),
            Tree::Files(fds) => fds.print(to),
            Tree::List(list) => list.print(to),
            Tree::Map(map) => map.print(to),
            Tree::Chain(tree) => {
                to.push('.');
                tree.print(to);
            }
            Tree::Both { left, right } => {
                left.print(to);
                to.push('|');
                right.print(to);
            }
            Tree::Plain(plain) => plain.print(to),
        }
    }

    fn depth(&self) -> usize {
        1 + match self {
            Tree::List(list) => deepest(list.iter()),
            Tree::Map(map) => deepest(map.values()),
            Tree::Chain(tree) => tree.depth(),
            Tree::Both { left, right } => left.depth().max(right.depth()),
            Tree::Plain(plain) => plain.depth(),
            _ => 0,
        }
    }
}

fn deepest<'a, T: Print + 'a>(values: impl Iterator<Item = &'a T>) -> usize {
    values.map(Print::depth).max().unwrap_or(0)
}

/// A value of every type that serde knows, without descriptors.
#[derive(Debug, Deserialize, Serialize)]
#[allow(missing_docs)]
pub enum Plain {
    Unit,
    Unsigned(u8, u16, u32, u64, u128, usize),
    Signed(i8, i16, i32, i64, i128, isize),
    Real(f32, f64),
    Text {
        letter: char,
        text: String,
        boxed: Box<str>,
        path: PathBuf,
    },
    Truth(bool, Option<bool>, Option<Option<()>>),
    NonZero(NonZeroU8, Option<NonZeroU64>),
    Times(Duration, SystemTime),
    Places(IpAddr, SocketAddr),
    Sequences {
        bytes: Vec<u8>,
        array: [u16; 3],
        queue: VecDeque<(u8, i32)>,
        set: BTreeSet<String>,
        nothings: Vec<()>,
        unit_arrays: Vec<[(); 32]>,
    },
    Maps(BTreeMap<u64, Vec<String>>, BTreeMap<(), ()>),
    List(Vec<Plain>),
    Chain(Box<Plain>),
    Node(Node),
    Result(Result<u8, String>),
    Range(std::ops::Range<u32>, std::ops::Bound<i8>),
}

impl Print for Plain {
    /// As text, since a NaN is not equal to itself.
    fn print(&self, to: &mut String) {
        let _ = write!(to, "{self:?}");
    }

    fn depth(&self) -> usize {
        1 + match self {
            Plain::List(list) => deepest(list.iter()),
            Plain::Chain(plain) => plain.depth(),
            Plain::Node(node) => node.depth(),
            _ => 0,
        }
    }
}

/// Recursion through options.
#[derive(Debug, Deserialize, Serialize)]
pub struct Node(pub Option<Box<Node>>, pub u8);

impl Print for Node {
    fn print(&self, to: &mut String) {
        let _ = write!(to, "{self:?}");
    }

    fn depth(&self) -> usize {
        1 + self.0.as_ref().map_or(0, |node| node.depth())
    }
}

/// A table that reserves room for as many entries as are announced.
pub type Table = HashMap<u64, (u64, u64, u64, u64)>;

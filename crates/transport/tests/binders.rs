//! Many want one address: exactly one gets it, also where a dead process had it before.

mod common;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use common::{Directory, Reaped, abstract_name, alone, child, parent, role};
use memlane_transport::{Address, Error, Link, Listener};

/// Leaves a file without a process, as SIGKILL does.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

fn race(address: &Address, contenders: usize) {
    let (start, end) = (Barrier::new(contenders), Barrier::new(contenders));
    let won: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..contenders)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let result = Listener::bind(address);
                    // Nobody lets go before all have tried.
                    end.wait();
                    match result {
                        Ok(_) => 1,
                        Err(Error::AddressInUse { .. }) => 0,
                        Err(error) => panic!("{error:?}"),
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(won, 1);
}

#[test]
fn threads() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let address = Address::path(&path).unwrap();
    for round in 0..150 {
        if round % 2 == 0 {
            leave_stale(&path);
        }
        race(&address, 4);
        assert!(!path.exists());
    }
}

#[test]
fn threads_with_an_abstract_name() {
    let _alone = alone();
    for _ in 0..50 {
        race(&abstract_name("race"), 4);
    }
}

/// Each round: all bind at once, say how it went, and let go together.
fn contender() {
    let link = parent();
    while let Ok(path) = link.recv::<PathBuf>() {
        let result = Listener::bind(&Address::path(path).unwrap());
        let won = match &result {
            Ok(_) => true,
            Err(Error::AddressInUse { .. }) => false,
            Err(error) => panic!("{error:?}"),
        };
        link.send(&won).unwrap();
        link.recv::<()>().unwrap();
        drop(result);
        link.send(&()).unwrap();
    }
}

#[test]
fn processes() {
    if role().is_some() {
        return contender();
    }
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let mut contenders: Vec<_> = (0..3)
        .map(|_| {
            let (link, theirs) = Link::pair().unwrap();
            (
                link,
                Reaped::spawn(&mut child("processes", "contender", theirs)),
            )
        })
        .collect();
    for round in 0..100 {
        if round % 2 == 0 {
            leave_stale(&path);
        }
        for (link, _) in &contenders {
            link.send(&path).unwrap();
        }
        // Clients that notice the stale file at the same time do not take the winner's away.
        let _ = Link::connect(&Address::path(&path).unwrap());
        let won = contenders
            .iter()
            .filter(|(link, _)| link.recv::<bool>().unwrap())
            .count();
        assert_eq!(won, 1, "round {round}");
        Link::connect(&Address::path(&path).unwrap()).unwrap();
        for (link, _) in &contenders {
            link.send(&()).unwrap();
        }
        for (link, _) in &contenders {
            link.recv::<()>().unwrap();
        }
        assert!(!path.exists());
    }
    for (link, process) in &mut contenders {
        drop(std::mem::replace(link, Link::pair().unwrap().0));
        process.succeed();
    }
}

//! A publisher that ends in every way.

use std::{
    os::unix::process::CommandExt,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
};

use memlane::Reason;
use memlane_tests::{Child, PATIENCE, Role, Scene, fill, unbound};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Close,
    Drop,
    DrainAndClose,
    Panic,
    Killed,
    Aborts,
    Exits,
    Executes,
}

pub(crate) const ENDS: [End; 8] = [
    End::Close,
    End::Drop,
    End::DrainAndClose,
    End::Panic,
    End::Killed,
    End::Aborts,
    End::Exits,
    End::Executes,
];

impl End {
    pub(crate) fn reason(self) -> Reason {
        match self {
            End::Close | End::Drop | End::DrainAndClose => Reason::Closed,
            End::Panic => Reason::Panicked,
            End::Killed | End::Aborts | End::Exits | End::Executes => Reason::Died,
        }
    }
}

/// Of the ring, and every seventh of the pool.
pub(crate) fn length(number: u64) -> usize {
    if number % 7 == 6 { 20_000 } else { 50 }
}

/// Sends so many messages when it is told to, and ends as it is told to.
pub(crate) fn publisher(role: &Role) {
    let (address, driven): (String, bool) = role.hear();
    let mut builder = unbound(1 << 14);
    if driven {
        builder = builder.driven();
    }
    let mut publisher = builder
        .bind_to(&address.parse().expect("an address"))
        .expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    let (messages, end): (u64, End) = role.hear();
    let mut buffer = vec![0; 20_000];
    for number in 0..messages {
        let message = &mut buffer[..length(number)];
        fill(number, message);
        publisher.send(message).expect("room");
    }
    role.tell(&());
    match end {
        End::Close => publisher.close(),
        End::Drop => drop(publisher),
        End::DrainAndClose => {
            assert!(publisher.drain(PATIENCE).expect("a wait"));
            publisher.close();
        }
        End::Panic => {
            std::panic::set_hook(Box::new(|_| {}));
            let panicked = catch_unwind(AssertUnwindSafe(move || {
                let _publisher = publisher;
                panic!("as it should");
            }));
            panicked.expect_err("it panicked");
            let _ = std::panic::take_hook();
        }
        End::Killed => role.hear::<()>(),
        End::Aborts => std::process::abort(),
        End::Exits => std::process::exit(0),
        End::Executes => panic!("{}", Command::new("true").exec()),
    }
    role.tell(&());
}

pub(crate) fn start(scene: &Scene, driven: bool) -> Child {
    let address = scene.address("lane").to_string();
    let child = scene.spawn("publisher", &(address, driven));
    child.hear::<()>();
    child
}

/// Has it send and end. What it had committed by then is all there is.
pub(crate) fn end(child: &Child, messages: u64, end: End) {
    child.tell(&(messages, end));
    child.hear::<()>();
    if end == End::Killed {
        child.kill();
    }
}

pub(crate) fn reap(child: Child, end: End) {
    match end {
        End::Close | End::Drop | End::DrainAndClose | End::Panic => {
            child.hear::<()>();
            child.finish();
        }
        End::Killed => child.kill_and_reap(),
        End::Aborts => assert!(!child.reap().success()),
        End::Exits | End::Executes => child.finish(),
    }
}

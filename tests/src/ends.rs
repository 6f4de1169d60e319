use std::{
    os::unix::process::CommandExt,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    process::{self, Command},
    thread::{self, JoinHandle},
};

use memlane::Reason;
use serde::{Deserialize, Serialize};

use crate::{Child, Role, thread_id, wait_asleep};

/// How a process parts with what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum End {
    Close,
    Drop,
    /// Once everything was received, which is for the role to wait for.
    DrainAndClose,
    Panic,
    Killed,
    Aborts,
    Exits,
    Executes,
}

impl End {
    /// All.
    pub const ALL: [End; 8] = [
        End::Close,
        End::Drop,
        End::DrainAndClose,
        End::Panic,
        End::Killed,
        End::Aborts,
        End::Exits,
        End::Executes,
    ];
    /// One for each reason that there is.
    pub const REASONS: [End; 3] = [End::Killed, End::Close, End::Panic];

    /// What the others are told.
    pub fn reason(self) -> Reason {
        match self {
            End::Close | End::Drop | End::DrainAndClose => Reason::Closed,
            End::Panic => Reason::Panicked,
            End::Killed | End::Aborts | End::Exits | End::Executes => Reason::Died,
        }
    }

    /// Comes to this end, with that in its hands. Returns if the process goes on.
    ///
    /// # Panics
    ///
    /// If the parent has other plans.
    pub fn come<T>(self, role: &Role, with: T, close: impl FnOnce(T)) {
        match self {
            End::Close | End::DrainAndClose => close(with),
            End::Drop => drop(with),
            End::Panic => {
                set_hook(Box::new(|_| {}));
                let panicked = catch_unwind(AssertUnwindSafe(move || {
                    let _with = with;
                    panic!("as it is told");
                }));
                panicked.expect_err("it panicked");
                let _ = take_hook();
            }
            End::Killed => role.hear::<()>(),
            End::Aborts => process::abort(),
            End::Exits => process::exit(0),
            End::Executes => panic!("{}", Command::new("true").exec()),
        }
    }

    /// Waits for a child that comes to this end. One that is to be killed is killed here, or has been.
    ///
    /// # Panics
    ///
    /// If it comes to another one.
    #[track_caller]
    pub fn reap(self, child: Child) {
        match self {
            End::Killed => child.kill_and_reap(),
            End::Aborts => assert!(!child.reap().success()),
            _ => child.finish(),
        }
    }

    /// Tells a child, which hears an `Option<End>`, to come to this end as soon as the thread that calls this sleeps, and
    /// waits for it.
    pub fn while_asleep(self, child: Child) -> JoinHandle<()> {
        let me = thread_id();
        thread::spawn(move || {
            wait_asleep(process::id(), me);
            child.tell(&Some(self));
            self.reap(child);
        })
    }
}

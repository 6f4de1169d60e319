//! Whom to talk to: the rule that a listener and a connecting side decide by.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustix::process::geteuid;

use crate::error::Error;
use crate::ids::Kind;
use crate::peer::{Credentials, Peer};
use crate::sys::identity;

/// Whom to talk to.
///
/// Decided once, when a link is accepted or connected, by what the kernel noted about the process that made the connection
/// (see [`Peer`] for what that means): a client that is refused is hung up on before anything is read from it.
///
/// Ids are those of this process's user namespace. All users and groups without a number in it show as the overflow id, 65534.
/// Where there can be such (in a container that maps some ids, not in one that maps all, or none of its own), that number
/// says nothing, and [`SameUser`](Access::SameUser), [`Users`](Access::Users) and [`Groups`](Access::Groups) admit nobody
/// for it: run the processes as users with numbers, or tell them apart otherwise ([`When`](Access::When)).
///
/// Each side has a rule: a service for clients of other users has to admit them ([`Listener::bind_with`](crate::Listener::bind_with)), and
/// they it ([`Link::connect_with`](crate::Link::connect_with)), as by default both sides want the same user.
///
/// # The mode of a socket file
/// 0600 under [`SameUser`](Access::SameUser), 0666 under any other rule, which the rule alone then enforces. To keep others
/// from even trying, put the file in a directory that only the right ones can enter.
///
/// ```
/// use memlane_transport::{Access, Address, Link, Listener};
///
/// let address = Address::abstract_name(format!("memlane-doc-access-{}", std::process::id()))?;
/// # let me = rustix::process::geteuid().as_raw();
/// let listener = Listener::bind_with(&address, Access::users([me, 1000, 1001]))?;
/// let client = Link::connect_with(&address, Access::when(|server| server.pidfd().is_some()))?;
/// assert_eq!(listener.accept()?.credentials()?.uid, me);
///
/// let nobody = Listener::from_fd(rustix::io::dup(&listener)?, Access::when(|_| false))?;
/// let client = Link::connect(&address)?;
/// println!("{}", nobody.accept().unwrap_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Access {
    /// Processes with this process's effective uid. A connecting side admits a server of root, too: root needs no name to
    /// get at this process.
    #[default]
    SameUser,
    /// Any process that can reach the address.
    Anyone,
    /// Processes whose effective uid is one of these, and no others: neither root nor the own user, unless listed.
    Users(Arc<[u32]>),
    /// Processes with one of these gids, as effective or supplementary group, whatever their user.
    Groups(Arc<[u32]>),
    /// Processes that a closure says yes to. It decides alone.
    When(Arc<dyn Fn(&Peer) -> bool + Send + Sync>),
}

impl Access {
    /// [`Access::Users`].
    pub fn users(uids: impl IntoIterator<Item = u32>) -> Access {
        Access::Users(uids.into_iter().collect())
    }

    /// [`Access::Groups`].
    pub fn groups(gids: impl IntoIterator<Item = u32>) -> Access {
        Access::Groups(gids.into_iter().collect())
    }

    /// [`Access::When`]. The closure runs on the thread that accepts or connects, for each connection, while others wait. A
    /// panic in it is a no.
    pub fn when(rule: impl Fn(&Peer) -> bool + Send + Sync + 'static) -> Access {
        Access::When(Arc::new(rule))
    }

    /// Decides about a client.
    pub(crate) fn admit_client(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let own = geteuid().as_raw();
        self.admit(socket, Admitted::Uid(own), |uid| uid == own)
    }

    /// Decides about a server.
    pub(crate) fn admit_server(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let own = geteuid().as_raw();
        self.admit(socket, Admitted::UidOrRoot(own), |uid| {
            uid == own || uid == 0
        })
    }

    /// `same_user` and what it admits differ between the two sides.
    fn admit(
        &self,
        socket: BorrowedFd<'_>,
        same: Admitted,
        same_user: impl Fn(u32) -> bool,
    ) -> Result<(), Error> {
        // Not `Error::io`: out of descriptor numbers, the client is hung up on and not left in the backlog.
        let asking = |source| Error::Io {
            doing: "asking who the peer is".into(),
            source,
        };
        let credentials = || Credentials::of(socket).map_err(asking);
        let is =
            |uid, admitted: &dyn Fn(u32) -> bool| admitted(uid) && !Kind::User.is_ambiguous(uid);
        let (found, groups, admitted, expected) = match self {
            Access::Anyone => return Ok(()),
            Access::SameUser => {
                let found = credentials()?;
                (found, Box::default(), is(found.uid, &same_user), same)
            }
            Access::Users(uids) => {
                let found = credentials()?;
                let expected = Admitted::Users(Arc::clone(uids));
                let listed = is(found.uid, &|uid| uids.contains(&uid));
                (found, Box::default(), listed, expected)
            }
            Access::Groups(gids) => {
                let found = credentials()?;
                let groups = identity::peer_groups(socket).map_err(asking)?;
                let member = groups
                    .iter()
                    .chain([&found.gid])
                    .any(|gid| gids.contains(gid) && !Kind::Group.is_ambiguous(*gid));
                (found, groups, member, Admitted::Groups(Arc::clone(gids)))
            }
            Access::When(rule) => {
                let peer = Peer::of(socket).map_err(asking)?;
                // A peer must not be able to end the thread that accepts by having what the closure did not expect.
                let answer = catch_unwind(AssertUnwindSafe(|| rule(&peer)));
                let expected = Admitted::Approved {
                    panicked: answer.is_err(),
                };
                let found = peer.credentials();
                (found, peer.into_groups(), answer.unwrap_or(false), expected)
            }
        };
        if admitted {
            return Ok(());
        }
        Err(Error::AccessDenied {
            found,
            groups,
            expected,
        })
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Access::SameUser => f.write_str("SameUser"),
            Access::Anyone => f.write_str("Anyone"),
            Access::Users(uids) => f.debug_tuple("Users").field(uids).finish(),
            Access::Groups(gids) => f.debug_tuple("Groups").field(gids).finish(),
            Access::When(_) => f.debug_tuple("When").finish_non_exhaustive(),
        }
    }
}

/// Whom an access rule admits, for [`Error::AccessDenied`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Admitted {
    /// This uid.
    Uid(u32),
    /// This uid, or root.
    UidOrRoot(u32),
    /// These uids.
    Users(Arc<[u32]>),
    /// Members of these groups.
    Groups(Arc<[u32]>),
    /// Those that a closure approves of.
    Approved {
        /// Whether it panicked instead of answering.
        panicked: bool,
    },
}

impl fmt::Display for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Admitted::Uid(uid) => write!(f, "uid {uid} is required"),
            Admitted::UidOrRoot(uid) => write!(
                f,
                "uid {uid} or root is required here (Link::connect_with admits others)"
            ),
            Admitted::Users(uids) if uids.is_empty() => f.write_str("the rule lists no uid"),
            Admitted::Users(uids) => write!(f, "a uid of {} is required", List(uids)),
            Admitted::Groups(gids) if gids.is_empty() => f.write_str("the rule lists no group"),
            Admitted::Groups(gids) => {
                write!(f, "membership in a group of {} is required", List(gids))
            }
            Admitted::Approved { panicked: false } => f.write_str("the rule's closure refused it"),
            Admitted::Approved { panicked: true } => {
                f.write_str("the rule's closure panicked, which counts as a no")
            }
        }
    }
}

/// Who came, in the words of [`Error::AccessDenied`].
pub(crate) fn describe(found: &Credentials, groups: &[u32]) -> String {
    let Credentials { pid, uid, gid } = found;
    let process = pid.map_or_else(
        || "a process out of sight".to_owned(),
        |pid| format!("process {pid}"),
    );
    let user = if Kind::User.is_ambiguous(*uid) {
        ", which all users have here that are not in this user namespace's uid_map"
    } else {
        ""
    };
    let groups = if groups.is_empty() {
        String::new()
    } else {
        format!(", groups {}", List(groups))
    };
    format!("{process} (uid {uid}{user}, gid {gid}{groups})")
}

/// `[1, 2, 3]`, and of long lists the beginning: a process can be in 65536 groups.
struct List<'a>(&'a [u32]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        f.write_str("[")?;
        for (index, id) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{id}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => f.write_str("]"),
            more => write!(f, ", and {more} more]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let many: Vec<u32> = (0..20).collect();
        assert_eq!(List(&[7, 8]).to_string(), "[7, 8]");
        assert!(List(&many).to_string().ends_with(", 14, 15, and 4 more]"));
    }

    #[test]
    fn what_errors_say() {
        let out_of_sight = Credentials {
            pid: None,
            uid: 5,
            gid: 6,
        };
        let error = Error::AccessDenied {
            found: out_of_sight,
            groups: Box::from([6, 7]),
            expected: Admitted::Groups(Arc::from([44])),
        };
        assert_eq!(
            error.to_string(),
            "the other end is a process out of sight (uid 5, gid 6, groups [6, 7]); membership in a group of [44] is \
             required"
        );
        let nobody = Admitted::Users(Arc::from([]));
        assert_eq!(nobody.to_string(), "the rule lists no uid");
        assert_eq!(format!("{:?}", Access::when(|_| true)), "When(..)");
        assert_eq!(format!("{:?}", Access::users([3])), "Users([3])");
    }
}

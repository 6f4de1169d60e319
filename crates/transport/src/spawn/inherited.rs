//! The child's side: links that its parent has given it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use super::{DEFAULT, SpawnError, VARIABLE, is_name};
use crate::link::Link;
use crate::socket::SocketKind;
use crate::sys;

/// All links are taken over by the first call, which sets close-on-exec on them, and given out one by one.
static INHERITED: Mutex<Option<Vec<Inherited>>> = Mutex::new(None);

#[derive(Debug)]
struct Inherited {
    name: String,
    fd: Option<OwnedFd>,
}

/// What the variable says of a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) name: String,
    pub(super) number: RawFd,
    /// Of the socket (SO_COOKIE): the kernel gives none twice.
    pub(super) cookie: u64,
}

/// The link to the process that started this one with a [`Command`](super::Command): the other end of its
/// [`Child::link`](super::Child::link). Once: it is the caller's from now on.
///
/// The first call, of this or [`parent_link`], takes over all links from the environment, sets close-on-exec on them, and
/// removes the variable that told of them (`MEMLANE_LINKS`), unless the process has several threads already, of which another
/// could be looking. So call it early: what is executed before inherits the links. A variable that stays does no harm, since
/// it says which sockets are meant, and no other is taken for one of them.
///
/// The parent may be gone already; then the link says so. [`Link::peer`] is the parent, since it made the link.
///
/// # Errors
/// [`SpawnError::NotSpawned`] when this process was started in another way; [`SpawnError::Taken`] on a second call;
/// [`SpawnError::Malformed`] and [`SpawnError::NotInherited`] when what was inherited is not what was announced.
///
/// ```no_run
/// let parent = memlane_transport::parent()?;
/// let task: String = parent.recv()?;
/// parent.send(&task.len())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn parent() -> Result<Link, SpawnError> {
    parent_link(DEFAULT)
}

/// The link of that name that the parent has given ([`Command::link`](super::Command::link)); else as [`parent`].
///
/// # Errors
/// [`SpawnError::NoSuchLink`] when there is none of that name; else as [`parent`].
pub fn parent_link(name: &str) -> Result<Link, SpawnError> {
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    let links = match &mut *inherited {
        Some(links) => links,
        none => none.insert(take_over()?),
    };
    match links.iter_mut().find(|link| link.name == name) {
        Some(link) => match link.fd.take() {
            // Its kind is known: the cookie says which socket it is, and the parent makes no other kind.
            Some(fd) => Ok(Link::new(fd, SocketKind::Packets)),
            None => Err(SpawnError::Taken {
                name: name.to_owned(),
            }),
        },
        None => Err(SpawnError::NoSuchLink {
            name: name.to_owned(),
            there: links.iter().map(|link| link.name.clone()).collect(),
        }),
    }
}

fn take_over() -> Result<Vec<Inherited>, SpawnError> {
    let Some(found) = env::var_os(VARIABLE) else {
        return Err(SpawnError::NotSpawned);
    };
    let announced = read(&found).ok_or(SpawnError::Malformed { found })?;
    let links = announced
        .into_iter()
        .map(|link| match sys::spawn::inherit(link.number, link.cookie) {
            Some(fd) => Ok(Inherited {
                name: link.name,
                fd: Some(fd),
            }),
            None => Err(SpawnError::NotInherited {
                name: link.name,
                number: link.number,
            }),
        })
        .collect::<Result<Vec<_>, _>>()?;
    sys::spawn::remove_variable(VARIABLE);
    Ok(links)
}

/// What the parent writes.
pub(super) fn write(links: &[Announced]) -> OsString {
    let links: Vec<String> = links
        .iter()
        .map(|link| format!("{}:{}:{}", link.name, link.number, link.cookie))
        .collect();
    links.join(",").into()
}

fn read(value: &OsStr) -> Option<Vec<Announced>> {
    value
        .to_str()?
        .split(',')
        .map(|link| {
            let mut parts = link.split(':');
            let announced = Announced {
                name: parts.next().filter(|name| is_name(name))?.to_owned(),
                number: parts.next()?.parse().ok()?,
                cookie: parts.next()?.parse().ok()?,
            };
            parts.next().is_none().then_some(announced)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let links = ["parent", "frames"].map(|name| Announced {
            name: name.to_owned(),
            number: 7,
            cookie: u64::MAX,
        });
        let value = write(&links);
        assert_eq!(
            value,
            "parent:7:18446744073709551615,frames:7:18446744073709551615"
        );
        assert_eq!(read(&value).unwrap(), links);
    }

    #[test]
    fn nonsense_is_refused() {
        for value in [
            "",
            "parent",
            "parent:3",
            "parent:3:",
            "parent:3:x",
            "parent:-:1",
            "parent:3:1:1",
            "parent:3:1,",
            ",parent:3:1",
            ":3:1",
            "pa rent:3:1",
            "parent:99999999999:1",
            "parent:3:18446744073709551616",
        ] {
            assert_eq!(read(value.as_ref()), None, "{value:?}");
        }
    }
}

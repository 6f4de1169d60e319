//! A socket at an address, and the links that come in.

mod own_file;
mod value;

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags, fchmod, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, accept_with, bind, getsockname, listen,
};
use rustix::net::{socket_with, sockopt};

use crate::access::Access;
use crate::address::Address;
use crate::dispose::dispose;
use crate::error::Error;
use crate::fd::Fd;
use crate::limits::Limits;
use crate::link::Link;
use crate::obstacle::Wish;
use crate::socket::{self, SocketKind};
use crate::socket_file::{Found, LOCK_TIMEOUT, SocketFile, not_a_socket};
use crate::sys;
use crate::wait::{self, Patience};
use own_file::OwnFile;

/// What is taken from clients: no more descriptors than come in one packet, beside a body in memory and a receipt. A message
/// of several packets can be begun and never ended, and holds what it brought for as long.
const CLIENTS: Limits = Limits::new().received_descriptors(251);

/// Connections that may wait to be accepted; the system's `net.core.somaxconn` lowers it.
const BACKLOG: i32 = 128;

/// Links come in here.
///
/// A path address is a socket file. It has mode 0600 from its first moment, whatever the umask, and is opened to others only
/// for a [rule](Access) that may admit them; one left by a dead process is replaced; and it goes away with its listener, if
/// it is still the listener's and the dropping process is the one that bound it (a forked child leaves it alone). The file
/// of a listener that was sent to another process goes with the last of its holders. After a SIGKILL it stays, until the
/// next bind or connect at the address notices. Directories are locked with flock(2) for these steps, so put sockets in one
/// that others cannot open:
/// `$XDG_RUNTIME_DIR`, not `/tmp`.
///
/// ```
/// use memlane_transport::{Address, Link, Listener};
///
/// let address = Address::abstract_name(format!("memlane-doc-{}", std::process::id()))?;
/// let listener = Listener::bind(&address)?;
///
/// let client = Link::connect(&address)?;
/// let server = listener.accept()?;
/// client.send("hello")?;
/// assert_eq!(server.recv::<String>()?, "hello");
/// assert_eq!(server.credentials()?.pid, Some(std::process::id()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Listener {
    fd: Fd,
    address: Address,
    kind: SocketKind,
    access: Access,
    limits: Limits,
    /// Whether a listener of this library bound the socket, here or where it came from.
    bound: bool,
    /// Whether clients see who listens now: false for one that came in a message, until it accepts.
    announced: AtomicBool,
    /// Below `fd`: it has to go after it.
    file: Option<OwnFile>,
}

impl Listener {
    /// Listens at `address` for [the same user](Access::SameUser).
    ///
    /// # Errors
    /// [`Error::AddressInUse`] when a running process has it, [`Error::NotASocket`] when something else is there,
    /// [`Error::Locked`] when another process keeps the directory locked, [`Error::Address`], [`Error::Io`].
    pub fn bind(address: &Address) -> Result<Listener, Error> {
        Listener::bind_with(address, Access::SameUser)
    }

    /// Listens at `address` for those whom `access` admits.
    ///
    /// # Errors
    /// As [`bind`](Listener::bind).
    pub fn bind_with(address: &Address, access: Access) -> Result<Listener, Error> {
        Listener::bind_kind(address, access, SocketKind::Packets)
    }

    /// [`bind_with`](Listener::bind_with) with a choice of the socket's type. Who connects need not know it; where an abstract
    /// name is taken with both types, which the kernel allows, [`Link::connect`] finds the packets.
    ///
    /// # Errors
    /// As [`bind`](Listener::bind).
    pub fn bind_kind(
        address: &Address,
        access: Access,
        kind: SocketKind,
    ) -> Result<Listener, Error> {
        let target = address.to_socket()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, kind.socket_type(), flags, None)
            .map_err(|error| Error::io("making a socket", error))?;
        let file = match address {
            Address::Path(path) => Some(bind_file(&fd, path, &target, &access)?),
            Address::Abstract(_) => {
                bind(&fd, &target).map_err(|error| refused(address, error))?;
                start(&fd)?;
                None
            }
        };
        Ok(Listener {
            fd: Fd::socket(fd),
            address: address.clone(),
            kind,
            access,
            limits: CLIENTS,
            bound: true,
            announced: AtomicBool::new(true),
            file,
        })
    }

    /// The listener with other limits for the links it accepts. With no descriptors at all, the kernel refuses them to
    /// whoever connects from now on (see [`Limits::received_descriptors`]).
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Listener {
        // What the kernel does not know, the receiver checks.
        let _ = sys::identity::set_pass_rights(self.fd.as_fd(), limits.max_received() > 0);
        self.limits = limits;
        self
    }

    /// Takes an inherited listening socket, for instance from systemd's socket activation, and sets close-on-exec and
    /// O_NONBLOCK on it. The file of a path address stays when the listener goes: it belongs to whoever bound it.
    ///
    /// # Errors
    /// [`Error::WrongSocket`] when it is anything but a listening Unix socket of a [`SocketKind`], with a name; the descriptor is
    /// then given to [`dispose`].
    pub fn from_fd(fd: OwnedFd, access: Access) -> Result<Listener, Error> {
        let (address, kind) = match listening(&fd) {
            Ok(found) => found,
            Err(found) => {
                dispose(fd);
                return Err(Error::WrongSocket {
                    expected: "a listening SOCK_SEQPACKET or SOCK_STREAM Unix socket",
                    found,
                });
            }
        };
        fcntl_setfd(&fd, FdFlags::CLOEXEC)
            .map_err(|error| Error::io("setting close-on-exec", error))?;
        fcntl_getfl(&fd)
            .and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
            .map_err(|error| Error::io("preparing an inherited socket", error))?;
        Ok(Listener {
            fd: Fd::socket(fd),
            address,
            kind,
            access,
            limits: CLIENTS,
            bound: false,
            announced: AtomicBool::new(true),
            file: None,
        })
    }

    /// The listener with another rule whom to admit. The mode of a socket file stays as it is.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Listener {
        self.access = access;
        self
    }

    /// Lets go of the listener without removing its file: another process goes on with it.
    ///
    /// For sockets that another process has inherited. One that went in a message leaves its file by itself while anybody
    /// else holds it.
    pub fn release(mut self) {
        if let Some(file) = self.file.take() {
            file.leave();
        }
    }

    /// The same listener once more, as one that is about to be sent is: it can be kept here and go elsewhere, and whoever of the
    /// two accepts first gets the next client. The file of a path address goes with the last of them.
    ///
    /// # Errors
    /// [`Error::DescriptorLimit`].
    pub fn try_clone(&self) -> Result<Listener, Error> {
        let fd = self.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| Error::io("duplicating a listener", error))?;
        Ok(Listener {
            fd: Fd::socket(fd),
            address: self.address.clone(),
            kind: self.kind,
            access: self.access.clone(),
            limits: self.limits,
            bound: self.bound,
            announced: AtomicBool::new(!self.bound),
            file: self.file.as_ref().map(OwnFile::share_with),
        })
    }

    /// From its next accept on, new clients see this process as their [`Peer`](crate::Peer): for one that was sent, when the
    /// other process has accepted, and does not any more.
    pub fn announce_again(&self) {
        self.announced.store(!self.bound, Ordering::Relaxed);
    }

    /// Waits for the next client and gives its link.
    ///
    /// # Errors
    /// None of these ends the listener:
    /// - [`Error::AccessDenied`]: a client came that the access rule does not admit; it has been hung up on. Accept again.
    ///   A closure that panics has not admitted it.
    /// - [`Error::DescriptorLimit`]: this process or the system is out of descriptor numbers. The client waits in the
    ///   backlog and the listener stays readable, so free some or wait before accepting again, or the loop spins. (The
    ///   listener keeps no spare descriptor for this: hanging up on clients that could be served a moment later is the
    ///   caller's decision.)
    /// - [`Error::Io`]; while "asking who the peer is" (a closure is shown a pidfd, which takes a second descriptor number)
    ///   the client has been hung up on.
    pub fn accept(&self) -> Result<Link, Error> {
        self.accept_within(Patience::Forever, no_word)
    }

    /// [`accept`](Listener::accept) without waiting.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when nobody waits; else as [`accept`](Listener::accept).
    pub fn try_accept(&self) -> Result<Link, Error> {
        self.accept_within(Patience::None, no_word)
    }

    /// [`try_accept`](Listener::try_accept), which shows the link of a client that is not admitted to `refuse`, with the
    /// [`Error::AccessDenied`], or with the error that kept this process from asking who it is, before it is hung up on: to
    /// send it a last word. Nothing that it says should be read.
    ///
    /// # Errors
    /// As [`try_accept`](Listener::try_accept).
    pub fn try_accept_or(&self, refuse: impl FnOnce(&Link, &Error)) -> Result<Link, Error> {
        self.accept_within(Patience::None, refuse)
    }

    /// [`accept`](Listener::accept), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when nobody came in time; else as [`accept`](Listener::accept).
    pub fn accept_timeout(&self, timeout: Duration) -> Result<Link, Error> {
        self.accept_within(Patience::timeout(timeout), no_word)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// A client sees, as its [`Peer`](crate::Peer), who called listen(2) last (unix_listen notes it). Those in the backlog
    /// stay there. Where listen is forbidden, clients go on seeing the process before this one.
    fn announce(&self) {
        if !self.announced.load(Ordering::Relaxed) && !self.announced.swap(true, Ordering::Relaxed)
        {
            let _ = listen(self.as_fd(), BACKLOG);
        }
    }

    fn accept_within(
        &self,
        patience: Patience,
        refuse: impl FnOnce(&Link, &Error),
    ) -> Result<Link, Error> {
        self.announce();
        loop {
            match accept_with(self.as_fd(), SocketFlags::CLOEXEC) {
                Ok(fd) => {
                    let link = Link::new(fd, self.kind).with_limits(self.limits);
                    if let Err(error) = self.access.admit_client(link.as_fd()) {
                        refuse(&link, &error);
                        return Err(error);
                    }
                    return Ok(link);
                }
                Err(Errno::AGAIN) => {
                    wait::ready(self.as_fd(), PollFlags::IN, patience)?;
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // Out of numbers nothing is lost: one is reserved before the connection leaves the backlog (do_accept, net/socket.c).
                Err(error) => return Err(Error::io("accepting a connection", error)),
            }
        }
    }
}

fn no_word(_: &Link, _: &Error) {}

fn bind_file(
    fd: &OwnedFd,
    path: &PathBuf,
    target: &SocketAddrUnix,
    access: &Access,
) -> Result<OwnFile, Error> {
    let address = || Address::Path(path.clone());
    let absolute = std::path::absolute(path)
        .map_err(|error| Error::io("finding the current directory", error))?;
    // The file gets the socket's own mode & ~umask (unix_bind_bsd), so it is closed to others from its first moment.
    fchmod(fd, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Error::io("setting a socket's mode", error))?;
    let file = SocketFile::lock(path, LOCK_TIMEOUT)?;
    match bind(fd, target) {
        Err(Errno::ADDRINUSE) => {
            match file.clear()? {
                Found::Live => {
                    return Err(Error::AddressInUse {
                        address: address(),
                        holder: None,
                    });
                }
                Found::Other(found) => return Err(not_a_socket(path, found)),
                Found::Stale(_) | Found::Nothing => {}
            }
            bind(fd, target)
        }
        other => other,
    }
    .map_err(|error| refused(&address(), error))?;
    // Gone again only if someone outside the lock removed it.
    let Some(identity) = file.identity()? else {
        return Err(refused(&address(), Errno::NOENT));
    };
    let own = OwnFile::bound(absolute, identity);
    let ready = match access {
        Access::SameUser => Ok(()),
        _ => file.open_to(Mode::from_raw_mode(0o666), identity),
    };
    if let Err(error) = ready.and_then(|()| start(fd)) {
        let _ = file.remove(identity);
        return Err(error);
    }
    Ok(own)
}

fn start(fd: &OwnedFd) -> Result<(), Error> {
    listen(fd, BACKLOG).map_err(|error| Error::io("listening", error))
}

fn refused(address: &Address, error: Errno) -> Error {
    match error {
        Errno::ADDRINUSE => Error::AddressInUse {
            address: address.clone(),
            holder: None,
        },
        error => {
            let doing = format!("binding a socket to {address}");
            match address.as_path() {
                Some(path) => Error::at_path(doing, path, Wish::Change, error),
                None => Error::io(doing, error),
            }
        }
    }
}

fn listening(fd: &OwnedFd) -> Result<(Address, SocketKind), String> {
    let kind = socket::kind(fd)?;
    if !sockopt::socket_acceptconn(fd).unwrap_or(false) {
        return Err("one that does not listen".to_owned());
    }
    let name = getsockname(fd).map_err(|error| format!("one without a name ({error})"))?;
    let name = SocketAddrUnix::try_from(name)
        .map_err(|error| format!("one with a strange name ({error})"))?;
    let address = Address::from_socket(&name)
        .map_err(|error| format!("one with a strange name ({error})"))?;
    Ok((address, kind))
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The socket is still open here, so to every other process the file is live until it is gone.
        if let Some(file) = self.file.take_if(|file| file.is_sole()) {
            file.remove();
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("fd", &self.as_fd().as_raw_fd())
            .field("address", &self.address)
            .field("access", &self.access)
            .finish()
    }
}

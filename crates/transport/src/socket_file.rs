//! The file behind a path address: who it belongs to, whether anyone is behind it, removing it.
//!
//! bind(2) leaves a file that outlives its process, and then fails on it. Two processes that both find such a file must not
//! both remove it, or the second removes the first one's new socket. So every look-and-remove happens under an exclusive
//! flock(2) on the *directory*: no lock file to leave behind, and the kernel releases it with its holder.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, chmod, chmodat, flock, fstat, open,
    openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::geteuid;

use crate::address::Address;
use crate::error::Error;
use crate::obstacle::Wish;
use crate::wait::Patience;

/// How long to wait for another process that holds the directory's lock; it needs it for some microseconds.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// A file, for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

/// What is at the path.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// A socket that some process has bound, listening or about to.
    Live,
    /// A socket that no process has any more.
    Stale(Identity),
    Other(FileType),
}

/// The directory of a path address, locked, and the name in it.
#[derive(Debug)]
pub(crate) struct SocketFile<'a> {
    directory: OwnedFd,
    path: &'a Path,
    name: OsString,
}

impl<'a> SocketFile<'a> {
    pub(crate) fn lock(path: &'a Path, timeout: Duration) -> Result<SocketFile<'a>, Error> {
        let file = SocketFile::unlocked(path)?;
        let parent = parent(path);
        let patience = Patience::timeout(timeout);
        let mut pause = Duration::from_micros(50);
        loop {
            match flock(&file.directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => match patience.left(pause) {
                    Ok(pause) => thread::sleep(pause),
                    Err(_) => {
                        return Err(Error::Locked {
                            directory: parent.to_owned(),
                        });
                    }
                },
                Err(error) => {
                    return Err(Error::io(
                        format!("locking directory {}", parent.display()),
                        error,
                    ));
                }
            }
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// To look at, not to change.
    fn unlocked(path: &'a Path) -> Result<SocketFile<'a>, Error> {
        let parent = parent(path);
        let directory = open(
            parent,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| {
            let doing = format!("opening directory {}", parent.display());
            Error::at_path(doing, path, Wish::Change, error)
        })?;
        Ok(SocketFile {
            directory,
            path,
            name: path.file_name().unwrap_or_default().to_owned(),
        })
    }

    fn stat(&self) -> Result<Option<Stat>, Error> {
        match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::io("looking at a socket's file", error)),
        }
    }

    pub(crate) fn identity(&self) -> Result<Option<Identity>, Error> {
        Ok(self.stat()?.map(|stat| identity(&stat)))
    }

    /// Finds out what is there without disturbing a server.
    ///
    /// A connect of another socket type asks the kernel exactly the question: ECONNREFUSED when no socket in the system
    /// belongs to the file, EPROTOTYPE when one does (unix_find_bsd, net/unix/af_unix.c). The server's backlog sees none of
    /// it, and a socket between bind and listen counts as live.
    pub(crate) fn look(&self) -> Result<Found, Error> {
        let Some(stat) = self.stat()? else {
            return Ok(Found::Nothing);
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Socket {
            return Ok(Found::Other(kind));
        }
        let address = Address::Path(PathBuf::from(self.path)).to_socket()?;
        let probe = socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| Error::io("making a socket", error))?;
        match rustix::net::connect(&probe, &address) {
            Ok(()) | Err(Errno::PROTOTYPE | Errno::PERM) => Ok(Found::Live),
            Err(Errno::CONNREFUSED) => Ok(Found::Stale(identity(&stat))),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            Err(error) => Err(Error::at_path(
                "asking whether a socket is in use",
                self.path,
                Wish::Ask,
                error,
            )),
        }
    }

    /// Removes what a dead process left, and says what was there.
    pub(crate) fn clear(&self) -> Result<Found, Error> {
        let found = self.look()?;
        if let Found::Stale(seen) = found {
            self.remove(seen)?;
        }
        Ok(found)
    }

    /// Removes the file if it is still the one seen.
    pub(crate) fn remove(&self, seen: Identity) -> Result<bool, Error> {
        if self.identity()? != Some(seen) {
            return Ok(false);
        }
        match unlinkat(&self.directory, &self.name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::at_path(
                "removing a socket's file",
                self.path,
                Wish::Change,
                error,
            )),
        }
    }

    /// Changes the mode of the file, if it is still the one seen. chmod(2) by name would follow a symbolic link that whoever
    /// owns the directory has put in its place.
    pub(crate) fn open_to(&self, mode: Mode, seen: Identity) -> Result<(), Error> {
        let failed = |error| Error::io("opening a socket's file to other users", error);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.directory, &self.name, flags, Mode::empty()).map_err(failed)?;
        if identity(&fstat(&file).map_err(failed)?) != seen {
            return Err(failed(Errno::STALE));
        }
        match chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode) {
            // No /proc.
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let owner = fstat(&self.directory).map_err(failed)?.st_uid;
                if owner != 0 && owner != geteuid().as_raw() {
                    return Err(failed(Errno::NOENT));
                }
                chmodat(&self.directory, &self.name, mode, AtFlags::empty()).map_err(failed)
            }
            other => other.map_err(failed),
        }
    }
}

impl Drop for SocketFile<'_> {
    fn drop(&mut self) {
        // Closing is not enough: a child forked meanwhile holds the same description, and with it the lock.
        let _ = flock(&self.directory, FlockOperation::Unlock);
    }
}

// The types differ between architectures.
#[allow(clippy::unnecessary_cast)]
fn identity(stat: &Stat) -> Identity {
    Identity {
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// For an error's text.
pub(crate) fn not_a_socket(path: &Path, found: FileType) -> Error {
    let found = match found {
        FileType::Symlink => "symbolic link",
        FileType::Directory => "directory",
        FileType::RegularFile => "file",
        FileType::Fifo => "fifo",
        _ => "device",
    };
    Error::NotASocket {
        path: path.to_owned(),
        found,
    }
}

/// Whether some process has the socket at `address`, listening or about to. It is not disturbed, and nothing is changed.
/// Always false for abstract names.
///
/// # Errors
/// The directory cannot be opened.
pub fn is_in_use(address: &Address) -> io::Result<bool> {
    let Some(path) = address.as_path() else {
        return Ok(false);
    };
    address.to_socket()?;
    let found = SocketFile::unlocked(path)?.look()?;
    Ok(matches!(found, Found::Live))
}

/// Removes the socket file that a dead process left at `address`, and says whether there was one.
///
/// A file that is no socket, a socket that some process still has (listening or not), and abstract names are left alone.
/// [`Link::connect`](crate::Link::connect) and [`Listener::bind`](crate::Listener::bind) do this by themselves. Never waits.
///
/// # Errors
/// The directory cannot be opened or written, or another process has it locked just now ([`io::ErrorKind::WouldBlock`]).
pub fn remove_stale(address: &Address) -> io::Result<bool> {
    let Some(path) = address.as_path() else {
        return Ok(false);
    };
    address.to_socket()?;
    let found = SocketFile::lock(path, Duration::ZERO)?.clear()?;
    Ok(matches!(found, Found::Stale(_)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::{env, fs};

    use super::*;

    /// Whoever owns the directory puts something else in a socket's place before its mode is changed.
    #[test]
    fn only_the_socket_itself_is_opened_to_others() {
        let directory = env::temp_dir().join(format!("memlane-opened-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let [path, precious] = ["socket", "precious"].map(|name| directory.join(name));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::write(&precious, "").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();

        let file = SocketFile::lock(&path, LOCK_TIMEOUT).unwrap();
        let seen = file.identity().unwrap().unwrap();
        file.open_to(Mode::from_raw_mode(0o666), seen).unwrap();
        assert_eq!(mode(&path), 0o666);

        fs::remove_file(&path).unwrap();
        symlink(&precious, &path).unwrap();
        file.open_to(Mode::from_raw_mode(0o666), seen).unwrap_err();
        assert_eq!(mode(&precious), 0o600);
        drop(file);
        fs::remove_dir_all(&directory).unwrap();
    }
}

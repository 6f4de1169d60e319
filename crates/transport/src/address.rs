//! Where a service can be found: a path, or an abstract name.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::net::SocketAddrUnix;

/// Bytes a path or an abstract name may have: `sun_path` holds 108, one of which ends a path or starts a name (unix(7)).
pub const MAX_NAME: usize = 107;

/// The address of a service.
///
/// Written as text, an address that starts with `@` is an abstract name and everything else a path, as in ss(8) and
/// systemd. A path that starts with `@` is written `./@…`.
///
/// ```
/// use memlane_transport::Address;
///
/// let camera: Address = "/run/user/1000/memlane/camera".parse()?;
/// let test: Address = "@memlane-test".parse()?;
/// assert_eq!(camera, Address::path("/run/user/1000/memlane/camera")?);
/// assert_eq!(test, Address::abstract_name("memlane-test")?);
/// assert_eq!(test.to_string(), "@memlane-test");
/// # Ok::<(), memlane_transport::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A socket file. Who may connect follows from the modes of the directories and of the socket.
    Path(PathBuf),
    /// A name in the network namespace's abstract table: no file, nothing to clean up, and **no permissions**: any process in
    /// the namespace may connect to it, or take it first. The access rules at both ends are what protects it.
    Abstract(Vec<u8>),
}

/// Why something cannot be an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Nothing there.
    #[error("an address must not be empty")]
    Empty,
    /// Longer than a Unix socket's address can be.
    #[error(
        "{address:?} has {length} bytes, a Unix socket's name holds {MAX_NAME}: use a directory or a name that is shorter by \
         {}, or a relative path",
        length - MAX_NAME
    )]
    TooLong {
        /// The path or name, lossily.
        address: String,
        /// Its bytes.
        length: usize,
    },
    /// A NUL byte inside.
    #[error("{address:?} has a NUL byte at position {position}")]
    Nul {
        /// The path or name, lossily.
        address: String,
        /// Where.
        position: usize,
    },
    /// A path whose last part is no file name (`/`, `..`).
    #[error("{address:?} does not end in a file name")]
    NoFileName {
        /// The path, lossily.
        address: String,
    },
}

impl Address {
    /// The address of a socket file.
    ///
    /// # Errors
    /// An empty path, one over [`MAX_NAME`] bytes, one with a NUL byte or without a file name. Use a shorter directory, or
    /// a relative path, when `$XDG_RUNTIME_DIR` is too deep.
    pub fn path(path: impl Into<PathBuf>) -> Result<Address, AddressError> {
        let address = Address::Path(path.into());
        address.check()?;
        Ok(address)
    }

    /// The address of an abstract name, given without its leading `@`.
    ///
    /// # Errors
    /// An empty name, one over [`MAX_NAME`] bytes, or one with a NUL byte (the kernel would take it; nobody could write it).
    pub fn abstract_name(name: impl Into<Vec<u8>>) -> Result<Address, AddressError> {
        let address = Address::Abstract(name.into());
        address.check()?;
        Ok(address)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Address::Path(path) => path.as_os_str().as_bytes(),
            Address::Abstract(name) => name,
        }
    }

    /// The variants are public, so an address is checked where it is used, too.
    fn check(&self) -> Result<(), AddressError> {
        let bytes = self.bytes();
        let address = || String::from_utf8_lossy(bytes).into_owned();
        if bytes.is_empty() {
            return Err(AddressError::Empty);
        }
        if bytes.len() > MAX_NAME {
            return Err(AddressError::TooLong {
                address: address(),
                length: bytes.len(),
            });
        }
        if let Some(position) = bytes.iter().position(|byte| *byte == 0) {
            return Err(AddressError::Nul {
                address: address(),
                position,
            });
        }
        if matches!(self, Address::Path(path) if path.file_name().is_none() || bytes.ends_with(b"/"))
        {
            return Err(AddressError::NoFileName { address: address() });
        }
        Ok(())
    }

    pub(crate) fn to_socket(&self) -> Result<SocketAddrUnix, crate::Error> {
        self.check()?;
        match self {
            Address::Path(path) => SocketAddrUnix::new(path.as_path()),
            Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name),
        }
        .map_err(|error| crate::Error::io("building a socket address", error))
    }

    pub(crate) fn from_socket(address: &SocketAddrUnix) -> Result<Address, AddressError> {
        match (address.path_bytes(), address.abstract_name()) {
            (Some(path), _) => Address::path(OsString::from_vec(path.to_vec())),
            (None, Some(name)) => Address::abstract_name(name),
            (None, None) => Err(AddressError::Empty),
        }
    }

    pub(crate) fn as_path(&self) -> Option<&Path> {
        match self {
            Address::Path(path) => Some(path),
            Address::Abstract(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(path) if self.bytes().first() == Some(&b'@') => {
                write!(f, "./{}", path.display())
            }
            Address::Path(path) => write!(f, "{}", path.display()),
            Address::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        match text.strip_prefix('@') {
            Some(name) => Address::abstract_name(name),
            None => Address::path(text),
        }
    }
}

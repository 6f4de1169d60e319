//! Service names, and the directories where their sockets live.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use memlane_transport::Address;

use crate::Error;

const EXPECTED: &str = "1 to 64 of the characters a-z A-Z 0-9 . _ -, the first of them no dot";

/// Names the directory that is everybody's meeting place, in place of one for each user.
const VARIABLE: &str = "MEMLANE_DIR";

/// The address of a service: [`Directory::current`]'s.
///
/// # Errors
///
/// [`Error::Name`] and [`Error::RuntimeDirectory`].
pub fn address_of(service: &str) -> Result<Address, Error> {
    check(service)?;
    Directory::current()?.address_of(service)
}

/// The services that are there now, by name: [`Directory::current`]'s.
///
/// # Errors
///
/// As [`Directory::services`].
///
/// ```no_run
/// for service in memlane::services()? {
///     println!("{} at {}, of user {}", service.name, service.address, service.user);
/// }
/// # Ok::<(), memlane::Error>(())
/// ```
pub fn services() -> Result<Vec<Service>, Error> {
    Directory::current()?.services()
}

/// Where services have their sockets: who uses the same directory meets by name.
///
/// A user's processes share one without more ado. Processes that do not (of several users, or in containers that have nothing
/// in common but one directory) are told of it by the variable `MEMLANE_DIR`, or each by [`Directory::at`]:
///
/// ```
/// # let path = std::env::temp_dir().join(format!("memlane-doc-{}", std::process::id()));
/// # std::fs::create_dir(&path)?;
/// use memlane::{Directory, Publisher};
///
/// let meeting_place = Directory::at(&path)?; // such as /run/memlane
/// let publisher = Publisher::builder().bind_to(&meeting_place.address_of("camera")?)?;
/// assert_eq!(meeting_place.services()?[0].name, "camera");
/// # drop(publisher);
/// # std::fs::remove_dir(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Which users may then talk to each other, both ends' [`Access`](crate::Access) says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    path: PathBuf,
}

/// A service that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: Address,
    /// The user that made its socket.
    pub user: u32,
}

impl Directory {
    /// The one that [`Publisher::bind`](crate::Publisher::bind) and [`Subscriber::connect`](crate::Subscriber::connect) use:
    /// `$MEMLANE_DIR`, if that is set, as [`at`](Directory::at) takes it; else one of this user's alone, `memlane` in the
    /// runtime directory.
    ///
    /// The runtime directory is `$XDG_RUNTIME_DIR`, or `/run/user/UID` if that is not set. If there is none, the directory is
    /// `/tmp/memlane-UID`. It is created if need be, and must belong to this user and be closed to others (mode 0700).
    ///
    /// # Errors
    ///
    /// [`Error::RuntimeDirectory`].
    pub fn current() -> Result<Directory, Error> {
        match set(VARIABLE) {
            Some(path) if path.is_absolute() => Directory::at(path),
            Some(path) => Err(unfit(
                &path,
                format!("expected an absolute path in {VARIABLE}"),
            )),
            None => Directory::of_this_user(),
        }
    }

    /// A directory of one's own choice, which others may use, too. It must be there.
    ///
    /// Others who may write to it must not be able to replace sockets of this user's: it is for several users if it is sticky
    /// (`mkdir -m 1777`), as /tmp is. Who owns it does not matter: whose service a socket is, the kernel says when it is
    /// connected to, and [`Access`](crate::Access) at both ends decides about that. Those who can read it can keep others
    /// from binding a name in it, for as long as they like; those who own it, from connecting, too.
    ///
    /// # Errors
    ///
    /// [`Error::RuntimeDirectory`].
    pub fn at(path: impl Into<PathBuf>) -> Result<Directory, Error> {
        let path = path.into();
        let found = fs::metadata(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => unfit(
                &path,
                "it is not there: make it (mkdir -m 700 for one user, mkdir -m 1777 for several)"
                    .to_owned(),
            ),
            _ => unfit(&path, error.to_string()),
        })?;
        if !found.is_dir() {
            return Err(unfit(&path, NO_DIRECTORY.to_owned()));
        }
        if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
            let mode = found.mode() & 0o7777;
            return Err(unfit(
                &path,
                format!(
                    "expected a directory that others cannot write to, or that is sticky, found mode {mode:o}: chmod +t, or \
                     chmod go-w"
                ),
            ));
        }
        Ok(Directory { path })
    }

    fn of_this_user() -> Result<Directory, Error> {
        let uid = rustix::process::geteuid().as_raw();
        let path = match set("XDG_RUNTIME_DIR") {
            Some(path) => path.join("memlane"),
            None => {
                let user = PathBuf::from(format!("/run/user/{uid}"));
                if user.is_dir() {
                    user.join("memlane")
                } else {
                    PathBuf::from(format!("/tmp/memlane-{uid}"))
                }
            }
        };
        ours(&path, uid)?;
        Ok(Directory { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The address of a service in it.
    ///
    /// # Errors
    ///
    /// [`Error::Name`]; [`Error::Link`] if the path is longer than a socket's name can be.
    pub fn address_of(&self, service: &str) -> Result<Address, Error> {
        check(service)?;
        let path = self.path.join(service);
        Ok(Address::path(path).map_err(memlane_transport::Error::from)?)
    }

    /// The services in it that are there now, by name, as far as this user may connect to them. Sockets that nobody has any
    /// more are left out, and left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the directory cannot be read.
    pub fn services(&self) -> Result<Vec<Service>, Error> {
        let listing = Error::os("list the services of a directory");
        let mut services = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(listing)?.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let Ok(address) = self.address_of(&name) else {
                continue;
            };
            // Gone since, or not to be asked.
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if found.file_type().is_socket()
                && memlane_transport::is_in_use(&address).unwrap_or(false)
            {
                let user = found.uid();
                services.push(Service {
                    name,
                    address,
                    user,
                });
            }
        }
        services.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(services)
    }
}

const NO_DIRECTORY: &str = "expected a directory, found something else";

fn set(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

fn check(service: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if service.is_empty()
        || service.len() > 64
        || service.starts_with('.')
        || !service.bytes().all(allowed)
    {
        return Err(Error::Name {
            name: service.to_owned(),
            expected: EXPECTED,
        });
    }
    Ok(())
}

fn unfit(directory: &Path, why: String) -> Error {
    Error::RuntimeDirectory {
        path: directory.display().to_string(),
        why,
    }
}

/// Creates the directory if it is not there, and checks that nobody else can put or take sockets in it.
fn ours(directory: &Path, uid: u32) -> Result<(), Error> {
    let unfit = |why: String| unfit(directory, why);
    // A user's runtime directory, inherited by root: what root made in it, the user could not use. One for all (sticky: /tmp)
    // is none, and its owner, root, has no number in many a user namespace.
    let parent = directory.parent().unwrap_or(Path::new("/"));
    if let Ok(found) = fs::metadata(parent) {
        if found.uid() != uid && found.uid() != 0 && found.mode() & 0o1000 == 0 {
            return Err(unfit(format!(
                "the directory it is in belongs to user {}, and this is user {uid}: was XDG_RUNTIME_DIR inherited (by sudo or \
                 su)? Unset it, or set it to a directory of user {uid}",
                found.uid()
            )));
        }
    }
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(unfit(format!(
                "{} is not there: make it, or set XDG_RUNTIME_DIR or {VARIABLE} to a directory that is",
                parent.display()
            )));
        }
        Err(error) => {
            return Err(unfit(format!(
                "it cannot be made ({error}): set XDG_RUNTIME_DIR or {VARIABLE} to a directory that user {uid} may write to"
            )));
        }
    }
    // Not followed: in /tmp somebody else may have put a link of this name.
    let found = fs::symlink_metadata(directory).map_err(|error| unfit(error.to_string()))?;
    if !found.is_dir() {
        return Err(unfit(format!("{NO_DIRECTORY}: remove that")));
    }
    if found.uid() != uid {
        return Err(unfit(format!(
            "expected it to belong to user {uid}, it belongs to user {}: see XDG_RUNTIME_DIR, or set {VARIABLE} to a directory \
             for both",
            found.uid()
        )));
    }
    if found.mode() & 0o077 != 0 {
        return Err(unfit(format!(
            "expected mode 700, found mode {:o}: chmod 700, or set {VARIABLE} to a directory for several users",
            found.mode() & 0o777
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none() {
        let long = "x".repeat(65);
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "nul\0", &long] {
            assert!(
                matches!(address_of(name), Err(Error::Name { .. })),
                "{name:?}"
            );
        }
    }

    fn directory(test: &str, mode: u32) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = env::temp_dir().join(format!("memlane-names-{test}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        // Whatever the umask is.
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn directories_that_are_open_to_others() {
        let path = directory("open", 0o755);
        let uid = rustix::process::geteuid().as_raw();
        let error = ours(&path, uid).unwrap_err().to_string();
        assert!(
            error.contains("expected mode 700, found mode 755: chmod 700"),
            "{error}"
        );
        let error = ours(&path, uid + 1).unwrap_err().to_string();
        assert!(error.contains("belongs to user"), "{error}");
        let error = ours(&path.join("not/there"), uid).unwrap_err().to_string();
        assert!(error.contains("not is not there: make it"), "{error}");
        fs::remove_dir(&path).unwrap();
    }

    #[test]
    fn directories_for_several_users() {
        for (mode, fit) in [
            (0o700, true),
            (0o755, true),
            (0o1777, true),
            (0o1770, true),
            (0o777, false),
            (0o770, false),
        ] {
            let path = directory("several", mode);
            match Directory::at(&path) {
                Ok(directory) if fit => assert_eq!(directory.services().unwrap(), []),
                Err(error) if !fit => assert!(error.to_string().contains("chmod +t"), "{error}"),
                other => panic!("mode {mode:o}: {other:?}"),
            }
            fs::remove_dir(&path).unwrap();
        }
        let error = Directory::at("/not/there").unwrap_err().to_string();
        assert!(error.contains("mkdir -m 1777 for several"), "{error}");
        let error = Directory::at("/dev/null").unwrap_err().to_string();
        assert!(error.contains(NO_DIRECTORY), "{error}");
    }

    /// What lies around in one, beside services.
    #[test]
    fn services_are_sockets_that_somebody_has() {
        use std::os::unix::net::UnixListener;
        let path = directory("services", 0o700);
        let meeting_place = Directory::at(&path).unwrap();
        let _live = ["b", "a", ".hidden"].map(|name| UnixListener::bind(path.join(name)).unwrap());
        drop(UnixListener::bind(path.join("stale")).unwrap());
        fs::write(path.join("file"), "").unwrap();
        fs::create_dir(path.join("directory")).unwrap();
        let found = meeting_place.services().unwrap();
        let names: Vec<&str> = found.iter().map(|service| &*service.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(found[0].address, meeting_place.address_of("a").unwrap());
        assert_eq!(found[0].user, rustix::process::geteuid().as_raw());
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn paths_that_are_too_long() {
        let directory = Directory {
            path: PathBuf::from(format!("/{}", "x".repeat(99))),
        };
        directory.address_of("123456").expect("107 bytes");
        let error = directory.address_of("1234567890").unwrap_err().to_string();
        assert!(
            error.contains("holds 107: use a directory or a name that is shorter by 4"),
            "{error}"
        );
    }
}

//! Service names, and where their sockets live.

use std::{
    env,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use memlane_transport::Address;

use crate::Error;

const EXPECTED: &str = "1 to 64 of the characters a-z A-Z 0-9 . _ -, the first of them no dot";

/// The address of a service of this user's: `memlane/NAME` in the runtime directory.
///
/// The runtime directory is `$XDG_RUNTIME_DIR`, or `/run/user/UID` if that is not set, or `/tmp/memlane-UID`
/// if there is none. The `memlane` directory in it is created if need be, and must belong to this user and be
/// closed to others (mode 0700).
///
/// # Errors
///
/// [`Error::Name`] and [`Error::RuntimeDirectory`].
pub fn address_of(name: &str) -> Result<Address, Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(allowed) {
        return Err(Error::Name {
            name: name.to_owned(),
            expected: EXPECTED,
        });
    }
    let directory = runtime_directory()?;
    Ok(Address::path(directory.join(name)).map_err(memlane_transport::Error::from)?)
}

fn runtime_directory() -> Result<PathBuf, Error> {
    let uid = rustix::process::geteuid().as_raw();
    let directory = match env::var_os("XDG_RUNTIME_DIR")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
    {
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
    ours(&directory, uid)?;
    Ok(directory)
}

/// Creates the directory if it is not there, and checks that nobody else can put or take sockets in it.
fn ours(directory: &Path, uid: u32) -> Result<(), Error> {
    let unfit = |why: String| Error::RuntimeDirectory {
        path: directory.display().to_string(),
        why,
    };
    // A user's runtime directory, inherited by root: what root made in it, the user could not use.
    let parent = directory
        .parent()
        .and_then(|parent| std::fs::metadata(parent).ok());
    if parent.is_some_and(|parent| parent.uid() != uid && parent.uid() != 0) {
        return Err(unfit(format!(
            "the directory it is in does not belong to user {uid}: see XDG_RUNTIME_DIR"
        )));
    }
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unfit(error.to_string())),
    }
    // Not followed: in /tmp somebody else may have put a link of this name.
    let found = std::fs::symlink_metadata(directory).map_err(|error| unfit(error.to_string()))?;
    if !found.is_dir() {
        return Err(unfit(
            "expected a directory, found something else".to_owned(),
        ));
    }
    if found.uid() != uid {
        return Err(unfit(format!(
            "expected it to belong to user {uid}, it belongs to user {}",
            found.uid()
        )));
    }
    if found.mode() & 0o077 != 0 {
        return Err(unfit(format!(
            "expected mode 700, found mode {:o}",
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

    #[test]
    fn directories_that_are_open_to_others() {
        let path = env::temp_dir().join(format!("memlane-names-{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let error = ours(&path, uid).unwrap_err().to_string();
        assert!(
            error.contains("expected mode 700, found mode 755"),
            "{error}"
        );
        let error = ours(&path, uid + 1).unwrap_err().to_string();
        assert!(error.contains("belongs to user"), "{error}");
        std::fs::remove_dir(&path).unwrap();
    }
}

//! Why the kernel says EACCES or EPERM to a path, for an error's text.

use std::path::Path;

use rustix::fs::{Access as Mode, AtFlags, CWD, Stat, accessat, lstat};
use rustix::process::geteuid;

/// What a process wanted with a socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Connect to it.
    Connect,
    /// Ask whether somebody has it.
    Ask,
    /// Make it, or remove it.
    Change,
}

/// What stands in the way, and what to do about it.
pub(crate) fn explain(path: &Path, wish: Wish) -> String {
    let me = geteuid().as_raw();
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    let may = |path: &Path, mode| accessat(CWD, path, mode, AtFlags::EACCESS).is_ok();
    let described = |path: &Path| match rustix::fs::stat(path) {
        Ok(stat) => describe(path, &stat),
        Err(_) => path.display().to_string(),
    };
    let mut ancestors: Vec<&Path> = directory.ancestors().collect();
    ancestors.reverse();
    if let Some(closed) = ancestors.into_iter().find(|path| !may(path, Mode::EXEC_OK)) {
        return format!(
            "user {me} may not enter {}: use a directory that both sides can enter",
            described(closed)
        );
    }
    match wish {
        Wish::Connect if !may(&absolute, Mode::WRITE_OK) => format!(
            "user {me} may not connect to {}: its service is for its own user, unless it is bound with another access rule",
            described(&absolute)
        ),
        Wish::Change if !may(directory, Mode::READ_OK) => format!(
            "user {me} may not read, and so not lock, {}",
            described(directory)
        ),
        Wish::Change if !may(directory, Mode::WRITE_OK) => format!(
            "user {me} may not write to {}: use a directory of its own, or one for all (mode 1777)",
            described(directory)
        ),
        Wish::Change => match lstat(&absolute) {
            Ok(file) => format!(
                "it was left there by a process of user {}, and user {me} may not remove it: that user has to, or the owner \
                 of the directory, or root",
                file.st_uid
            ),
            Err(_) => unknown(),
        },
        Wish::Ask if !may(&absolute, Mode::WRITE_OK) => format!(
            "user {me} may not even ask whether {} is in use: choose another name, or have it removed by its user, or root, if \
             no process has it any more",
            described(&absolute)
        ),
        Wish::Connect | Wish::Ask => unknown(),
    }
}

fn unknown() -> String {
    "not for want of permissions that files show: a security module, or a read-only or special file system, forbids it"
        .to_owned()
}

fn describe(path: &Path, stat: &Stat) -> String {
    format!(
        "{} (mode {:o}, of user {})",
        path.display(),
        stat.st_mode & 0o7777,
        stat.st_uid
    )
}

//! The file of a path address, and who removes it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::socket_file::{Identity, SocketFile};

/// How long a drop waits for another process that holds the directory's lock.
const PATIENCE: Duration = Duration::from_millis(100);

/// A file to remove with the listener.
///
/// While one process has the listener, that removes the file. Once it has been in a message, nobody can know from its own
/// memory whether it is the last to hold it: the message may be on its way, taken, or lost, and every generation may end
/// at any moment. The kernel knows. So the file of such a listener is removed only if, after the socket here is closed, no
/// socket in the system belongs to it any more: the last holder finds that, whatever the order of events. (Where a child is
/// between fork and exec in that moment, it holds the socket, too. Then the file stays, and the next bind or connect clears
/// it.)
#[derive(Debug)]
pub(super) struct OwnFile {
    /// Absolute: the current directory may change.
    path: PathBuf,
    /// `None` if it came in a message.
    identity: Option<Identity>,
    /// Set when the listener has been in a message.
    shared: AtomicBool,
    process: u32,
}

impl OwnFile {
    /// One that this process made.
    pub(super) fn bound(path: PathBuf, identity: Identity) -> OwnFile {
        OwnFile {
            path,
            identity: Some(identity),
            shared: AtomicBool::new(false),
            process: std::process::id(),
        }
    }

    /// One whose listener came in a message.
    pub(super) fn received(path: PathBuf) -> OwnFile {
        OwnFile {
            path,
            identity: None,
            shared: AtomicBool::new(true),
            process: std::process::id(),
        }
    }

    /// The path, for a message.
    pub(super) fn share(&self) -> &PathBuf {
        self.shared.store(true, Ordering::Relaxed);
        &self.path
    }

    /// The file of a second listener of the same socket.
    pub(super) fn share_with(&self) -> OwnFile {
        OwnFile::received(self.share().clone())
    }

    pub(super) fn is_sole(&self) -> bool {
        !self.shared.load(Ordering::Relaxed)
    }

    /// Removes a file that nobody else can have the listener of.
    pub(super) fn remove(self) {
        let Some(identity) = self.identity else {
            return;
        };
        if self.process == std::process::id() {
            if let Ok(file) = SocketFile::lock(&self.path, PATIENCE) {
                let _ = file.remove(identity);
            }
        }
    }

    /// Lets the file stay.
    pub(super) fn leave(mut self) {
        *self.shared.get_mut() = false;
    }
}

/// Runs after the listener's socket has been closed, which is declared before it.
impl Drop for OwnFile {
    fn drop(&mut self) {
        if *self.shared.get_mut() && self.process == std::process::id() {
            if let Ok(file) = SocketFile::lock(&self.path, PATIENCE) {
                // Only what no process has any more; a lying sender can name nothing that is in use, nor any other file.
                let _ = file.clear();
            }
        }
    }
}

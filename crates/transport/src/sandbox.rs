//! What a process may still do, decided before it runs by its parent ([`Command`](crate::Command)), or by itself.
//!
//! | | by its parent | by itself |
//! |---|---|---|
//! | for | programs that may be hostile from their first instruction | programs that are one's own, before they look at what others have sent |
//! | files | [`Files`]: what it takes to load it, and what it is to have | none: [`enter`] leaves no way to open any |
//! | system calls | [`Filter::program`]: with what it takes to load it | [`enter`], or a [`Filter`] of one's own: what a memlane process needs that has its links |
//!
//! A child that is started with [`Filter::program`] can [`enter`] later.
//!
//! ```no_run
//! use memlane_transport::Command;
//! use memlane_transport::sandbox::{self, Files, Filter};
//!
//! # let i_am_the_child = false;
//! if i_am_the_child {
//!     let parent = memlane_transport::parent()?;
//!     sandbox::enter()?; // no files, no sockets, no programs, no other processes from here on
//!     let untrusted: String = parent.recv()?;
//! } else {
//!     let files = Files::none().libraries().read("/usr/share/fonts");
//!     let child = Command::new("renderer")
//!         .no_network()
//!         .files(files)
//!         .system_calls(Filter::program())
//!         .spawn()?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What none of this takes away: descriptors that a process has or is sent. One that has a link gets what its peer sends;
//! a parent that sends a directory's descriptor has opened the directory.

mod calls;
mod files;
mod filter;

use std::io;
use std::path::PathBuf;

pub use files::{Files, landlock_version};
pub use filter::Filter;
pub use seccompiler;

/// Restricts this process, all its threads, to [`Filter::worker`], for ever: it can use what it has, and get nothing
/// else but by its links.
///
/// # Errors
/// [`SandboxError::Install`]: the kernel has no seccomp, a filter that is there already forbids it, or a thread has a filter
/// that the others have not. What could be installed before stays.
pub fn enter() -> Result<(), SandboxError> {
    Filter::worker().enter()
}

/// Why a process was not restricted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The kernel has no Landlock, or one that is too old; [`Files::best_effort`] goes without.
    #[error(
        "restricting files takes Landlock version {expected} (Linux 6.2), found {}: the kernel is older, or built or \
         booted without it (CONFIG_SECURITY_LANDLOCK, lsm=)",
        found.map_or_else(|| "none".to_owned(), |version| format!("version {version}"))
    )]
    Landlock {
        /// The version it takes.
        expected: u32,
        /// What there is.
        found: Option<u32>,
        /// What the kernel said, where there is none.
        source: Option<io::Error>,
    },
    /// A file or directory that is to be had cannot be opened.
    #[error("cannot allow {}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel takes the rules for files not.
    #[error("the rules for files cannot be made")]
    Rules(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A filter cannot be compiled: too long, or not for this architecture.
    #[error("the filter of system calls cannot be made")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A filter cannot be installed.
    #[error("the filter of system calls cannot be installed")]
    Install(#[source] Box<dyn std::error::Error + Send + Sync>),
}

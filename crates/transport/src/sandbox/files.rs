//! Landlock: files that a child may open.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use super::SandboxError;
use crate::sys;

/// Truncation is under control from here on: a file that may not be written keeps what it has.
const REQUIRED: (u32, ABI) = (3, ABI::V3);

/// All that is asked for where the kernel has it.
const WANTED: ABI = ABI::V10;

/// Where a dynamically linked program's loader and libraries are.
const LIBRARIES: &[&str] = &[
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/nix/store",
    "/gnu/store",
];

/// Files that a child may open: none but its own program, which it may read and execute, and those named here, with all
/// below them where they are directories (Landlock).
///
/// What this governs is opening, executing, making, removing, linking and truncating. Not governed are what is open
/// already or comes over a link, and stat(2), chmod(2), chown(2), utime(2) and chdir(2), which work as they did. With
/// newer kernels it also covers device ioctls (Linux 6.10), signals to processes outside and abstract Unix addresses (6.12),
/// and connecting to Unix sockets with a path; older ones leave those open, and [`landlock_version`] tells.
///
/// Paths are looked up when the child is started, by its parent. `/proc`, `/dev` and `/tmp` are files, too: a program that
/// needs `/dev/urandom` is told so here.
#[derive(Clone, Debug)]
pub struct Files {
    rules: Vec<(PathBuf, Kind)>,
    best_effort: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Execute,
    Write,
}

impl Files {
    /// None but the program. That is enough for a statically linked one.
    #[must_use]
    pub fn none() -> Files {
        Files {
            rules: Vec::new(),
            best_effort: false,
        }
    }

    /// Allows reading a file, or all below a directory.
    #[must_use]
    pub fn read(self, path: impl AsRef<Path>) -> Files {
        self.with(path.as_ref(), Kind::Read)
    }

    /// Allows reading and executing.
    #[must_use]
    pub fn execute(self, path: impl AsRef<Path>) -> Files {
        self.with(path.as_ref(), Kind::Execute)
    }

    /// Allows reading and writing; in a directory also making and removing.
    #[must_use]
    pub fn write(self, path: impl AsRef<Path>) -> Files {
        self.with(path.as_ref(), Kind::Write)
    }

    /// Allows what it takes to load a dynamically linked program: reading and executing the directories that loader and
    /// libraries are in (`/lib`, `/usr/lib` and their like, those there are), and programs that are in there, too.
    #[must_use]
    pub fn libraries(self) -> Files {
        LIBRARIES
            .iter()
            .map(Path::new)
            .filter(|path| path.exists())
            .fold(self, |files, path| files.with(path, Kind::Execute))
    }

    /// Starts the child also where the kernel cannot keep it to this: with what it can do, or with nothing at all. Default:
    /// an error, unless the kernel has Landlock version 3 (Linux 6.2), with which all that is said here of opening,
    /// executing, making, removing, linking and truncating holds.
    #[must_use]
    pub fn best_effort(mut self) -> Files {
        self.best_effort = true;
        self
    }

    fn with(mut self, path: &Path, kind: Kind) -> Files {
        self.rules.push((path.to_owned(), kind));
        self
    }

    /// The rules, to be applied to a thread; `None` where that is allowed and there is no Landlock.
    pub(crate) fn prepare(&self, program: Option<&Path>) -> Result<Option<OwnedFd>, SandboxError> {
        let (expected, required) = REQUIRED;
        if !self.best_effort {
            let found = sys::sandbox::landlock_version();
            if !matches!(found, Ok(version) if version >= expected) {
                return Err(SandboxError::Landlock {
                    expected,
                    found: found.as_ref().ok().copied(),
                    source: found.err(),
                });
            }
        }
        let mut rules = self.create(required).map_err(rules)?;
        for (path, kind) in &self.rules {
            rules = allow(rules, path, *kind)?;
        }
        // One that is not there is an error when it is executed.
        if let Some(program) = program.filter(|program| program.exists()) {
            rules = allow(rules, program, Kind::Execute)?;
        }
        Ok(rules.into())
    }

    fn create(&self, required: ABI) -> Result<RulesetCreated, RulesetError> {
        let level = if self.best_effort {
            CompatLevel::BestEffort
        } else {
            CompatLevel::HardRequirement
        };
        Ruleset::default()
            .set_compatibility(level)
            .handle_access(AccessFs::from_all(required))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(WANTED))?
            .scope(Scope::from_all(WANTED))?
            .create()
    }
}

fn allow(rules: RulesetCreated, path: &Path, kind: Kind) -> Result<RulesetCreated, SandboxError> {
    let file = PathFd::new(path).map_err(|error| match error {
        PathFdError::OpenCall { source, path, .. } => SandboxError::Path { path, source },
        other => SandboxError::Rules(Box::new(other)),
    })?;
    let all: BitFlags<AccessFs> = match kind {
        Kind::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        Kind::Execute => AccessFs::from_read(WANTED),
        Kind::Write => AccessFs::from_all(WANTED) & !BitFlags::from(AccessFs::Execute),
    };
    // The kernel refuses for a file what only directories can have.
    let access = if path.is_dir() {
        all
    } else {
        all & AccessFs::from_file(WANTED)
    };
    rules
        .add_rule(PathBeneath::new(file, access))
        .map_err(self::rules)
}

fn rules(error: RulesetError) -> SandboxError {
    SandboxError::Rules(Box::new(error))
}

/// The version of Landlock that the kernel has; `None` if it has none, or was booted without it.
#[must_use]
pub fn landlock_version() -> Option<u32> {
    sys::sandbox::landlock_version().ok()
}

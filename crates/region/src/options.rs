use std::borrow::Cow;

/// How the memory of a region is made. A plain name is one, with defaults for the rest.
///
/// Where there are several memory nodes, its pages come from that of the CPU which creates it, as long as the creating
/// thread has no policy of its own (set_mempolicy(2)): nothing here sets one.
///
/// Nobody can make a file to be executed of it: it is created with MFD_NOEXEC_SEAL (Linux 6.3; whatever
/// `vm.memfd_noexec` says). Mapping it executable is a process's own business, which seals cannot forbid.
///
/// ```
/// use memlane_region::{HugePages, Options, Region};
///
/// let plain = Region::create("frames", 1 << 20)?;
/// let ready = Region::create(Options::new("frames").prefault(true), 1 << 20)?;
/// let large = Options::new("frames").huge_pages(HugePages::Transparent);
/// println!("{:?}", Region::create(large, 8 << 20)?.page_kind());
/// # Ok::<(), memlane_region::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub(crate) name: Cow<'static, str>,
    pub(crate) prefault: bool,
    pub(crate) huge_pages: HugePages,
    pub(crate) lock: bool,
    pub(crate) dump: bool,
}

/// Which pages a region asks for. What cannot be had falls back to the next: hugetlb to transparent to none;
/// [`Region::page_kind`](crate::Region::page_kind) tells what came of it.
///
/// Huge pages need not be asked for by those who receive the region: whatever is in huge pages is mapped so where it can
/// be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// None, but for what the kernel does by itself (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`).
    #[default]
    Never,
    /// Transparent ones, for as much of the region as fills whole ones (2 MiB each on most machines). Works whatever
    /// `shmem_enabled` says, but for `deny`, from Linux 6.1 on (MADV_COLLAPSE); before, it takes `advise` or more there.
    ///
    /// Pages are made when the region is created: that is faster than making small ones, and slower by far where
    /// memory is fragmented and the kernel has to make room for them.
    Transparent,
    /// Pages of the default size out of the pool that the administrator set aside (`vm.nr_hugepages`).
    ///
    /// The region's length is rounded up to whole pages, and so is that of what is made of it; truncation too. Whoever
    /// receives it has to [allow](crate::Quota::hugetlb) that. A ring ([`Shared`](crate::Shared)) takes transparent
    /// ones instead.
    Hugetlb,
    /// The same, in pages of so many bytes.
    HugetlbOf(usize),
}

impl Options {
    /// `name` shows up in `/proc/PID/maps` as `memfd:name`, nowhere else. It has at most 249 bytes, none of them 0
    /// (memfd_create(2)): others are [`Error::Name`](crate::Error::Name) when memory is made.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Options {
        Options {
            name: name.into(),
            prefault: false,
            huge_pages: HugePages::Never,
            lock: false,
            dump: true,
        }
    }

    /// The same, with more behind the name.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Options {
        Options {
            name: format!("{}{suffix}", self.name).into(),
            ..self.clone()
        }
    }

    /// Touches every page at creation, so that no access pays for a page fault later (2.5 us each).
    pub fn prefault(self, prefault: bool) -> Options {
        Options { prefault, ..self }
    }

    /// Whether it is to be in huge pages.
    pub fn huge_pages(self, huge_pages: HugePages) -> Options {
        Options { huge_pages, ..self }
    }

    /// Keeps it in memory: never swapped, as long as its maker has it mapped (mlock(2)), and present from the beginning.
    /// What it is frozen to stays so; what is moved away does not. It counts against RLIMIT_MEMLOCK, unless the process
    /// has CAP_IPC_LOCK.
    pub fn lock(self, lock: bool) -> Options {
        Options { lock, ..self }
    }

    /// Whether core dumps of its maker contain it (the default, as for all anonymous shared memory, since what
    /// was being sent is often what explains a crash; core(5)). To be switched off for secrets, and for what is so large
    /// that nobody wants it on disk. Readers' dumps contain what they have mapped of live regions, and frozen ones only
    /// where `coredump_filter` asks for it.
    pub fn dump(self, dump: bool) -> Options {
        Options { dump, ..self }
    }
}

impl From<&'static str> for Options {
    fn from(name: &'static str) -> Options {
        Options::new(name)
    }
}

impl From<String> for Options {
    fn from(name: String) -> Options {
        Options::new(name)
    }
}

impl From<&Options> for Options {
    fn from(options: &Options) -> Options {
        options.clone()
    }
}

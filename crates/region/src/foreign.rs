use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

use rustix::{
    fs::{SealFlags, fcntl_add_seals, fcntl_get_seals},
    io::Errno,
};

use crate::{
    Error, Options, Quota, Refused,
    gate::{self, WRITABLE_SEALS},
    mapping::page_size,
    memory::{self, Memory},
    pages::{Access, Pages, Wanted},
};

/// Memory that another program can write too, at any moment: a Wayland `wl_shm` pool, a PipeWire buffer, a screenshot to
/// be filled in. Copies go in and out, by system calls; there is never a reference to it.
///
/// It needs no seal, and believes none. Whatever the other side does, no access faults (SIGBUS), and none waits
/// for it: not while it truncates the memory or punches holes into it, nor while it keeps a write of its own from ending
/// (which makes others wait in pwrite(2), fallocate(2) and F_ADD_SEALS, but not in pread(2) and process_vm_writev(2),
/// with which this type copies). Memory that has become shorter than announced is [`Error::Short`]. What was
/// copied out may be a mixture of what was written meanwhile: check the copy.
///
/// Where nobody can write any more, [`Frozen`](crate::Frozen) is better: a `&[u8]` without a copy. Memory that only its
/// maker can write is a [`LiveView`](crate::LiveView), whose reads take no system call.
///
/// A file on a tmpfs (shm_open(3)) is as good as a memfd here. Huge pages are refused.
///
/// ```
/// use memlane_region::Foreign;
/// # use std::os::fd::AsFd;
///
/// let mine = Foreign::create("screenshot", 1 << 16)?;
/// // ... the descriptor travels to another program, which may map it writable, or opens it:
/// let theirs = Foreign::open(mine.as_fd().try_clone_to_owned()?, 0, 1 << 16, 1 << 20)?;
/// theirs.write_at(4096, b"pixels")?;
/// let mut pixels = [0; 6];
/// mine.read_at(4096, &mut pixels)?;
/// assert_eq!(&pixels, b"pixels");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Foreign {
    fd: OwnedFd,
    /// Where it begins in the file.
    offset: u64,
    len: usize,
    /// What is written through, from the page on in which it begins. Nothing here touches it: the kernel does.
    pages: OnceLock<Pages>,
}

impl Foreign {
    /// Creates memory of `len` bytes for another program to write, all zero, allocated, and sealed so that nobody can
    /// change its length. `options` are a name or [`Options`].
    ///
    /// # Errors
    ///
    /// As [`Region::create`](crate::Region::create).
    pub fn create(options: impl Into<Options>, len: usize) -> Result<Foreign, Error> {
        let options = options.into();
        let memory = memory::create(&options, len)?;
        let pages = Pages::create(&memory, &options)?;
        let Memory { fd, len, .. } = memory;
        fcntl_add_seals(&fd, WRITABLE_SEALS).map_err(Error::os("seal", len))?;
        Ok(Foreign {
            pages: OnceLock::from(pages),
            ..Foreign::new(fd, 0, len)
        })
    }

    /// Opens the `len` bytes from `offset` on of a received descriptor, as its sender announced them. The file may be
    /// longer than that.
    ///
    /// The checks come in the one order in which each is safe, see [`Remote::open`](crate::Remote::open); but memory of any
    /// seals passes, and memory with holes. `quota`, in bytes or as [`Quota`], bounds `len`: so much may be allocated,
    /// at this process's expense, by writing to it.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the reason and the descriptor.
    pub fn open(
        descriptor: OwnedFd,
        offset: u64,
        len: usize,
        quota: impl Into<Quota>,
    ) -> Result<Foreign, Box<Refused>> {
        match gate::window(&descriptor, offset, len, quota.into()) {
            Ok(()) => Ok(Foreign::new(descriptor, offset, len)),
            Err(error) => Err(Refused::new(error, descriptor)),
        }
    }

    fn new(fd: OwnedFd, offset: u64, len: usize) -> Foreign {
        Foreign {
            fd,
            offset,
            len,
            pages: OnceLock::new(),
        }
    }

    /// Its length in bytes, as announced: the memory may have become shorter.
    #[allow(clippy::len_without_is_empty)] // the gate refuses 0 bytes
    pub fn len(&self) -> usize {
        self.len
    }

    /// The seals that it has now, as `F_SEAL_*` bits: none can be taken away, more may come (fcntl(2)). A file on a
    /// tmpfs has F_SEAL_SEAL alone.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if a security module forbids to ask.
    pub fn seals(&self) -> Result<u32, Error> {
        Ok(self.seal_flags()?.bits())
    }

    /// Whether nobody can write it any more, now and for ever: then [`Frozen::open`](crate::Frozen::open) takes its
    /// [descriptor](Foreign::into_fd), if all of it is allocated.
    ///
    /// # Errors
    ///
    /// As [`seals`](Foreign::seals).
    pub fn is_frozen(&self) -> Result<bool, Error> {
        Ok(gate::proves_frozen(self.seal_flags()?))
    }

    fn seal_flags(&self) -> Result<SealFlags, Error> {
        fcntl_get_seals(&self.fd).map_err(Error::os("read the seals of", self.len))
    }

    /// Copies `dst.len()` bytes from `offset` on. What another program writes meanwhile may be in the copy or not, byte
    /// by byte.
    ///
    /// # Errors
    ///
    /// [`Error::Outside`] if the range is not in what was announced. [`Error::Short`] if the memory ends before: it has
    /// been truncated; `dst` is filled so far. [`Error::Os`] if the descriptor is not for reading.
    pub fn read_at(&self, offset: usize, dst: &mut [u8]) -> Result<(), Error> {
        self.check(offset, dst.len())?;
        let start = self.offset + offset as u64;
        let mut copied = 0;
        while copied < dst.len() {
            match rustix::io::pread(&self.fd, &mut dst[copied..], start + copied as u64) {
                Ok(0) => return Err(short(offset, dst.len(), copied)),
                Ok(count) => copied += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::os("read", self.len)(errno)),
            }
        }
        Ok(())
    }

    /// Copies `src` in, from `offset` on. It never makes the memory longer.
    ///
    /// The first call maps the memory, and from then on this process is one that vetoes its freezing.
    ///
    /// # Errors
    ///
    /// [`Error::Outside`] if the range is not in what was announced. [`Error::Short`] if the memory ends before, or the
    /// kernel finds none to fill a hole with; the bytes before that are written. [`Error::Os`] if this process may not
    /// write it: it is sealed (EPERM), or the descriptor is read-only (EACCES); or if a seccomp filter
    /// forbids process_vm_writev(2).
    pub fn write_at(&self, offset: usize, src: &[u8]) -> Result<(), Error> {
        self.check(offset, src.len())?;
        let pages = self.pages()?;
        let start = self.lead() + offset;
        let mut copied = 0;
        while copied < src.len() {
            match pages.write(start + copied, &src[copied..]) {
                // EFAULT: not a byte of what is left is there, or can be had.
                Ok(0) | Err(Errno::FAULT | Errno::NOMEM) => {
                    return Err(short(offset, src.len(), copied));
                }
                Ok(count) => copied += count,
                Err(errno) => return Err(Error::os("write", self.len)(errno)),
            }
        }
        Ok(())
    }

    /// The descriptor, for another way to have the memory.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), Error> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(Error::Outside {
            offset: offset as u64,
            len: len as u64,
            available: self.len as u64,
        })
    }

    /// Bytes from the beginning of a page to where it begins.
    fn lead(&self) -> usize {
        (self.offset % page_size() as u64) as usize
    }

    fn pages(&self) -> Result<&Pages, Error> {
        if let Some(pages) = self.pages.get() {
            return Ok(pages);
        }
        let lead = self.lead();
        let start = self.offset - lead as u64;
        let (fd, len) = (self.fd.as_fd(), lead + self.len);
        let pages = Pages::map_at(fd, start, len, Access::Write, Wanted::DEFAULT)?;
        // Of two threads that are first, one mapping stays.
        Ok(self.pages.get_or_init(|| pages))
    }
}

fn short(offset: usize, expected: usize, found: usize) -> Error {
    Error::Short {
        offset: offset as u64,
        expected: expected as u64,
        found: found as u64,
    }
}

/// The descriptor, to be sent: whoever has it can write, unless seals forbid it. It stays the region's.
impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

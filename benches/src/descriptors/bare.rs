//! Descriptors through sendmsg(2) and recvmsg(2), the way cmsg(3) teaches it: the buffers are made once, every
//! flag and length is checked, and nothing is done that the task does not need.

use std::io::{Error, ErrorKind};
use std::mem::{align_of, size_of};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use super::{Contender, SCM_MAX_FD};

/// What happens when a call cannot go on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// MSG_DONTWAIT, and poll(2).
    Poll,
    /// The call sleeps.
    Kernel,
}

impl Waiting {
    /// How a contender waits.
    pub fn of(contender: Contender) -> Self {
        if contender == Contender::BareBlocking {
            Self::Kernel
        } else {
            Self::Poll
        }
    }

    fn flags(self) -> libc::c_int {
        match self {
            Self::Poll => libc::MSG_DONTWAIT,
            Self::Kernel => 0,
        }
    }
}

/// Room for one SCM_RIGHTS message, in words so that it is aligned for its header.
type Control = [u64; WORDS];

const SPACE: usize = {
    let data = (SCM_MAX_FD * size_of::<RawFd>()) as libc::c_uint;
    // SAFETY: CMSG_SPACE is arithmetic and touches no memory.
    unsafe { libc::CMSG_SPACE(data) as usize }
};
const WORDS: usize = SPACE / size_of::<u64>();
const _: () = assert!(align_of::<libc::cmsghdr>() <= align_of::<Control>());
const _: () = assert!(SPACE.is_multiple_of(size_of::<u64>()));

/// The sending end.
#[derive(Debug)]
pub struct Outgoing {
    socket: OwnedFd,
    numbers: Vec<RawFd>,
    /// Keeps `numbers` valid.
    _descriptors: Vec<OwnedFd>,
    control: Box<Control>,
    waiting: Waiting,
}

impl Outgoing {
    /// Sends `descriptors` through `socket`.
    pub fn new(socket: OwnedFd, descriptors: Vec<OwnedFd>, waiting: Waiting) -> Self {
        assert!(descriptors.len() <= SCM_MAX_FD);
        Self {
            socket,
            numbers: descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
            _descriptors: descriptors,
            control: Box::new([0; WORDS]),
            waiting,
        }
    }

    /// Waits for what a refused call wanted; an error that waiting does not cure is returned.
    #[cold]
    fn wait(&self, error: Error) -> Result<()> {
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => {
                poll(
                    &mut [PollFd::from_borrowed_fd(
                        self.socket.as_fd(),
                        PollFlags::OUT,
                    )],
                    None,
                )
                .context("poll")?;
            }
            // Nothing tells when these end.
            Some(libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM) => {
                sleep(Duration::from_micros(100));
            }
            _ => return Err(error).context("sendmsg"),
        }
        Ok(())
    }
}

impl super::Outgoing for Outgoing {
    fn send(&mut self, number: u64) -> Result<()> {
        let mut body = number.to_ne_bytes();
        let mut iov = libc::iovec {
            iov_base: body.as_mut_ptr().cast(),
            iov_len: body.len(),
        };
        // SAFETY: a msghdr is integers and pointers, for all of which zeros are a value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        if !self.numbers.is_empty() {
            let len = size_of_val(self.numbers.as_slice());
            header.msg_control = self.control.as_mut_ptr().cast();
            // SAFETY: CMSG_SPACE is arithmetic and touches no memory.
            header.msg_controllen = unsafe { libc::CMSG_SPACE(len as libc::c_uint) } as _;
            // SAFETY: `control` is aligned for a header (asserted above), and has room for one and for
            // SCM_MAX_FD numbers behind it, which is as many as `new` lets in.
            unsafe {
                let message = libc::CMSG_FIRSTHDR(&raw const header);
                (*message).cmsg_level = libc::SOL_SOCKET;
                (*message).cmsg_type = libc::SCM_RIGHTS;
                (*message).cmsg_len = libc::CMSG_LEN(len as libc::c_uint) as _;
                ptr::copy_nonoverlapping(
                    self.numbers.as_ptr().cast::<u8>(),
                    libc::CMSG_DATA(message),
                    len,
                );
            }
        }
        let flags = libc::MSG_NOSIGNAL | self.waiting.flags();
        loop {
            // SAFETY: `header` points to `iov`, `body` and `control`, which outlive the call, with their
            // lengths; sendmsg only reads.
            let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const header, flags) };
            match usize::try_from(sent) {
                Ok(sent) => {
                    ensure!(sent == body.len(), "{sent} bytes of a message were sent");
                    return Ok(());
                }
                Err(_) => self.wait(Error::last_os_error())?,
            }
        }
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Incoming {
    socket: OwnedFd,
    held: Vec<OwnedFd>,
    control: Box<Control>,
    waiting: Waiting,
}

impl Incoming {
    /// Receives from `socket`.
    pub fn new(socket: OwnedFd, waiting: Waiting) -> Self {
        Self {
            socket,
            held: Vec::with_capacity(SCM_MAX_FD),
            control: Box::new([0; WORDS]),
            waiting,
        }
    }

    #[cold]
    fn wait(&self, error: Error) -> Result<()> {
        match error.kind() {
            ErrorKind::Interrupted => {}
            ErrorKind::WouldBlock => {
                poll(
                    &mut [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)],
                    None,
                )
                .context("poll")?;
            }
            _ => return Err(error).context("recvmsg"),
        }
        Ok(())
    }
}

impl super::Incoming for Incoming {
    /// Every message is written at once and has eight bytes, so on a stream, too, eight bytes are a message.
    fn recv(&mut self) -> Result<u64> {
        let mut body = [0; size_of::<u64>()];
        let mut iov = libc::iovec {
            iov_base: body.as_mut_ptr().cast(),
            iov_len: body.len(),
        };
        // SAFETY: a msghdr is integers and pointers, for all of which zeros are a value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = self.control.as_mut_ptr().cast();
        header.msg_controllen = SPACE as _;
        let flags = libc::MSG_CMSG_CLOEXEC | self.waiting.flags();
        let len = loop {
            // SAFETY: `header` points to `iov`, `body` and `control`, which outlive the call and are written
            // by nobody else, with their lengths.
            let len = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, flags) };
            match usize::try_from(len) {
                Ok(len) => break len,
                Err(_) => self.wait(Error::last_os_error())?,
            }
        };
        // SAFETY: `header` and `control` are as a successful recvmsg left them, so the CMSG_ macros stay within
        // `control`. Each number in an SCM_RIGHTS message is a descriptor that the kernel has just installed
        // for this process, and each is adopted once. The numbers may be unaligned for all that CMSG_DATA
        // promises.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(&raw const header);
            while !message.is_null() {
                ensure!(
                    (*message).cmsg_level == libc::SOL_SOCKET
                        && (*message).cmsg_type == libc::SCM_RIGHTS,
                    "a control message that nobody asked for"
                );
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                let len = (*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let numbers = (0..len / size_of::<RawFd>())
                    .map(|index| OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                self.held.extend(numbers);
                message = libc::CMSG_NXTHDR(&raw const header, message);
            }
        }
        if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            bail!("a part of a message was lost");
        }
        ensure!(len != 0, "the other end is gone");
        ensure!(len == body.len(), "a message of {len} bytes came");
        Ok(u64::from_ne_bytes(body))
    }

    fn close(&mut self) -> usize {
        let count = self.held.len();
        self.held.clear();
        count
    }
}

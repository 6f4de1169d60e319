//! Another process of a test: its own executable, run again, and a socket between the two.

use std::{
    env,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

const ROLE: &str = "MEMLANE_TEST_ROLE";

/// Another process, and this end of the socket to it.
#[derive(Debug)]
pub(crate) struct Other {
    child: Child,
    link: Link,
}

impl Other {
    /// Starts one, which runs the test `other_process` of this file, and there what `role` says.
    pub(crate) fn spawn(role: &str) -> Other {
        let (mine, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let child = Command::new(env::current_exe().unwrap())
            .args(["other_process", "--exact", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Other {
            child,
            link: Link(mine),
        }
    }

    /// The socket to it.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Waits for its end, which must be in order; it ends once its link does.
    pub(crate) fn finish(self) {
        let Other { mut child, link } = self;
        drop(link);
        let status = child.wait().unwrap();
        assert!(status.success(), "the other process: {status}");
    }

    /// Kills it, wherever it is.
    pub(crate) fn kill(self) {
        let Other { mut child, link: _ } = self;
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// The role of this process, if it is another one, and its end of the socket.
pub(crate) fn role() -> Option<(String, Link)> {
    let role = env::var(ROLE).ok()?;
    let link = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    Some((role, Link(link)))
}

/// One end of a socket.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

impl Link {
    /// Sends bytes, at least one, and perhaps a descriptor.
    pub(crate) fn tell(&self, what: &[u8], fd: Option<BorrowedFd<'_>>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fd = fd.as_ref().map(std::slice::from_ref);
        if let Some(fd) = fd {
            assert!(control.push(SendAncillaryMessage::ScmRights(fd)));
        }
        let flags = SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&self.0, &[IoSlice::new(what)], &mut control, flags).unwrap();
    }

    /// Whether the other end has said something, or is gone.
    pub(crate) fn has_word(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    /// What the other end says, and the descriptor that came with it; nothing once it is gone.
    pub(crate) fn hear(&self) -> (Vec<u8>, Option<OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; 256];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let into = &mut [IoSliceMut::new(&mut bytes)];
        let received = rustix::net::recvmsg(&self.0, into, &mut control, flags).unwrap();
        bytes.truncate(received.bytes);
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        (bytes, fd)
    }
}

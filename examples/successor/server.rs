//! The service, one generation of it after the other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use memlane_transport::hand_over::{Predecessor, Successor};
use memlane_transport::{Address, Error, Link, Listener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use crate::{Fault, Replaced, Request, Session, now};

/// How long a hand-over may take. Nobody is served meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// All that the service is.
#[derive(Serialize, Deserialize)]
struct Work {
    listener: Listener,
    /// Who runs the service. When it hangs up, the service ends.
    driver: Link,
    clients: Vec<Link>,
    sessions: BTreeMap<u64, Session>,
    /// When the service was interrupted: the driver waits to hear that it goes on.
    interrupted: Option<Duration>,
}

pub(crate) fn run(fault: Option<Fault>) -> anyhow::Result<()> {
    let die = || kill_process(getpid(), Signal::KILL);
    if fault == Some(Fault::DiesAtStart) {
        die()?;
    }
    let work = match Predecessor::inherited()? {
        Some(predecessor) => {
            let work: Work = predecessor.receive()?;
            match fault {
                Some(Fault::DiesOnReceipt) => die()?,
                Some(Fault::HangsOnReceipt) => loop {
                    std::thread::park();
                },
                _ => {}
            }
            predecessor.take_over()?;
            work
        }
        None => {
            let driver = memlane_transport::Link::inherited()?;
            let path: PathBuf = driver.recv()?;
            let listener = Listener::bind(&Address::path(path)?)?;
            driver.send(&())?;
            Work {
                listener,
                driver,
                clients: Vec::new(),
                sessions: BTreeMap::new(),
                interrupted: None,
            }
        }
    };
    work.serve()
}

/// What a look at all sockets has brought.
#[derive(Default)]
struct Looked {
    /// Requests and connections.
    served: u64,
    replace: Option<Option<Fault>>,
    ended: bool,
}

impl Work {
    /// Until a successor does, or the driver hangs up.
    fn serve(mut self) -> anyhow::Result<()> {
        let mut successor: Option<Successor> = None;
        let mut failed = None;
        loop {
            if let Some(since) = self.interrupted.take() {
                let pause = now().saturating_sub(since);
                let waited = self.look()?.served;
                self.driver.send(&Replaced {
                    pid: std::process::id(),
                    waited,
                    pause,
                    failed: failed.take(),
                })?;
            }
            self.wait(successor.as_ref())?;
            let looked = self.look()?;
            if looked.ended {
                return Ok(());
            }
            if let Some(fault) = looked.replace {
                successor = Some(spawn(fault).context("starting a successor")?);
            }
            // It is served on until the successor is there.
            let up = match successor.as_mut().map(Successor::try_started) {
                None | Some(Err(Error::WouldBlock)) => None,
                // One that died is given up in the same way.
                Some(_) => successor.take(),
            };
            if let Some(successor) = up {
                self.interrupted = Some(now());
                // A client in the middle of a message cannot be handed over. Here they send short ones, which come whole.
                self.clients.retain(Link::is_between_messages);
                match successor.hand_over(&self, PATIENCE) {
                    Ok(_process) => return Ok(()),
                    Err(error) => failed = Some(format!("{:#}", anyhow::Error::from(error))),
                }
            }
        }
    }

    fn wait(&self, successor: Option<&Successor>) -> anyhow::Result<()> {
        let mut fds: Vec<_> = [&self.driver]
            .into_iter()
            .chain(&self.clients)
            .map(|link| PollFd::new(link, PollFlags::IN))
            .collect();
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        fds.extend(successor.map(|successor| PollFd::new(successor, PollFlags::IN)));
        // Signals end the wait; so does a minute, for nothing.
        let minute = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&minute)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Serves all that waits, each request from its receipt to its reply: none is half done when this returns.
    fn look(&mut self) -> anyhow::Result<Looked> {
        let mut looked = Looked::default();
        loop {
            match self.listener.try_accept() {
                Ok(link) => {
                    looked.served += 1;
                    self.clients.push(link);
                }
                Err(Error::WouldBlock) => break,
                // A stranger has been hung up on.
                Err(Error::AccessDenied { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let sessions = &mut self.sessions;
        self.clients.retain(|client| match serve(client, sessions) {
            Ok(served) => {
                looked.served += u64::from(served);
                true
            }
            // It has hung up, or does what it should not, which ends its own link and nothing else.
            Err(_) => false,
        });
        match self.driver.try_recv() {
            Ok(Request::Replace { fault }) => looked.replace = Some(fault),
            Ok(Request::Add { .. }) | Err(Error::WouldBlock) => {}
            Err(_) => looked.ended = true,
        }
        Ok(looked)
    }
}

/// Whether there was a request.
fn serve(client: &Link, sessions: &mut BTreeMap<u64, Session>) -> Result<bool, Error> {
    match client.try_recv() {
        Ok(Request::Add { session, bytes }) => {
            let session = sessions.entry(session).or_default();
            session.add(&bytes);
            // One that does not read its replies is hung up on: WouldBlock is an error here.
            client.try_send(session)?;
            Ok(true)
        }
        // Not a client's business.
        Ok(Request::Replace { .. }) => Ok(false),
        Err(Error::WouldBlock) => Ok(false),
        Err(error) => Err(error),
    }
}

fn spawn(fault: Option<Fault>) -> anyhow::Result<Successor> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("server");
    if let Some(fault) = fault {
        use clap::ValueEnum;
        command.args(
            fault
                .to_possible_value()
                .map(|value| value.get_name().to_owned()),
        );
    }
    Ok(Successor::spawn(command)?)
}

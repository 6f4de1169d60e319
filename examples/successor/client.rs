//! A client: asks without a pause, and checks every answer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use memlane_transport::{Address, Error, Link};

use crate::{Experience, Request, Session};

/// A request without a reply for so long is lost.
const LOST: Duration = Duration::from_secs(60);

pub(crate) fn run() -> anyhow::Result<()> {
    let driver = memlane_transport::Link::inherited()?;
    let (path, keep): (PathBuf, bool) = driver.recv()?;
    let mut experience = Experience {
        requests: 0,
        longest: Duration::ZERO,
        failure: None,
    };
    if let Err(error) = ask(&driver, &Address::path(path)?, keep, &mut experience) {
        experience.failure = Some(format!("{error:#}"));
        // Until it is asked.
        driver.recv::<()>()?;
    }
    driver.send(&experience)?;
    Ok(())
}

fn ask(
    driver: &Link,
    address: &Address,
    keep: bool,
    experience: &mut Experience,
) -> anyhow::Result<()> {
    let session = u64::from(std::process::id());
    let mut expected = Session::default();
    let mut kept: Option<Link> = None;
    loop {
        let bytes: Vec<u8> = (0..fastrand::usize(..100))
            .map(|_| fastrand::u8(..))
            .collect();
        expected.add(&bytes);
        let begin = Instant::now();
        let link = match kept.take() {
            Some(link) => link,
            None => Link::connect(address).context("connecting")?,
        };
        link.send(&Request::Add { session, bytes })
            .context("sending a request")?;
        let found: Session = link.recv_timeout(LOST).context("receiving a reply")?;
        experience.longest = experience.longest.max(begin.elapsed());
        ensure!(
            found == expected,
            "the server has {found:?} where {expected:?} was sent"
        );
        experience.requests += 1;
        kept = keep.then_some(link);
        match driver.try_recv::<()>() {
            Ok(()) => return Ok(()),
            Err(Error::WouldBlock) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

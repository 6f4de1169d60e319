//! The smallest publisher: waits for a subscriber, then sends what it reads from standard input, line by line. Run
//! `subscribe` beside it.

fn main() -> anyhow::Result<()> {
    let mut publisher = memlane::Publisher::bind("smallest")?;
    publisher.wait_for_subscribers(1)?;
    for line in std::io::stdin().lines() {
        publisher.send(line?.as_bytes())?;
    }
    Ok(())
}

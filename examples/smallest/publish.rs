//! The smallest publisher: what it reads from standard input, line by line. Run `subscribe` beside it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut publisher = memlane::Publisher::bind("smallest")?;
    for line in std::io::stdin().lines() {
        publisher.send(line?.as_bytes())?;
    }
    Ok(())
}

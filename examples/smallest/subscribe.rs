//! The smallest subscriber: prints what `publish` reads, from the moment it subscribed until `publish` ends.

fn main() -> anyhow::Result<()> {
    let mut subscriber = memlane::Subscriber::connect("smallest")?;
    loop {
        match subscriber.recv() {
            Ok(message) => println!("{}", String::from_utf8_lossy(&message.to_vec())),
            Err(memlane::RecvError::Disconnected { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

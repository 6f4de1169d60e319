//! Both ends of a lane.

use memlane::{Address, Link, WatchReceiver, WatchSender};

pub(crate) fn bind(address: &Address) -> WatchSender {
    WatchSender::builder().bind_to(address).unwrap()
}

pub(crate) fn connect(address: &Address) -> WatchReceiver {
    WatchReceiver::builder().connect_to(address).unwrap()
}

pub(crate) fn pair() -> (WatchSender, WatchReceiver) {
    let (ours, theirs) = Link::pair().unwrap();
    let sender = WatchSender::builder().unbound().unwrap();
    sender.attach(ours).unwrap();
    let receiver = WatchReceiver::builder().over(theirs).unwrap();
    (sender, receiver)
}

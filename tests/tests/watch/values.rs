//! Values of a type, and the wrong counterpart.

use memlane::{
    Address, Client, Encoded, Error, Plain, Sender, Subscriber, WatchReceiver, WatchSender,
};
use memlane_tests::{Scene, wait_until};

use crate::lane::{bind, connect};

#[test]
fn values_are_compared_and_seen() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let builder = WatchSender::builder().of::<Plain<[f64; 3]>>();
    let mut sender = builder.bind_to(&address).unwrap();
    assert_eq!(sender.get_ref().max_len(), 24);
    let builder = WatchReceiver::builder().of::<Plain<[f64; 3]>>();
    let mut receiver = builder.connect_to(&address).unwrap();
    assert_eq!(receiver.get().unwrap(), None);
    sender.send(&[1.0, 2.0, 0.5]).unwrap();
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap(), Some([1.0, 2.0, 0.5]));
    let error = connect_error(&address);
    assert_eq!(
        error,
        "there is no sender to watch: it carries plain [f64; 3] (24 bytes, aligned to 8); this receiver expects bytes"
    );
    drop(sender);

    let builder = WatchSender::builder().of::<Encoded<Vec<String>>>();
    let mut sender = builder.version(3).bind_to(&address).unwrap();
    let builder = WatchReceiver::builder().of::<Encoded<Vec<String>>>();
    let error = builder.clone_of().connect_to(&address).unwrap_err();
    assert!(error.to_string().contains("version 3"), "{error}");
    let mut receiver = builder.version(3).connect_to(&address).unwrap();
    sender.send(&vec!["one".to_owned()]).unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), ["one"]);
    let error = sender.send(&vec!["x".repeat(2000)]).unwrap_err();
    assert!(
        error.to_string().starts_with("the value cannot be encoded"),
        "{error}"
    );
}

trait CloneOf {
    fn clone_of(&self) -> Self;
}

impl CloneOf for memlane::Typed<memlane::WatchReceiverBuilder, Encoded<Vec<String>>> {
    fn clone_of(&self) -> Self {
        self.get_ref().clone().of()
    }
}

fn connect_error(address: &Address) -> String {
    let error = WatchReceiver::builder().connect_to(address).unwrap_err();
    error.to_string()
}

#[test]
fn the_wrong_counterpart_is_told_what_is_there() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let sender = bind(&address);
    let watch = "a latest value is there: watch it (WatchReceiver::connect)";
    let error = Subscriber::builder().connect_to(&address).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the publisher refused this subscriber: {watch}")
    );
    let error = memlane::Publisher::builder().connect_to(&address);
    let error: Result<Sender, Error> = error;
    assert_eq!(
        error.unwrap_err().to_string(),
        format!("there is no receiver to send to: {watch}")
    );
    let error = Client::builder().connect_to(&address).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("there is no server to call: {watch}")
    );
    assert_eq!(sender.refused(), 3);
    drop(sender);

    let publisher = memlane::Publisher::builder().bind_to(&address).unwrap();
    assert_eq!(
        connect_error(&address),
        "there is no sender to watch: a publisher is there, which sends: subscribe to it (Subscriber::connect)"
    );
    drop(publisher);

    let sender = WatchSender::builder()
        .max_receivers(1)
        .max_len(1 << 20)
        .bind_to(&address)
        .unwrap();
    let first = connect(&address);
    assert_eq!(
        connect_error(&address),
        "there is no sender to watch: it has 1 receivers, and takes no more"
    );
    drop(first);
    wait_until("its place is free", || sender.receivers() == 0);
    let short = WatchReceiver::builder().max_len(1000);
    let error = short.connect_to(&address).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no sender to watch: its values have up to 1048576 bytes, and this receiver takes at most 1000 \
         (WatchReceiverBuilder::max_len)"
    );
}

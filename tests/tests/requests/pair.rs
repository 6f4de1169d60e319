//! A server and a client in one process.

use std::thread;

use memlane::{Client, Link, Server};
use memlane_tests::Scene;

/// A server and a client inside of this process; `serve` runs beside.
pub(crate) fn pair(serve: impl FnOnce(&mut Server) + Send, ask: impl FnOnce(&mut Client)) {
    let (ours, theirs) = Link::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut server = Server::builder().max_requests(8).unbound().unwrap();
            server.attach(ours).unwrap();
            serve(&mut server);
        });
        let mut client = Client::builder().over(theirs).unwrap();
        ask(&mut client);
    });
}

pub(crate) trait BindAt {
    fn bind_at(scene: &Scene) -> Server;
}

impl BindAt for Server {
    fn bind_at(scene: &Scene) -> Server {
        Server::builder().bind_to(&scene.address("echo")).unwrap()
    }
}

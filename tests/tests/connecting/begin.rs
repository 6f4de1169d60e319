//! Every end that connects: without waiting, whoever is there, whoever is not.

use std::time::{Duration, Instant};

use memlane::{
    Address, Client, Connecting, Connects, Encoded, Error, Link, Plain, Publisher, Readiness,
    Receiver, Sender, Server, Subscriber, WatchReceiver, WatchSender,
    transport::{Access, Listener},
};
use memlane_tests::{
    Control, PATIENCE, Role, Scene, Smol, Tasks, Tokio, poll_and_drop, threads, wait_until,
};
use rustix::event::{PollFd, PollFlags, poll};

/// A server, a receiver, and a sender of latest values, until it is told to end.
pub(crate) fn services(role: &Role) {
    let [sum, jobs, pose]: [String; 3] = role.hear();
    let address = |text: String| -> Address { text.parse().unwrap() };
    let mut server = Server::builder().bind_to(&address(sum)).unwrap();
    let mut receiver = Subscriber::builder().bind_to(&address(jobs)).unwrap();
    let mut sender = WatchSender::builder().bind_to(&address(pose)).unwrap();
    sender.send(b"north").unwrap();
    role.tell(&());
    let (mut requests, mut jobs) = (0_u64, 0_u64);
    loop {
        if let Ok(request) = server.try_recv() {
            request.reply(b"an answer").unwrap();
            requests += 1;
        }
        if let Ok(job) = receiver.try_recv() {
            assert_eq!(job.to_vec(), b"a job");
            jobs += 1;
        }
        if let Some(()) = role.has_said() {
            break;
        }
        std::thread::yield_now();
    }
    role.tell(&(requests, jobs));
}

async fn each_end<K: Tasks>(addresses: &[Address; 3], rounds: usize) {
    let [sum, jobs, pose] = addresses;
    for _ in 0..rounds {
        let client = Client::builder().begin_at(sum).unwrap();
        let mut client = client.finish_with(K::readiness).await.unwrap();
        let reply = client.call(b"a question").await.unwrap();
        assert_eq!(reply.to_vec(), b"an answer");
        drop(reply);
        let watch = WatchReceiver::builder().begin_at(pose).unwrap();
        let mut watch = watch.finish_with(K::readiness).await.unwrap();
        watch.changed().await.unwrap();
        assert_eq!(watch.get_mut().get().unwrap().unwrap(), b"north");
        for driven in [false, true] {
            let mut options = Publisher::builder();
            if driven {
                options = options.driven();
            }
            let sender = options.begin_at(jobs).unwrap();
            let mut sender = sender.finish_with(K::readiness).await.unwrap();
            sender.send(b"a job").await.unwrap();
            // Before it leaves, so that the other side has it whatever happens.
            sender.drain().await.unwrap();
        }
        memlane_tests::alive();
    }
}

#[test]
fn every_end_connects_in_tasks() {
    let scene = Scene::after(Smol::start);
    let addresses = ["sum", "jobs", "pose"].map(|name| scene.address(name));
    let services = scene.spawn("services", &addresses.each_ref().map(Address::to_string));
    let () = services.hear();
    const ROUNDS: usize = 10;
    Control::run(each_end::<Control>(&addresses, ROUNDS));
    Smol::run(each_end::<Smol>(&addresses, ROUNDS));
    Tokio::run(each_end::<Tokio>(&addresses, ROUNDS));
    services.tell(&());
    let counts: (usize, usize) = services.hear();
    assert_eq!(counts, (3 * ROUNDS, 6 * ROUNDS));
    services.finish();
}

/// In a loop of the user's, which waits for its descriptor.
fn in_a_loop<E: Connects>(mut connecting: Connecting<E>) -> Result<E, Error> {
    loop {
        if let Some(end) = connecting.try_finish()? {
            return Ok(end);
        }
        assert_eq!(
            poll(&mut [PollFd::new(&connecting, PollFlags::IN)], None),
            Ok(1)
        );
    }
}

#[test]
fn every_end_connects_in_a_loop() {
    let scene = Scene::new();
    let addresses = ["sum", "jobs", "pose"].map(|name| scene.address(name));
    let services = scene.spawn("services", &addresses.each_ref().map(Address::to_string));
    let () = services.hear();
    let [sum, jobs, pose] = &addresses;
    let mut client = in_a_loop(Client::builder().begin_at(sum).unwrap()).unwrap();
    assert_eq!(client.call(b"a question").unwrap().to_vec(), b"an answer");
    let mut watch = in_a_loop(WatchReceiver::builder().begin_at(pose).unwrap()).unwrap();
    assert_eq!(watch.get().unwrap().unwrap(), b"north");
    for options in [Publisher::builder(), Publisher::builder().driven()] {
        let mut sender: Sender = in_a_loop(options.begin_at(jobs).unwrap()).unwrap();
        sender.send(b"a job").unwrap();
        assert!(sender.drain(PATIENCE).unwrap());
    }
    // As any other, it learns of the end of the receiver, whoever runs it.
    let mut last = in_a_loop(Publisher::builder().begin_at(jobs).unwrap()).unwrap();
    services.tell(&());
    let counts: (usize, usize) = services.hear();
    assert_eq!(counts, (1, 2));
    services.finish();
    wait_until("the end of the receiver", || last.send(b"a job").is_err());
}

/// One after the other, each dropped after as many turns as it takes to be there, and one less, and so on.
fn dropped_on_the_way<K: Tasks>(scene: &Scene) {
    let address = scene.address("sum");
    let mut server = Server::builder().bind_to(&address).unwrap();
    for polls in 0..20 {
        let connecting = Client::builder().begin_at(&address).unwrap();
        let turns = std::cell::Cell::new(0);
        let serving = async {
            // The server has its turn with each of the client's.
            while turns.get() < polls {
                let _ = server.try_recv();
                turns.set(turns.get() + 1);
                memlane_tests::yield_now().await;
            }
        };
        let client = poll_and_drop(polls, connecting.finish_with(K::readiness));
        let (client, ()) = K::run(async { futures_util::future::join(client, serving).await });
        drop(client);
    }
    // Whoever was let in is seen to leave, and the next is served.
    let mut client = Client::builder().begin_at(&address).unwrap();
    let mut client = loop {
        let _ = server.try_recv();
        if let Some(client) = client.try_finish().unwrap() {
            break client;
        }
    };
    wait_until("the others are gone", || {
        let _ = server.try_recv();
        server.clients() == 1
    });
    let call = client.send(b"a question").unwrap();
    server.recv().unwrap().reply(b"an answer").unwrap();
    assert_eq!(client.wait(call).unwrap().to_vec(), b"an answer");
}

#[test]
fn one_that_is_dropped_on_the_way_has_hung_up() {
    let scene = Scene::after(Smol::start);
    dropped_on_the_way::<Control>(&scene);
    dropped_on_the_way::<Smol>(&scene);
    dropped_on_the_way::<Tokio>(&scene);
}

/// What a beginning that comes to nothing says.
fn fails<E: Connects, R: Readiness>(
    what: &str,
    outcome: Result<memlane::Async<E, R>, Error>,
) -> Error {
    match outcome {
        Ok(_) => panic!("{what}: it has connected"),
        Err(error) => error,
    }
}

fn nobody_answers<K: Tasks>(scene: &Scene) {
    let address = scene.address("silent");
    let _silent = Listener::bind_with(&address, Access::SameUser).unwrap();
    let limit = Duration::from_millis(10);
    let before = Instant::now();
    K::run(async {
        let client = Client::builder().timeout(limit).begin_at(&address);
        let error = fails("client", client.unwrap().finish_with(K::readiness).await);
        assert!(
            matches!(&error, Error::NoServer { why } if why.contains("within 10ms")),
            "{error}"
        );
        let sender = Publisher::builder().timeout(limit).begin_at(&address);
        let error = fails("sender", sender.unwrap().finish_with(K::readiness).await);
        assert!(
            matches!(&error, Error::NoReceiver { why } if why.contains("within 10ms")),
            "{error}"
        );
        let watch = WatchReceiver::builder().timeout(limit).begin_at(&address);
        let error = fails("watch", watch.unwrap().finish_with(K::readiness).await);
        assert!(
            matches!(&error, Error::NoSender { why } if why.contains("within 10ms")),
            "{error}"
        );
    });
    assert!(before.elapsed() >= 3 * limit);
}

#[test]
fn nobody_answers_whoever_connects() {
    let scene = Scene::after(Smol::start);
    nobody_answers::<Control>(&scene);
    nobody_answers::<Smol>(&scene);
    nobody_answers::<Tokio>(&scene);
}

#[test]
fn one_that_meets_somebody_else_is_told_whom() {
    let scene = Scene::new();
    let address = scene.address("camera");
    let publisher = Publisher::builder().bind_to(&address).unwrap();
    let error = in_a_loop(Client::builder().begin_at(&address).unwrap()).unwrap_err();
    assert!(matches!(error, Error::NoServer { .. }), "{error}");
    assert!(error.to_string().contains("Subscriber::connect"), "{error}");
    let error = in_a_loop(WatchReceiver::builder().begin_at(&address).unwrap()).unwrap_err();
    assert!(error.to_string().contains("Subscriber::connect"), "{error}");
    let error = in_a_loop(Publisher::builder().begin_at(&address).unwrap()).unwrap_err();
    assert!(matches!(error, Error::NoReceiver { .. }), "{error}");
    drop(publisher);
    let nobody = |error: Error| assert!(error.to_string().contains("camera"), "{error}");
    nobody(Client::builder().begin_at(&address).unwrap_err());
    nobody(WatchReceiver::builder().begin_at(&address).unwrap_err());
    nobody(Publisher::builder().begin_at(&address).unwrap_err());
}

#[test]
fn typed_ends_begin_as_others_do() {
    let _scene = Scene::after(Smol::start);
    Control::run(async {
        let (ours, theirs) = Link::pair().unwrap();
        let mut publisher = Publisher::builder()
            .of::<Encoded<String>>()
            .unbound()
            .unwrap();
        publisher.get_ref().attach(ours).unwrap();
        let subscriber = Subscriber::builder().of::<Encoded<String>>();
        let mut subscriber = subscriber
            .begin_over(theirs)
            .unwrap()
            .finish()
            .await
            .unwrap();
        publisher.send(&"a line".to_owned()).unwrap();
        assert_eq!(subscriber.recv().await.unwrap(), "a line");

        let (ours, theirs) = Link::pair().unwrap();
        let mut server = Server::builder()
            .of::<Plain<u32>, Plain<u64>>()
            .unbound()
            .unwrap();
        server.get_mut().attach(ours).unwrap();
        let serving = std::thread::spawn(move || {
            for _ in 0..2 {
                let request = server.recv().unwrap();
                let twice = u64::from(*request) * 2;
                request.reply(&twice).unwrap();
            }
        });
        let client = Client::builder().of::<Plain<u32>, Plain<u64>>();
        let client = client.begin_over(theirs).unwrap().finish().await.unwrap();
        let client = client.shared();
        let other = client.clone();
        let (two, four) = tokio::join!(client.call(&1), other.call(&2));
        assert_eq!((two.unwrap(), four.unwrap()), (2, 4));
        drop((client, other));
        serving.join().unwrap();

        let (ours, theirs) = Link::pair().unwrap();
        let mut sender = WatchSender::builder().of::<Plain<u32>>().unbound().unwrap();
        sender.get_ref().attach(ours).unwrap();
        sender.send(&7).unwrap();
        let watch = WatchReceiver::builder().of::<Plain<u32>>();
        let mut watch = watch.begin_over(theirs).unwrap().finish().await.unwrap();
        watch.changed().await.unwrap();
        assert_eq!(watch.get().unwrap(), Some(7));

        let (ours, theirs) = Link::pair().unwrap();
        let mut receiver = Subscriber::builder().of::<Plain<u32>>().unbound().unwrap();
        receiver.get_mut().attach(ours).unwrap();
        let receiving = std::thread::spawn(move || receiver.recv().unwrap());
        let sender = Publisher::builder().of::<Plain<u32>>();
        let mut sender = sender.begin_over(theirs).unwrap().finish().await.unwrap();
        sender.send(&9).await.unwrap();
        assert_eq!(receiving.join().unwrap(), 9);
    });
}

/// As in README.md: a runtime, and no thread.
pub(crate) fn by_name(role: &Role) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(async {
        let before = threads().len();
        let mut receiver = memlane::tokio::Receiver::bind("jobs").unwrap();
        let mut server = memlane::tokio::Server::bind("sum").unwrap();
        let mut pose = WatchSender::builder().driven().bind("pose").unwrap();
        pose.send(b"north").unwrap();
        let serving = async {
            let request = server.recv().await.unwrap();
            request.reply(b"an answer").unwrap();
        };
        let receiving = async { assert_eq!(receiver.recv().await.unwrap().to_vec(), b"a job") };
        let driving = async {
            while pose.receivers() == 0 {
                pose.drive().unwrap();
                tokio::task::yield_now().await;
            }
        };
        let asking = async {
            let mut client = memlane::tokio::Client::connect("sum").await.unwrap();
            let reply = client.call(b"a question").await.unwrap();
            assert_eq!(reply.to_vec(), b"an answer");
        };
        let sending = async {
            let mut sender = memlane::tokio::Sender::connect("jobs").await.unwrap();
            sender.send(b"a job").await.unwrap();
            sender.drain().await.unwrap();
        };
        let watching = async {
            let mut pose = memlane::tokio::WatchReceiver::connect("pose")
                .await
                .unwrap();
            pose.changed().await.unwrap();
            assert_eq!(pose.get_mut().get().unwrap().unwrap(), b"north");
        };
        tokio::join!(serving, receiving, driving, asking, sending, watching);
        // Those that close descriptors of links go by themselves, and have their parents' names for a moment.
        wait_until("no thread is left", || threads().len() == before);
    });
    role.tell(&());
}

#[test]
fn by_name_in_a_runtime() {
    let scene = Scene::new();
    let all = scene.spawn("by name", &());
    let () = all.hear();
    all.finish();
}

/// A future that is moved between the threads of a runtime.
#[allow(dead_code)]
fn futures_can_be_sent() {
    fn sent(_: impl Send) {}
    let over = || Link::pair().unwrap().0;
    sent(Client::builder().begin_over(over()).unwrap().finish());
    sent(
        WatchReceiver::builder()
            .begin_over(over())
            .unwrap()
            .finish(),
    );
    sent(Publisher::builder().begin_over(over()).unwrap().finish());
    sent(Subscriber::builder().begin_over(over()).unwrap().finish());
    sent(memlane::tokio::Client::connect("sum"));
    sent(memlane::tokio::Sender::connect("jobs"));
    let _ = Receiver::<memlane::Untrusted>::senders;
}

use std::{
    collections::BTreeMap,
    fs,
    future::{Future, poll_fn},
    io,
    os::fd::OwnedFd,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

use memlane::{
    Async, Client, Connecting, ControlThread, Error, Publisher, Readiness, Server, Subscriber,
    WatchReceiver,
};

/// An executor, and what wakes the tasks of lane ends in it.
pub trait Tasks {
    /// What wakes them.
    type Readiness: Readiness + Unpin + Send + 'static;
    /// Whether the control work of publishers is done by their tasks, so that no thread has to.
    const DRIVES: bool;

    /// Wakes tasks that wait for this descriptor.
    fn readiness(descriptor: Arc<OwnedFd>) -> io::Result<Self::Readiness>;
    /// Runs a future to its end.
    fn run<T>(future: impl Future<Output = T>) -> T;
    /// Takes a publisher into tasks.
    fn publisher(publisher: Publisher) -> Async<Publisher, Self::Readiness>;
    /// Takes a subscriber into tasks.
    fn subscriber(subscriber: Subscriber) -> Async<Subscriber, Self::Readiness>;
    /// Takes a client into tasks.
    fn client(client: Client) -> Async<Client, Self::Readiness>;
    /// Takes a server into tasks.
    fn server(server: Server) -> Async<Server, Self::Readiness>;
    /// Takes a receiver of latest values into tasks.
    fn watch(receiver: WatchReceiver) -> Async<WatchReceiver, Self::Readiness>;
    /// Finishes a subscription.
    fn finish(
        connecting: Connecting,
    ) -> impl Future<Output = Result<Async<Subscriber, Self::Readiness>, Error>>;
}

/// memlane's own control thread, and the plainest of executors.
#[derive(Debug)]
pub struct Control;

impl Tasks for Control {
    type Readiness = ControlThread;
    const DRIVES: bool = false;

    fn readiness(descriptor: Arc<OwnedFd>) -> io::Result<ControlThread> {
        ControlThread::new(descriptor)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        block_on(future)
    }

    fn publisher(publisher: Publisher) -> Async<Publisher> {
        Async::new(publisher).expect("a thread")
    }

    fn subscriber(subscriber: Subscriber) -> Async<Subscriber> {
        Async::new(subscriber).expect("a thread")
    }

    fn client(client: Client) -> Async<Client> {
        Async::new(client).expect("a thread")
    }

    fn server(server: Server) -> Async<Server> {
        Async::new(server).expect("a thread")
    }

    fn watch(receiver: WatchReceiver) -> Async<WatchReceiver> {
        Async::new(receiver).expect("a thread")
    }

    async fn finish(connecting: Connecting) -> Result<Async<Subscriber>, Error> {
        connecting.finish().await
    }
}

/// smol's reactor.
#[derive(Debug)]
pub struct Smol(async_io::Async<Arc<OwnedFd>>);

impl Smol {
    /// Starts its thread and makes its descriptors, which are there for good: before anything is counted.
    pub fn start() {
        let descriptor = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC);
        let smol = Smol::register(Arc::new(descriptor.expect("an eventfd")));
        let mut smol = smol.expect("a reactor");
        let readable = async_io::block_on(poll_fn(|cx| smol.poll_readable(cx)));
        readable.expect("a reactor");
    }

    /// Registers a descriptor with it.
    pub fn register(descriptor: Arc<OwnedFd>) -> io::Result<Smol> {
        async_io::Async::new(descriptor).map(Smol)
    }
}

impl Readiness for Smol {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_readable(cx)
    }
}

impl Tasks for Smol {
    type Readiness = Smol;
    const DRIVES: bool = false;

    fn readiness(descriptor: Arc<OwnedFd>) -> io::Result<Smol> {
        Smol::register(descriptor)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        async_io::block_on(future)
    }

    fn publisher(publisher: Publisher) -> Async<Publisher, Smol> {
        Async::with(publisher, Smol::register).expect("a reactor")
    }

    fn subscriber(subscriber: Subscriber) -> Async<Subscriber, Smol> {
        Async::with(subscriber, Smol::register).expect("a reactor")
    }

    fn client(client: Client) -> Async<Client, Smol> {
        Async::with(client, Smol::register).expect("a reactor")
    }

    fn server(server: Server) -> Async<Server, Smol> {
        Async::with(server, Smol::register).expect("a reactor")
    }

    fn watch(receiver: WatchReceiver) -> Async<WatchReceiver, Smol> {
        Async::with(receiver, Smol::register).expect("a reactor")
    }

    async fn finish(connecting: Connecting) -> Result<Async<Subscriber, Smol>, Error> {
        connecting.finish_with(Smol::register).await
    }
}

/// A tokio runtime of one thread, without timers.
#[derive(Debug)]
pub struct Tokio;

impl Tasks for Tokio {
    type Readiness = memlane::tokio::Readiness;
    const DRIVES: bool = true;

    fn readiness(descriptor: Arc<OwnedFd>) -> io::Result<memlane::tokio::Readiness> {
        memlane::tokio::Readiness::new(descriptor)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder
            .enable_io()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    fn publisher(publisher: Publisher) -> memlane::tokio::Publisher {
        memlane::tokio::Publisher::register(publisher).expect("a runtime")
    }

    fn subscriber(subscriber: Subscriber) -> memlane::tokio::Subscriber {
        memlane::tokio::Subscriber::register(subscriber).expect("a runtime")
    }

    fn client(client: Client) -> memlane::tokio::Client {
        memlane::tokio::Client::register(client).expect("a runtime")
    }

    fn server(server: Server) -> memlane::tokio::Server {
        memlane::tokio::Server::register(server).expect("a runtime")
    }

    fn watch(receiver: WatchReceiver) -> memlane::tokio::WatchReceiver {
        memlane::tokio::WatchReceiver::register(receiver).expect("a runtime")
    }

    async fn finish(connecting: Connecting) -> Result<memlane::tokio::Subscriber, Error> {
        memlane::tokio::Subscriber::finish(connecting).await
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, which sleeps until it is woken.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Lets others run.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Polls once, in this task.
pub async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Polls at most so many times, letting others run in between, and then drops the future.
pub async fn poll_and_drop<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..polls {
        if let Poll::Ready(output) = poll_once(future.as_mut()).await {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

/// This process's threads, but for those that close descriptors of links and go by themselves: their ids, and their names,
/// which are those of their parents for a moment.
pub fn threads() -> BTreeMap<String, String> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc");
    tasks
        .flatten()
        .filter_map(|task| {
            let id = task.file_name().to_string_lossy().into_owned();
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            Some((id, name.trim().to_owned()))
        })
        .filter(|(_, name)| !name.starts_with("memlane-dispos"))
        .collect()
}

use std::{
    fs, process,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// For how long a process of a test may show no sign of life.
pub const PATIENCE: Duration = Duration::from_secs(60);

static SIGNS: AtomicU64 = AtomicU64::new(0);

/// A sign of life: long loops give one now and then, whatever talks to another process does by itself.
pub fn alive() {
    SIGNS.fetch_add(1, Ordering::Relaxed);
}

/// Aborts the process when it shows no sign of life any more, and says where its threads are.
#[derive(Debug)]
pub(crate) struct Watchdog {
    _stop: mpsc::Sender<()>,
}

impl Watchdog {
    pub(crate) fn start(whom: String) -> Watchdog {
        let (stop, stopped) = mpsc::channel::<()>();
        thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                let mut seen = (SIGNS.load(Ordering::Relaxed), Instant::now());
                while stopped.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout)
                {
                    let signs = SIGNS.load(Ordering::Relaxed);
                    if signs != seen.0 {
                        seen = (signs, Instant::now());
                    } else if seen.1.elapsed() > PATIENCE {
                        eprintln!("{whom} (process {}) hangs:\n{}", process::id(), threads());
                        process::abort();
                    }
                }
            })
            .expect("a thread to watch");
        Watchdog { _stop: stop }
    }
}

/// Name, state and place in the kernel of every thread.
fn threads() -> String {
    let mut text = String::new();
    for task in fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
    {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (name, call, place) = (read("comm"), read("syscall"), read("wchan"));
        let call = call.split(' ').next().unwrap_or_default().trim();
        text += &format!("  {}: system call {call}, {place}\n", name.trim());
    }
    text
}

/// Waits for something that other processes or threads bring about; if it does not come, that is a failure.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut pause = Duration::from_micros(20);
    while !condition() {
        assert!(
            start.elapsed() < PATIENCE,
            "waited for {PATIENCE:?} in vain: {what}"
        );
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(2));
    }
    alive();
}

/// This thread's, to be told to whoever wants to know whether it sleeps.
pub fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_pid() as u32
}

/// Waits until a thread sleeps in the kernel.
#[track_caller]
pub fn wait_asleep(process: u32, thread: u32) {
    wait_for_state('S', process, thread);
}

/// Waits until a thread is stopped by a signal.
#[track_caller]
pub fn wait_stopped(process: u32, thread: u32) {
    wait_for_state('T', process, thread);
}

#[track_caller]
fn wait_for_state(state: char, process: u32, thread: u32) {
    wait_until(&format!("thread {thread} gets into state {state}"), || {
        let stat = fs::read_to_string(format!("/proc/{process}/task/{thread}/stat"))
            .expect("the thread's state");
        self::state(&stat) == Some(state)
    });
}

/// The state of a thread, of what `/proc` says of it.
pub(crate) fn state(stat: &str) -> Option<char> {
    // The name before the state is in parentheses, and may contain anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.chars().next()
}

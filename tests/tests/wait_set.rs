//! One wait set for everything that a program has: lanes both ways, links, their listener, timers, signals, other threads,
//! and the deaths of other processes.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    time::Duration,
};

use memlane::{
    Error, Link, Publisher, Subscriber, TryRecvError, TrySendError, Watched,
    signaling::{Events, Interest, Key, Registration, Trigger, WaitSet, gone},
};
use memlane_region::page_size;
use memlane_tests::{
    PATIENCE, Part, Policy, Received, Role, Scene, Wish, alive, check, fill, play, unbound,
};
use memlane_transport::{Error as LinkError, Listener};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[
    ("publisher", publisher),
    ("reader", reader),
    ("client", client),
    ("mortal", mortal),
    ("sharer", sharer),
];

#[test]
fn other_process() {
    play(ROLES);
}

const LANES: usize = 3;
const MESSAGES: u64 = 5000;
const BACK: u64 = 3000;
const CLIENTS: u64 = 4;
const PACKETS: u64 = 200;

fn service(lane: usize) -> String {
    format!("lane-{lane}")
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))
}

/// Publishes, lets go, and stays.
fn publisher(role: &Role) {
    let (lane, messages): (usize, u64) = role.hear();
    let mut publisher = unbound(page_size())
        .bind(&service(lane))
        .expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    let mut message = [0; 200];
    for number in 0..messages {
        let message = &mut message[..8 + number as usize % 190];
        fill(number, message);
        publisher.send(message).expect("room");
        // Now and then its subscriber finds nothing.
        if number % 100 == 0 {
            alive();
            std::thread::yield_now();
        }
    }
    drop(publisher);
    role.hear::<()>();
}

/// Reads, not faster than it likes.
fn reader(role: &Role) {
    role.hear::<()>();
    let wish = Wish {
        policy: Policy::Block,
        trusting: false,
    };
    let mut subscriber = wish.connect_by_name("back").expect("a publisher");
    role.tell(&());
    let mut message = Vec::new();
    for number in 0..BACK {
        let received = subscriber.recv(&mut message);
        assert!(matches!(received, Ok(Received::Message)), "{received:?}");
        check(number, &message);
        if number % 50 == 0 {
            alive();
            std::thread::yield_now();
        }
    }
    role.tell(&());
    role.hear::<()>();
}

/// Sends packets over a link, and hangs up.
fn client(role: &Role) {
    let (address, name): (String, u64) = role.hear();
    let link = Link::connect(&address.parse().expect("an address")).expect("a listener");
    for packet in 0..PACKETS {
        link.send_timeout(&(name, packet), PATIENCE).expect("room");
    }
    drop(link);
    role.hear::<()>();
}

fn mortal(role: &Role) {
    role.hear::<()>();
    role.tell(&());
    role.hear::<()>();
}

fn pidfd(child: &memlane_tests::Child) -> OwnedFd {
    let pid = Pid::from_raw(child.id() as i32).expect("a process");
    pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd")
}

/// SIGUSR2 to this thread, as a descriptor. It is blocked in this thread alone, so it is to be sent to this thread alone.
#[allow(unsafe_code)]
fn signals() -> File {
    // SAFETY: the set is initialised by sigemptyset before anything reads it, and signalfd returns a new descriptor.
    unsafe {
        let mut mask = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(mask.as_mut_ptr());
        libc::sigaddset(mask.as_mut_ptr(), libc::SIGUSR2);
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, mask.as_ptr(), std::ptr::null_mut());
        assert_eq!(blocked, 0);
        let fd = libc::signalfd(-1, mask.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        File::from_raw_fd(fd)
    }
}

fn send_signal() {
    let tid = rustix::thread::gettid();
    #[allow(unsafe_code)]
    // SAFETY: a signal that this thread has blocked.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::getpid(),
            tid.as_raw_nonzero().get(),
            libc::SIGUSR2,
        )
    };
    assert_eq!(sent, 0);
}

/// A lane that is read, and what has come of it.
struct Lane {
    subscriber: Watched<Subscriber>,
    place: Registration,
    received: u64,
    ended: bool,
}

impl Lane {
    /// Takes a few messages, as a loop does that has others to serve.
    fn turn(&mut self, trigger: Trigger) {
        for _ in 0..if trigger == Trigger::Level {
            10
        } else {
            u64::MAX
        } {
            match self.subscriber.try_recv() {
                Ok(message) => {
                    check(self.received, &message.to_vec());
                    self.received += 1;
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected { .. }) => return self.ended = true,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Everything at once, level-triggered, by edges, and one at a time.
#[test]
fn everything_in_one_set() {
    for trigger in [Trigger::Level, Trigger::Edge, Trigger::OneShot] {
        everything(trigger);
    }
}

fn everything(trigger: Trigger) {
    let scene = Scene::new();
    let set = WaitSet::new().unwrap();
    let add = |source: &dyn AsFdRef| set.add_with(source.fd(), Interest::READABLE, trigger);
    let again = |place: &Registration| {
        if trigger == Trigger::OneShot {
            place.modify(Interest::READABLE, trigger).unwrap();
        }
    };

    let mut children = Vec::new();
    let mut lanes: HashMap<Key, Lane> = HashMap::new();
    for lane in 0..LANES {
        let child = scene.spawn("publisher", &(lane, MESSAGES));
        child.hear::<()>();
        let subscriber = Subscriber::builder()
            .connect_to(&scene.address(&service(lane)))
            .unwrap();
        let subscriber = Watched::new(subscriber).unwrap();
        let place = add(&subscriber).unwrap();
        let lane = Lane {
            subscriber,
            place,
            received: 0,
            ended: false,
        };
        lanes.insert(lane.place.key(), lane);
        children.push(child);
    }

    let back = unbound(page_size())
        .driven()
        .bind_to(&scene.address("back"))
        .unwrap();
    let mut back: Watched<Publisher> = Watched::new(back).unwrap();
    let back_place = add(&back).unwrap();
    let reading = scene.spawn("reader", &());
    let mut sent = 0;

    let address = scene.address("listener");
    let listener = Listener::bind(&address).unwrap();
    let listener_place = add(&listener).unwrap();
    let mut links: HashMap<Key, (Link, Registration)> = HashMap::new();
    let mut packets = [0; CLIENTS as usize];
    let mut hung_up = 0;
    for name in 0..CLIENTS {
        children.push(scene.spawn("client", &(address.to_string(), name)));
    }

    let victim = scene.spawn("mortal", &());
    victim.hear::<()>();
    let death = set.add(pidfd(&victim), Interest::READABLE).unwrap();
    let mut dead = false;

    let mut signals = signals();
    let signals_place = add(&signals).unwrap();
    let mut signalled = 0;
    let clock = set.timer().unwrap();
    clock.set_every(Duration::from_millis(1)).unwrap();
    let mut ticks = 0;
    let deadline = set.timer().unwrap();
    deadline.set_after(PATIENCE).unwrap();
    let notifier = set.notifier();
    let mut notified = 0;

    let mut events = Events::with_capacity(4);
    while !(lanes.values().all(|lane| lane.ended)
        && sent == BACK
        && hung_up == CLIENTS
        && dead
        && signalled > 0
        && notified > 0
        && ticks > 3)
    {
        alive();
        let ready = set.wait(&mut events, Some(PATIENCE)).unwrap();
        assert!(!ready.is_timed_out());
        notified += u64::from(ready.is_notified());
        for event in ready {
            let key = event.key();
            if let Some(lane) = lanes.get_mut(&key) {
                lane.turn(trigger);
                if lane.ended {
                    // Level-triggered, an end is reported for ever.
                    lane.place
                        .modify(Interest::PRIORITY, Trigger::Edge)
                        .unwrap();
                } else {
                    again(&lane.place);
                }
            } else if key == back_place.key() {
                back.drive().unwrap();
                while back.subscribers() == 1 && sent < BACK {
                    let mut message = [0; 100];
                    fill(sent, &mut message);
                    match back.try_send(&message) {
                        Ok(()) => sent += 1,
                        Err(TrySendError::Full) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                again(&back_place);
            } else if key == listener_place.key() {
                loop {
                    match listener.try_accept() {
                        Ok(link) => {
                            let place = add(&link).unwrap();
                            links.insert(place.key(), (link, place));
                        }
                        Err(LinkError::WouldBlock) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                again(&listener_place);
            } else if let Some((link, place)) = links.get(&key) {
                loop {
                    match link.try_recv::<(u64, u64)>() {
                        Ok((name, packet)) => {
                            assert_eq!(packets[name as usize], packet);
                            packets[name as usize] += 1;
                        }
                        Err(LinkError::WouldBlock) => break again(place),
                        Err(LinkError::Disconnected) => {
                            links.remove(&key);
                            hung_up += 1;
                            break;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            } else if key == death.key() {
                // Not reaped: a zombie is dead.
                dead = true;
                death.modify(Interest::PRIORITY, Trigger::Edge).unwrap();
            } else if key == signals_place.key() {
                let mut information = [0; 128];
                assert_eq!(signals.read(&mut information).unwrap(), 128);
                assert_eq!(information[0], libc::SIGUSR2 as u8);
                signalled += 1;
                again(&signals_place);
            } else if key == clock.key() {
                ticks += event.expirations();
                if ticks == event.expirations() {
                    send_signal();
                    let notifier = notifier.clone();
                    std::thread::spawn(move || notifier.notify())
                        .join()
                        .unwrap();
                    victim.kill();
                }
            } else {
                panic!("{event:?}: what is that?");
            }
        }
    }
    assert_eq!(packets, [PACKETS; CLIENTS as usize]);
    for lane in lanes.values() {
        assert_eq!(lane.received, MESSAGES);
    }
    victim.kill_and_reap();
    reading.hear::<()>();
    reading.hear::<()>();
    children.push(reading);
    for child in children {
        child.tell(&());
        child.finish();
    }
}

/// Sources of several types.
trait AsFdRef {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl<T: AsFd> AsFdRef for T {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

// ---- presence ----

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    /// The link hangs up; the process lives.
    HangsUp,
    /// Nobody has waited for it.
    Zombie,
    /// Another process has a copy of its socket.
    Helper,
}

/// A publisher that has a plain link to its parent as well, and comes to the end that it is told.
fn sharer(role: &Role) {
    let (address, end): (String, End) = role.hear();
    let link = Link::connect(&address.parse().expect("an address")).expect("a listener");
    let mut publisher = unbound(page_size()).bind("shared").expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    for message in 0..3_u64 {
        publisher.send(&message.to_le_bytes()).expect("room");
    }
    role.tell(&());
    role.hear::<()>();
    if end == End::HangsUp {
        drop((publisher, link));
        role.tell(&());
    } else {
        role.hear::<()>();
    }
    role.hear::<()>();
}

/// A peer that is stopped is not reported, however long; one that hangs up, dies, or dies while a helper keeps its socket open
/// is, with all that it had committed before. By its lane's end, by its link, and by its pidfd.
#[test]
fn who_is_there_and_who_is_not() {
    for end in [End::HangsUp, End::Zombie, End::Helper] {
        let scene = Scene::new();
        let address = scene.address("listener");
        let listener = Listener::bind(&address).unwrap();
        let child = scene.spawn("sharer", &(address.to_string(), end));
        let link = listener.accept_timeout(PATIENCE).unwrap();
        let process = pidfd(&child);
        child.hear::<()>();
        let subscriber = Subscriber::builder()
            .connect_to(&scene.address("shared"))
            .unwrap();
        child.hear::<()>();
        let helper = (end == End::Helper).then(|| child.copies_of_its_sockets());
        let mut subscriber = Watched::new(subscriber).unwrap();

        let set = WaitSet::new().unwrap();
        let lane = set.add(&subscriber, Interest::READABLE).unwrap();
        let presence = set.add(&link, Interest::HANG_UP).unwrap();
        let death = set.add(&process, Interest::READABLE).unwrap();
        let mut events = Events::default();
        let mut received = 0;
        while received < 3 {
            let ready = set.wait(&mut events, Some(PATIENCE)).unwrap();
            for event in ready {
                assert_eq!(event.key(), lane.key(), "it is there, and well");
                match subscriber.try_recv() {
                    Ok(message) => {
                        assert_eq!(number(&message.to_vec()), received);
                        received += 1;
                    }
                    Err(TryRecvError::Empty) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));

        // Stopped, and nothing is to be said of it.
        child.stop();
        for _ in 0..3 {
            let mut ready = set
                .wait(&mut events, Some(Duration::from_millis(20)))
                .unwrap();
            assert!(ready.is_timed_out() && ready.next().is_none());
            assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
        }
        assert!(!gone(link.as_fd(), Some(process.as_fd())).unwrap());

        child.go_on();
        match end {
            End::HangsUp => child.tell(&()),
            End::Zombie | End::Helper => child.kill(),
        }
        let mut ended = None;
        let (mut hung_up, mut died) = (false, false);
        while ended.is_none() || !hung_up && end != End::Helper || !died && end != End::HangsUp {
            alive();
            for event in set.wait(&mut events, Some(PATIENCE)).unwrap() {
                if event.key() == lane.key() {
                    ended = match subscriber.try_recv() {
                        Err(TryRecvError::Empty) => None,
                        other => Some(other.map(drop)),
                    };
                } else if event.key() == presence.key() {
                    assert!(event.readiness().is_hung_up());
                    hung_up = true;
                } else {
                    assert_eq!(event.key(), death.key());
                    died = true;
                }
            }
        }
        assert!(
            matches!(ended, Some(Err(TryRecvError::Disconnected { .. }))),
            "{end:?}: {ended:?}"
        );
        match end {
            End::HangsUp => {
                child.hear::<()>();
                assert!(!died, "it lives");
                child.tell(&());
                child.finish();
            }
            End::Zombie => child.kill_and_reap(),
            End::Helper => {
                assert!(!hung_up, "a socket that lives on says nothing");
                child.kill_and_reap();
            }
        }
        drop((helper, subscriber));
        if end != End::HangsUp {
            memlane_transport::remove_stale(&scene.address("shared")).unwrap();
        }
    }
}

/// A lane that is replaced by another one, under a new key: nothing of the old one is heard again.
#[test]
fn a_lane_that_comes_back() {
    let scene = Scene::new();
    let set = WaitSet::new().unwrap();
    let mut events = Events::default();
    let mut keys = Vec::new();
    for _ in 0..5 {
        let child = scene.spawn("publisher", &(0_usize, 10_u64));
        child.hear::<()>();
        let subscriber: Result<Subscriber, Error> =
            Subscriber::builder().connect_to(&scene.address(&service(0)));
        let subscriber = Watched::new(subscriber.unwrap()).unwrap();
        let place = set.add(&subscriber, Interest::READABLE).unwrap();
        let mut lane = Lane {
            subscriber,
            place,
            received: 0,
            ended: false,
        };
        assert!(!keys.contains(&lane.place.key()));
        keys.push(lane.place.key());
        while !lane.ended {
            for event in set.wait(&mut events, Some(PATIENCE)).unwrap() {
                assert_eq!(event.key(), lane.place.key());
                lane.turn(Trigger::Level);
            }
        }
        assert_eq!(lane.received, 10);
        // In the wrong order: the descriptors of the lane are closed, and its place in the set is not given up yet.
        let Lane {
            subscriber, place, ..
        } = lane;
        drop(subscriber);
        drop(place);
        child.tell(&());
        child.finish();
    }
}

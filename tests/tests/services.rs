//! Services by name: who may use a directory and a service, who of many gets a name, and what old and new say to each other.
//! Tests with other users need root, to become them.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use memlane::{Access, Directory, Error, Link, Publisher, Reason, RecvError, Subscriber};
use memlane_region::{Shared, page_size};
use memlane_tests::{
    Child, Dice, PATIENCE, Part, Role, Scene, Start, alive, play, unbound, wait_until,
    wire::{Greeting, Offer, Opening, VERSION},
};
use memlane_transport::{Error as LinkError, Listener};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[
    ("host", host),
    ("guest", guest),
    ("contender", contender),
    ("namer", namer),
];

#[test]
fn other_process() {
    play(ROLES);
}

const ONE: u32 = 65531;
const TWO: u32 = 65532;
const THREE: u32 = 65533;

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Rule {
    SameUser,
    Anyone,
    Users(Vec<u32>),
    Groups(Vec<u32>),
}

impl From<Rule> for Access {
    fn from(rule: Rule) -> Access {
        match rule {
            Rule::SameUser => Access::SameUser,
            Rule::Anyone => Access::Anyone,
            Rule::Users(users) => Access::users(users),
            Rule::Groups(groups) => Access::groups(groups),
        }
    }
}

/// Publishes one message to each one who comes, and says how the binding went and how many were turned away.
fn host(role: &Role) {
    let (rule, guests): (Rule, usize) = role.hear();
    let bound = unbound(page_size()).access(rule.into()).bind("lane");
    let outcome = bound.as_ref().map(drop).map_err(Error::to_string);
    role.tell(&outcome);
    let Ok(mut publisher) = bound else { return };
    publisher.wait_for_subscribers(guests).expect("guests");
    publisher.send(b"welcome").expect("room");
    role.hear::<()>();
    let refused = publisher.stats().refused;
    publisher.close();
    role.tell(&refused);
}

/// Subscribes, and says how it went.
fn guest(role: &Role) {
    let rule: Rule = role.hear();
    let subscriber = Subscriber::builder()
        .access(rule.into())
        .timeout(PATIENCE)
        .connect("lane");
    let outcome = subscriber.as_ref().map(drop).map_err(Error::to_string);
    role.tell(&outcome);
    if let Ok(mut subscriber) = subscriber {
        let message = subscriber.recv().expect("a message");
        assert_eq!(message.to_vec(), b"welcome");
        drop(message);
        assert!(matches!(
            subscriber.recv().map(drop),
            Err(RecvError::Disconnected {
                reason: Reason::Closed
            })
        ));
    }
}

/// A directory where several users meet, and processes of theirs.
struct Town<'a> {
    scene: &'a Scene,
    directory: PathBuf,
}

impl Town<'_> {
    /// None if this process cannot start those of others.
    fn new(scene: &Scene) -> Option<Town<'_>> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can start processes of other users");
            return None;
        }
        let open = |path: &PathBuf, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        let directory = scene.directory().join("memlane");
        open(&scene.directory().to_owned(), 0o755).expect("a mode");
        open(&directory, 0o1777).expect("a mode");
        Some(Town { scene, directory })
    }

    fn start(&self, user: u32, role: &'static str, what: &impl Serialize) -> Child {
        let start = Start {
            user: Some(user),
            directory: Some(self.directory.clone()),
            ..Start::default()
        };
        self.scene.spawn_like(&start, role, what)
    }

    /// What a subscriber of that user gets to hear, if it gets no place.
    fn refused(&self, user: u32, rule: Rule) -> String {
        let child = self.start(user, "guest", &rule);
        let outcome: Result<(), String> = child.hear();
        child.finish();
        outcome.expect_err("it was let in")
    }
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
}

/// Who is let in comes in, and who is not hears who it was to the other side, what that wants, and what to do.
#[test]
fn services_of_other_users() {
    let scene = Scene::new();
    let Some(town) = Town::new(&scene) else {
        return;
    };
    // Of users, and of groups (each user is in the one of its number).
    for rule in [
        Rule::Users(vec![TWO, THREE]),
        Rule::Groups(vec![TWO, THREE]),
        Rule::Anyone,
    ] {
        let host = town.start(ONE, "host", &(rule.clone(), 2_usize));
        host.hear::<Result<(), String>>().expect("a service");
        let found = Directory::at(&town.directory).unwrap().services().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((&*found[0].name, found[0].user), ("lane", ONE));

        let guests = [
            town.start(TWO, "guest", &Rule::Users(vec![ONE])),
            town.start(THREE, "guest", &Rule::Groups(vec![ONE])),
        ];
        // Root, whom a list that does not name it does not admit.
        if !matches!(rule, Rule::Anyone) {
            let error = Subscriber::builder()
                .access(Access::Anyone)
                .connect_to(&scene.address("lane"))
                .unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
            says(
                &error.to_string(),
                &[
                    "access rule",
                    &format!("process {} (uid 0, gid 0", std::process::id()),
                    "[65532, 65533] is required",
                    "PublisherBuilder::access",
                ],
            );
        }
        for guest in &guests {
            guest.hear::<Result<(), String>>().expect("to be let in");
        }
        // Its own rule refuses the service, which is not its user's.
        let why = town.refused(TWO, Rule::SameUser);
        says(
            &why,
            &["uid 65531", "uid 65532 or root is required", "connect_with"],
        );
        host.tell(&());
        let refused: u64 = host.hear();
        assert_eq!(
            refused,
            u64::from(!matches!(rule, Rule::Anyone)),
            "{rule:?}"
        );
        host.finish();
        guests.into_iter().for_each(Child::finish);
    }
    // One for its own user alone is not even reached by others.
    let host = town.start(ONE, "host", &(Rule::SameUser, 0_usize));
    host.hear::<Result<(), String>>().expect("a service");
    let why = town.refused(TWO, Rule::Anyone);
    says(
        &why,
        &[
            "user 65532 may not connect to",
            "memlane/lane (mode 600, of user 65531)",
            "another access rule",
        ],
    );
    // Nor can they tell whether it still is, and so have its name.
    let bind = |why: &[&str]| {
        let second = town.start(TWO, "host", &(Rule::SameUser, 0_usize));
        let said = second.hear::<Result<(), String>>();
        says(&said.expect_err("somebody has the name"), why);
        second.finish();
    };
    let unknown = [
        "user 65532 may not even ask whether",
        "(mode 600, of user 65531) is in use",
        "removed by its user, or root",
    ];
    bind(&unknown);
    host.kill_and_reap();
    bind(&unknown);

    // Of one for others, too, they are told who has it; and what it left when it was killed is, in a sticky directory, for its
    // own user to remove.
    let host = town.start(ONE, "host", &(Rule::Anyone, 0_usize));
    host.hear::<Result<(), String>>().expect("its own name");
    bind(&[
        &format!("in use by process {} (uid 65531", host.id()),
        "stop that first",
    ]);
    host.kill_and_reap();
    bind(&[
        "left there by a process of user 65531",
        "user 65532 may not remove it",
    ]);
    let why = town.refused(TWO, Rule::Anyone);
    says(&why, &["nobody listens", "start the service"]);
    let host = town.start(ONE, "host", &(Rule::SameUser, 0_usize));
    host.hear::<Result<(), String>>().expect("its own name");
    host.tell(&());
    host.hear::<u64>();
    host.finish();
}

/// Says what becomes of an address by name.
fn namer(role: &Role) {
    role.hear::<()>();
    let outcome = Subscriber::connect("lane").map(drop);
    role.tell(&outcome.map_err(|error| error.to_string()));
    let outcome = Publisher::bind("lane").map(drop);
    role.tell(&outcome.map_err(|error| error.to_string()));
}

/// Directories that will not do say what would.
#[test]
fn directories_that_will_not_do() {
    let scene = Scene::new();
    let Some(town) = Town::new(&scene) else {
        return;
    };
    let hear = |child: Child| {
        let [connecting, binding] = [(); 2].map(|()| child.hear::<Result<(), String>>());
        child.finish();
        [
            connecting.expect_err("no service"),
            binding.expect_err("no service"),
        ]
    };
    let with = |user: u32, directory: Option<PathBuf>| {
        let start = Start {
            user: Some(user),
            directory,
            ..Start::default()
        };
        hear(scene.spawn_like(&start, "namer", &()))
    };
    // XDG_RUNTIME_DIR of another user, as sudo leaves it.
    rustix::fs::chown(
        scene.directory(),
        Some(rustix::fs::Uid::from_raw(ONE)),
        None,
    )
    .unwrap();
    for why in with(TWO, None) {
        says(
            &why,
            &[
                "belongs to user 65531, and this is user 65532",
                "sudo",
                "Unset it",
            ],
        );
    }
    rustix::fs::chown(scene.directory(), Some(rustix::fs::Uid::ROOT), None).unwrap();

    let mode = |mode| fs::set_permissions(&town.directory, Permissions::from_mode(mode)).unwrap();
    let shared = || Some(town.directory.clone());
    mode(0o777);
    for why in with(TWO, shared()) {
        says(&why, &["sticky", "found mode 777", "chmod +t"]);
    }
    mode(0o755);
    let [connecting, binding] = with(TWO, shared());
    says(&connecting, &["nobody listens at"]);
    says(
        &binding,
        &["user 65532 may not write to", "(mode 755, of user 0)"],
    );
    mode(0o700);
    for why in with(TWO, shared()) {
        says(&why, &["user 65532 may not enter", "(mode 700, of user 0)"]);
    }
    for why in with(TWO, Some("not/absolute".into())) {
        says(&why, &["absolute path in MEMLANE_DIR"]);
    }
    for why in with(TWO, Some(town.directory.join("not/there"))) {
        says(&why, &["cannot hold service sockets"]);
    }
    let deep = "x".repeat(108);
    fs::create_dir(town.directory.join(&deep)).unwrap();
    mode(0o755);
    for why in with(TWO, Some(town.directory.join(&deep))) {
        says(&why, &["holds 107", "shorter by"]);
    }
    fs::remove_dir(town.directory.join(&deep)).unwrap();
}

/// Each round: tries to bind, says how it went, and publishes until it is told to let go, or killed.
fn contender(role: &Role) {
    loop {
        let again: bool = role.hear();
        if !again {
            return;
        }
        let bound = unbound(page_size()).bind("lane");
        let outcome = match &bound {
            Ok(_) => Ok(()),
            Err(Error::Link(error @ LinkError::AddressInUse { holder, .. })) => {
                Err((holder.and_then(|holder| holder.pid), error.to_string()))
            }
            Err(error) => panic!("{error}"),
        };
        role.tell(&outcome);
        role.hear::<()>();
        if let Ok(mut publisher) = bound {
            publisher.wait_for_subscribers(1).expect("a subscriber");
            publisher
                .send(&std::process::id().to_le_bytes())
                .expect("room");
            publisher.close();
        }
        role.tell(&());
    }
}

type Outcome = Result<(), (Option<u32>, String)>;

/// Many want one name at once: one has it, the others hear who, and subscribers find that one. It is killed, or lets go, and
/// nothing stays of it.
#[test]
fn many_want_one_name() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let mut contenders: Vec<Child> = (0..5).map(|_| scene.spawn("contender", &true)).collect();
    for round in 0..40 {
        if round > 0 {
            contenders
                .iter()
                .for_each(|contender| contender.tell(&true));
        }
        let outcomes: Vec<Outcome> = contenders.iter().map(Child::hear).collect();
        let winners: Vec<usize> = (0..contenders.len())
            .filter(|at| outcomes[*at].is_ok())
            .collect();
        let [winner] = winners[..] else {
            panic!("round {round}: {outcomes:?}");
        };
        let id = contenders[winner].id();
        for (holder, why) in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert_eq!(*holder, Some(id), "round {round}: {why}");
            says(why, &[&format!("is in use by process {id} (uid ")]);
        }
        let mut subscriber = Subscriber::builder()
            .connect_to(&scene.address("lane"))
            .unwrap();
        let killed = dice.below(2) == 0;
        if killed {
            contenders[winner].kill();
        }
        for (at, contender) in contenders.iter().enumerate() {
            if !(killed && at == winner) {
                contender.tell(&());
                contender.hear::<()>();
            }
        }
        let end = loop {
            match subscriber.recv() {
                Ok(message) => assert_eq!(message.to_vec(), id.to_le_bytes()),
                Err(RecvError::Disconnected { reason }) => break reason,
                Err(error) => panic!("{error}"),
            }
        };
        if killed {
            assert_eq!(end, Reason::Died);
            let next = scene.spawn("contender", &true);
            std::mem::replace(&mut contenders[winner], next).kill_and_reap();
            // The new one has the name, whatever was left of the old one, and lets go of it before the others are asked.
            contenders[winner].hear::<Outcome>().unwrap();
            let _guest = Subscriber::builder()
                .connect_to(&scene.address("lane"))
                .unwrap();
            contenders[winner].tell(&());
            contenders[winner].hear::<()>();
        } else {
            assert_eq!(end, Reason::Closed);
        }
        alive();
    }
    for contender in contenders {
        contender.tell(&false);
        contender.finish();
    }
}

/// Contenders are killed at any moment of their trying: the name is had by the next who asks, and by one at a time.
#[test]
fn contenders_that_are_killed() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    for _ in 0..40 {
        let mut contenders: Vec<Child> = (0..3).map(|_| scene.spawn("contender", &true)).collect();
        dice.dally(3_000_000);
        let victim = contenders.swap_remove(dice.below(3) as usize);
        victim.kill_and_reap();
        let mut winners: u32 = contenders
            .iter()
            .map(|contender| u32::from(contender.hear::<Outcome>().is_ok()))
            .sum();
        let last = scene.spawn("contender", &true);
        let outcome: Outcome = last.hear();
        winners += u32::from(outcome.is_ok());
        // The victim may have had it when the others asked, and the last comes when it is dead.
        assert_eq!(winners, 1, "{outcome:?}");
        for contender in contenders.into_iter().chain([last]) {
            contender.kill_and_reap();
        }
        let _ = memlane_transport::remove_stale(&scene.address("lane"));
        assert_eq!(scene.services(), [""; 0]);
    }
}

/// A service that is stopped has its name still: nobody else gets it, and whoever connects is told that it does not answer, or waits.
#[test]
fn a_name_whose_owner_is_stopped() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let owner = scene.spawn("contender", &true);
    owner.hear::<Outcome>().unwrap();
    owner.stop();
    let error = Subscriber::builder()
        .timeout(std::time::Duration::from_millis(20))
        .connect_to(&address)
        .unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error:?}");
    let other = scene.spawn("contender", &true);
    let (holder, why) = other.hear::<Outcome>().unwrap_err();
    assert_eq!(holder, Some(owner.id()), "{why}");
    other.kill_and_reap();
    assert_eq!(scene.services(), ["lane"]);
    // One that waits is served when it goes on.
    let mut subscriber = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let builder = Subscriber::builder().timeout(PATIENCE);
            builder.connect_to(&address)
        });
        owner.go_on();
        connecting.join().unwrap().unwrap()
    });
    owner.tell(&());
    let message = subscriber.recv_timeout(PATIENCE).unwrap().to_vec();
    assert_eq!(message, owner.id().to_le_bytes());
    owner.hear::<()>();
    owner.tell(&false);
    owner.finish();
}

/// A publisher and subscribers of other versions, older and newer, whatever their next packets look like: each hears the
/// other's version, and which of the two is to be updated; the publisher goes on.
#[test]
fn old_and_new() {
    let scene = Scene::new();
    let address = scene.address("lane");
    // Subscribers.
    {
        let mut publisher = unbound(page_size()).bind_to(&address).unwrap();
        let mut turned_away = 0;
        for version in [VERSION - 1, VERSION + 1, 0, u32::MAX] {
            for future in [false, true] {
                let link = Link::connect(&address).unwrap();
                link.send(&Opening { version }).unwrap();
                // It may have been hung up on by now.
                let _ = if future {
                    link.send(&(7_u8, "a greeting of the future", vec![1_u64; 20]))
                } else {
                    let (_, page) = Shared::create("by-hand", page_size(), 0).unwrap();
                    link.send(&Greeting::new(page.into(), Offer::default()))
                };
                let theirs: Opening = link.recv_timeout(PATIENCE).unwrap();
                assert_eq!(theirs.version, VERSION);
                let end = link.recv_timeout::<u8>(PATIENCE).unwrap_err();
                assert!(end.is_disconnected(), "{end}");
                turned_away += 1;
            }
        }
        wait_until("they are counted", || {
            publisher.stats().refused == turned_away
        });
        let mut subscriber = Subscriber::builder().connect_to(&address).unwrap();
        publisher.send(b"as ever").unwrap();
        assert_eq!(subscriber.recv().unwrap().to_vec(), b"as ever");
    }
    // Publishers.
    for (version, which) in [
        (VERSION - 1, "update the publisher"),
        (VERSION + 1, "update the subscriber"),
    ] {
        let listener = Listener::bind(&address).unwrap();
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| Subscriber::builder().connect_to(&address));
            let link = listener.accept_timeout(PATIENCE).unwrap();
            link.send(&Opening { version }).unwrap();
            let _ = link.send(&(3_u8, "a welcome of the future"));
            let error = connecting.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Version { .. }), "{error:?}");
            says(
                &error.to_string(),
                &[
                    &format!("the publisher speaks version {version}"),
                    &format!("this subscriber version {VERSION}"),
                    which,
                ],
            );
        });
    }
    // Links, whose packets have a version of their own in the second byte.
    for (version, which) in [(0_u8, "update the other end"), (9, "update this end")] {
        let listener = Listener::bind(&address).unwrap();
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| Subscriber::builder().connect_to(&address));
            let link = listener.accept_timeout(PATIENCE).unwrap();
            let packet = [b'm', version, 0, 0, 0, 0, 1, 0, 2];
            rustix::net::send(&link, &packet, rustix::net::SendFlags::NOSIGNAL).unwrap();
            let error = connecting.join().unwrap().unwrap_err().to_string();
            says(
                &error,
                &[
                    &format!("the other end speaks protocol version {version}"),
                    "this end version 1",
                    which,
                ],
            );
        });
    }
}

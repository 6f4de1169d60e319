//! Hostile publishers, up to their welcome.

use std::{net::UdpSocket, os::fd::OwnedFd, time::Duration};

use memlane::{Error, Link, RecvError, RecvTimeoutError, Subscriber};
use memlane_region::page_size;
use memlane_signaling::WaitPolicy;
use memlane_tests::{
    Census, PATIENCE, Role, Scene, unbound, wait_until,
    wire::{Answer, Bell, Greeting, Refusal, Rings, VERSION, Welcome},
};
use memlane_transport::{Error as LinkError, Listener};
use rustix::{fs::SealFlags, net::SendFlags};
use serde::{Deserialize, Serialize};

use crate::{
    by_hand::{CAPACITY, a_ring, open},
    props::{SEALS, an_eventfd, memfd, null, pipe},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Roguery {
    RingUnsealed,
    RingTooSmall,
    RingSparse,
    RingIsAFile,
    RingIsAPipe,
    CapacityMax,
    CapacityHuge,
    CapacityOdd,
    CapacityTiny,
    CapacityZero,
    StartOdd,
    StartMax,
    StartHuge,
    RingsUnoffered,
    RingsNothing,
    BellIsAPipe,
    BellIsUdp,
    BellIsAnEventfd,
    Refuses,
    RefusesTheVersion,
    HangsUp,
    HangsUpUnread,
    Silent,
    Garbage,
    Surplus,
    TalksTwice,
}

/// Answers one greeting, badly.
pub(crate) fn rogue(role: &Role) {
    let address: String = role.hear();
    let listener = Listener::bind(&address.parse().expect("an address")).expect("a listener");
    role.tell(&());
    while let Some(roguery) = role.hear::<Option<Roguery>>() {
        let link = listener.accept().expect("a subscriber");
        deceive(role, &link, roguery);
        drop(link);
        role.tell(&());
    }
}

fn deceive(role: &Role, link: &Link, roguery: Roguery) {
    use Roguery::*;
    if roguery == HangsUpUnread {
        return;
    }
    let version = if roguery == RefusesTheVersion {
        9
    } else {
        VERSION
    };
    assert_eq!(open(link, version).version, VERSION);
    let _: Greeting = link.recv_timeout(PATIENCE).expect("a greeting");
    let len = page_size() + CAPACITY;
    let mut welcome = Welcome::new(a_ring().1, CAPACITY as u64);
    match roguery {
        RingUnsealed => welcome.ring = memfd(len, true, SealFlags::SHRINK),
        RingTooSmall => welcome.ring = memfd(len - page_size(), true, SEALS),
        RingSparse => welcome.ring = memfd(len, false, SEALS),
        RingIsAFile => welcome.ring = null(),
        RingIsAPipe => welcome.ring = pipe(),
        CapacityMax => welcome.capacity = u64::MAX,
        CapacityHuge => welcome.capacity = 1 << 40,
        CapacityOdd => welcome.capacity = 3 * page_size() as u64,
        CapacityTiny => welcome.capacity = 64,
        CapacityZero => welcome.capacity = 0,
        StartOdd => welcome.start = 12,
        StartMax => welcome.start = u64::MAX,
        StartHuge => welcome.start = 1 << 63,
        RingsUnoffered => welcome.rings = Rings::EventFd,
        RingsNothing => welcome.rings = Rings::Nothing,
        BellIsAPipe => welcome.doorbell = Bell::Socket(pipe()),
        BellIsUdp => {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            welcome.doorbell = Bell::Socket(OwnedFd::from(socket).into());
        }
        BellIsAnEventfd => welcome.doorbell = Bell::EventFd(an_eventfd()),
        Refuses => {
            let why = "it does not like you".to_owned();
            let answer = Answer::Refused(Refusal::Resources { why });
            return link.send(&answer).expect("room");
        }
        HangsUp | HangsUpUnread | RefusesTheVersion => return,
        Silent => return role.hear(),
        Garbage => {
            rustix::net::send(link, &[7; 100], SendFlags::NOSIGNAL).expect("room");
            return;
        }
        Surplus => {
            return link
                .send(&(Answer::Welcome(welcome), vec![null(), null()]))
                .expect("room");
        }
        TalksTwice => {
            link.send(&Answer::Welcome(welcome)).expect("room");
            for _ in 0..20 {
                let _ = link.try_send(&null());
            }
            return role.hear();
        }
    }
    link.send(&Answer::Welcome(welcome)).expect("room");
}

#[test]
fn welcomes_that_make_no_sense() {
    use Roguery::*;
    use memlane_region::Error as RegionError;
    let scene = Scene::new();
    let address = scene.address("lane");
    let rogue = scene.spawn("rogue", &address.to_string());
    rogue.hear::<()>();
    let base = Census::take();
    let all = [
        RingUnsealed,
        RingTooSmall,
        RingSparse,
        RingIsAFile,
        RingIsAPipe,
        CapacityMax,
        CapacityHuge,
        CapacityOdd,
        CapacityTiny,
        CapacityZero,
        StartOdd,
        StartMax,
        StartHuge,
        RingsUnoffered,
        RingsNothing,
        BellIsAPipe,
        BellIsUdp,
        BellIsAnEventfd,
        Refuses,
        RefusesTheVersion,
        HangsUp,
        HangsUpUnread,
        Garbage,
        Surplus,
    ];
    for roguery in all {
        for _ in 0..3 {
            rogue.tell(&Some(roguery));
            let error = Subscriber::builder()
                .wait(WaitPolicy::Block)
                .timeout(PATIENCE)
                .connect_to(&address)
                .expect_err("a welcome that makes sense");
            let fits = match roguery {
                RingUnsealed => matches!(error, Error::Region(RegionError::Seals { .. })),
                RingTooSmall => matches!(error, Error::Region(RegionError::Size { .. })),
                RingSparse => matches!(error, Error::Region(RegionError::Sparse { .. })),
                RingIsAFile | RingIsAPipe => {
                    matches!(error, Error::Region(RegionError::NotSharedMemory))
                }
                CapacityMax | CapacityOdd => {
                    matches!(error, Error::Region(RegionError::Length { .. }))
                }
                CapacityHuge => matches!(error, Error::Region(RegionError::Quota { .. })),
                CapacityTiny | CapacityZero | StartOdd | StartMax | StartHuge | RingsUnoffered
                | RingsNothing | BellIsAPipe | BellIsUdp | BellIsAnEventfd => {
                    matches!(error, Error::Welcome { .. })
                }
                Refuses => {
                    error.to_string()
                        == "the publisher refused this subscriber: it is short of resources: it does not like you"
                }
                RefusesTheVersion => {
                    let text = format!(
                        "the publisher speaks version 9 of the protocol, this subscriber version {VERSION}: \
                         update the subscriber"
                    );
                    error.to_string() == text
                }
                HangsUp | HangsUpUnread => matches!(error, Error::HungUp),
                Garbage => matches!(error, Error::Link(LinkError::NotMemlane { .. })),
                Surplus => matches!(error, Error::Link(_)),
                Silent | TalksTwice => unreachable!(),
            };
            assert!(fits, "{roguery:?}: {error:?}");
            rogue.hear::<()>();
        }
    }
    // One that never answers: the caller says for how long to wait.
    rogue.tell(&Some(Silent));
    let error = Subscriber::builder()
        .timeout(Duration::from_millis(50))
        .connect_to(&address)
        .unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error:?}");
    rogue.tell(&());
    rogue.hear::<()>();
    // One that goes on talking after its welcome is not listened to.
    rogue.tell(&Some(TalksTwice));
    let mut subscriber = Subscriber::builder()
        .wait(WaitPolicy::Block)
        .connect_to(&address)
        .unwrap();
    assert!(matches!(
        subscriber.recv_timeout(Duration::from_millis(20)),
        Err(RecvTimeoutError::TimedOut)
    ));
    rogue.tell(&());
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected { .. })
    ));
    drop(subscriber);
    rogue.hear::<()>();
    base.settle();
    rogue.tell(&None::<Roguery>);
    rogue.finish();
}

/// A quota is the caller's to set.
#[test]
fn a_ring_over_the_quota() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let publisher = unbound(1 << 16).bind_to(&address).unwrap();
    let error = Subscriber::builder()
        .max_ring_bytes(1 << 15)
        .connect_to(&address)
        .unwrap_err();
    assert!(error.to_string().contains("quota"), "{error}");
    wait_until("it is let go of", || publisher.subscribers() == 0);
}

//! Ends of many lanes that move, with what there is beside bytes: attachments, values, labels.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use memlane::{
    Encoded, Fds, Link, Overflow, Plain, Publisher, PublisherBuilder, PublisherTicket, Received,
    Receiver, ReceiverTicket, Subscriber, Subscriptions, SubscriptionsTicket, Typed,
};
use memlane_tests::{
    Dice, PATIENCE, Scene, alive, attachments, check_attachments, departing, wait_until,
};
use memlane_transport::Error as LinkError;

/// Messages with attachments are sent while it moves: each is received once, with its own.
#[test]
fn attachments_on_their_way() {
    let _scene = Scene::new();
    let takes = || Subscriber::builder().max_attachments(8);
    let mut receiver = takes().unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    receiver.attach(ours).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let sending = std::thread::spawn(move || {
        let builder = Publisher::builder().ring_bytes(4096).max_attachments(8);
        let mut sender = builder.over(theirs).unwrap();
        let mut number = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            let fds = attachments(number, number as usize % 4);
            let bytes = number.to_le_bytes();
            match fds.len() {
                0 => sender.send(&bytes).unwrap(),
                _ => sender.send_with(&bytes, &fds).unwrap(),
            }
            number += 1;
            alive();
            std::thread::sleep(Duration::from_micros(200));
        }
        (sender, number)
    });
    let take = |receiver: &mut Receiver, taken: &mut Vec<_>| {
        while let Ok(mut message) = receiver.try_recv() {
            let attached = message.has_attachments();
            let fds = attached.then(|| message.take_attachments().unwrap());
            taken.push((message.to_vec(), fds));
        }
    };
    let mut next = 0;
    let mut check = |taken: Vec<(Vec<u8>, Option<Fds>)>| {
        for (bytes, fds) in taken {
            assert_eq!(bytes, u64::to_le_bytes(next));
            let count = next as usize % 4;
            assert_eq!(fds.is_some(), count > 0);
            if let Some(fds) = fds {
                check_attachments(next, count, fds);
            }
            next += 1;
        }
        next
    };
    let mut taken = Vec::new();
    wait_until("the sender is there", || {
        take(&mut receiver, &mut taken);
        receiver.senders() == 1
    });
    for _ in 0..200 {
        let (to, from) = Link::pair().unwrap();
        to.send(&receiver.ticket().unwrap()).unwrap();
        let arriving = std::thread::spawn(move || {
            let from = from.adopting();
            let ticket: ReceiverTicket = from.recv().unwrap();
            let builder = Subscriber::builder().max_attachments(8);
            let builder = builder.timeout(PATIENCE);
            let mut receiver = builder.arrive_receiver(ticket).unwrap();
            // Lanes that are late come while it receives.
            let mut early = Vec::new();
            while let Err(LinkError::WouldBlock) = from.try_recv::<()>() {
                take(&mut receiver, &mut early);
                std::thread::sleep(Duration::from_micros(100));
            }
            (receiver, early)
        });
        take(&mut receiver, &mut taken);
        while let Err(remains) = receiver.depart() {
            receiver = remains.end;
            take(&mut receiver, &mut taken);
        }
        drop(to);
        let (successor, early) = arriving.join().unwrap();
        receiver = successor;
        taken.extend(early);
        check(std::mem::take(&mut taken));
    }
    stop.store(true, Ordering::Relaxed);
    let (sender, sent) = sending.join().unwrap();
    wait_until("everything is received", || {
        take(&mut receiver, &mut taken);
        check(std::mem::take(&mut taken)) == sent
    });
    assert_eq!(sender.stats().moved, 200);
    assert_eq!((sender.stats().evicted, sender.stats().left), (0, 0));
}

#[test]
fn typed_ones_move() {
    let _scene = Scene::new();
    let typed = || {
        Subscriber::builder()
            .timeout(PATIENCE)
            .of::<Encoded<String>>()
    };
    let mut receiver = typed().unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    receiver.get_mut().attach(ours).unwrap();
    let sending = std::thread::spawn(move || {
        let builder = Publisher::builder().of::<Encoded<String>>();
        builder.over(theirs).unwrap()
    });
    while receiver.get_ref().senders() == 0 {
        let _ = receiver.try_recv();
    }
    let mut sender = sending.join().unwrap();
    for round in 0..10 {
        sender.send(&format!("{round}")).unwrap();
        let ticket = receiver.ticket().unwrap();
        if round == 5 {
            // One that expects something else does not get the lane.
            let builder = Subscriber::builder().timeout(PATIENCE);
            let builder = builder.of::<Plain<u64>>();
            let arriving = std::thread::spawn(|| builder.arrive_receiver(ticket).unwrap());
            let arrives = || arriving.join().unwrap();
            let goes_on = |other: &mut Typed<Receiver, Plain<u64>>| {
                assert!(other.try_recv().is_err());
            };
            let (_, departed) = departing(receiver, |end| end.depart(), arrives, goes_on);
            let remains = departed.unwrap_err();
            assert!(remains.to_string().contains("refused"), "{remains}");
            receiver = remains.end;
            assert_eq!(receiver.recv().unwrap(), "5");
            continue;
        }
        let arriving = std::thread::spawn(move || typed().arrive_receiver(ticket).unwrap());
        let arrives = || arriving.join().unwrap();
        let mut early = None;
        let goes_on = |successor: &mut Typed<Receiver, Encoded<String>>| {
            early = early.take().or_else(|| successor.try_recv().ok());
        };
        let (successor, departed) = departing(receiver, |end| end.depart(), arrives, goes_on);
        departed.unwrap();
        receiver = successor;
        let received = early.unwrap_or_else(|| receiver.recv().unwrap());
        assert_eq!(received, format!("{round}"));
    }
}

/// Goes on where others stop.
fn arrive(ticket: SubscriptionsTicket) -> JoinHandle<Subscriptions> {
    std::thread::spawn(move || {
        let builder = Subscriber::builder().timeout(PATIENCE);
        builder.arrive_subscriptions(ticket).unwrap()
    })
}

/// Departs, and receives what has to be received before, while the successor goes on.
fn depart(
    subscriptions: Subscriptions,
    arrives: impl FnOnce() -> Subscriptions,
    mut receive: impl FnMut(&mut Subscriptions),
) -> Subscriptions {
    let mut moved = departing(subscriptions, Subscriptions::depart, arrives, &mut receive);
    let begun = Instant::now();
    loop {
        match moved {
            (successor, Ok(())) => return successor,
            (successor, Err(remains)) => {
                assert!(begun.elapsed() < PATIENCE, "{remains}");
                let mut rest = remains.end;
                receive(&mut rest);
                moved = departing(rest, Subscriptions::depart, || successor, &mut receive);
            }
        }
    }
}

#[test]
fn subscriptions_move() {
    let _scene = Scene::new();
    let mut publishers = Vec::new();
    let mut subscriptions = Subscriptions::new().unwrap();
    for (label, overflow) in [
        ("left", Overflow::Block),
        ("right", Overflow::Block),
        ("lossy", Overflow::Overwrite),
    ] {
        let (ours, theirs) = Link::pair().unwrap();
        let publisher = Publisher::builder().ring_bytes(4096).unbound().unwrap();
        publisher.attach(ours).unwrap();
        let subscriber = Subscriber::builder().overflow(overflow);
        let subscriber = subscriber.over(theirs).unwrap();
        subscriptions.add_as(label, subscriber).unwrap();
        publishers.push(publisher);
    }
    let mut next = [0_u64; 3];
    let names = ["left", "right", "lossy"];
    let receive = |subscriptions: &mut Subscriptions, next: &mut [u64; 3]| {
        loop {
            let (key, number, missed) = match subscriptions.try_recv() {
                Ok(Received::Message(key, message)) => (key, message.to_vec(), message.missed()),
                _ => break,
            };
            let label = subscriptions.label(key).unwrap();
            let at = names.iter().position(|name| *name == label).unwrap();
            next[at] += missed;
            assert_eq!(number, next[at].to_le_bytes());
            next[at] += 1;
        }
    };
    let mut dice = Dice::new();
    let mut sent = [0_u64; 3];
    for _ in 0..300 {
        for at in 0..3 {
            let most = [10, 10, 500][at];
            for _ in 0..dice.below(most) {
                publishers[at].send(&sent[at].to_le_bytes()).unwrap();
                sent[at] += 1;
            }
        }
        if dice.below(2) == 0 {
            receive(&mut subscriptions, &mut next);
        }
        let ticket = subscriptions.ticket().unwrap();
        let arriving = arrive(ticket);
        subscriptions = depart(
            subscriptions,
            || arriving.join().unwrap(),
            |end| receive(end, &mut next),
        );
        receive(&mut subscriptions, &mut next);
    }
    receive(&mut subscriptions, &mut next);
    assert_eq!(next, sent);
    // Whose end has not been told of does not move.
    drop(publishers.remove(0));
    let arriving = arrive(subscriptions.ticket().unwrap());
    let mut goes_on = |successor: &mut _| receive(successor, &mut next);
    let arrives = || arriving.join().unwrap();
    let (successor, departed) =
        departing(subscriptions, Subscriptions::depart, arrives, &mut goes_on);
    let mut rest = departed.unwrap_err().end;
    let Received::Ended(ended) = rest.recv().unwrap() else {
        panic!("there are no messages");
    };
    assert_eq!(ended.label, "left");
    let subscriptions = depart(rest, || successor, goes_on);
    assert_eq!(subscriptions.len(), 2);
    for publisher in &publishers {
        let stats = publisher.stats();
        assert_eq!((stats.moved, stats.evicted, stats.left), (301, 0, 0));
    }
}

/// A lane that cannot be passed on, for its label is too long, stays, and is not waited for.
#[test]
fn a_lane_that_cannot_be_passed_on() {
    let _scene = Scene::new();
    let mut subscriptions = Subscriptions::new().unwrap();
    let mut publishers = Vec::new();
    for label in ["short", &"long".repeat(5 << 20)] {
        let (ours, theirs) = Link::pair().unwrap();
        let publisher = Publisher::builder().ring_bytes(4096).unbound().unwrap();
        publisher.attach(ours).unwrap();
        let subscriber = Subscriber::builder().over(theirs).unwrap();
        subscriptions.add_as(label, subscriber).unwrap();
        publishers.push(publisher);
    }
    let ticket = subscriptions.ticket().unwrap();
    let arriving = arrive(ticket);
    assert!(subscriptions.wait_until_awaited(PATIENCE).unwrap());
    let remains = subscriptions.depart().unwrap_err();
    assert!(remains.to_string().contains("limit"), "{remains}");
    let mut subscriptions = remains.end;
    let mut successor = arriving.join().unwrap();
    assert_eq!((subscriptions.len(), successor.len()), (1, 1));
    for publisher in &mut publishers {
        publisher.send(b"here").unwrap();
    }
    for end in [&mut subscriptions, &mut successor] {
        let Received::Message(_, message) = end.recv().unwrap() else {
            panic!("nobody has ended");
        };
        assert_eq!(message.to_vec(), b"here");
    }
}

/// A subscriber's link has two sockets once it has moved, and both go along with its publisher.
#[test]
fn a_publisher_whose_subscriber_has_moved() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let mut publisher = Publisher::builder().ring_bytes(4096).unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    for round in 0..20_u64 {
        publisher.send(&round.to_le_bytes()).unwrap();
        let ticket = subscriber.ticket().unwrap();
        subscriber.depart().unwrap();
        subscriber = ticket.arrive().unwrap();
        assert_eq!(subscriber.recv().unwrap().to_vec(), round.to_le_bytes());
        let (to, from) = Link::pair().unwrap();
        to.send(&publisher.ticket().unwrap()).unwrap();
        let arriving = std::thread::spawn(move || {
            let ticket: PublisherTicket = from.adopting().recv().unwrap();
            ticket.arrive().unwrap()
        });
        publisher.depart().unwrap();
        publisher = arriving.join().unwrap();
        // Until it has come to the other's ring, it cannot move itself.
        publisher.send(b"the next").unwrap();
        assert_eq!(subscriber.recv().unwrap().to_vec(), b"the next");
    }
    drop(subscriber);
    wait_until("nobody is left", || publisher.subscribers() == 0);
}

/// A sender that has not confirmed yet has its place with the successor, who lets nobody else have it.
#[test]
fn lanes_on_their_way_have_their_places() {
    let scene = Scene::new();
    let address = scene.address("jobs");
    let takes = || Subscriber::builder().max_senders(2).timeout(PATIENCE);
    let mut receiver = takes().bind_to(&address).unwrap();
    let connect = |builder: PublisherBuilder| {
        let address = address.clone();
        std::thread::spawn(move || builder.timeout(PATIENCE).connect_to(&address))
    };
    let connecting = [
        connect(Publisher::builder()),
        connect(Publisher::builder().driven()),
    ];
    wait_until("both are there", || {
        assert!(receiver.try_recv().is_err());
        receiver.senders() == 2
    });
    let [mut prompt, mut late] = connecting.map(|sender| sender.join().unwrap().unwrap());
    let ticket = receiver.ticket().unwrap();
    let arriving = std::thread::spawn(move || takes().arrive_receiver(ticket).unwrap());
    wait_until("it is awaited", || {
        late.drive().unwrap();
        receiver.is_awaited().unwrap()
    });
    // Nobody drives the one, which answers nothing any more.
    if let Err(remains) = receiver.depart() {
        assert_eq!(remains.end.senders(), 0, "{remains}");
    }
    let mut successor = arriving.join().unwrap();
    wait_until("the other lane begins there", || {
        assert!(successor.try_recv().is_err());
        successor.senders() == 1
    });
    let refused = connect(Publisher::builder());
    wait_until("there is an answer", || {
        assert!(successor.try_recv().is_err());
        refused.is_finished()
    });
    let refused = refused.join().unwrap().unwrap_err().to_string();
    assert!(refused.contains("has 2 senders"), "{refused}");
    wait_until("its lane begins there", || {
        late.drive().unwrap();
        assert!(successor.try_recv().is_err());
        successor.senders() == 2
    });
    for sender in [&mut prompt, &mut late] {
        sender.send(b"a job").unwrap();
        assert_eq!(successor.recv().unwrap().to_vec(), b"a job");
    }
}

//! All ways to attach descriptors to messages, and all ways to have them.

use std::os::fd::{AsFd, OwnedFd};

use memlane::{
    Async, Encoded, Error, Fd, Fds, Link, PayloadError, Plain, Publisher, PublisherBuilder,
    Receiver, RecvError, SendError, SendTimeoutError, Slice, Subscriber, TryRecvError,
    TrySendError, Watched,
    region::{Frozen, Region},
    transport::EventFd,
};
use memlane_tests::{
    PATIENCE, Scene, attachments, block_on, check_attachments, fill, memfd_with, none_is_kept,
    number, trusting, unbound, wait_until,
};

fn pair(builder: PublisherBuilder) -> (Publisher, Subscriber) {
    let (here, there) = Link::pair().unwrap();
    let publisher = builder.unbound().unwrap();
    publisher.attach(here).unwrap();
    (publisher, Subscriber::builder().over(there).unwrap())
}

/// All ways to send some, and all ways to have them, in the ring and in the pool.
#[test]
fn every_way() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(unbound(1 << 14));
    for number in 0..200_u64 {
        let count = 1 + number as usize % 4;
        let fds = attachments(number, count);
        let mut bytes = vec![0; [8, 20_000][number as usize / 2 % 2]];
        fill(number, &mut bytes);
        match number % 8 {
            0 => publisher.send_with(&bytes, &fds).unwrap(),
            1 => publisher.try_send_with(&bytes, &fds).unwrap(),
            2 => publisher.send_timeout_with(&bytes, &fds, PATIENCE).unwrap(),
            at @ 3..6 => {
                let mut place = publisher.reserve(bytes.len() + 1).unwrap();
                place[..bytes.len()].copy_from_slice(&bytes);
                // In place of what was attached first.
                place.attach(&attachments(7, 3)).unwrap();
                match at {
                    3 => place.attach(&fds).unwrap(),
                    4 => place.try_attach(&fds).unwrap(),
                    _ => place.attach_timeout(&fds, PATIENCE).unwrap(),
                }
                place.commit_first(bytes.len());
            }
            at => {
                let mut loan = publisher.loan(bytes.len()).unwrap();
                loan.copy_from_slice(&bytes);
                match at {
                    6 => publisher.send_loan_with(loan, &fds).unwrap(),
                    _ => publisher.try_send_loan_with(loan, &fds).unwrap(),
                }
            }
        }
        drop(fds);
        none_is_kept();
        // What is not committed comes to nothing, and what has none follows at once.
        let mut place = publisher.reserve(8).unwrap();
        place.attach(&attachments(3, 2)).unwrap();
        drop(place);
        publisher.send(b"plain").unwrap();
        let mut message = match number % 3 {
            0 => subscriber.recv().unwrap(),
            1 => subscriber.recv_timeout(PATIENCE).unwrap(),
            _ => subscriber.try_recv().unwrap(),
        };
        assert_eq!(message.to_vec(), bytes);
        check_attachments(number, count, message.take_attachments().unwrap());
        assert!(!message.has_attachments() && message.take_attachments().unwrap().is_empty());
        drop(message);
        let mut plain = subscriber.recv().unwrap();
        assert_eq!(plain.to_vec(), b"plain");
        assert!(!plain.has_attachments() && plain.take_attachments().unwrap().is_empty());
    }
    // None at all is a message like any other.
    publisher.send_with(b"none", &Fds::default()).unwrap();
    assert!(!subscriber.recv().unwrap().has_attachments());
    let mut held = Vec::new();
    for number in 0..20 {
        publisher
            .send_with(&[1; 30_000], &attachments(number, 2))
            .unwrap();
        held.push(subscriber.recv().unwrap().hold().unwrap());
    }
    for (number, mut held) in held.into_iter().enumerate() {
        if number % 2 == 0 {
            check_attachments(number as u64, 2, held.take_attachments().unwrap());
        }
    }
}

/// As much as the options allow, and no more.
#[test]
fn no_more_than_both_sides_take() {
    let _scene = Scene::new();
    let refused = Publisher::builder().max_attachments(1025).unbound();
    assert!(matches!(
        refused,
        Err(Error::Option {
            what: "max_attachments",
            ..
        })
    ));
    let (mut publisher, mut subscriber) = pair(unbound(1 << 14).max_attachments(2));
    let fds = attachments(1, 3);
    let error = publisher.send_with(b"three", &fds).unwrap_err();
    assert!(
        matches!(error, SendError::TooManyAttachments { count: 3, max: 2 }),
        "{error}"
    );
    let error = publisher.try_send_with(b"three", &fds).unwrap_err();
    assert!(
        matches!(error, TrySendError::TooManyAttachments { count: 3, max: 2 }),
        "{error}"
    );
    let mut place = publisher.reserve(8).unwrap();
    let error = place.attach_timeout(&fds, PATIENCE).unwrap_err();
    assert!(
        matches!(
            error,
            SendTimeoutError::TooManyAttachments { count: 3, max: 2 }
        ),
        "{error}"
    );
    place.commit_first(0);
    assert!(!subscriber.recv().unwrap().has_attachments());

    // Who takes fewer than there may be is told so, on either side.
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let refused = Subscriber::builder()
        .max_attachments(1)
        .over(there)
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the publisher refused this subscriber: its messages have up to 2 attachments; this subscriber takes at most 1 \
         (max_attachments on either side)"
    );
    let (here, there) = Link::pair().unwrap();
    let mut receiver = Subscriber::builder().max_attachments(0).unbound().unwrap();
    receiver.attach(here).unwrap();
    let sending = std::thread::spawn(|| Publisher::builder().over(there));
    wait_until("the sender to be refused", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        sending.is_finished()
    });
    let Err(Error::NoReceiver { why }) = sending.join().unwrap() else {
        panic!("not refused")
    };
    assert!(
        why.contains("takes at most 0 attachments") && why.contains("up to 16"),
        "{why}"
    );
    // With none, the kernel refuses descriptors already, where it can.
    let (mut publisher, mut subscriber) = pair(unbound(1 << 14).max_attachments(0));
    let error = publisher.send_with(b"one", &attachments(1, 1)).unwrap_err();
    assert!(
        matches!(error, SendError::TooManyAttachments { count: 1, max: 0 }),
        "{error}"
    );
    publisher.send(b"none").unwrap();
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"none");
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Scenery {
    name: String,
    bells: Vec<EventFd>,
    samples: Option<Frozen>,
    log: Fd,
}

fn scenery(number: u64) -> Scenery {
    let bell = || {
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&bell, &number.to_le_bytes()).unwrap();
        EventFd::try_from(bell).unwrap()
    };
    let samples = || {
        Region::copy_of("memlane-attached", &[7; 100])
            .unwrap()
            .freeze()
    };
    Scenery {
        name: "x".repeat(number as usize * 40),
        bells: (0..number % 4).map(|_| bell()).collect(),
        samples: number.is_multiple_of(3).then(|| samples().unwrap()),
        log: memfd_with(&number.to_le_bytes()).into(),
    }
}

#[track_caller]
fn check_scenery(number: u64, scene: Scenery) {
    assert_eq!(scene.name.len() as u64, number * 40);
    assert_eq!(scene.bells.len() as u64, number % 4);
    for bell in &scene.bells {
        let mut said = [0; 8];
        rustix::io::read(bell, &mut said).unwrap();
        assert_eq!(u64::from_le_bytes(said), number + 1);
    }
    assert_eq!(scene.samples.is_some(), number.is_multiple_of(3));
    assert!(scene.samples.is_none_or(|samples| samples[..] == [7; 100]));
    let mut said = [0; 8];
    rustix::io::pread(&scene.log, &mut said, 0).unwrap();
    assert_eq!(u64::from_le_bytes(said), number + 1);
}

/// Values with descriptors in them, the long ones twice encoded, some in the pool.
#[test]
fn values_have_descriptors_in_them() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().unwrap();
    let builder = unbound(1 << 12).of::<Encoded<Scenery>>();
    let mut publisher = builder.unbound().unwrap();
    publisher.get_ref().attach(here).unwrap();
    let builder = Subscriber::builder().of::<Encoded<Scenery>>();
    let mut subscriber = builder.over(there).unwrap();
    for number in 0..150 {
        let value = scenery(number);
        // Its bells and the log are one more.
        let bump = |fd: &dyn AsFd| rustix::io::pwrite(fd, &(number + 1).to_le_bytes(), 0);
        bump(&value.log).unwrap();
        for bell in &value.bells {
            rustix::io::write(bell, &1_u64.to_le_bytes()).unwrap();
        }
        match number % 3 {
            0 => publisher.send(&value).unwrap(),
            1 => publisher.try_send(&value).unwrap(),
            _ => publisher.send_timeout(&value, PATIENCE).unwrap(),
        }
        drop(value);
        let received = match number % 2 {
            0 => subscriber.recv().unwrap(),
            _ => subscriber.recv_timeout(PATIENCE).unwrap(),
        };
        check_scenery(number, received);
    }
    none_is_kept();
    let too_many = Scenery {
        bells: (0..20).flat_map(|_| scenery(1).bells).collect(),
        ..scenery(1)
    };
    let error = publisher.send(&too_many).unwrap_err();
    assert!(matches!(error, PayloadError::Encode(_)), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("21 descriptors are more than the 16 allowed"),
        "{error}"
    );
    // The next one is there again.
    let mut publisher = publisher.try_map(Async::new).unwrap();
    let mut subscriber = subscriber.try_map(Async::new).unwrap();
    block_on(async {
        for number in 0..20 {
            publisher.send(&scenery(number)).await.unwrap();
            let scene = subscriber.recv().await.unwrap();
            assert_eq!(scene.bells.len() as u64, number % 4);
        }
    });
}

/// Descriptors of other kinds than the type asks for, or too few: an error each, and the next value comes.
#[test]
fn values_with_other_descriptors_are_refused() {
    let _scene = Scene::new();
    let (mut publisher, subscriber) = pair(unbound(1 << 12));
    let reading = |subscriber: Subscriber| -> Vec<String> {
        let mut subscriber = subscriber;
        let mut errors = Vec::new();
        while errors.len() < 4 {
            let mut message = subscriber.recv().unwrap();
            let bytes = message.to_vec();
            let fds = message.take_attachments().unwrap();
            drop(message);
            let decoded =
                memlane::transport::codec::decode_carried::<(u8, EventFd)>(&bytes, fds, false);
            errors.push(decoded.unwrap_err().to_string());
        }
        errors
    };
    let bell = || attachments(1, 1).into_vec().unwrap().pop().unwrap();
    publisher
        .send_with(&[7, 0], &vec![memfd_with(b"x")].into())
        .unwrap();
    publisher
        .send_with(&[7, 0], &vec![bell(), bell()].into())
        .unwrap();
    publisher.send_with(&[7, 1], &vec![bell()].into()).unwrap();
    publisher.send(&[7, 0]).unwrap();
    let errors = reading(subscriber);
    assert!(errors[0].contains("expected an eventfd"), "{errors:?}");
    assert!(
        errors[1].contains("2 descriptors came, and the value has 1"),
        "{errors:?}"
    );
    assert!(errors[2].contains("descriptor 1"), "{errors:?}");
    assert!(errors[3].contains("descriptor 0"), "{errors:?}");

    // Links are taken as such from who is trusted.
    let make = || {
        let (here, there) = Link::pair().unwrap();
        let publisher = unbound(1 << 12).of::<Encoded<Link>>().unbound().unwrap();
        publisher.get_ref().attach(here).unwrap();
        (publisher, there)
    };
    let (ours, theirs) = Link::pair().unwrap();
    let (mut publisher, there) = make();
    let mut subscriber = Subscriber::builder()
        .of::<Encoded<Link>>()
        .over(there)
        .unwrap();
    publisher.send(&theirs).unwrap();
    let error = subscriber.recv().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("a link is not taken from this peer"),
        "{error}"
    );
    let (mut publisher, there) = make();
    let builder = trusting(Subscriber::builder());
    let mut subscriber = builder.of::<Encoded<Link>>().over(there).unwrap();
    publisher.send(&theirs).unwrap();
    drop(theirs);
    let link = subscriber.recv().unwrap();
    ours.send("hello").unwrap();
    assert_eq!(link.recv::<String>().unwrap(), "hello");
}

#[test]
fn plain_values_and_slices_have_some_beside_them() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(1 << 12).of::<Plain<u64>>().unbound().unwrap();
    publisher.get_ref().attach(here).unwrap();
    let builder = Subscriber::builder().of::<Plain<u64>>();
    let mut subscriber = builder.over(there).unwrap();
    for number in 0..20 {
        publisher
            .send_with(&number, &attachments(number, 2))
            .unwrap();
        let (value, fds) = subscriber.recv_with().unwrap();
        assert_eq!(value, number);
        check_attachments(number, 2, fds);
        let mut place = publisher.reserve().unwrap();
        *place = number;
        place.attach(&attachments(number, 1)).unwrap();
        place.commit();
        let (value, fds) = subscriber.try_recv_with().unwrap();
        assert_eq!(value, number);
        check_attachments(number, 1, fds);
        // Nobody has to take them.
        publisher
            .try_send_with(&number, &attachments(number, 3))
            .unwrap();
        assert_eq!(subscriber.recv().unwrap(), number);
    }
    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(1 << 12).of::<Slice<u16>>().unbound().unwrap();
    publisher.get_ref().attach(here).unwrap();
    let builder = Subscriber::builder().of::<Slice<u16>>();
    let mut subscriber = builder.over(there).unwrap();
    for number in 0..20 {
        publisher
            .send_with(&[1, 2], &attachments(number, 2))
            .unwrap();
        let mut place = publisher.reserve(5000).unwrap();
        place.fill(7);
        place.attach(&attachments(number, 3)).unwrap();
        place.commit_first(4000);
        let mut two = subscriber.recv().unwrap();
        check_attachments(number, 2, two.take_attachments().unwrap());
        assert_eq!(two.to_vec(), [1, 2]);
        drop(two);
        let mut many = subscriber.recv().unwrap();
        check_attachments(number, 3, many.take_attachments().unwrap());
        assert_eq!(many.to_vec(), [7; 4000]);
    }
}

/// In tasks, in loops, in queues, in batches.
#[test]
fn in_every_form_of_both_ends() {
    let _scene = Scene::new();
    let (mut publisher, subscriber) = pair(unbound(1 << 14));
    let mut subscriber = Watched::new(subscriber).unwrap();
    publisher.batch(|publisher| {
        for number in 0..10 {
            publisher
                .send_with(&[3; 10], &attachments(number, 2))
                .unwrap();
            publisher.send(b"plain").unwrap();
        }
    });
    for number in 0..10 {
        let mut message = subscriber.try_recv().unwrap();
        check_attachments(number, 2, message.take_attachments().unwrap());
        drop(message);
        assert!(!subscriber.try_recv().unwrap().has_attachments());
    }
    assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));

    // A publisher's task waits until attachments are taken, and is woken for it.
    let mut publisher = Async::new(publisher).unwrap();
    let mut subscriber = Async::new(subscriber.into_inner()).unwrap();
    let sender = std::thread::spawn(move || {
        block_on(async {
            for number in 0..2_000_u64 {
                let fds = attachments(number, 3);
                if number % 4 == 0 {
                    let mut loan = publisher.loan(30_000).await.unwrap();
                    loan[..8].copy_from_slice(&number.to_le_bytes());
                    publisher.send_loan_with(loan, &fds).await.unwrap();
                } else {
                    publisher
                        .send_with(&number.to_le_bytes(), &fds)
                        .await
                        .unwrap();
                }
            }
        });
    });
    block_on(async {
        for expected in 0..2_000 {
            let mut message = subscriber.recv().await.unwrap();
            assert_eq!(number(&message.to_vec()), expected);
            check_attachments(expected, 3, message.take_attachments().unwrap());
        }
        let over = subscriber.recv().await.unwrap_err();
        assert!(matches!(over, RecvError::Disconnected { .. }), "{over}");
    });
    sender.join().unwrap();

    // Of several senders, each in its order.
    let mut receiver = Subscriber::builder().unbound().unwrap();
    let senders = (0..3_u64).map(|sender| {
        let (here, there) = Link::pair().unwrap();
        receiver.attach(here).unwrap();
        std::thread::spawn(move || {
            let mut publisher = Publisher::builder().over(there).unwrap();
            for at in 0..300 {
                let number = sender * 1000 + at;
                let fds = attachments(number, at as usize % 4);
                publisher.send_with(&number.to_le_bytes(), &fds).unwrap();
            }
            publisher.drain(PATIENCE).unwrap();
        })
    });
    let senders: Vec<_> = senders.collect();
    let mut next = [0; 3];
    for _ in 0..900 {
        let mut message = receive(&mut receiver);
        let number = number(&message.to_vec());
        let (sender, at) = ((number / 1000) as usize, number % 1000);
        assert_eq!(next[sender], at);
        next[sender] += 1;
        let fds = message.take_attachments().unwrap();
        check_attachments(number, at as usize % 4, fds);
    }
    senders
        .into_iter()
        .for_each(|sender| sender.join().unwrap());
}

fn receive(receiver: &mut Receiver) -> memlane::Message<'_> {
    receiver.recv().expect("a message")
}

/// What cannot be passed at all is an error, and nothing is sent.
#[test]
fn what_cannot_be_passed_is_an_error() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(unbound(1 << 14));
    let Some(uring) = uring() else {
        eprintln!("skipped: no io_uring here");
        return;
    };
    let error = publisher.send_with(b"a ring", &vec![memfd_with(b"x"), uring].into());
    assert!(matches!(error, Err(SendError::Attachment(_))), "{error:?}");
    publisher.send_with(b"a file", &attachments(0, 1)).unwrap();
    let mut message = subscriber.recv().unwrap();
    assert_eq!(message.to_vec(), b"a file");
    check_attachments(0, 1, message.take_attachments().unwrap());
}

fn uring() -> Option<OwnedFd> {
    #[allow(unsafe_code)]
    // SAFETY: the parameters are 120 bytes (struct io_uring_params), zeroed, and the descriptor is new.
    unsafe {
        let mut parameters = [0_u64; 15];
        let fd = libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr());
        (fd >= 0).then(|| std::os::fd::FromRawFd::from_raw_fd(fd as i32))
    }
}

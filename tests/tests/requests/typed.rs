//! Requests and replies that are values; in loops and in tasks.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use memlane::{
    Answer, Async, CallError, Client, Encoded, Error, Link, PayloadError, Plain, Readiness, Server,
    Slice, TryRecvError, Typed, Watched,
};
use memlane_tests::{Control, PATIENCE, Scene, Smol, Tasks, Tokio, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Question {
    Count(Vec<String>),
    Repeat(u32),
}

type Questions = Encoded<Question>;

fn typed() -> (Typed<Server, (Questions, Slice<u64>)>, Link) {
    let (ours, theirs) = Link::pair().unwrap();
    let mut server = Server::builder()
        .of::<Questions, Slice<u64>>()
        .unbound()
        .unwrap();
    server.get_mut().attach(ours).unwrap();
    (server, theirs)
}

fn until_gone(server: &mut Typed<Server, (Questions, Slice<u64>)>) {
    wait_until("the client has left", || {
        assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
        server.get_ref().clients() == 0
    });
}

#[test]
fn values_are_asked_and_answered() {
    let _scene = Scene::new();
    let (mut server, link) = typed();
    let asking = thread::spawn(move || {
        let client = Client::builder().of::<Questions, Slice<u64>>();
        let mut client = client.over(link).unwrap();
        let words = |count| Question::Count(vec!["a word".to_owned(); count]);
        assert_eq!(client.call(&words(3)).unwrap(), [3]);
        // A long one, which lies in the pool.
        assert_eq!(client.call(&words(30_000)).unwrap(), [30_000]);
        let first = client.send(&words(1)).unwrap();
        let second = client.send(&words(2)).unwrap();
        assert_eq!(client.wait(second).unwrap(), [2]);
        assert_eq!(client.wait(first).unwrap(), [1]);
        let mut items = client.send(&Question::Repeat(3)).unwrap();
        for number in 0..3 {
            assert_eq!(client.next(&mut items).unwrap().unwrap(), [number; 2]);
        }
        assert_eq!(client.next(&mut items).unwrap(), None);
        let call = client.send(&words(7)).unwrap();
        match client.recv().unwrap() {
            (id, Answer::Last(value)) => {
                assert_eq!(id, call.id());
                assert_eq!(value, [7]);
            }
            other => panic!("{other:?}"),
        }
        drop(call);
        // No value, as an untyped client could send it.
        let error = client.get_mut().call(&[9, 9, 9]).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("the server says: the message is no value of the type"),
            "{error}"
        );
        assert_eq!(client.call_timeout(&words(4), PATIENCE).unwrap(), [4]);
    });
    let mut later = Vec::new();
    for _ in 0..7 {
        let mut asked = server.recv().unwrap();
        match &*asked {
            Question::Count(words) => match words.len() {
                count @ 1..3 => {
                    let (value, answers) = asked.defer();
                    assert_eq!(value, Question::Count(vec!["a word".to_owned(); count]));
                    later.push((count as u64, answers));
                }
                count => asked.reply(&[count as u64]).unwrap(),
            },
            Question::Repeat(times) => {
                for number in 0..u64::from(*times) {
                    asked.send(&[number; 2]).unwrap();
                }
                asked.finish().unwrap();
            }
        }
        if later.len() == 2 {
            let (count, answers) = later.pop().unwrap();
            answers.reply(&mut server, &[count]).unwrap();
            let (count, answers) = later.pop().unwrap();
            answers.post(&[count]).unwrap();
        }
    }
    asking.join().unwrap();
    until_gone(&mut server);
}

#[test]
fn types_are_compared_both_ways() {
    let _scene = Scene::new();
    let meet = |client: fn(Link) -> Error| {
        let (mut server, link) = typed();
        let client = thread::spawn(move || client(link));
        wait_until("the client is refused", || {
            assert!(matches!(server.try_recv(), Err(TryRecvError::Empty)));
            server.get_ref().stats().refused == 1
        });
        client.join().unwrap().to_string()
    };
    assert_eq!(
        meet(|link| Client::builder().over(link).unwrap_err()),
        "there is no server to call: it expects encoded Question, and this client sends bytes"
    );
    assert_eq!(
        meet(|link| {
            let client = Client::builder().of::<Questions, Plain<u64>>();
            client.over(link).unwrap_err()
        }),
        "there is no server to call: it carries slices of u64 (8 bytes, aligned to 8); this client expects plain u64 (8 \
         bytes, aligned to 8)"
    );
    assert_eq!(
        meet(|link| {
            let client = Client::builder().of::<Questions, Slice<u64>>().version(2);
            client.over(link).unwrap_err()
        }),
        "there is no server to call: it expects encoded Question, and this client sends encoded Question, version 2"
    );
}

fn readable(end: &impl std::os::fd::AsFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&now)).unwrap() == 1
}

fn wait_readable(end: &impl std::os::fd::AsFd) {
    poll(&mut [PollFd::new(end, PollFlags::IN)], None).unwrap();
}

#[test]
fn in_a_loop() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let serving = thread::spawn(move || {
        let mut server = Server::builder().unbound().unwrap();
        server.attach(ours).unwrap();
        let mut server = Watched::new(server).unwrap();
        let mut answered = 0;
        while answered == 0 || server.clients() > 0 {
            wait_readable(&server);
            match server.try_recv() {
                Ok(request) => {
                    let bytes = request.to_vec();
                    request.reply(&bytes).unwrap();
                    answered += 1;
                }
                Err(TryRecvError::Empty) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(!readable(&server));
        answered
    });
    let client = Client::builder().over(theirs).unwrap();
    let mut client = Watched::new(client).unwrap();
    let mut ids = std::collections::BTreeMap::new();
    for round in 0..300_u64 {
        // More than fits now and then, which takes a loop's turns as well.
        for number in 0..=round % 7 * 16 {
            let request = vec![number as u8; 100];
            let call = loop {
                match client.try_send(&request) {
                    Ok(call) => break call,
                    Err(CallError::Full) => wait_readable(&client),
                    Err(error) => panic!("{error}"),
                }
            };
            ids.insert(call.detach(), request);
        }
        while !ids.is_empty() {
            wait_readable(&client);
            match client.try_recv() {
                Ok((id, Answer::Last(reply))) => {
                    assert_eq!(ids.remove(&id).unwrap(), reply.to_vec());
                }
                Err(CallError::Empty) => {}
                other => panic!("{other:?}"),
            }
        }
        if round % 10 == 0 {
            let call = client.send(b"one more").unwrap();
            assert_eq!(client.wait(call).unwrap().to_vec(), b"one more");
        }
    }
    let asked = client.stats().requests;
    drop(client);
    assert_eq!(serving.join().unwrap(), asked);
}

async fn ask<R: Readiness>(mut client: Async<Client, R>, rounds: u64) {
    for round in 0..rounds {
        let bytes = vec![round as u8; (round % 50 * 100) as usize];
        assert_eq!(client.call(&bytes).await.unwrap().to_vec(), bytes);
        let mut calls = Vec::new();
        for number in 0..round % 40 {
            calls.push((number, client.send(&[number as u8; 900]).await.unwrap()));
        }
        while let Some((number, mut call)) = calls.pop() {
            match number % 3 {
                0 => drop(call),
                1 => {
                    let reply = client.next(&mut call).await.unwrap().unwrap();
                    assert_eq!(reply.to_vec(), [number as u8; 900]);
                }
                _ => {
                    let reply = client.wait(call).await.unwrap();
                    assert_eq!(reply.to_vec(), [number as u8; 900]);
                }
            }
        }
    }
    drop(client.call(b"that is all").await.unwrap());
}

/// Until it is told that nothing more comes.
async fn answer<R: Readiness>(mut server: Async<Server, R>) {
    let mut buffer = Vec::new();
    while buffer != b"that is all" {
        let request = server.recv().await.unwrap();
        request.copy_into(&mut buffer);
        request.reply(&buffer).unwrap();
        memlane_tests::alive();
    }
}

/// Turns of the executor's, until something has happened elsewhere.
async fn until(happened: &AtomicBool) {
    while !happened.load(Ordering::Relaxed) {
        memlane_tests::yield_now().await;
    }
}

fn in_tasks<K: Tasks>() {
    let (ours, theirs) = Link::pair().unwrap();
    let serving = thread::spawn(move || {
        let mut server = Server::builder().reply_timeout(PATIENCE).unbound().unwrap();
        server.attach(ours).unwrap();
        K::run(async { answer(K::server(server)).await });
    });
    let client = Client::builder().over(theirs).unwrap();
    K::run(async { ask(K::client(client), 60).await });
    serving.join().unwrap();
}

#[test]
fn in_tasks_of_any_executor() {
    let _scene = Scene::after(Smol::start);
    in_tasks::<Control>();
    in_tasks::<Smol>();
    in_tasks::<Tokio>();
}

#[test]
fn a_future_that_is_dropped_has_cancelled_its_request() {
    let _scene = Scene::new();
    let (mut server, link) = typed();
    let received = std::sync::Arc::new(AtomicBool::new(false));
    let seen = received.clone();
    let asking = thread::spawn(move || {
        let client = Client::builder().of::<Questions, Slice<u64>>();
        let mut client = client.over(link).unwrap().try_map(Async::new).unwrap();
        Control::run(async {
            {
                let question = Question::Repeat(0);
                let call = std::pin::pin!(client.call(&question));
                let late = std::pin::pin!(until(&seen));
                let first = futures_util::future::select(call, late).await;
                assert!(matches!(first, futures_util::future::Either::Right(_)));
            }
            let value = client.call(&Question::Repeat(1)).await;
            assert_eq!(value.unwrap(), [1]);
        });
    });
    let first = server.recv().unwrap();
    received.store(true, Ordering::Relaxed);
    wait_until("it is cancelled", || first.is_cancelled());
    drop(first);
    let second = server.recv_timeout(PATIENCE).unwrap();
    assert_eq!(*second, Question::Repeat(1));
    second.reply(&[1]).unwrap();
    asking.join().unwrap();
    until_gone(&mut server);
    let timed = server.recv_timeout(Duration::from_millis(1));
    assert!(matches!(timed, Err(memlane::RecvTimeoutError::TimedOut)));
}

#[test]
fn every_form_of_requests_is_one_of_values() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let server = Server::builder().of::<Plain<u32>, Plain<u64>>();
    let mut server = server.named("number", "answer").unbound().unwrap();
    server.attach(ours).unwrap();
    let asking = thread::spawn(move || {
        let client = Client::builder().of::<Plain<u32>, Plain<u64>>();
        let mut client = client.named("number", "answer").over(theirs).unwrap();
        let short = Duration::from_millis(1);
        let mut items = client.send(&1).unwrap();
        let item = client.next_timeout(&mut items, PATIENCE).unwrap();
        assert_eq!(item, Some(10));
        let late = client.next_timeout(&mut items, short).unwrap_err();
        assert!(matches!(late, PayloadError::Lane(CallError::TimedOut)));
        let late = client.recv_timeout(short).map(drop).unwrap_err();
        assert!(matches!(late, PayloadError::Lane(CallError::TimedOut)));
        // Which ends the first.
        let other = client.send(&2).unwrap();
        assert_eq!(client.next(&mut items).unwrap(), Some(11));
        assert_eq!(client.next(&mut items).unwrap(), None);
        match client.recv_timeout(PATIENCE).unwrap() {
            (id, Answer::Last(20)) => assert_eq!(id, other.detach()),
            other => panic!("{other:?}"),
        }
        for number in [3, 4] {
            let error = client.call(&number).unwrap_err().to_string();
            assert_eq!(error, format!("the server says: no {number}"));
        }
        assert_eq!(client.call(&5).unwrap(), 50);
    });
    let mut first = server.recv().unwrap();
    first.try_send(&10).unwrap();
    let (number, mut first) = first.defer();
    assert_eq!(number, 1);
    assert_eq!(server.clients(), 1);
    let (number, mut second) = server.recv().unwrap().defer();
    assert_eq!(number, 2);
    first.try_send(&mut server, &11).unwrap();
    first.finish(&mut server).unwrap();
    second.try_reply(&mut server, &20).unwrap();
    let again = second.try_reply(&mut server, &20).unwrap_err();
    assert!(matches!(
        again,
        PayloadError::Lane(memlane::ReplyError::Answered)
    ));
    let (_, third) = server.recv().unwrap().defer();
    third.fail(&mut server, "no 3").unwrap();
    let (_, fourth) = server.recv().unwrap().defer();
    fourth.post_failure("no 4");
    let mut fifth = server.recv().unwrap();
    fifth.try_reply(&50).unwrap();
    drop(fifth);
    asking.join().unwrap();

    // Other names are other types.
    let (ours, theirs) = Link::pair().unwrap();
    server.attach(ours).unwrap();
    let asking = thread::spawn(move || {
        let client = Client::builder().of::<Plain<u32>, Plain<u64>>();
        client.named("number", "reply").over(theirs).unwrap_err()
    });
    while !asking.is_finished() {
        let _ = server.try_recv();
    }
    let error = asking.join().unwrap().to_string();
    assert!(error.contains("plain answer"), "{error}");
}

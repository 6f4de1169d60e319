//! One client, many tasks: everybody gets what is theirs, whoever is dropped, late or too much.

use std::{pin::pin, time::Duration};

use futures_util::{
    FutureExt,
    future::{join_all, select},
};
use memlane::{
    Async, CallError, Client, Link, Publisher, Reason, Responder, Server, SharedClient, Subscriber,
    Untrusted,
};
use memlane_tests::{
    Control, Dice, PATIENCE, Role, Scene, Smol, Tasks, Tokio, alive, fill, length, poll_and_drop,
    yield_now,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Serves {
    address: String,
    /// So many it takes at a time.
    requests: usize,
    /// So many it keeps before it answers one of them, any.
    keeps: usize,
}

/// Answers with what it was asked, in any order, until it is told to end or is killed. Of a request of one byte, it drops it.
pub(crate) fn server(role: &Role) {
    let Serves {
        address,
        requests,
        keeps,
    } = role.hear();
    let mut server = Server::builder()
        .max_requests(requests)
        .reply_timeout(PATIENCE)
        .bind_to(&address.parse().unwrap())
        .unwrap();
    role.tell(&());
    let mut dice = Dice::new();
    let mut kept: Vec<(Vec<u8>, Responder)> = Vec::new();
    let mut answered = 0_u64;
    loop {
        // One that keeps nothing has nothing else to do.
        let patience = Duration::from_millis(u64::from(kept.is_empty()));
        let found = match server.recv_timeout(patience) {
            Ok(request) if request.len() == 1 => {
                drop(request);
                true
            }
            Ok(request) => {
                let bytes = request.to_vec();
                kept.push((bytes, request.defer()));
                true
            }
            Err(_) => false,
        };
        if !found && role.has_said::<()>().is_some() {
            break;
        }
        // Nothing more comes, perhaps: the rest is answered.
        let answers = kept.len() > keeps || !found && !kept.is_empty();
        if answers {
            let next = dice.below(kept.len() as u64) as usize;
            let (bytes, responder) = kept.swap_remove(next);
            answered += u64::from(responder.reply(&mut server, &bytes).is_ok());
        }
        alive();
    }
    let stats = server.stats();
    role.tell(&(stats.requests, answered));
}

/// A lane of requests that is full after some of them.
fn options() -> memlane::ClientBuilder<Untrusted> {
    let requests = Publisher::builder().ring_bytes(4096).pool_bytes(1 << 20);
    Client::builder()
        .requests(requests)
        .replies(Subscriber::builder())
}

const LONGEST: usize = 3000;

/// A request that no other is like.
fn request(number: u64) -> Vec<u8> {
    let mut request = vec![0; 8 + length(number, LONGEST)];
    request[..8].copy_from_slice(&number.to_ne_bytes());
    fill(number, &mut request[8..]);
    request
}

async fn ask<R: memlane::Readiness>(client: &SharedClient<Untrusted, R>, number: u64) {
    let request = request(number);
    let reply = client.call(&request).await.unwrap();
    assert!(reply.to_vec() == request, "reply {number}");
}

fn everybody_gets_what_is_theirs<K: Tasks>(scene: &Scene, requests: usize, keeps: usize) {
    let address = scene.address("sum");
    let serves = Serves {
        address: address.to_string(),
        requests,
        keeps,
    };
    let server = scene.spawn("server", &serves);
    let () = server.hear();
    const TASKS: u64 = 30;
    const CALLS: u64 = 20;
    K::run(async {
        let client = options().begin_at(&address).unwrap();
        let client = client.finish_with(K::readiness).await.unwrap().shared();
        assert_eq!(client.max_outstanding(), requests);
        join_all((0..TASKS).map(|task| {
            let client = client.clone();
            async move {
                for call in 0..CALLS {
                    ask(&client, task * CALLS + call).await;
                    alive();
                }
            }
        }))
        .await;
        assert_eq!(client.outstanding(), 0);
        assert_eq!(client.stats().replies, TASKS * CALLS);
    });
    server.tell(&());
    let counts: (u64, u64) = server.hear();
    assert_eq!(counts, (TASKS * CALLS, TASKS * CALLS));
    server.finish();
}

#[test]
fn everybody_gets_what_is_theirs_in_whatever_order() {
    let scene = Scene::after(Smol::start);
    for (requests, keeps) in [(1024, 20), (4, 2), (1, 0)] {
        everybody_gets_what_is_theirs::<Control>(&scene, requests, keeps);
        everybody_gets_what_is_theirs::<Smol>(&scene, requests, keeps);
        everybody_gets_what_is_theirs::<Tokio>(&scene, requests, keeps);
    }
}

#[test]
fn in_tasks_on_many_threads() {
    let scene = Scene::new();
    let address = scene.address("sum");
    let serves = Serves {
        address: address.to_string(),
        requests: 16,
        keeps: 5,
    };
    let server = scene.spawn("server", &serves);
    let () = server.hear();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = memlane::tokio::Client::finish(options().begin_at(&address).unwrap()).await;
        let client = client.unwrap().shared();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..60 {
            let client = client.clone();
            tasks.spawn(async move {
                let mut dice = Dice::new();
                for call in 0..50 {
                    match dice.below(4) {
                        // Given up at any moment.
                        0 => {
                            let request = request(0);
                            let turns = dice.below(20);
                            let _ = poll_and_drop(turns, client.call(&request)).await;
                        }
                        _ => ask(&client, task * 50 + call).await,
                    }
                    alive();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        // What was given up is said to the end of.
        while client.outstanding() > 0 {
            ask(&client, 1).await;
        }
    });
    drop(runtime);
    server.tell(&());
    let _: (u64, u64) = server.hear();
    server.finish();
}

/// The one who looks for all is dropped, again and again, and the others are none the wiser.
fn whoever_is_dropped<K: Tasks>() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut server = Server::builder().unbound().unwrap();
    server.attach(ours).unwrap();
    K::run(async {
        let mut client = options().begin_over(theirs).unwrap();
        let client = loop {
            let _ = server.try_recv();
            if let Some(client) = client.try_finish().unwrap() {
                break client;
            }
        };
        let client = Async::with(client, K::readiness).unwrap().shared();
        for round in 0..200_u64 {
            let last = request(round);
            let last = pin!(client.call(&last));
            let first = request(1000 + round);
            let mut first = Box::pin(client.call(&first));
            // Both wait, and whoever was there first looks.
            assert!(first.as_mut().now_or_never().is_none());
            let mut last = last.boxed_local();
            assert!(last.as_mut().now_or_never().is_none());
            let replying = async {
                for dropped in [false, true] {
                    let request = loop {
                        match server.try_recv() {
                            Ok(request) => break request,
                            Err(_) => yield_now().await,
                        }
                    };
                    let bytes = request.to_vec();
                    if dropped {
                        request.reply(&bytes).unwrap();
                    } else {
                        drop(request);
                    }
                }
            };
            let dropping = async {
                for _ in 0..round % 5 {
                    yield_now().await;
                }
                drop(first);
            };
            let others = pin!(async { tokio::join!(replying, dropping) });
            match select(last, others).await {
                futures_util::future::Either::Left((reply, others)) => {
                    assert!(!reply.unwrap().is_empty());
                    others.await;
                }
                futures_util::future::Either::Right((_, last)) => {
                    assert!(!last.await.unwrap().is_empty());
                }
            }
            alive();
        }
    });
}

#[test]
fn whoever_looks_for_all_may_be_dropped() {
    let _scene = Scene::after(Smol::start);
    whoever_is_dropped::<Control>();
    whoever_is_dropped::<Smol>();
    whoever_is_dropped::<Tokio>();
}

fn all_are_told<K: Tasks>(scene: &Scene) {
    let address = scene.address("sum");
    let serves = Serves {
        address: address.to_string(),
        requests: 8,
        keeps: 1000,
    };
    let server = scene.spawn("server", &serves);
    let () = server.hear();
    K::run(async {
        let client = options().begin_at(&address).unwrap();
        let client = client.finish_with(K::readiness).await.unwrap().shared();
        ask(&client, 1).await;
        server.stop();
        // Some wait for their turn, and some for room; their time is over.
        let short = Duration::from_millis(10);
        let late = join_all((0..30).map(|number| {
            let request = request(number);
            let client = &client;
            async move { client.call_timeout(&request, short).await }
        }));
        for outcome in late.await {
            let error = outcome.map(drop).unwrap_err();
            assert!(matches!(error, CallError::DeadlineExceeded), "{error:?}");
        }
        let calls = (0..30).map(|number| {
            let request = request(number);
            let client = &client;
            async move { client.call(&request).await }
        });
        let killing = async {
            for _ in 0..10 {
                yield_now().await;
            }
            server.kill();
        };
        let (outcomes, ()) = tokio::join!(join_all(calls), killing);
        for outcome in outcomes {
            match outcome.map(drop) {
                Err(CallError::Disconnected { reason }) => assert_eq!(reason, Reason::Died),
                other => panic!("{other:?}"),
            }
        }
        let error = client.call(b"another").await.map(drop).unwrap_err();
        assert!(matches!(error, CallError::Disconnected { .. }), "{error:?}");
    });
    server.reap();
    let _ = memlane::transport::remove_stale(&address);
}

#[test]
fn all_are_told_of_time_and_of_death() {
    let scene = Scene::after(Smol::start);
    all_are_told::<Control>(&scene);
    all_are_told::<Smol>(&scene);
    all_are_told::<Tokio>(&scene);
}

/// As the blocking forms do: what is late is late, whether it was sent or waited for room.
fn one_task_is_told_of_time<K: Tasks>() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut server = Server::builder().unbound().unwrap();
    server.attach(ours).unwrap();
    let mut client = options().begin_over(theirs).unwrap();
    let client = loop {
        let _ = server.try_recv();
        if let Some(client) = client.try_finish().unwrap() {
            break client;
        }
    };
    K::run(async {
        let mut client = Async::with(client, K::readiness).unwrap();
        let short = Duration::from_millis(5);
        let error = client.call_timeout(b"late", short).await.map(drop);
        assert!(
            matches!(error, Err(CallError::DeadlineExceeded)),
            "{error:?}"
        );
        let mut sent = 0;
        let error = loop {
            match client.send_timeout(&[0; 500], short).await {
                Ok(call) => drop(call.detach()),
                Err(error) => break error,
            }
            sent += 1;
            assert!(sent < 100, "the lane is full one day");
        };
        assert!(matches!(error, CallError::DeadlineExceeded), "{error:?}");
        // Which leaves nothing behind.
        while let Ok(request) = server.try_recv() {
            drop(request);
        }
        let call = client.send_timeout(b"in time", PATIENCE).await.unwrap();
        let request = loop {
            if let Ok(request) = server.try_recv() {
                break request;
            }
        };
        assert_eq!(request.to_vec(), b"in time");
        request.reply(b"an answer").unwrap();
        assert_eq!(client.wait(call).await.unwrap().to_vec(), b"an answer");
    });
}

#[test]
fn one_task_is_told_of_time_whoever_runs_it() {
    let _scene = Scene::after(Smol::start);
    one_task_is_told_of_time::<Control>();
    one_task_is_told_of_time::<Smol>();
    one_task_is_told_of_time::<Tokio>();
}

#[test]
fn a_request_that_is_dropped_is_told_to_its_task_alone() {
    let scene = Scene::new();
    let address = scene.address("sum");
    let serves = Serves {
        address: address.to_string(),
        requests: 64,
        keeps: 3,
    };
    let server = scene.spawn("server", &serves);
    let () = server.hear();
    Control::run(async {
        let client = options().begin_at(&address).unwrap();
        let client = client.finish().await.unwrap().shared();
        for number in 0..50 {
            let (dropped, ()) = tokio::join!(client.call(b"1"), ask(&client, number));
            let error = dropped.map(drop).unwrap_err();
            assert!(matches!(error, CallError::Unanswered), "{error:?}");
        }
    });
    server.tell(&());
    let counts: (u64, u64) = server.hear();
    assert_eq!(counts, (100, 50));
    server.finish();
}

#[test]
fn streams_go_on_beside_each_other() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let serving = std::thread::spawn(move || {
        let mut server = Server::builder().reply_timeout(PATIENCE).unbound().unwrap();
        server.attach(ours).unwrap();
        let mut streams: Vec<Responder> = (0..3).map(|_| server.recv().unwrap().defer()).collect();
        for item in 0..500_u64 {
            for stream in &mut streams {
                stream.send(&mut server, &item.to_ne_bytes()).unwrap();
            }
        }
        for stream in streams {
            stream.finish(&mut server).unwrap();
        }
        // It has hung up when nobody asks any more.
        while server.clients() > 0 {
            let _ = server.recv_timeout(Duration::from_millis(1));
        }
    });
    Control::run(async {
        let client = options().begin_over(theirs).unwrap();
        let client = client.finish().await.unwrap().shared();
        join_all((0..3).map(|_| async {
            let mut call = client.send(b"items").await.unwrap();
            let mut items = 0_u64;
            while let Some(item) = client.next(&mut call).await.unwrap() {
                assert_eq!(item.to_vec(), items.to_ne_bytes());
                items += 1;
            }
            assert_eq!(items, 500);
        }))
        .await;
    });
    serving.join().unwrap();
}

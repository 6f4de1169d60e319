//! Replies of many items.

use memlane::CallError;
use memlane_tests::{Scene, wait_until};

use crate::pair::pair;

#[test]
fn streams_come_item_by_item_beside_others() {
    let _scene = Scene::new();
    pair(
        |server| {
            let mut first = server.recv().unwrap().defer();
            let mut second = server.recv().unwrap();
            for number in 0..100_u64 {
                second.send(&number.to_ne_bytes()).unwrap();
            }
            second.finish().unwrap();
            for number in 100..200_u64 {
                first.send(server, &number.to_ne_bytes()).unwrap();
            }
            first.reply(server, b"the last item").unwrap();
            let mut third = server.recv().unwrap();
            third.send(b"an item").unwrap();
            third.fail("no more").unwrap();
            let mut fourth = server.recv().unwrap();
            fourth.send(b"one of many").unwrap();
            wait_until("the call is cancelled", || fourth.is_cancelled());
            drop(fourth);
            let fifth = server.recv().unwrap();
            fifth.finish().unwrap();
            // Until the client has left.
            wait_until("the client has left", || {
                let _ = server.try_recv();
                server.clients() == 0
            });
        },
        |client| {
            let mut first = client.send(b"first").unwrap();
            let mut second = client.send(b"second").unwrap();
            for number in 100..200_u64 {
                let item = client.next(&mut first).unwrap().unwrap();
                assert!(!item.is_last());
                assert_eq!(item.to_vec(), number.to_ne_bytes());
            }
            let last = client.next(&mut first).unwrap().unwrap();
            assert!(last.is_last());
            assert_eq!(last.to_vec(), b"the last item");
            drop(last);
            assert!(client.next(&mut first).unwrap().is_none());
            for number in 0..100_u64 {
                let item = client.next(&mut second).unwrap().unwrap();
                assert_eq!(item.to_vec(), number.to_ne_bytes());
            }
            assert!(client.next(&mut second).unwrap().is_none());
            assert!(client.next(&mut second).unwrap().is_none());

            let mut third = client.send(b"third").unwrap();
            assert_eq!(
                client.next(&mut third).unwrap().unwrap().to_vec(),
                b"an item"
            );
            let error = client.next(&mut third).unwrap_err();
            assert_eq!(error.to_string(), "the server says: no more");
            assert!(client.next(&mut third).unwrap().is_none());

            // One reply was expected.
            let error = client.call(b"fourth").unwrap_err();
            assert!(matches!(error, CallError::Stream), "{error:?}");
            let error = client.call(b"fifth").unwrap_err();
            assert!(matches!(error, CallError::Stream), "{error:?}");
            assert_eq!(client.stats().strays, 0);
        },
    );
}

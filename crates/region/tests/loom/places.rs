//! Readers that begin where others have been: at what is kept for those who come late, or in the place of another.

use super::*;
use memlane_region::ring::From;

/// A page, and what has joined by it.
fn page(rules: Rules) -> Arc<Page> {
    Arc::new(Page {
        cursor: AtomicU64::new(0),
        export: rules.export,
    })
}

/// A reader joins behind the last two records while the writer, whom nobody else holds up, overwrites those before them: it gets
/// what is kept, and all that follow, whole. At most 2 preemptions.
fn history_under_way(rules: Rules) {
    const LAST: u64 = 6;
    model(Some(2), move || {
        let (mut writer, roster) = writer(rules);
        writer.keep(2);
        for n in 0..3 {
            assert!(Messages::Short.try_send(&mut writer, n));
        }
        let memory = writer.memory().map();
        let reader = thread::spawn(move || {
            let page = page(memory.rules);
            let joined = roster.join_behind(page.clone(), 2).unwrap();
            // What the writer has not given up yet is more than was asked for.
            assert!(joined.sequence + joined.skip >= 1);
            let mut side = RingReader::new(memory, Export(page), joined.start);
            for n in joined.sequence..=LAST {
                Messages::Short.receive(&mut side, n);
            }
            assert_eq!(side.poll(), Ok(None));
        });
        for n in 3..=LAST {
            Messages::Short.send(&mut writer, n);
        }
        reader.join().unwrap();
    });
}

#[test]
fn a_late_reader_gets_what_is_kept() {
    history_under_way(HONEST);
}

#[test]
#[should_panic(expected = "torn")]
fn what_is_kept_of_relaxed_commits() {
    history_under_way(RELAXED_COMMIT);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn what_is_kept_by_a_relaxed_cursor() {
    history_under_way(RELAXED_EXPORT);
}

/// A reader takes another's place while the writer looks for the room that the other has just given back, and for more: it gets
/// what follows the other's last record, whole. `succeeds`, or the one leaves and the other joins. At most 4 preemptions.
fn move_under_way(rules: Rules, succeeds: bool) {
    const LAST: u64 = 3;
    model(Some(4), move || {
        let (mut writer, roster) = writer(rules);
        let memory = writer.memory().map();
        let (id, _, mut side) = join(&roster, writer.memory().map());
        assert!(Messages::Half.try_send(&mut writer, 0));
        let reader = thread::spawn(move || {
            Messages::Half.receive(&mut side, 0);
            side.release_all();
            let page = page(memory.rules);
            let joined = if succeeds {
                roster.succeed(id, page.clone(), From::Cursor(Some(1)), false)
            } else {
                assert!(roster.leave(id));
                Ok(roster.join(page.clone()).unwrap())
            };
            let joined = joined.unwrap();
            assert_eq!(
                (joined.start, joined.sequence),
                (64, 1),
                "something is lost"
            );
            let mut side = RingReader::new(memory, Export(page), joined.start);
            for n in joined.sequence..=LAST {
                Messages::Half.receive(&mut side, n);
            }
            assert_eq!(side.poll(), Ok(None));
        });
        for n in 1..=LAST {
            Messages::Half.send(&mut writer, n);
        }
        reader.join().unwrap();
        assert!(writer.is_drained());
        assert_eq!(writer.readers().count(), 1);
    });
}

#[test]
fn a_successor_gets_what_the_other_has_not() {
    move_under_way(HONEST, true);
}

#[test]
#[should_panic(expected = "something is lost")]
fn who_leaves_and_joins_anew_misses_something() {
    move_under_way(HONEST, false);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_successor_with_a_relaxed_cursor() {
    move_under_way(RELAXED_EXPORT, true);
}

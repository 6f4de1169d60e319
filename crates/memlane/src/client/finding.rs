//! How replies are found, whichever is waited for.

use std::time::Instant;

use super::{
    Answer, Call, CallError, CallId, Client, Reply,
    calls::{Fate, Stored},
};
use crate::{
    Reason, Trust,
    envelope::{CANCELLED, END, EXPIRED, ITEM, LAST, REPLY_HEADER, UNANSWERED, words},
    protocol::Farewell,
    subscriber::{Next as Record, NoMessage, Why},
};

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    Now,
    /// The same, of a task: that looks at what was kept before it waits, and need not be told of it.
    Task,
    Until(Option<Instant>),
}

/// Something has come of a request.
#[derive(Debug)]
pub(super) enum Found {
    /// A reply in the ring, of this kind.
    Record(u64, Record),
    Stored(Stored),
    /// Its time is over.
    Late,
}

impl Found {
    pub(super) fn kind(&self) -> u64 {
        match self {
            Found::Record(kind, _) => *kind,
            Found::Stored(stored) => stored.kind,
            Found::Late => EXPIRED,
        }
    }
}

/// So many records that concern nobody are passed over by a call whose time is over.
pub(super) const PASSED: u32 = 1024;

/// The longest text of a server that is taken, in bytes.
const MAX_WORDS: usize = 4096;

impl<T: Trust> Client<T> {
    #[inline]
    pub(super) fn only(&mut self, id: CallId) -> Result<Reply<'_, T>, CallError> {
        match self.reply_in_ring(id) {
            Some(len) => Ok(Reply::in_place(self.subscriber.in_ring(len), id, true)),
            None => self.only_of_any(id),
        }
    }

    #[inline(never)]
    fn only_of_any(&mut self, id: CallId) -> Result<Reply<'_, T>, CallError> {
        let found = self.find(Some(id), Patience::Until(None));
        self.only_of(id, found)
    }

    /// The length of the next message, if that is the whole reply to this request, which is over then. All that most calls need:
    /// whatever else there is or comes is left to [`find`](Client::find).
    #[inline(always)]
    fn reply_in_ring(&mut self, id: CallId) -> Option<usize> {
        self.settle();
        if self.ended.is_some() || !self.calls.is_awaited_only(id) {
            return None;
        }
        let len = self.subscriber.next_payload()?;
        let header: [u64; 2] = self.subscriber.header(len)?;
        if header != [id.0, LAST] {
            return None;
        }
        self.calls.close(id);
        self.stats.replies += 1;
        Some(len)
    }

    #[inline]
    pub(super) fn only_of(
        &mut self,
        id: CallId,
        found: Result<(CallId, Found), CallError>,
    ) -> Result<Reply<'_, T>, CallError> {
        let found = match found {
            Ok((_, found)) => found,
            Err(error) => {
                self.give_up(id);
                return Err(error);
            }
        };
        if matches!(found.kind(), ITEM | END) {
            if let Found::Record(..) = found {
                self.subscriber.skip();
            }
            self.give_up(id);
            return Err(CallError::Stream);
        }
        match self.answer(id, found) {
            Answer::Item(reply) | Answer::Last(reply) => Ok(reply),
            Answer::End => Err(CallError::Stream),
            Answer::Error(error) => Err(error),
        }
    }

    pub(super) fn item(
        &mut self,
        call: &mut Call,
        patience: Patience,
    ) -> Result<Option<Reply<'_, T>>, CallError> {
        if call.over {
            return Ok(None);
        }
        let found = self.find(Some(call.id()), patience);
        self.item_of(call, found)
    }

    pub(super) fn item_of(
        &mut self,
        call: &mut Call,
        found: Result<(CallId, Found), CallError>,
    ) -> Result<Option<Reply<'_, T>>, CallError> {
        let id = call.id();
        let (_, found) = found.inspect_err(|error| {
            let goes_on = matches!(
                error,
                CallError::Empty
                    | CallError::TimedOut
                    | CallError::Backlog { .. }
                    | CallError::Wait(_)
            );
            call.over = !goes_on;
        })?;
        call.over = found.kind() != ITEM;
        match self.answer(id, found) {
            Answer::Item(reply) | Answer::Last(reply) => Ok(Some(reply)),
            Answer::End => Ok(None),
            Answer::Error(error) => Err(error),
        }
    }

    /// What was found, in place.
    #[inline]
    pub(super) fn answer(&mut self, id: CallId, found: Found) -> Answer<Reply<'_, T>> {
        let (kind, reply) = match found {
            Found::Late => return Answer::Error(CallError::DeadlineExceeded),
            Found::Stored(Stored { kind, payload }) => {
                (kind, Reply::copy(payload, id, kind != ITEM))
            }
            Found::Record(kind, record) => match self.subscriber.deliver(Ok(record)) {
                Ok(message) => (kind, Reply::in_place(message, id, kind != ITEM)),
                Err(error) => return Answer::Error(CallError::unheard(error)),
            },
        };
        match kind {
            ITEM => Answer::Item(reply),
            LAST => Answer::Last(reply),
            END => Answer::End,
            UNANSWERED => Answer::Error(CallError::Unanswered),
            CANCELLED => Answer::Error(CallError::Cancelled),
            EXPIRED => Answer::Error(CallError::DeadlineExceeded),
            _ => {
                let mut why = vec![0; reply.len().min(MAX_WORDS)];
                reply.copy_to(&mut why);
                let why = String::from_utf8_lossy(&why).into_owned();
                Answer::Error(CallError::Failed { why })
            }
        }
    }

    /// What has come, or comes, of a request, or of any. A last reply is the last: it is not known any more then.
    #[inline]
    pub(super) fn find(
        &mut self,
        wanted: Option<CallId>,
        patience: Patience,
    ) -> Result<(CallId, Found), CallError> {
        self.settle();
        let open = match wanted {
            Some(id) => self.calls.is_open(id),
            None => !self.calls.is_idle(),
        };
        if !open {
            if self.ended.is_none() && (self.calls.len() > 0 || self.watched.is_some()) {
                // What is said of those that were given up. A loop that waits for the descriptor all the same is not woken again
                // before there is more.
                self.take_in()?;
                self.tell_news();
            }
            return Err(match &self.ended {
                Some(reason) if wanted.is_none() => CallError::Disconnected {
                    reason: reason.clone(),
                },
                _ => CallError::Unknown,
            });
        }
        let mut passed = 0;
        loop {
            if let Some((id, stored)) = self.calls.take(wanted) {
                return Ok((id, Found::Stored(stored)));
            }
            let record = match self.look(wanted, patience)? {
                Ok(record) => record,
                Err(late) => {
                    self.give_up(late);
                    return Ok((late, Found::Late));
                }
            };
            let Some((id, kind)) = self.sort(record)? else {
                passed += 1;
                self.bear(passed, patience)?;
                continue;
            };
            if wanted.is_none_or(|wanted| wanted == id) {
                self.stats.replies += 1;
                if kind != ITEM {
                    self.calls.close(id);
                }
                return Ok((id, Found::Record(kind, record)));
            }
            self.store(id, kind, record)?;
        }
    }

    /// The next record; or the request whose time is over, by the way.
    #[inline]
    pub(super) fn look(
        &mut self,
        wanted: Option<CallId>,
        patience: Patience,
    ) -> Result<Result<Record, CallId>, CallError> {
        if let Some(reason) = &self.ended {
            let reason = reason.clone();
            return Err(CallError::Disconnected { reason });
        }
        let limit = match wanted {
            Some(id) => self.calls.deadline(id).map(|limit| (limit, id)),
            None => self.calls.earliest(),
        };
        // Whatever floods the lane: what is late is late.
        if let Some((limit, id)) = limit {
            if Instant::now() >= limit {
                return Ok(Err(id));
            }
        }
        let found = match patience {
            Patience::Now | Patience::Task => self.find_now(),
            Patience::Until(deadline) => {
                let limit = limit.map(|(limit, _)| limit);
                let until = deadline.into_iter().chain(limit).min();
                self.subscriber.next(|| until).map(Some)
            }
        };
        match found {
            Ok(Some(record)) => Ok(Ok(record)),
            Ok(None) => {
                if let Patience::Now = patience {
                    self.tell_news();
                }
                self.set_alarm()?;
                Err(CallError::Empty)
            }
            Err(NoMessage::TimedOut) => match limit {
                Some((limit, id)) if Instant::now() >= limit => Ok(Err(id)),
                _ => Err(CallError::TimedOut),
            },
            Err(error) => Err(self.unheard(error)),
        }
    }

    /// A record, if there is one now. If not, the descriptor of a client that is watched becomes readable when there is.
    pub(super) fn find_now(&mut self) -> Result<Option<Record>, NoMessage> {
        let found = self.subscriber.find();
        if self.watched.is_some() && matches!(found, Ok(None)) && !self.publisher.is_wanting() {
            // There is nothing to be heard of that lane. If this fails, the descriptor stays readable.
            let _ = self.publisher.drive();
        }
        found
    }

    /// Of a client that is watched, makes the descriptor readable if there is news, until a call that finds nothing has none. In
    /// the lane there may be nothing any more: what this call has taken out of it, and kept, may be what the one before it was
    /// to find, which has answered that nothing had come.
    #[inline]
    pub(super) fn tell_news(&mut self) {
        if self.news {
            self.news = false;
            self.subscriber.look_again();
        }
    }

    /// Nothing has come: a loop that waits for the descriptor is to be told of deadlines, too.
    #[inline]
    fn set_alarm(&mut self) -> Result<(), CallError> {
        self.set_alarm_before(None)
    }

    /// And of another one, of somebody who has not sent yet.
    #[inline]
    pub(super) fn set_alarm_before(&mut self, limit: Option<Instant>) -> Result<(), CallError> {
        let Some(watched) = &self.watched else {
            return Ok(());
        };
        let next = |after| {
            let next = self.calls.next_deadline(after);
            next.into_iter().chain(limit).min()
        };
        self.alarm.set(watched, next).map_err(CallError::Wait)
    }

    /// So many records have been passed over by this call: whatever floods the lane, it ends as it was told to.
    #[cold]
    fn bear(&mut self, passed: u32, patience: Patience) -> Result<(), CallError> {
        match patience {
            _ if passed < PASSED => Ok(()),
            Patience::Now | Patience::Task => {
                self.subscriber.look_again();
                Err(CallError::Empty)
            }
            Patience::Until(Some(deadline)) if Instant::now() >= deadline => {
                Err(CallError::TimedOut)
            }
            _ => Ok(()),
        }
    }

    /// What a record is, if it is of anybody's concern. What is not is released.
    #[inline]
    pub(super) fn sort(&mut self, record: Record) -> Result<Option<(CallId, u64)>, CallError> {
        let mut header = [0; REPLY_HEADER];
        let len = self.subscriber.peek(record, 0, &mut header);
        let len = match len {
            Ok(len) => len,
            Err(error) => return Err(self.unheard(error)),
        };
        let [number, kind] = words(&header);
        if len < REPLY_HEADER {
            return Err(self.broken(format!(
                "expected a reply of at least {REPLY_HEADER} bytes, got {len}"
            )));
        }
        if !matches!(kind, ITEM..=EXPIRED) {
            return Err(self.broken(format!(
                "expected a reply of kind {ITEM} to {EXPIRED}, got {kind}"
            )));
        }
        let id = CallId(number);
        match self.calls.meet(id) {
            Fate::Awaited => return Ok(Some((id, kind))),
            Fate::GivenUp if kind != ITEM => self.calls.close(id),
            Fate::GivenUp => {}
            Fate::Stray => self.stats.strays += 1,
        }
        self.subscriber.skip();
        Ok(None)
    }

    /// Keeps a reply that another one is waited for before.
    #[cold]
    pub(super) fn store(&mut self, id: CallId, kind: u64, record: Record) -> Result<(), CallError> {
        if self.calls.bytes >= self.max_backlog {
            let bytes = self.calls.bytes;
            return Err(CallError::Backlog { bytes });
        }
        let message = self.subscriber.deliver(Ok(record));
        let message = message.map_err(CallError::unheard)?;
        let mut payload = vec![0; message.len() - REPLY_HEADER];
        message.read_at(REPLY_HEADER, &mut payload);
        drop(message);
        self.calls.store(id, Stored { kind, payload });
        self.news = true;
        self.stats.replies += 1;
        self.stats.stored += 1;
        Ok(())
    }

    #[cold]
    pub(super) fn unheard(&mut self, error: NoMessage) -> CallError {
        match error.cause() {
            Some(Why::Disconnected(reason)) => self.ended = Some(reason.clone()),
            Some(Why::Corrupt(corrupt)) => {
                // It stays corrupt, whatever else is asked.
                let why = corrupt.to_string();
                self.ended = Some(Reason::Broken { why });
            }
            _ => {}
        }
        CallError::unheard(error)
    }

    /// The server does not keep to the rules: it is hung up on.
    #[cold]
    pub(super) fn broken(&mut self, why: String) -> CallError {
        self.publisher
            .hang_up(&Farewell::Evicted { why: why.clone() });
        let reason = Reason::Broken { why };
        self.ended = Some(reason.clone());
        CallError::Disconnected { reason }
    }
}

//! What a connection remembers between `WATCH`, `MULTI` and `EXEC`. What becomes of it is one command, see
//! [`crate::command::transaction`]: the versions of the watched keys are checked where the commands are executed, so nothing
//! needs to be remembered about a client anywhere else, and a failover in between does no harm.

use bytes::Bytes;

use super::Reply;
use crate::command;

const ABORTED: Reply = Reply::error("EXECABORT Transaction discarded because of previous errors.");

/// The state of a connection's transaction.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Watched keys with the versions that they had.
    watched: Vec<(Bytes, u64)>,
    queued: Option<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    commands: Vec<Vec<Bytes>>,
    bytes: usize,
    has_writes: bool,
    has_errors: bool,
}

/// What is to be executed for an `EXEC`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// This command, whose reply is that of the `EXEC`.
    Command(Vec<Bytes>),
    /// These reads, whose replies together are.
    Reads(Vec<Vec<Bytes>>),
}

impl Pending {
    /// Whether commands are queued now, not executed.
    pub fn is_queueing(&self) -> bool {
        self.queued.is_some()
    }

    pub fn begin(&mut self) -> Result<Reply, Reply> {
        if self.is_queueing() {
            return Err(Reply::error("ERR MULTI calls can not be nested"));
        }
        self.queued = Some(Queue::default());
        Ok(Reply::OK)
    }

    /// Notes that a command was refused, so that what was meant as a whole is not executed in part.
    pub fn note_error(&mut self) {
        if let Some(queue) = &mut self.queued {
            queue.has_errors = true;
        }
    }

    /// Queues a validated command of the store.
    pub fn push(&mut self, command: Vec<Bytes>, is_write: bool, bytes_max: u64) -> Reply {
        let queue = self.queued.get_or_insert_default();
        queue.bytes += command.iter().map(Bytes::len).sum::<usize>();
        if queue.bytes as u64 > bytes_max {
            queue.has_errors = true;
            // It is not executed any more; what is queued takes memory for nothing.
            queue.commands.clear();
            let bytes = queue.bytes;
            return Reply::Error(
                format!(
                    "ERR transaction is at least {bytes} bytes, the limit is {bytes_max} (request_bytes_max)"
                )
                .into(),
            );
        }
        queue.has_writes |= is_write;
        queue.commands.push(command);
        Reply::Status("QUEUED".into())
    }

    pub fn discard(&mut self) -> Result<Reply, Reply> {
        if !self.is_queueing() {
            return Err(Reply::error("ERR DISCARD without MULTI"));
        }
        *self = Self::default();
        Ok(Reply::OK)
    }

    pub fn may_watch(&self) -> Result<(), Reply> {
        if self.is_queueing() { Err(Reply::error("ERR WATCH inside MULTI is not allowed")) } else { Ok(()) }
    }

    /// Watches keys that have these versions now. A key that is already watched keeps its first.
    pub fn watch(&mut self, keys: &[Bytes], versions: impl Iterator<Item = u64>) {
        for (key, version) in keys.iter().zip(versions) {
            if self.watched.iter().all(|(watched, _)| watched != key) {
                self.watched.push((key.clone(), version));
            }
        }
    }

    pub fn unwatch(&mut self) {
        self.watched.clear();
    }

    /// Ends the transaction, to be executed.
    pub fn take(&mut self) -> Result<Ready, Reply> {
        let Some(queue) = self.queued.take() else {
            return Err(Reply::error("ERR EXEC without MULTI"));
        };
        let watched = std::mem::take(&mut self.watched);
        if queue.has_errors {
            return Err(ABORTED);
        }
        if watched.is_empty() && !queue.has_writes {
            return Ok(Ready::Reads(queue.commands));
        }
        Ok(Ready::Command(command::transaction(&watched, queue.commands)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Bytes> {
        line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
    }

    #[test]
    fn what_was_queued_becomes_one_command_that_checks_the_watched_keys() {
        let mut pending = Pending::default();
        pending.watch(&words("a b"), [7, 0].into_iter());
        pending.watch(&words("a"), [9].into_iter());
        assert_eq!(pending.begin(), Ok(Reply::OK));
        assert_eq!(pending.push(words("SET a 1"), true, 100), Reply::Status("QUEUED".into()));
        pending.push(words("GET b"), false, 100);
        let expected = words("TRANSACTION 2 a 7 b 0 3 SET a 1 2 GET b");
        assert_eq!(pending.take(), Ok(Ready::Command(expected)));
        assert_eq!(pending.take(), Err(Reply::error("ERR EXEC without MULTI")));
        pending.begin().unwrap();
        pending.push(words("GET b"), false, 100);
        assert_eq!(pending.take(), Ok(Ready::Reads(vec![words("GET b")])), "nothing is watched any more");
    }

    #[test]
    fn an_error_and_too_much_end_in_an_abort() {
        let mut pending = Pending::default();
        pending.begin().unwrap();
        pending.push(words("SET a 1"), true, 100);
        pending.note_error();
        assert_eq!(pending.take(), Err(ABORTED));
        pending.begin().unwrap();
        assert!(pending.push(words("SET a 1"), true, 4).is_error());
        assert_eq!(pending.take(), Err(ABORTED));
    }
}

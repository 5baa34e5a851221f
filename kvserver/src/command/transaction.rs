//! Several commands as one: all of them are executed, one after the other with nothing in between, or none.
//!
//! ```text
//! TRANSACTION guards [key version]… [arguments argument…]…
//! ```
//!
//! `guards` is how many keys with versions follow. If one of the keys does not have its version (0: does not exist), nothing is executed and the
//! reply is nil. Then come the commands, each after the number of its arguments, its name among them; the reply is the array of
//! theirs. The front end makes one of what a client queues between `MULTI` and `EXEC`.

use bytes::Bytes;

use super::{Action, Context, SYNTAX_ERROR, execute, integer, validate};
use crate::resp::{Limits, Reply};
use crate::store::{Record, Store};

/// A transaction as a command, of keys with the versions that they must have and of commands.
pub fn transaction(guards: &[(Bytes, u64)], commands: Vec<Vec<Bytes>>) -> Vec<Bytes> {
    let number = |number: usize| Bytes::from(number.to_string());
    let mut arguments = vec![Bytes::from_static(b"TRANSACTION"), number(guards.len())];
    for (key, version) in guards {
        arguments.extend([key.clone(), Bytes::from(version.to_string())]);
    }
    for command in commands {
        arguments.push(number(command.len()));
        arguments.extend(command);
    }
    arguments
}

/// A parsed transaction.
pub(super) struct Transaction<'a> {
    guards: Vec<(&'a Bytes, u64)>,
    commands: Vec<&'a [Bytes]>,
}

pub(super) fn parse(arguments: &[Bytes]) -> Result<Transaction<'_>, Reply> {
    let mut rest = &arguments[1..];
    let mut take = |count: usize| {
        let (taken, left) = rest.split_at_checked(count)?;
        rest = left;
        Some(taken)
    };
    let number = |argument: &Bytes| usize::try_from(integer(argument)?).map_err(|_| SYNTAX_ERROR);
    let guards = take(1).map_or(Err(SYNTAX_ERROR), |first| number(&first[0]))?;
    let pairs = guards.checked_mul(2).and_then(&mut take).ok_or(SYNTAX_ERROR)?;
    let version = |pair: &[Bytes]| u64::try_from(integer(&pair[1])?).map_err(|_| SYNTAX_ERROR);
    let guards =
        pairs.chunks_exact(2).map(|pair| Ok((&pair[0], version(pair)?))).collect::<Result<_, Reply>>()?;
    let mut commands = Vec::new();
    while let Some(count) = take(1) {
        let command = take(number(&count[0])?).filter(|command| !command.is_empty()).ok_or(SYNTAX_ERROR)?;
        if !matches!(super::find(command)?.action, Action::Read(_) | Action::Write(_)) {
            return Err(Reply::error("ERR a transaction consists of reads and writes of keys"));
        }
        commands.push(command);
    }
    Ok(Transaction { guards, commands })
}

impl Transaction<'_> {
    /// Checks each command as if it came alone.
    pub fn validate(&self, limits: &Limits) -> Result<(), Reply> {
        self.commands.iter().try_for_each(|command| validate(command, limits).map(drop))
    }

    pub fn may_grow(&self) -> bool {
        self.commands.iter().any(|command| super::may_grow(command))
    }

    pub fn run(&self, store: &mut Store, context: &Context) -> Reply {
        let holds = |(key, version): &(&Bytes, u64)| {
            store.get(key, context.now_ms).map_or(0, Record::version) == *version
        };
        if !self.guards.iter().all(holds) {
            return Reply::Nil;
        }
        Reply::Array(self.commands.iter().map(|command| execute(store, context, command)).collect())
    }
}

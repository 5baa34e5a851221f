//! What clients did and saw, key by key, and what a key is: the model for the linearizability check.

use squall_sim::linearizability::{self, Entry, Model, Verdict};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How far the search for an order goes before it is given up.
const STEPS_MAX: u64 = 3_000_000;

/// What a value is made of: every write adds a token that no other write adds, so a value tells which writes it has seen.
pub type Token = u32;

/// An operation on a key with what the client was told; `None` if it was told nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Its value, if it has one.
    Get(Option<Vec<Token>>),
    /// Sets it to one token.
    Set(Token),
    /// Sets it if it has no value: whether it was set.
    SetIfAbsent(Token, Option<bool>),
    /// Adds a token: the value's length in bytes afterwards.
    Append(Token, Option<u64>),
    /// Removes it: whether there was one.
    Delete(Option<bool>),
}

/// How a token is written in a value.
pub fn encode(token: Token) -> String {
    format!("{token},")
}

/// The tokens of a value; `None` if it is none that anybody wrote.
pub fn decode(value: &[u8]) -> Option<Vec<Token>> {
    let text = core::str::from_utf8(value).ok()?.strip_suffix(',')?;
    text.split(',').map(|token| token.parse().ok()).collect()
}

/// A key: nothing, or a list of tokens.
struct Key;

impl Model for Key {
    type State = Option<Vec<Token>>;
    type Operation = Operation;

    fn initial(&self) -> Self::State {
        None
    }

    fn step(&self, state: &Self::State, operation: &Operation) -> Option<Self::State> {
        match operation {
            Operation::Get(seen) => (seen == state).then(|| state.clone()),
            Operation::Set(token) => Some(Some(vec![*token])),
            Operation::SetIfAbsent(token, told) => {
                let sets = state.is_none();
                let next = if sets { Some(vec![*token]) } else { state.clone() };
                told.is_none_or(|told| told == sets).then_some(next)
            }
            Operation::Append(token, told) => {
                let mut tokens = state.clone().unwrap_or_default();
                tokens.push(*token);
                let length: usize = tokens.iter().map(|token| encode(*token).len()).sum();
                told.is_none_or(|told| told == length as u64).then_some(Some(tokens))
            }
            Operation::Delete(told) => told.is_none_or(|told| told == state.is_some()).then_some(None),
        }
    }
}

/// A key's operations, each with who made it.
type OfKey = Vec<(usize, Entry<Operation>)>;

/// The operations of all clients. The moments in it are numbers of a common order: a simulation has one.
#[derive(Debug, Default)]
pub struct History(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    moments: u64,
    keys: BTreeMap<String, OfKey>,
    /// Operations that returned, and those of which nobody knows.
    counts: (u64, u64),
}

impl History {
    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next moment.
    pub fn moment(&self) -> u64 {
        let mut recorded = self.recorded();
        recorded.moments += 1;
        recorded.moments
    }

    /// Records an operation that was called at a moment and has returned now, or of which nothing is known (`returned` is false). What is
    /// known not to have been executed, and a read without an answer, are not recorded.
    pub fn record(&self, client: usize, key: &str, operation: Operation, called: u64, returned: bool) {
        let returned = returned.then(|| self.moment());
        let mut recorded = self.recorded();
        match returned {
            Some(_) => recorded.counts.0 += 1,
            None => recorded.counts.1 += 1,
        }
        let of_key = recorded.keys.entry(key.to_owned()).or_default();
        of_key.push((client, Entry { operation, called, returned }));
    }

    /// How many operations returned, and of how many nobody knows.
    pub fn counts(&self) -> (u64, u64) {
        self.recorded().counts
    }

    /// The keys that were used.
    pub fn keys(&self) -> Vec<String> {
        self.recorded().keys.keys().cloned().collect()
    }

    /// Checks every key. The first list says what cannot be explained, the second which keys the search gave up.
    pub fn check(&self) -> (Vec<String>, Vec<String>) {
        let recorded = self.recorded();
        let (mut illegal, mut undecided) = (Vec::new(), Vec::new());
        for (key, of_key) in &recorded.keys {
            let entries: Vec<Entry<Operation>> = of_key.iter().map(|(_, entry)| entry.clone()).collect();
            match linearizability::check(&Key, &entries, STEPS_MAX) {
                Verdict::Linearizable => {}
                Verdict::Undecided => undecided.push(key.clone()),
                Verdict::Illegal { longest } => illegal.push(explain(key, of_key, &longest)),
            }
        }
        (illegal, undecided)
    }
}

/// A history that has no order, for people: its operations in the order of their calls, marked if the longest order explains them.
fn explain(key: &str, of_key: &OfKey, longest: &[usize]) -> String {
    let mut lines =
        vec![format!("the operations on {key} are not linearizable (explained are those with a number):")];
    let mut order: Vec<usize> = (0..of_key.len()).collect();
    order.sort_by_key(|index| of_key[*index].1.called);
    for index in order {
        let (client, Entry { operation, called, returned }) = &of_key[index];
        let place = longest.iter().position(|taken| *taken == index);
        let place = place.map_or_else(String::new, |place| place.to_string());
        let returned = returned.map_or("?".into(), |returned| returned.to_string());
        lines.push(format!("{place:>6}  [{called} .. {returned}] client {client}: {operation:?}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_tell_their_writes() {
        assert_eq!(decode(b"1,22,"), Some(vec![1, 22]));
        assert_eq!(decode(b"1,22"), None);
        assert_eq!(decode(b""), None);
    }

    #[test]
    fn an_append_that_ran_twice_and_a_lost_write_are_found() {
        let history = History::default();
        let add = |key: &str, operation: Operation, known: bool| {
            let called = history.moment();
            history.record(0, key, operation, called, known);
        };
        add("good", Operation::Append(1, Some(2)), true);
        add("good", Operation::Append(2, None), false);
        add("good", Operation::Get(Some(vec![1, 2])), true);
        add("good", Operation::SetIfAbsent(3, Some(false)), true);
        add("good", Operation::Delete(Some(true)), true);
        add("twice", Operation::Append(1, None), false);
        add("twice", Operation::Get(Some(vec![1, 1])), true);
        add("lost", Operation::Set(1), true);
        add("lost", Operation::Get(None), true);
        let (illegal, undecided) = history.check();
        assert_eq!((illegal.len(), undecided.len()), (2, 0), "{illegal:?}");
        assert!(illegal[0].contains("lost") && illegal[1].contains("twice"));
        assert_eq!(history.counts(), (7, 2));
    }
}

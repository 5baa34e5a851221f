//! Whether what clients saw of one object could have happened one operation at a time, each at some moment between its call and its return.
//!
//! The algorithm is Wing and Gong's search as Lowe improved it (2017) and porcupine uses it: walk the calls and returns in the order of time,
//! take an operation as done next if the object's state allows its result, undo the last one where a return comes before its
//! operation was taken, and never look twice at the same set of taken operations with the same state. Objects are checked one by one,
//! because a history is linearizable if its part for each object is.
//!
//! Plain data in, a verdict out: usable for histories of real clusters as well. The server's tests include this file, without the
//! rest of this crate: it must name nothing else of it.

use core::hash::Hash;
use std::collections::HashSet;

/// What an object is: its states, and what an operation with its result means.
pub trait Model {
    /// The object's state.
    type State: Clone + Eq + Hash;
    /// An operation with its result, or without one if that is not known.
    type Operation;

    /// The state before anything has happened.
    fn initial(&self) -> Self::State;

    /// The state after the operation, or `None` if in this state it would have had another result.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;
}

/// One operation of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<O> {
    /// What it was.
    pub operation: O,
    /// When it was called, in any unit.
    pub called: u64,
    /// When it returned; `None` if nobody knows whether it has happened, or will.
    pub returned: Option<u64>,
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every result.
    Linearizable,
    /// There is none. In the order that goes furthest these are taken, and after them no operation can be the next.
    Illegal {
        /// Indices into the history.
        longest: Vec<usize>,
    },
    /// The search was given up after the steps allowed.
    Undecided,
}

/// An event of the list that the search walks: the call of an operation, or its return. Linked both ways, so that the events of operations
/// that are taken can be lifted out and put back.
#[derive(Clone, Copy)]
struct Node {
    operation: usize,
    /// The node of the return, in a node of a call.
    return_node: Option<usize>,
    previous: usize,
    next: usize,
}

/// A set of operations.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Taken(Box<[u64]>);

impl Taken {
    fn flip(&mut self, operation: usize) {
        self.0[operation / 64] ^= 1 << (operation % 64);
    }
}

const HEAD: usize = 0;

struct List(Vec<Node>);

impl List {
    fn new<O>(history: &[Entry<O>]) -> Self {
        // At the same moment a call counts as before a return: both orders are then allowed.
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * history.len());
        for (index, entry) in history.iter().enumerate() {
            events.push((entry.called, false, index));
            events.push((entry.returned.unwrap_or(u64::MAX).max(entry.called), true, index));
        }
        events.sort_unstable();
        let mut nodes = vec![Node { operation: usize::MAX, return_node: None, previous: HEAD, next: HEAD }];
        let mut calls = vec![HEAD; history.len()];
        for (_, is_return, operation) in events {
            let at = nodes.len();
            if is_return {
                nodes[calls[operation]].return_node = Some(at);
            } else {
                calls[operation] = at;
            }
            nodes.push(Node { operation, return_node: None, previous: at - 1, next: HEAD });
            nodes[at - 1].next = at;
        }
        Self(nodes)
    }

    fn unlink(&mut self, at: usize) {
        let Node { previous, next, .. } = self.0[at];
        self.0[previous].next = next;
        if next != HEAD {
            self.0[next].previous = previous;
        }
    }

    fn relink(&mut self, at: usize) {
        let Node { previous, next, .. } = self.0[at];
        self.0[previous].next = at;
        if next != HEAD {
            self.0[next].previous = at;
        }
    }

    /// Takes an operation's call and return out.
    fn lift(&mut self, call: usize) {
        self.unlink(call);
        if let Some(end) = self.0[call].return_node {
            self.unlink(end);
        }
    }

    /// Puts them back: the last one lifted first.
    fn unlift(&mut self, call: usize) {
        if let Some(end) = self.0[call].return_node {
            self.relink(end);
        }
        self.relink(call);
    }
}

/// Searches for an order of one object's history, for at most so many steps.
///
/// ```
/// use squall_sim::linearizability::{Entry, Model, Verdict, check};
///
/// /// A register that holds a number.
/// struct Register;
/// enum Operation { Write(u32), Read(u32) }
/// impl Model for Register {
///     type State = u32;
///     type Operation = Operation;
///     fn initial(&self) -> u32 { 0 }
///     fn step(&self, state: &u32, operation: &Operation) -> Option<u32> {
///         match operation {
///             Operation::Write(value) => Some(*value),
///             Operation::Read(value) => (value == state).then_some(*value),
///         }
///     }
/// }
/// let write = Entry { operation: Operation::Write(1), called: 0, returned: Some(10) };
/// let fresh = Entry { operation: Operation::Read(1), called: 2, returned: Some(3) };
/// let stale = Entry { operation: Operation::Read(0), called: 4, returned: Some(5) };
/// assert_eq!(check(&Register, &[write, fresh, stale], 1000), Verdict::Illegal { longest: vec![0, 1] });
/// ```
pub fn check<M: Model>(model: &M, history: &[Entry<M::Operation>], steps_max: u64) -> Verdict {
    let mut list = List::new(history);
    let mut taken = Taken(vec![0; history.len().div_ceil(64)].into());
    let mut seen: HashSet<(Taken, M::State)> = HashSet::new();
    let mut state = model.initial();
    // Each with the state before it.
    let mut order: Vec<(usize, M::State)> = Vec::new();
    let mut longest: Vec<usize> = Vec::new();
    let mut at = list.0[HEAD].next;
    // An operation without a return need not be taken: it may never have happened.
    let must_return = history.iter().filter(|entry| entry.returned.is_some()).count();
    let mut returned = 0;
    for _ in 0..steps_max {
        if returned == must_return {
            return Verdict::Linearizable;
        }
        let node = list.0[at];
        if node.return_node.is_some() {
            let operation = node.operation;
            if let Some(next) = model.step(&state, &history[operation].operation) {
                taken.flip(operation);
                if seen.insert((taken.clone(), next.clone())) {
                    order.push((at, core::mem::replace(&mut state, next)));
                    returned += usize::from(history[operation].returned.is_some());
                    if order.len() > longest.len() {
                        longest = order.iter().map(|(call, _)| list.0[*call].operation).collect();
                    }
                    list.lift(at);
                    at = list.0[HEAD].next;
                    continue;
                }
                taken.flip(operation);
            }
            at = node.next;
            continue;
        }
        // A return, or the end: what was taken so far leads nowhere.
        let Some((call, before)) = order.pop() else { return Verdict::Illegal { longest } };
        state = before;
        let operation = list.0[call].operation;
        taken.flip(operation);
        returned -= usize::from(history[operation].returned.is_some());
        list.unlift(call);
        at = list.0[call].next;
    }
    Verdict::Undecided
}

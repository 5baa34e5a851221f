//! The checker of histories, against examples and against the definition of what it checks.

use squall_sim::Random;
use squall_sim::linearizability::{Entry, Model, Verdict, check};

struct Register;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Write(u32),
    Read(u32),
    CompareAndSet { expected: u32, new: u32, done: bool },
}

impl Model for Register {
    type State = u32;
    type Operation = Operation;

    fn initial(&self) -> u32 {
        0
    }

    fn step(&self, state: &u32, operation: &Operation) -> Option<u32> {
        match *operation {
            Operation::Write(value) => Some(value),
            Operation::Read(value) => (value == *state).then_some(value),
            Operation::CompareAndSet { expected, new, done } if done == (expected == *state) => {
                Some(if done { new } else { *state })
            }
            Operation::CompareAndSet { .. } => None,
        }
    }
}

fn entry(operation: Operation, called: u64, returned: impl Into<Option<u64>>) -> Entry<Operation> {
    Entry { operation, called, returned: returned.into() }
}

fn is_legal(history: &[Entry<Operation>]) -> bool {
    match check(&Register, history, 1_000_000) {
        Verdict::Linearizable => true,
        Verdict::Illegal { .. } => false,
        Verdict::Undecided => panic!("a million steps were not enough for {history:?}"),
    }
}

#[test]
fn stale_reads_and_lost_writes_are_found() {
    use Operation::*;
    assert!(is_legal(&[]));
    assert!(is_legal(&[entry(Write(1), 0, 10), entry(Read(0), 1, 2), entry(Read(1), 3, 4)]));
    assert!(!is_legal(&[entry(Write(1), 0, 10), entry(Read(1), 1, 2), entry(Read(0), 3, 4)]));
    assert!(!is_legal(&[entry(Write(1), 0, 1), entry(Read(0), 2, 3)]));
    // Two that both say they were first.
    let swap = |new, done| CompareAndSet { expected: 0, new, done };
    assert!(!is_legal(&[entry(swap(1, true), 0, 9), entry(swap(2, true), 0, 9)]));
    assert!(is_legal(&[entry(swap(1, true), 0, 9), entry(swap(2, false), 0, 9)]));
}

#[test]
fn an_operation_without_a_result_may_happen_late_or_never_but_not_early_or_twice() {
    use Operation::*;
    assert!(is_legal(&[entry(Write(1), 0, None), entry(Read(0), 5, 6)]));
    assert!(is_legal(&[entry(Write(1), 0, None), entry(Read(0), 5, 6), entry(Read(1), 7, 8)]));
    assert!(!is_legal(&[entry(Read(1), 0, 1), entry(Write(1), 2, None)]));
    let twice = [entry(Write(1), 0, None), entry(Read(1), 1, 2), entry(Write(2), 3, 4), entry(Read(1), 5, 6)];
    assert!(!is_legal(&twice));
}

/// Tries every order: the definition itself.
fn is_legal_by_definition(history: &[Entry<Operation>], state: u32, done: &mut Vec<usize>) -> bool {
    let is_open = |index: &usize| !done.contains(index);
    let open: Vec<usize> = (0..history.len()).filter(is_open).collect();
    if open.iter().all(|index| history[*index].returned.is_none()) {
        return true;
    }
    let first_return = open.iter().filter_map(|index| history[*index].returned).min().unwrap_or(u64::MAX);
    for index in open {
        if history[index].called > first_return {
            continue;
        }
        if let Some(next) = Register.step(&state, &history[index].operation) {
            done.push(index);
            if is_legal_by_definition(history, next, done) {
                return true;
            }
            done.pop();
        }
    }
    false
}

#[test]
fn agrees_with_the_definition_on_random_histories() {
    let mut random = Random::new(1, "histories");
    let mut legal = 0;
    for _ in 0..5_000 {
        let history: Vec<_> = (0..random.index(7) + 1)
            .map(|_| {
                let value = |random: &mut Random| random.below(3) as u32;
                let operation = match random.below(3) {
                    0 => Operation::Write(value(&mut random)),
                    1 => Operation::Read(value(&mut random)),
                    _ => Operation::CompareAndSet {
                        expected: value(&mut random),
                        new: value(&mut random),
                        done: random.chance(0.5),
                    },
                };
                let called = random.below(20);
                let returned = (!random.chance(0.2)).then(|| called + random.below(8));
                entry(operation, called, returned)
            })
            .collect();
        let expected = is_legal_by_definition(&history, 0, &mut Vec::new());
        assert_eq!(is_legal(&history), expected, "{history:?}");
        legal += usize::from(expected);
    }
    assert!((1_000..4_500).contains(&legal), "{legal} of 5,000 are legal: too few of one kind");
}

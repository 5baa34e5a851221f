//! Channels against a model, in runs drawn at random.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use squall_fiber::sync::{Receiver, Sender, TryRecvError, TrySendError, bounded, unbounded};
use std::collections::{BTreeMap, VecDeque};

fn channel(capacity: Option<usize>) -> (Sender<usize>, Receiver<usize>) {
    capacity.map_or_else(unbounded, bounded)
}

/// A step of the one-threaded run.
#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Receive,
    CloneSender,
    CloneReceiver,
    DropSender,
    DropReceiver,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<usize>().prop_map(Step::Send),
        6 => Just(Step::Receive),
        1 => Just(Step::CloneSender),
        1 => Just(Step::CloneReceiver),
        1 => Just(Step::DropSender),
        1 => Just(Step::DropReceiver),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Without waiting a channel is a queue with a length.
    #[test]
    fn a_channel_is_a_queue(
        capacity in prop_oneof![Just(None), (0usize..6).prop_map(Some)],
        steps in vec(step(), 0..300),
    ) {
        let (sender, receiver) = channel(capacity);
        let (mut senders, mut receivers) = (vec![sender], vec![receiver]);
        let mut model = VecDeque::new();
        for step in steps {
            match step {
                Step::Send(value) => {
                    let Some(sender) = senders.last() else { continue };
                    let expected = if receivers.is_empty() {
                        Err(TrySendError::Disconnected(value))
                    } else if capacity.is_some_and(|capacity| model.len() >= capacity) {
                        Err(TrySendError::Full(value))
                    } else {
                        model.push_back(value);
                        Ok(())
                    };
                    prop_assert_eq!(sender.try_send(value), expected);
                    prop_assert_eq!(sender.len(), model.len());
                }
                Step::Receive => {
                    let Some(receiver) = receivers.last() else { continue };
                    let nothing =
                        if senders.is_empty() { TryRecvError::Disconnected } else { TryRecvError::Empty };
                    prop_assert_eq!(receiver.try_recv(), model.pop_front().ok_or(nothing));
                    prop_assert_eq!(receiver.len(), model.len());
                }
                Step::CloneSender => senders.extend(senders.last().cloned()),
                Step::CloneReceiver => receivers.extend(receivers.last().cloned()),
                Step::DropSender => drop(senders.pop()),
                Step::DropReceiver => {
                    receivers.pop();
                    if receivers.is_empty() {
                        model.clear();
                    }
                }
            }
        }
    }
}

/// What one member of a concurrent run does.
#[derive(Debug, Clone)]
struct Plan {
    kind: usize,
    /// How many it sends; what comes in is received by all who do not send.
    messages: usize,
    /// Every how many operations it has a time limit, which may end it.
    timed_every: usize,
    pause_every: usize,
}

fn plan(messages: impl Strategy<Value = usize>) -> impl Strategy<Value = Plan> {
    (0usize..3, messages, 1usize..6, 1usize..8).prop_map(|(kind, messages, timed_every, pause_every)| Plan {
        kind,
        messages,
        timed_every,
        pause_every,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing lost, nothing twice, no more than fits, and what two messages of one sender have in common is their order.
    #[test]
    fn concurrent_runs_keep_what_a_channel_promises(
        capacity in prop_oneof![Just(None), (0usize..5).prop_map(Some)],
        workers in 1usize..4,
        sending in vec(plan(0usize..200), 1..5),
        receiving in vec(plan(Just(0)), 1..5),
    ) {
        let scheduler = scheduler(workers);
        let (sender, receiver) = channel(capacity);
        let senders: Vec<_> = sending.iter().enumerate().map(|(n, plan)| {
            let (plan, sender) = (plan.clone(), sender.clone());
            Member::start(&scheduler, KINDS[plan.kind], move || {
                let mut sent = Vec::new();
                for number in 0..plan.messages {
                    let value = n * 1000 + number;
                    let is_sent = if number % plan.timed_every == 0 {
                        sender.send_timeout(value, Duration::from_micros(50)).is_ok()
                    } else {
                        sender.send(value).is_ok()
                    };
                    if is_sent {
                        sent.push(value);
                    }
                    assert!(sender.len() <= capacity.unwrap_or(usize::MAX));
                    if number % plan.pause_every == 0 {
                        pause();
                    }
                }
                sent
            })
        }).collect();
        drop(sender);
        let receivers: Vec<_> = receiving.iter().map(|plan| {
            let (plan, receiver) = (plan.clone(), receiver.clone());
            Member::start(&scheduler, KINDS[plan.kind], move || {
                let mut received = Vec::new();
                for round in 0.. {
                    let value = if round % plan.timed_every == 0 {
                        match receiver.recv_timeout(Duration::from_micros(50)) {
                            Err(squall_fiber::sync::RecvTimeoutError::TimedOut) => continue,
                            value => value.ok(),
                        }
                    } else {
                        receiver.recv().ok()
                    };
                    match value {
                        Some(value) => received.push(value),
                        None => break,
                    }
                    if round % plan.pause_every == 0 {
                        pause();
                    }
                }
                received
            })
        }).collect();
        drop(receiver);
        let sent: Vec<usize> = senders.into_iter().flat_map(Member::join).collect();
        let received: Vec<Vec<usize>> = receivers.into_iter().map(Member::join).collect();
        for list in &received {
            let mut last = BTreeMap::new();
            for value in list {
                if let Some(before) = last.insert(value / 1000, value) {
                    prop_assert!(before < value, "{} after {}", value, before);
                }
            }
        }
        let mut received: Vec<usize> = received.into_iter().flatten().collect();
        received.sort_unstable();
        prop_assert_eq!(received, sent);
    }
}

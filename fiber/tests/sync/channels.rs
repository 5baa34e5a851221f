//! Channels and oneshots.

use super::*;
use squall_fiber::sync::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError, bounded, oneshot,
    unbounded,
};
use squall_fiber::{WaitKind, with_deadline};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn everything_that_many_send_is_received_once_and_in_each_senders_order() {
    const EACH: usize = 300;
    for capacity in [Some(0), Some(1), Some(7), None] {
        for workers in [1, 3] {
            let (sender, receiver) = capacity.map_or_else(unbounded, bounded);
            let both = Arc::new((sender, receiver));
            let received = mixture(workers, 18, &KINDS, move |n| {
                let (sender, receiver) = &*both;
                (0..EACH)
                    .filter_map(|item| {
                        if n % 2 == 0 {
                            sender.send((n, item)).unwrap();
                            return None;
                        }
                        Some(receiver.recv().unwrap())
                    })
                    .collect::<Vec<_>>()
            });
            for list in &received {
                for n in 0..18 {
                    let from_one: Vec<_> = list.iter().filter(|(sender, _)| *sender == n).collect();
                    assert!(from_one.is_sorted(), "{capacity:?}: out of order: {from_one:?}");
                }
            }
            let all: BTreeSet<_> = received.into_iter().flatten().collect();
            assert_eq!(all.len(), 9 * EACH, "{capacity:?}");
        }
    }
}

#[test]
fn a_bounded_channel_holds_no_more_than_its_capacity() {
    let (sender, receiver) = bounded(2);
    assert_eq!((sender.capacity(), sender.len(), sender.is_empty()), (Some(2), 0, true));
    sender.try_send(1).unwrap();
    sender.send(2).unwrap();
    assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
    assert_eq!(sender.send_timeout(4, SHORT), Err(SendTimeoutError::TimedOut(4)));
    assert_eq!((receiver.capacity(), receiver.len()), (Some(2), 2));
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(receiver.recv_timeout(SHORT), Err(RecvTimeoutError::TimedOut));
    assert_eq!(unbounded::<()>().0.capacity(), None);
}

#[test]
fn waiting_senders_are_let_in_in_order() {
    let scheduler = scheduler(1);
    let (sender, receiver) = bounded(1);
    sender.send(0).unwrap();
    let fibers: Vec<_> = (1..10)
        .map(|n| {
            let sender = sender.clone();
            let fiber = scheduler.spawn(Builder::new(), move || sender.send(n));
            until_it_waits(&scheduler, fiber.fiber(), WaitKind::Send);
            fiber
        })
        .collect();
    drop(sender);
    assert_eq!(receiver.iter().collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    for fiber in fibers {
        fiber.join().unwrap().unwrap();
    }
}

#[test]
fn a_rendezvous_needs_both() {
    let scheduler = scheduler(1);
    let (sender, receiver) = bounded(0);
    assert_eq!(sender.try_send(1), Err(TrySendError::Full(1)));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    let theirs = sender.clone();
    let fiber = scheduler.spawn(Builder::new(), move || theirs.send(2));
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Send);
    assert_eq!(receiver.len(), 0);
    assert_eq!(receiver.try_recv(), Ok(2));
    fiber.join().unwrap().unwrap();
    let fiber = scheduler.spawn(Builder::new(), move || receiver.recv());
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Receive);
    assert_eq!(sender.try_send(3), Ok(()));
    assert_eq!(fiber.join().unwrap(), Ok(3));
}

#[test]
fn receivers_drain_the_channel_before_they_hear_that_the_senders_are_gone() {
    let scheduler = scheduler(1);
    let (sender, receiver) = unbounded();
    let waiting = receiver.clone();
    let fiber = scheduler.spawn(Builder::new(), move || waiting.into_iter().sum::<i32>());
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Receive);
    let second = sender.clone();
    drop(sender);
    for n in 0..100 {
        second.send(n).unwrap();
    }
    drop(second);
    let here: i32 = receiver.iter().sum();
    assert_eq!(fiber.join().unwrap() + here, 4950);
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    assert_eq!(receiver.recv_timeout(SHORT), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn senders_hear_that_the_receivers_are_gone_and_keep_their_values() {
    let scheduler = scheduler(1);
    let (sender, receiver) = bounded(1);
    let second = receiver.clone();
    sender.send(1).unwrap();
    let theirs = sender.clone();
    let fiber = scheduler.spawn(Builder::new(), move || theirs.send(2));
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Send);
    drop(receiver);
    assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
    drop(second);
    assert_eq!(fiber.join().unwrap(), Err(SendError::Disconnected(2)));
    assert_eq!(sender.send(4), Err(SendError::Disconnected(4)));
    assert_eq!(sender.try_send(5), Err(TrySendError::Disconnected(5)));
    assert_eq!(sender.send_timeout(6, SHORT).unwrap_err().into_inner(), 6);
}

/// Counts its own drops.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn every_value_is_dropped_once_wherever_it_ends() {
    let drops = Arc::new(AtomicUsize::new(0));
    let value = || Counted(Arc::clone(&drops));
    for capacity in [Some(100), None] {
        let (sender, receiver) = capacity.map_or_else(unbounded, bounded);
        for _ in 0..100 {
            sender.send(value()).unwrap();
        }
        for received in receiver.iter().take(10) {
            drop(received);
        }
        assert_eq!(drops.swap(0, Ordering::SeqCst), 10);
        // The rest goes with the last receiver, although there is still a sender.
        drop(receiver);
        assert_eq!(drops.swap(0, Ordering::SeqCst), 90);
        drop(sender.send(value()));
        assert_eq!(drops.swap(0, Ordering::SeqCst), 1);
    }
    let (sender, receiver) = oneshot();
    sender.send(value()).unwrap();
    drop(receiver);
    assert_eq!(drops.swap(0, Ordering::SeqCst), 1);
}

#[test]
fn a_channel_in_a_message_of_a_channel_that_nobody_reads_is_disconnected() {
    let (outer, receiver) = unbounded();
    let (inner, answers) = unbounded::<()>();
    outer.send(inner).unwrap();
    drop(receiver);
    assert_eq!(answers.recv(), Err(RecvError::Disconnected));
}

#[test]
fn an_interrupted_channel_says_why_and_keeps_the_value() {
    let scheduler = scheduler(1);
    let (sender, receiver) = bounded(1);
    let fiber = scheduler.spawn(Builder::new(), move || {
        let nothing = receiver.recv();
        let expired = with_deadline(SHORT, || receiver.recv_timeout(FOREVER));
        // There is room, and then a value: neither needs a wait.
        let sent = sender.send(1);
        let refused = sender.send(2);
        let refused_for_good = sender.send_timeout(3, FOREVER);
        let received = receiver.recv();
        (nothing, expired, sent, refused, refused_for_good, received)
    });
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Receive);
    fiber.cancel();
    let (nothing, expired, sent, refused, refused_for_good, received) = fiber.join().unwrap();
    assert_eq!(nothing, Err(RecvError::Cancelled));
    assert_eq!(expired, Err(RecvTimeoutError::Cancelled));
    assert_eq!(sent, Ok(()));
    assert_eq!(refused, Err(SendError::Cancelled(2)));
    assert_eq!(refused_for_good, Err(SendTimeoutError::Cancelled(3)));
    assert_eq!(received, Ok(1));

    let fiber = scheduler.spawn(Builder::new(), || {
        let (sender, receiver) = bounded(0);
        with_deadline(SHORT, || (receiver.recv(), sender.send(1), receiver.recv_timeout(SHORT)))
    });
    let (received, sent, late) = fiber.join().unwrap();
    assert_eq!(received, Err(RecvError::DeadlineExceeded));
    assert_eq!(sent, Err(SendError::DeadlineExceeded(1)));
    assert_eq!(late, Err(RecvTimeoutError::DeadlineExceeded));
}

#[test]
fn a_oneshot_carries_one_value_or_none() {
    for kind in KINDS {
        let scheduler = scheduler(1);
        let (sender, receiver) = oneshot();
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(receiver.recv_timeout(SHORT), Err(RecvTimeoutError::TimedOut));
        let member = Member::start(&scheduler, kind, move || (receiver.recv(), receiver.recv()));
        sender.send("once").unwrap();
        assert_eq!(member.join(), (Ok("once"), Err(RecvError::Disconnected)), "{kind:?}");

        let (sender, receiver) = oneshot::<()>();
        let member = Member::start(&scheduler, kind, move || receiver.recv());
        drop(sender);
        assert_eq!(member.join(), Err(RecvError::Disconnected), "{kind:?}");
    }
    let (sender, receiver) = oneshot();
    assert!(!sender.is_disconnected());
    drop(receiver);
    assert!(sender.is_disconnected());
    assert_eq!(sender.send(5), Err(5));
}

#[test]
fn errors_read_well() {
    let text = |error: &dyn std::error::Error| error.to_string();
    assert_eq!(text(&SendError::Disconnected(())), "the channel is disconnected");
    assert_eq!(text(&RecvTimeoutError::TimedOut), "timed out");
    assert_eq!(text(&squall_fiber::Interrupt::Cancelled), "cancelled");
    // Also for values that cannot be shown.
    struct Opaque;
    assert_eq!(format!("{:?}", TrySendError::Full(Opaque)), "Full(..)");
}

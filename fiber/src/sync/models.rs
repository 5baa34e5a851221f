//! Models of the primitives, for loom: every interleaving of a few threads, up to a number of preemptions. What they prove: mutual
//! exclusion, that what one wrote is visible to the next, that nobody sleeps for ever (loom reports a deadlock), and that what is
//! handed over arrives exactly once. A timed wait in a model may give up at any moment (see shim.rs).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p squall-fiber --lib --release loom`

use super::*;
use loom::cell::UnsafeCell;
use loom::thread::{self, JoinHandle};
use std::sync::Arc;
use std::time::Duration;

/// Any duration: a timed wait ends when the model lets it.
const SOON: Duration = Duration::from_secs(3600);

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn spawn<T: 'static>(f: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    thread::spawn(f)
}

/// A number that loom sees read and written.
struct Watched(UnsafeCell<usize>);

// SAFETY: this is what the models are to find out.
unsafe impl Sync for Watched {}
// SAFETY: as above.
unsafe impl Send for Watched {}

impl Watched {
    fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn add(&self) {
        // SAFETY: loom checks that nobody else has access.
        self.0.with_mut(|value| unsafe { *value += 1 });
    }

    fn get(&self) -> usize {
        // SAFETY: as above.
        self.0.with(|value| unsafe { *value })
    }
}

#[test]
fn loom_mutex_excludes_and_orders() {
    check(3, || {
        let mutex = Arc::new(Mutex::new(Watched::new()));
        let others: Vec<_> = (0..2)
            .map(|_| {
                let mutex = Arc::clone(&mutex);
                spawn(move || mutex.lock().add())
            })
            .collect();
        mutex.lock().add();
        mutex.lock().add();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(mutex.lock().get(), 4);
    });
}

#[test]
fn loom_mutex_is_handed_to_one_that_was_passed_over() {
    // Twice passed over is enough in a model.
    check(5, || {
        let mutex = Arc::new(Mutex::new(Watched::new()));
        let theirs = Arc::clone(&mutex);
        let other = spawn(move || theirs.lock().add());
        (0..4).for_each(|_| mutex.lock().add());
        other.join().unwrap();
        assert_eq!(mutex.lock().get(), 5);
    });
}

#[test]
fn loom_mutex_survives_those_who_give_up() {
    check(3, || {
        let mutex = Arc::new(Mutex::new(Watched::new()));
        let (impatient, patient) = (Arc::clone(&mutex), Arc::clone(&mutex));
        let impatient = spawn(move || impatient.try_lock_for(SOON).map(|guard| guard.add()).is_ok());
        let patient = spawn(move || patient.lock().add());
        mutex.lock().add();
        let had_it = impatient.join().unwrap();
        patient.join().unwrap();
        assert_eq!(mutex.lock().get(), 2 + usize::from(had_it));
    });
}

#[test]
fn loom_condvar_notifies_the_next_when_one_gives_up() {
    check(3, || {
        let pair = Arc::new((Mutex::new(0), Condvar::new()));
        let (impatient, patient) = (Arc::clone(&pair), Arc::clone(&pair));
        let impatient = spawn(move || {
            let (tokens, changed) = &*impatient;
            let mut tokens = tokens.lock();
            if changed.wait_timeout(&mut tokens, SOON).is_ok() && *tokens > 0 {
                *tokens -= 1;
            }
        });
        let patient = spawn(move || {
            let (tokens, changed) = &*patient;
            let mut tokens = tokens.lock();
            changed.wait_while(&mut tokens, |tokens| *tokens == 0).unwrap();
            *tokens -= 1;
        });
        let (tokens, changed) = &*pair;
        for _ in 0..2 {
            *tokens.lock() += 1;
            changed.notify_one();
        }
        impatient.join().unwrap();
        patient.join().unwrap();
    });
}

#[test]
fn loom_condvar_notifies_all() {
    check(4, || {
        let pair = Arc::new((Mutex::new(false), Condvar::new()));
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let pair = Arc::clone(&pair);
                spawn(move || pair.1.wait_while(&mut pair.0.lock(), |is_set| !*is_set).unwrap())
            })
            .collect();
        *pair.0.lock() = true;
        pair.1.notify_all();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

#[test]
fn loom_rwlock_excludes_and_orders() {
    check(2, || {
        let lock = Arc::new(RwLock::new(Watched::new()));
        let (writing, reading) = (Arc::clone(&lock), Arc::clone(&lock));
        let writer = spawn(move || {
            writing.write().add();
            writing.write().add();
        });
        let reader = spawn(move || reading.read().get());
        lock.write().add();
        assert!(lock.read().get() >= 1);
        writer.join().unwrap();
        assert!(reader.join().unwrap() <= 3);
        assert_eq!(lock.read().get(), 3);
    });
}

#[test]
fn loom_rwlock_lets_readers_in_when_a_writer_gives_up() {
    check(3, || {
        let lock = Arc::new(RwLock::new(Watched::new()));
        let (writing, reading) = (Arc::clone(&lock), Arc::clone(&lock));
        let held = lock.read();
        let writer = spawn(move || writing.try_write_for(SOON).is_ok());
        let reader = spawn(move || reading.read().get());
        // While this one reads: a reader that went on waiting for the writer would wait for ever.
        reader.join().unwrap();
        assert!(!writer.join().unwrap());
        drop(held);
    });
}

#[test]
fn loom_semaphore_lets_the_small_in_when_a_large_one_gives_up() {
    check(3, || {
        let semaphore = Arc::new(Semaphore::new(2));
        let (large, small) = (Arc::clone(&semaphore), Arc::clone(&semaphore));
        let held = semaphore.acquire().unwrap();
        let large = spawn(move || large.try_acquire_for(2, SOON).is_ok());
        let small = spawn(move || drop(small.acquire().unwrap()));
        small.join().unwrap();
        assert!(!large.join().unwrap());
        drop(held);
        assert_eq!(semaphore.available(), 2);
    });
}

#[test]
fn loom_semaphore_loses_no_permit() {
    check(2, || {
        let semaphore = Arc::new(Semaphore::new(1));
        let inside = Arc::new(Watched::new());
        let others: Vec<_> = (0..2)
            .map(|_| {
                let (semaphore, inside) = (Arc::clone(&semaphore), Arc::clone(&inside));
                spawn(move || {
                    let _permit = semaphore.acquire().unwrap();
                    inside.add();
                })
            })
            .collect();
        if let Ok(_permit) = semaphore.try_acquire_for(1, SOON) {
            inside.add();
        }
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(semaphore.available(), 1);
        assert!(inside.get() >= 2);
    });
}

#[test]
fn loom_barrier_meets_twice() {
    check(5, || {
        let barrier = Arc::new(Barrier::new(2));
        let theirs = Arc::clone(&barrier);
        let other = spawn(move || (0..2).filter(|_| theirs.wait().unwrap().is_leader()).count());
        let mine = (0..2).filter(|_| barrier.wait().unwrap().is_leader()).count();
        assert_eq!(other.join().unwrap() + mine, 2);
    });
}

#[test]
fn loom_barrier_counts_only_those_who_stay() {
    check(5, || {
        let barrier = Arc::new(Barrier::new(2));
        let (impatient, patient) = (Arc::clone(&barrier), Arc::clone(&barrier));
        let impatient = spawn(move || impatient.wait_timeout(SOON).is_ok());
        let patient = spawn(move || patient.wait_timeout(SOON).is_ok());
        assert_eq!(impatient.join().unwrap(), patient.join().unwrap());
    });
}

#[test]
fn loom_wait_group_sees_the_last_task_end() {
    check(3, || {
        let group = WaitGroup::new();
        let done = Arc::new(Watched::new());
        let task = group.task();
        let theirs = Arc::clone(&done);
        let other = spawn(move || {
            theirs.add();
            drop(task);
        });
        let short = group.task();
        let third = spawn(move || drop(short));
        group.wait().unwrap();
        assert_eq!(done.get(), 1);
        other.join().unwrap();
        third.join().unwrap();
    });
}

#[test]
fn loom_once_runs_once_and_is_seen() {
    check(4, || {
        let cell = Arc::new((OnceCell::new(), Watched::new()));
        let others: Vec<_> = (0..2)
            .map(|n| {
                let cell = Arc::clone(&cell);
                spawn(move || {
                    *cell.0.get_or_init(|| {
                        cell.1.add();
                        n
                    })
                })
            })
            .collect();
        let values: Vec<usize> = others.into_iter().map(|other| other.join().unwrap()).collect();
        assert_eq!(values[0], values[1]);
        assert_eq!(cell.1.get(), 1);
    });
}

#[test]
fn loom_once_tries_again_after_a_failure() {
    check(4, || {
        let cell = Arc::new(OnceCell::new());
        let theirs = Arc::clone(&cell);
        let failing = spawn(move || theirs.get_or_try_init(|| Err(())).copied());
        assert_eq!(*cell.get_or_init(|| 7), 7);
        assert!(matches!(failing.join().unwrap(), Err(()) | Ok(7)));
    });
}

/// A message whose content loom watches: written by the sender, read by the receiver.
fn message(text: usize) -> Box<Watched> {
    let message = Box::new(Watched::new());
    (0..text).for_each(|_| message.add());
    message
}

#[test]
fn loom_oneshot_hands_over() {
    check(5, || {
        let (sender, receiver) = oneshot();
        let other = spawn(move || sender.send(message(3)).is_ok());
        match receiver.recv_timeout(SOON) {
            Ok(message) => assert_eq!(message.get(), 3),
            Err(error) => {
                assert_eq!(error, RecvTimeoutError::TimedOut);
                assert_eq!(receiver.recv().unwrap().get(), 3);
            }
        }
        assert!(other.join().unwrap());
    });
}

#[test]
fn loom_oneshot_disconnects() {
    check(5, || {
        let (sender, receiver) = oneshot::<()>();
        let other = spawn(move || drop(sender));
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        other.join().unwrap();
    });
}

/// Two senders send one message each; what is received is what was sent, and then the channel is disconnected.
fn all_arrive(make: impl Fn() -> (Sender<Box<Watched>>, Receiver<Box<Watched>>) + Sync + Send + 'static) {
    check(3, move || {
        let (sender, receiver) = make();
        let senders: Vec<_> = [1, 2]
            .map(|text| {
                let sender = sender.clone();
                spawn(move || sender.send(message(text)).unwrap())
            })
            .into();
        drop(sender);
        let received: Vec<usize> = receiver.iter().map(|message| message.get()).collect();
        assert!(received == [1, 2] || received == [2, 1], "{received:?}");
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn loom_bounded_channel_loses_nothing() {
    all_arrive(|| bounded(1));
}

#[test]
fn loom_rendezvous_channel_loses_nothing() {
    all_arrive(|| bounded(0));
}

#[test]
fn loom_unbounded_channel_loses_nothing() {
    all_arrive(unbounded);
}

#[test]
fn loom_unbounded_channel_grows_by_several_senders_at_once() {
    check(4, || {
        let (sender, receiver) = unbounded();
        let theirs = sender.clone();
        let other = spawn(move || (0..3).for_each(|n| theirs.send(n).unwrap()));
        (10..13).for_each(|n| sender.send(n).unwrap());
        other.join().unwrap();
        drop(sender);
        let received: Vec<usize> = receiver.iter().collect();
        assert_eq!(received.iter().filter(|n| **n < 10).collect::<Vec<_>>(), [&0, &1, &2]);
        assert_eq!(received.iter().filter(|n| **n >= 10).collect::<Vec<_>>(), [&10, &11, &12]);
    });
}

#[test]
fn loom_a_send_that_gives_up_has_not_happened() {
    for capacity in [0, 1] {
        check(4, move || {
            let (sender, receiver) = bounded(capacity);
            (0..capacity).for_each(|_| sender.send(message(9)).unwrap());
            let impatient = spawn(move || match sender.send_timeout(message(1), SOON) {
                Ok(()) => true,
                Err(error) => {
                    assert_eq!(error.into_inner().get(), 1);
                    false
                }
            });
            let theirs = receiver.clone();
            let other = spawn(move || theirs.recv_timeout(SOON).map(|message| message.get()).ok());
            let mine = receiver.recv_timeout(SOON).map(|message| message.get()).ok();
            let was_sent = impatient.join().unwrap();
            let other = other.join().unwrap();
            let left = receiver.try_iter().map(|message| message.get());
            let received = mine.into_iter().chain(other).chain(left).filter(|text| *text == 1).count();
            assert_eq!(received, usize::from(was_sent));
        });
    }
}

#[test]
fn loom_disconnected_senders_have_their_values_back() {
    check(5, || {
        let (sender, receiver) = bounded(0);
        let other = spawn(move || sender.send(message(1)));
        drop(receiver);
        let SendError::Disconnected(message) = other.join().unwrap().unwrap_err() else { panic!() };
        assert_eq!(message.get(), 1);
    });
}

#[test]
fn loom_select_receives_from_both() {
    check(4, || {
        let ((first, from_first), (second, from_second)) = (bounded(0), unbounded());
        let _still_connected = (first.clone(), second.clone());
        let others =
            [spawn(move || first.send(message(1)).unwrap()), spawn(move || second.send(message(2)).unwrap())];
        let mut received = 0;
        while received != 3 {
            select! {
                recv(from_first) -> message => if let Ok(message) = message { received |= message.get() },
                recv(from_second) -> message => if let Ok(message) = message { received |= message.get() },
            }
            .unwrap();
        }
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn loom_select_meets_select() {
    check(4, || {
        let ((a, from_a), (b, from_b)) = (bounded::<Box<Watched>>(0), bounded::<Box<Watched>>(0));
        let (theirs_a, theirs_b) = (from_a.clone(), b.clone());
        // One sends on `a` or receives from `b`, the other does the opposite: exactly one of the two happens.
        let other = spawn(move || {
            select! {
                send(theirs_b, message(2)) -> result => { result.unwrap(); 2 }
                recv(theirs_a) -> message => message.unwrap().get(),
            }
            .unwrap()
        });
        let mine = select! {
            send(a, message(1)) -> result => { result.unwrap(); 1 }
            recv(from_b) -> message => message.unwrap().get(),
        }
        .unwrap();
        assert_eq!(mine, other.join().unwrap());
        assert!(from_a.try_recv().is_err() && from_b.try_recv().is_err());
    });
}

#[test]
fn loom_a_value_refused_by_a_select_goes_to_the_next() {
    check(3, || {
        let (first, from_first) = bounded::<Box<Watched>>(1);
        let (second, from_second) = bounded::<Box<Watched>>(1);
        let theirs = from_first.clone();
        // Waits behind or before the select, in the same queue.
        let plain = spawn(move || theirs.recv().map(|message| message.get()));
        let sender = spawn(move || {
            second.send(message(2)).unwrap();
            first.send(message(1)).unwrap();
        });
        let selected = select! {
            recv(from_first) -> message => message.map(|message| message.get()),
            recv(from_second) -> message => message.map(|message| message.get()),
        }
        .unwrap();
        sender.join().unwrap();
        let plain = plain.join().unwrap();
        // Where the plain one has the 1, the select has the 2 or finds that there will be no other 1.
        let disconnected = Err(RecvError::Disconnected);
        match plain {
            Ok(1) => assert!(selected == Ok(2) || selected == disconnected, "{selected:?}"),
            _ => assert_eq!((selected, plain), (Ok(1), disconnected)),
        }
    });
}

#[test]
fn loom_a_select_that_gives_up_has_done_nothing() {
    check(4, || {
        let ((a, from_a), (b, from_b)) = (bounded::<Box<Watched>>(0), bounded::<Box<Watched>>(0));
        let sender = spawn(move || a.send_timeout(message(1), SOON).is_ok());
        let receiver = spawn(move || from_b.recv_timeout(SOON).map(|message| message.get()));
        let outcome = select! {
            recv(from_a) -> result => usize::from(result.is_ok()),
            send(b, message(2)) -> result => if result.is_ok() { 2 } else { 0 },
            timeout(SOON) => 0,
        }
        .unwrap();
        assert_eq!(sender.join().unwrap(), outcome == 1);
        assert_eq!(receiver.join().unwrap().ok(), (outcome == 2).then_some(2));
    });
}

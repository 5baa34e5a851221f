//! Condvar, Semaphore, Barrier and WaitGroup.

use super::*;
use squall_fiber::sync::{Barrier, Condvar, Mutex, Semaphore, WaitError, WaitGroup};
use squall_fiber::{Interrupt, WaitKind};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn a_bounded_queue_of_a_mutex_and_two_condvars_passes_everything_on() {
    const ITEMS: usize = 600;
    for workers in [1, 3] {
        let queue = Arc::new((Mutex::new(VecDeque::new()), Condvar::new(), Condvar::new()));
        let taken = mixture(workers, 12, &KINDS, move |n| {
            let (items, not_full, not_empty) = &*queue;
            // 0..6 produce, the others consume.
            (0..ITEMS)
                .map(|item| {
                    let mut items = items.lock();
                    if n < 6 {
                        not_full.wait_while(&mut items, |items| items.len() >= 5).unwrap();
                        items.push_back(n * ITEMS + item);
                        not_empty.notify_one();
                        None
                    } else {
                        not_empty.wait_while(&mut items, |items| items.is_empty()).unwrap();
                        not_full.notify_one();
                        items.pop_front()
                    }
                })
                .collect::<Vec<_>>()
        });
        let mut taken: Vec<_> = taken.into_iter().flatten().flatten().collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..6 * ITEMS).collect::<Vec<_>>());
    }
}

#[test]
fn notify_one_wakes_the_first_and_notify_all_the_rest() {
    let scheduler = scheduler(1);
    let shared = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
    let fibers: Vec<_> = (0..40)
        .map(|n| {
            let shared = Arc::clone(&shared);
            let fiber = scheduler.spawn(Builder::new(), move || {
                let mut woken = shared.0.lock();
                shared.1.wait(&mut woken).unwrap();
                woken.push(n);
            });
            until_it_waits(&scheduler, fiber.fiber(), WaitKind::Condvar);
            fiber
        })
        .collect();
    shared.1.notify_one();
    shared.1.notify_one();
    while shared.0.lock().len() < 2 {
        thread::yield_now();
    }
    assert_eq!(*shared.0.lock(), [0, 1]);
    shared.1.notify_all();
    for fiber in fibers {
        fiber.join().unwrap();
    }
    assert_eq!(*shared.0.lock(), (0..40).collect::<Vec<_>>());
    // Nobody waits: nothing happens, and nothing is kept for later.
    shared.1.notify_all();
    let mut guard = shared.0.lock();
    assert_eq!(shared.1.wait_timeout(&mut guard, SHORT), Err(WaitError::TimedOut));
}

#[test]
fn a_wait_for_a_condition_that_is_interrupted_holds_the_lock_again() {
    let scheduler = scheduler(1);
    let shared = Arc::new((Mutex::new(0), Condvar::new()));
    let theirs = Arc::clone(&shared);
    let fiber = scheduler.spawn(Builder::new(), move || {
        let mut guard = theirs.0.lock();
        let result = theirs.1.wait(&mut guard);
        *guard += 1;
        let in_vain = theirs.1.wait_while(&mut guard, |_| true);
        *guard += 1;
        // True already: it need not wait, cancelled or not.
        let not_needed = theirs.1.wait_while(&mut guard, |_| false);
        (result, in_vain, not_needed)
    });
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Condvar);
    fiber.cancel();
    let cancelled = Err(Interrupt::Cancelled);
    assert_eq!(fiber.join().unwrap(), (cancelled, cancelled, Ok(())));
    assert_eq!(*shared.0.lock(), 2);
    let mut guard = shared.0.lock();
    let result = shared.1.wait_timeout_while(&mut guard, SHORT, |value| *value == 2);
    assert_eq!(result, Err(WaitError::TimedOut));
}

#[test]
fn a_mutex_poisoned_during_the_wait_for_a_condition_says_so() {
    let scheduler = scheduler(1);
    let shared = Arc::new((Mutex::new(0), Condvar::new()));
    let theirs = Arc::clone(&shared);
    let fiber = scheduler.spawn(Builder::new(), move || {
        let mut guard = theirs.0.lock();
        let _ = theirs.1.wait(&mut guard);
    });
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Condvar);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let _guard = shared.0.lock();
        panic!("halfway");
    }));
    assert!(result.is_err());
    shared.1.notify_one();
    assert!(fiber.join().is_err());
    // Its guard was dropped by that panic, and released the lock.
    shared.0.clear_poison();
    assert!(shared.0.try_lock().is_some());
}

#[test]
fn no_more_hold_permits_than_there_are() {
    for workers in [1, 3] {
        let semaphore = Arc::new(Semaphore::new(5));
        let inside = Arc::new(AtomicUsize::new(0));
        let theirs = (Arc::clone(&semaphore), Arc::clone(&inside));
        mixture(workers, 15, &KINDS, move |n| {
            let (semaphore, inside) = &theirs;
            for round in 0..200 {
                let permits = 1 + (n + round) % 5;
                let _permit = semaphore.acquire_many(permits).unwrap();
                assert!(inside.fetch_add(permits, Ordering::SeqCst) + permits <= 5);
                if round % 3 == 0 {
                    pause();
                }
                inside.fetch_sub(permits, Ordering::SeqCst);
            }
        });
        assert_eq!(semaphore.available(), 5);
    }
}

#[test]
fn permits_are_given_out_in_order_and_past_those_who_give_up() {
    let scheduler = scheduler(1);
    let semaphore = Arc::new(Semaphore::new(3));
    let held = semaphore.acquire().unwrap();
    let (large, small) = (Arc::clone(&semaphore), Arc::clone(&semaphore));
    let large = scheduler.spawn(Builder::new(), move || large.acquire_many(3).map(drop));
    until_it_waits(&scheduler, large.fiber(), WaitKind::Semaphore);
    assert!(semaphore.try_acquire().is_none(), "passed somebody who waits");
    assert_eq!(semaphore.try_acquire_for(1, SHORT).map(drop), Err(WaitError::TimedOut));
    let small = scheduler.spawn(Builder::new(), move || small.acquire_many(2).map(drop));
    until_it_waits(&scheduler, small.fiber(), WaitKind::Semaphore);
    large.cancel();
    assert_eq!(large.join().unwrap(), Err(Interrupt::Cancelled));
    assert_eq!(small.join().unwrap(), Ok(()));
    drop(held);
    assert_eq!(semaphore.available(), 3);
}

#[test]
fn permits_can_be_forgotten_added_and_sent_away() {
    let scheduler = scheduler(1);
    let semaphore = Arc::new(Semaphore::new(1));
    let permit = Arc::clone(&semaphore).acquire_owned().unwrap();
    let waiting = Arc::clone(&semaphore);
    let fiber = scheduler.spawn(Builder::new(), move || waiting.acquire_many(2).unwrap().forget());
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Semaphore);
    scheduler.spawn(Builder::new(), move || drop(permit)).join().unwrap();
    semaphore.add_permits(1);
    fiber.join().unwrap();
    assert_eq!(semaphore.available(), 0);
    semaphore.add_permits(1);
    assert_eq!(semaphore.available(), 1);
    assert!(catch_unwind(AssertUnwindSafe(|| semaphore.add_permits(Semaphore::PERMITS_MAX))).is_err());
    assert_eq!(semaphore.available(), 1);
}

#[test]
fn a_barrier_lets_nobody_through_before_all_have_come() {
    for workers in [1, 3] {
        const MEMBERS: usize = 40;
        let barrier = Arc::new(Barrier::new(MEMBERS));
        let arrived = Arc::new(AtomicUsize::new(0));
        let leaders = mixture(workers, MEMBERS, &KINDS, move |_| {
            (1..=20)
                .filter(|round| {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    let result = barrier.wait().unwrap();
                    let so_far = arrived.load(Ordering::SeqCst);
                    assert!(so_far >= round * MEMBERS, "{so_far} in round {round}");
                    result.is_leader()
                })
                .count()
        });
        assert_eq!(leaders.into_iter().sum::<usize>(), 20);
    }
}

#[test]
fn who_leaves_a_barrier_does_not_count() {
    let scheduler = scheduler(1);
    let barrier = Arc::new(Barrier::new(2));
    assert_eq!(barrier.wait_timeout(SHORT), Err(WaitError::TimedOut));
    let theirs = Arc::clone(&barrier);
    let fiber = scheduler.spawn(Builder::new(), move || theirs.wait());
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Barrier);
    fiber.cancel();
    assert_eq!(fiber.join().unwrap(), Err(Interrupt::Cancelled));
    assert_eq!(barrier.wait_timeout(SHORT), Err(WaitError::TimedOut));
    let theirs = Arc::clone(&barrier);
    let fiber = scheduler.spawn(Builder::new(), move || theirs.wait().map(|result| result.is_leader()));
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Barrier);
    assert!(barrier.wait().unwrap().is_leader());
    assert_eq!(fiber.join().unwrap(), Ok(false));
    assert!(Barrier::new(0).wait().unwrap().is_leader());
}

#[test]
fn a_wait_group_waits_for_all_tasks_also_those_that_panic() {
    for workers in [1, 3] {
        let scheduler = scheduler(workers);
        let group = WaitGroup::new();
        let ended = Arc::new(AtomicUsize::new(0));
        for n in 0..60 {
            let (task, ended) = (group.task(), Arc::clone(&ended));
            let member = Member::start(&scheduler, KINDS[n % 3], move || {
                // Dropped before the task, in that order.
                let _task = (task.clone(), task);
                pause();
                ended.fetch_add(1, Ordering::SeqCst);
                if n % 10 == 0 {
                    panic!("this one ends so");
                }
            });
            drop(member);
        }
        let waiting = group.clone();
        let fiber = scheduler.spawn(Builder::new(), move || waiting.wait());
        group.wait().unwrap();
        assert_eq!(ended.load(Ordering::SeqCst), 60);
        assert_eq!(fiber.join().unwrap(), Ok(()));
        assert_eq!(group.tasks(), 0);
    }
}

#[test]
fn a_wait_for_a_group_ends_early_if_it_must_and_at_once_if_it_may() {
    let scheduler = scheduler(1);
    let group = WaitGroup::new();
    assert_eq!(group.wait(), Ok(()));
    let task = group.task();
    assert_eq!(group.wait_timeout(SHORT), Err(WaitError::TimedOut));
    let theirs = group.clone();
    let fiber = scheduler.spawn(Builder::new(), move || theirs.wait());
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::WaitGroup);
    fiber.cancel();
    assert_eq!(fiber.join().unwrap(), Err(Interrupt::Cancelled));
    drop(task);
    assert_eq!(group.wait_timeout(FOREVER), Ok(()));
}

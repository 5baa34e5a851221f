//! Mutex, RwLock, Once and OnceCell.

use super::*;
use squall_fiber::sync::{Mutex, Once, OnceCell, RwLock, WaitError};
use squall_fiber::{Interrupt, WaitKind, shield, with_deadline};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[test]
fn a_mutex_excludes_fibers_and_threads_alike() {
    for workers in [1, 3] {
        let mutex = Arc::new(Mutex::new(0u64));
        let theirs = Arc::clone(&mutex);
        mixture(workers, 12, &KINDS, move |n| {
            for round in 0..500 {
                let mut guard = theirs.lock();
                let seen = *guard;
                // Held across a suspension now and then.
                if (round + n) % 7 == 0 {
                    pause();
                }
                *guard = seen + 1;
            }
        });
        assert_eq!(*mutex.lock(), 12 * 500);
    }
}

#[test]
fn a_fiber_that_keeps_taking_the_lock_does_not_starve_the_others() {
    let scheduler = scheduler(1);
    let mutex = Arc::new(Mutex::new(()));
    let enough = Arc::new(AtomicBool::new(false));
    let hog = {
        let (mutex, enough) = (Arc::clone(&mutex), Arc::clone(&enough));
        scheduler.spawn(Builder::new(), move || {
            // Whoever wakes up finds the lock taken, each time.
            while !enough.load(Ordering::Relaxed) {
                let _guard = mutex.lock();
                pause();
            }
        })
    };
    let others: Vec<_> = (0..4)
        .map(|_| {
            let mutex = Arc::clone(&mutex);
            scheduler.spawn(Builder::new(), move || {
                for _ in 0..50 {
                    drop(mutex.lock());
                }
            })
        })
        .collect();
    for other in others {
        other.join().unwrap();
    }
    enough.store(true, Ordering::Relaxed);
    hog.join().unwrap();
}

#[test]
fn waiters_are_served_in_the_order_in_which_they_came() {
    let scheduler = scheduler(1);
    let mutex = Arc::new(Mutex::new(Vec::new()));
    let held = mutex.lock();
    let fibers: Vec<_> = (0..10)
        .map(|n| {
            let mutex = Arc::clone(&mutex);
            let fiber = scheduler.spawn(Builder::new(), move || mutex.lock().push(n));
            until_it_waits(&scheduler, fiber.fiber(), WaitKind::Lock);
            fiber
        })
        .collect();
    drop(held);
    for fiber in fibers {
        fiber.join().unwrap();
    }
    assert_eq!(*mutex.lock(), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_lock_that_is_held_can_be_given_up_on() {
    for kind in KINDS {
        let scheduler = scheduler(1);
        let mutex = Arc::new(Mutex::new(1));
        let held = mutex.lock();
        let theirs = Arc::clone(&mutex);
        let member = Member::start(&scheduler, kind, move || {
            assert!(theirs.try_lock().is_none());
            theirs.try_lock_for(SHORT).map(|guard| *guard)
        });
        assert_eq!(member.join(), Err(WaitError::TimedOut), "{kind:?}");
        drop(held);
        assert_eq!(mutex.try_lock_for(SHORT).map(|guard| *guard), Ok(1));
        assert_eq!(mutex.try_lock().map(|guard| *guard), Some(1));
    }
}

#[test]
fn only_the_interruptible_wait_for_a_lock_is_interrupted() {
    let scheduler = scheduler(1);
    let mutex = Arc::new(Mutex::new(1));
    let held = mutex.lock();
    let theirs = Arc::clone(&mutex);
    let fiber = scheduler.spawn(Builder::new(), move || {
        let interrupted = theirs.lock_interruptible().map(|guard| *guard);
        // Cancelled as it is, it waits here for the lock.
        let plain = *theirs.lock();
        // And here it need not wait.
        (interrupted, plain, theirs.lock_interruptible().map(|guard| *guard))
    });
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Lock);
    fiber.cancel();
    thread::sleep(SHORT);
    assert!(!fiber.is_finished());
    drop(held);
    assert_eq!(fiber.join().unwrap(), (Err(Interrupt::Cancelled), 1, Ok(1)));
}

#[test]
fn the_deadline_around_a_wait_is_told_from_its_own() {
    let scheduler = scheduler(1);
    let mutex = Arc::new(Mutex::new(()));
    let held = mutex.lock();
    let theirs = Arc::clone(&mutex);
    let fiber = scheduler.spawn(Builder::new(), move || {
        let wait = |timeout| theirs.try_lock_for(timeout).map(drop);
        (
            with_deadline(SHORT, || wait(FOREVER)),
            with_deadline(FOREVER, || wait(SHORT)),
            with_deadline(SHORT, || shield(|| wait(SHORT * 2))),
        )
    });
    let deadline = Err(WaitError::DeadlineExceeded);
    assert_eq!(fiber.join().unwrap(), (deadline, Err(WaitError::TimedOut), Err(WaitError::TimedOut)));
    drop(held);
}

#[test]
fn a_panic_with_the_lock_poisons_it_until_somebody_says_otherwise() {
    for kind in KINDS {
        let scheduler = scheduler(1);
        let mutex = Arc::new(Mutex::new(1));
        let theirs = Arc::clone(&mutex);
        let member = Member::start(&scheduler, kind, move || {
            catch_unwind(AssertUnwindSafe(|| {
                let mut guard = theirs.lock();
                *guard = 2;
                panic!("halfway");
            }))
            .is_err()
        });
        assert!(member.join());
        assert!(mutex.is_poisoned());
        let lock = || catch_unwind(AssertUnwindSafe(|| *mutex.lock()));
        assert!(lock().is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| mutex.try_lock().map(|guard| *guard))).is_err());
        // The panic of `lock` has released it.
        mutex.clear_poison();
        assert_eq!(lock().unwrap(), 2);
    }
}

#[test]
fn a_destructor_may_take_a_poisoned_lock_while_it_unwinds() {
    struct Count(Arc<Mutex<usize>>);
    impl Drop for Count {
        fn drop(&mut self) {
            *self.0.lock() += 1;
        }
    }
    let mutex = Arc::new(Mutex::new(0));
    let counts = [Count(Arc::clone(&mutex)), Count(Arc::clone(&mutex))];
    let result = catch_unwind(AssertUnwindSafe(|| {
        let _counts = counts;
        let _guard = mutex.lock();
        panic!("halfway");
    }));
    assert!(result.is_err());
    assert!(mutex.is_poisoned());
    mutex.clear_poison();
    assert_eq!(*mutex.lock(), 2);
}

#[test]
fn a_shared_fiber_that_unwinds_waits_with_its_thread() {
    struct WaitForLock(Arc<Mutex<usize>>);
    impl Drop for WaitForLock {
        fn drop(&mut self) {
            *self.0.lock() += 1;
        }
    }
    let scheduler = scheduler(1);
    let mutex = Arc::new(Mutex::new(0));
    let held = mutex.lock();
    let theirs = Arc::clone(&mutex);
    let fiber = scheduler.spawn(Builder::new().tls(Tls::Shared), move || {
        let _wait = WaitForLock(theirs);
        panic!("on its way out it needs the lock");
    });
    thread::sleep(SHORT);
    assert!(!fiber.is_finished());
    drop(held);
    assert!(fiber.join().is_err());
    assert_eq!(*mutex.lock(), 1);
}

#[test]
fn readers_read_together_and_writers_write_alone() {
    for workers in [1, 3] {
        let lock = Arc::new(RwLock::new((0u64, 0u64)));
        let (readers, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let theirs = (Arc::clone(&lock), Arc::clone(&readers), Arc::clone(&most));
        mixture(workers, 12, &KINDS, move |n| {
            let (lock, readers, most) = &theirs;
            for round in 0..300 {
                if (round + n) % 5 == 0 {
                    let mut guard = lock.write();
                    assert_eq!(readers.load(Ordering::SeqCst), 0);
                    guard.0 += 1;
                    pause();
                    guard.1 += 1;
                } else {
                    let guard = lock.read();
                    most.fetch_max(readers.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    assert_eq!(guard.0, guard.1);
                    if round % 3 == 0 {
                        pause();
                    }
                    readers.fetch_sub(1, Ordering::SeqCst);
                }
            }
        });
        assert_eq!(*lock.read(), (12 * 60, 12 * 60));
        assert!(most.load(Ordering::SeqCst) > 1, "nobody ever read together");
    }
}

#[test]
fn readers_that_keep_coming_do_not_starve_a_writer() {
    let scheduler = scheduler(1);
    let lock = Arc::new(RwLock::new(0));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let lock = Arc::clone(&lock);
            scheduler.spawn(Builder::new(), move || {
                // At every moment one of the three reads.
                while *lock.read() < 50 {
                    let _guard = lock.read();
                    pause();
                }
            })
        })
        .collect();
    let writer = {
        let lock = Arc::clone(&lock);
        scheduler.spawn(Builder::new(), move || {
            for _ in 0..50 {
                *lock.write() += 1;
            }
        })
    };
    writer.join().unwrap();
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn writers_that_keep_coming_starve_neither_readers_nor_each_other() {
    let scheduler = scheduler(1);
    let lock = Arc::new(RwLock::new(0u64));
    let enough = Arc::new(AtomicBool::new(false));
    let hog = {
        let (lock, enough) = (Arc::clone(&lock), Arc::clone(&enough));
        scheduler.spawn(Builder::new(), move || {
            while !enough.load(Ordering::Relaxed) {
                *lock.write() += 1;
                let _guard = lock.write();
                pause();
            }
        })
    };
    let others: Vec<_> = (0..4)
        .map(|n| {
            let lock = Arc::clone(&lock);
            scheduler.spawn(Builder::new(), move || {
                for _ in 0..50 {
                    if n % 2 == 0 { drop(lock.write()) } else { drop(lock.read()) }
                }
            })
        })
        .collect();
    for other in others {
        other.join().unwrap();
    }
    enough.store(true, Ordering::Relaxed);
    hog.join().unwrap();
}

#[test]
fn readers_behind_a_writer_that_gives_up_are_let_in() {
    let scheduler = scheduler(1);
    let lock = Arc::new(RwLock::new(7));
    let reading = lock.read();
    let (impatient, patient) = (Arc::clone(&lock), Arc::clone(&lock));
    let writer = scheduler.spawn(Builder::new(), move || impatient.write_interruptible().map(drop));
    until_it_waits(&scheduler, writer.fiber(), WaitKind::Lock);
    assert!(lock.try_read().is_none(), "a reader passed a writer that waits");
    let reader = scheduler.spawn(Builder::new(), move || *patient.read());
    until_it_waits(&scheduler, reader.fiber(), WaitKind::Lock);
    writer.cancel();
    assert_eq!(writer.join().unwrap(), Err(Interrupt::Cancelled));
    assert_eq!(reader.join().unwrap(), 7);
    assert!(lock.try_write().is_none());
    assert_eq!(lock.try_write_for(SHORT).map(|_| ()), Err(WaitError::TimedOut));
    drop(reading);
    assert!(lock.try_write().is_some());
}

#[test]
fn a_panicking_writer_poisons_and_a_panicking_reader_does_not() {
    let lock = RwLock::new(0);
    let panic_with = |f: &dyn Fn()| catch_unwind(AssertUnwindSafe(f)).is_err();
    assert!(panic_with(&|| {
        let _guard = lock.read();
        panic!("only looked");
    }));
    assert!(!lock.is_poisoned());
    assert!(panic_with(&|| {
        let _guard = lock.write();
        panic!("halfway");
    }));
    assert!(lock.is_poisoned());
    assert!(panic_with(&|| drop(lock.read())));
    lock.clear_poison();
    assert_eq!(*lock.read(), 0);
    assert!(format!("{lock:?}").contains('0'));
}

#[test]
fn one_of_many_initialises_and_the_others_wait_for_it() {
    for workers in [1, 3] {
        let cell = Arc::new(OnceCell::new());
        let runs = Arc::new(AtomicUsize::new(0));
        let theirs = (Arc::clone(&cell), Arc::clone(&runs));
        let values = mixture(workers, 30, &KINDS, move |n| {
            let (cell, runs) = &theirs;
            *cell.get_or_init(|| {
                runs.fetch_add(1, Ordering::SeqCst);
                squall_fiber::sleep(SHORT);
                n
            })
        });
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(values.iter().all(|value| Some(value) == cell.get()));
        assert_eq!(cell.set(99), Err(99));
    }
}

#[test]
fn an_initialisation_that_fails_or_panics_is_tried_again() {
    let scheduler = scheduler(1);
    let cell = Arc::new(OnceCell::new());
    let fibers: Vec<_> = (0..6)
        .map(|n| {
            let cell = Arc::clone(&cell);
            scheduler.spawn(Builder::new(), move || {
                cell.get_or_try_init(|| {
                    pause();
                    match n {
                        0 | 1 => Err(n),
                        2 => panic!("no luck either"),
                        _ => Ok(n),
                    }
                })
                .copied()
            })
        })
        .collect();
    let results: Vec<_> = fibers.into_iter().map(|fiber| fiber.join()).collect();
    assert!(matches!(results[0], Ok(Err(0))) && matches!(results[1], Ok(Err(1))) && results[2].is_err());
    assert!(results[3..].iter().all(|result| matches!(result, Ok(Ok(3)))));
    let mut cell = Arc::into_inner(cell).unwrap();
    assert_eq!(cell.get_mut().copied(), Some(3));
    assert_eq!(cell.take(), Some(3));
    assert_eq!(cell.into_inner(), None);
}

#[test]
fn a_once_runs_once() {
    static ONCE: Once = Once::new();
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    mixture(2, 12, &KINDS, |_| {
        ONCE.call_once(|| {
            RUNS.fetch_add(1, Ordering::Relaxed);
            squall_fiber::sleep(SHORT);
        });
        // What the initialisation did is visible to all.
        RUNS.load(Ordering::Relaxed)
    })
    .into_iter()
    .for_each(|runs| assert_eq!(runs, 1));
}

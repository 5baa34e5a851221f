//! Thousands of waiters, and waiters that give up at the very moment in which they are let go.

use super::*;
use squall_fiber::WaitKind;
use squall_fiber::sync::{
    Condvar, Mutex, RecvTimeoutError, RwLock, Semaphore, WaitGroup, bounded, oneshot, unbounded,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// Durations that end while the others are busy, a different one each time.
fn jitter(n: usize) -> Duration {
    Duration::from_micros((n as u64).wrapping_mul(2_654_435_761) % 400)
}

#[test]
fn five_thousand_wait_for_one_thing_each_way() {
    const CROWD: usize = 5000;
    let scheduler = scheduler(2);
    let mutex = Arc::new(Mutex::new(0usize));
    let lock = Arc::new(RwLock::new(0usize));
    let pair = Arc::new((Mutex::new(false), Condvar::new()));
    let semaphore = Arc::new(Semaphore::new(0));
    let (sender, receiver) = unbounded::<usize>();
    let held = mutex.lock();
    let written = lock.write();
    let fibers: Vec<_> = (0..CROWD)
        .map(|n| {
            let (mutex, lock, pair) = (Arc::clone(&mutex), Arc::clone(&lock), Arc::clone(&pair));
            let (semaphore, receiver) = (Arc::clone(&semaphore), receiver.clone());
            let tls = if n % 2 == 0 { Tls::Private } else { Tls::Shared };
            scheduler.spawn(Builder::new().tls(tls).stack_bytes(64 * 1024), move || match n % 5 {
                0 => *mutex.lock() += 1,
                1 => assert_eq!(*lock.read(), 0),
                2 => pair.1.wait_while(&mut pair.0.lock(), |is_set| !*is_set).unwrap(),
                3 => semaphore.acquire().unwrap().forget(),
                _ => assert!(receiver.recv().unwrap() < CROWD / 5),
            })
        })
        .collect();
    let all_wait =
        || scheduler.fibers().iter().filter(|fiber| fiber.waits_for != WaitKind::None).count() == CROWD;
    while !all_wait() {
        thread::sleep(SHORT);
    }
    drop(held);
    drop(written);
    *pair.0.lock() = true;
    pair.1.notify_all();
    semaphore.add_permits(CROWD / 5);
    (0..CROWD / 5).for_each(|n| sender.send(n).unwrap());
    for fiber in fibers {
        fiber.join().unwrap();
    }
    assert_eq!(*mutex.lock(), CROWD / 5);
}

#[test]
fn thousands_of_waiters_can_be_cancelled() {
    let scheduler = scheduler(2);
    let mutex = Arc::new(Mutex::new(()));
    let (_sender, receiver) = unbounded::<()>();
    let held = mutex.lock();
    let fibers: Vec<_> = (0..2000)
        .map(|n| {
            let (mutex, receiver) = (Arc::clone(&mutex), receiver.clone());
            scheduler.spawn(Builder::new().stack_bytes(64 * 1024), move || match n % 2 {
                0 => mutex.lock_interruptible().is_err(),
                _ => receiver.recv().is_err(),
            })
        })
        .collect();
    // Some have begun to wait by now and some have not.
    for fiber in &fibers {
        fiber.cancel();
    }
    for fiber in fibers {
        assert!(fiber.join().unwrap());
    }
    drop(held);
    assert!(mutex.try_lock().is_some());
    assert!(receiver.is_empty());
}

#[test]
fn a_message_races_with_the_end_of_the_wait_for_it_and_is_never_lost() {
    const MESSAGES: usize = 3000;
    for capacity in [Some(0), Some(3), None] {
        for workers in [1, 3] {
            let (sender, receiver) = capacity.map_or_else(unbounded, bounded);
            let senders = WaitGroup::new();
            let tasks: Vec<_> = (0..3).map(|_| Mutex::new(Some(senders.task()))).collect();
            let tasks = Arc::new(tasks);
            let done = Arc::new(AtomicBool::new(false));
            let finished = Arc::clone(&done);
            let watcher = thread::spawn(move || {
                senders.wait().unwrap();
                finished.store(true, Ordering::SeqCst);
            });
            let received = mixture(workers, 9, &KINDS, move |n| {
                let mut list = Vec::new();
                if n < 3 {
                    for number in 0..MESSAGES {
                        let mut value = n * MESSAGES + number;
                        // Until it has been sent, each message comes back.
                        while let Err(error) = sender.send_timeout(value, jitter(value)) {
                            value = error.into_inner();
                        }
                    }
                    drop(tasks[n].lock().take());
                    return list;
                }
                loop {
                    match receiver.recv_timeout(jitter(list.len() + n)) {
                        Ok(value) => list.push(value),
                        Err(RecvTimeoutError::TimedOut) if done.load(Ordering::SeqCst) => break,
                        Err(_) => {}
                    }
                }
                list.extend(receiver.try_iter());
                list
            });
            watcher.join().unwrap();
            let mut received: Vec<_> = received.into_iter().flatten().collect();
            received.sort_unstable();
            assert_eq!(received, (0..3 * MESSAGES).collect::<Vec<_>>(), "{capacity:?}, {workers} workers");
        }
    }
}

#[test]
fn cancellation_races_with_what_it_cancels_and_neither_is_lost() {
    let scheduler = scheduler(2);
    let semaphore = Arc::new(Semaphore::new(1));
    let (sender, receiver) = unbounded();
    let (mut received, mut cancelled) = (0, 0);
    for round in 0..2000 {
        let (semaphore, waiting) = (Arc::clone(&semaphore), receiver.clone());
        let tls = if round % 2 == 0 { Tls::Private } else { Tls::Shared };
        let fiber = scheduler.spawn(Builder::new().tls(tls), move || {
            let _permit = semaphore.acquire()?;
            waiting.recv().map_err(|_| squall_fiber::Interrupt::Cancelled)
        });
        if round % 3 == 0 {
            until_it_waits(&scheduler, fiber.fiber(), WaitKind::Receive);
        }
        let canceller = fiber.fiber().clone();
        let other = thread::spawn(move || canceller.cancel());
        sender.send(round).unwrap();
        other.join().unwrap();
        match fiber.join().unwrap() {
            Ok(value) => {
                assert_eq!(value, round);
                received += 1;
            }
            Err(_) => {
                // Nobody took it.
                assert_eq!(receiver.try_recv(), Ok(round));
                cancelled += 1;
            }
        }
    }
    assert_eq!(semaphore.available(), 1);
    println!("{received} received, {cancelled} cancelled");
}

#[test]
fn locks_survive_waiters_that_give_up_all_the_time() {
    for workers in [1, 3] {
        let shared =
            Arc::new((Mutex::new(0usize), RwLock::new(0usize), Semaphore::new(2), AtomicUsize::new(0)));
        let theirs = Arc::clone(&shared);
        mixture(workers, 12, &KINDS, move |n| {
            let (mutex, lock, semaphore, inside) = &*theirs;
            for round in 0..400 {
                let timeout = jitter(n * 1000 + round);
                match (n + round) % 4 {
                    0 => {
                        if let Ok(mut guard) = mutex.try_lock_for(timeout) {
                            let seen = *guard;
                            pause();
                            *guard = seen + 1;
                            inside.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    1 => {
                        if let Ok(mut guard) = lock.try_write_for(timeout) {
                            let seen = *guard;
                            pause();
                            *guard = seen + 1;
                            inside.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    2 => drop(lock.try_read_for(timeout)),
                    _ => {
                        if let Ok(_permit) = semaphore.try_acquire_for(1 + n % 2, timeout) {
                            pause();
                        }
                    }
                }
            }
        });
        let (mutex, lock, semaphore, inside) = &*shared;
        assert_eq!(*mutex.lock() + *lock.write(), inside.load(Ordering::SeqCst));
        assert_eq!(semaphore.available(), 2);
    }
}

#[test]
fn questions_and_answers_by_the_thousand() {
    let scheduler = scheduler(2);
    let (ask, questions) = bounded(16);
    let server = scheduler.spawn(Builder::new(), move || {
        for (n, answer) in questions {
            let answer: squall_fiber::sync::OneshotSender<usize> = answer;
            // Some of those who ask have given up.
            let _ = answer.send(n * n);
        }
    });
    let started = Instant::now();
    let clients: Vec<_> = (0..300)
        .map(|n| {
            let ask = ask.clone();
            Member::start(&scheduler, KINDS[n % 2], move || {
                (0..30)
                    .filter(|round| {
                        let (answer, answered) = oneshot();
                        ask.send((n, answer)).unwrap();
                        match answered.recv_timeout(if round % 5 == 0 { jitter(n) } else { FOREVER }) {
                            Ok(value) => value == n * n,
                            Err(error) => {
                                assert_eq!(error, RecvTimeoutError::TimedOut);
                                assert!(round % 5 == 0, "no answer in {:?}", started.elapsed());
                                false
                            }
                        }
                    })
                    .count()
            })
        })
        .collect();
    drop(ask);
    for client in clients {
        assert!(client.join() >= 24);
    }
    server.join().unwrap();
}

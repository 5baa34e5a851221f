//! The blocking pool: calls that block a thread do not block the worker.

use squall_fiber::{Builder, Scheduler, SchedulerConfig, WaitKind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

fn one_worker() -> Scheduler {
    Scheduler::new(SchedulerConfig { threads: 1, ..Default::default() }).expect("a scheduler")
}

#[test]
fn hundreds_of_calls_at_once_all_return_to_their_own_fiber() {
    let scheduler = one_worker();
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let fibers: Vec<_> = (0..500usize)
        .map(|number| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            scheduler.spawn(Builder::new(), move || {
                // Borrowed, not moved: the fiber's stack stands still while the call runs.
                let local = [number; 16];
                let answer = squall_fiber::run_blocking(|| {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(2));
                    running.fetch_sub(1, Ordering::SeqCst);
                    local.iter().sum::<usize>()
                });
                assert_eq!(answer, 16 * number);
            })
        })
        .collect();
    for fiber in fibers {
        fiber.join().unwrap();
    }
    assert!(most.load(Ordering::SeqCst) > 1, "the calls ran one after the other");
    let squall_fiber::BlockingMetrics { queued, threads, .. } = squall_fiber::metrics().blocking;
    assert_eq!(queued, 0);
    assert!((1..=128).contains(&threads), "{threads} threads");
}

#[test]
fn the_worker_goes_on_while_a_call_blocks() {
    let scheduler = one_worker();
    let meet = Arc::new(Barrier::new(2));
    let other_side = Arc::clone(&meet);
    let blocked = scheduler.spawn(Builder::new(), move || {
        squall_fiber::run_blocking(|| other_side.wait());
    });
    scheduler
        .spawn(Builder::new(), move || {
            // Runs on the only worker while the other fiber's call is under way.
            while !squall_fiber::fibers().iter().any(|fiber| fiber.waits_for == WaitKind::Blocking) {
                squall_fiber::yield_now();
            }
            squall_fiber::run_blocking(|| meet.wait());
        })
        .join()
        .unwrap();
    blocked.join().unwrap();
}

#[test]
fn a_panic_in_the_call_is_the_fibers() {
    let scheduler = one_worker();
    let outcome =
        scheduler.spawn(Builder::new(), || squall_fiber::run_blocking(|| std::panic::panic_any(7u8))).join();
    assert_eq!(outcome.unwrap_err().downcast_ref::<u8>(), Some(&7));
    // The pool's thread has survived it.
    assert_eq!(scheduler.spawn(Builder::new(), || squall_fiber::run_blocking(|| 8)).join().unwrap(), 8);
}

#[test]
fn calls_may_nest_and_spawn() {
    let scheduler = one_worker();
    let answer = scheduler.spawn(Builder::new(), || {
        squall_fiber::run_blocking(|| {
            assert!(!squall_fiber::in_fiber());
            squall_fiber::run_blocking(|| squall_fiber::spawn(|| 9).join().unwrap())
        })
    });
    assert_eq!(answer.join().unwrap(), 9);
}

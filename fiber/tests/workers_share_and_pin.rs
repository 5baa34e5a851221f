//! Several workers: who runs what, who stays where, and how a scheduler ends.

use squall_fiber::{Builder, Scheduler, SchedulerConfig, Tls};
use std::cell::Cell;
use std::collections::HashSet;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

fn workers(threads: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig { threads, ..Default::default() }).expect("a scheduler")
}

/// The kernel's id of the thread under the fiber: what `std::thread::current` says is the fiber's own.
fn kernel_thread() -> i32 {
    // SAFETY: gettid has no arguments and no effect.
    unsafe { squall_fiber::sys::raw_syscall(libc::SYS_gettid, [0; 6]) as i32 }
}

fn compute() {
    black_box((0..2_000u64).fold(1u64, |sum, n| sum.wrapping_mul(31).wrapping_add(black_box(n))));
}

#[test]
fn work_spawned_on_one_worker_is_shared_with_the_other() {
    let scheduler = workers(2);
    let places = scheduler.spawn(Builder::new(), || {
        let places = Arc::new(Mutex::new(HashSet::new()));
        let fibers: Vec<_> = (0..200)
            .map(|_| {
                let places = Arc::clone(&places);
                squall_fiber::spawn(move || {
                    // Until somebody has seen two threads, or for so long that nobody shares anything.
                    for _ in 0..10_000 {
                        compute();
                        let mut places = places.lock().unwrap();
                        places.insert(kernel_thread());
                        if places.len() > 1 {
                            break;
                        }
                        drop(places);
                        squall_fiber::yield_now();
                    }
                })
            })
            .collect();
        for fiber in fibers {
            fiber.join().unwrap();
        }
        places.lock().unwrap().len()
    });
    assert_eq!(places.join().unwrap(), 2);
}

/// Each of two fibers computes until the other has begun: on one worker the first would never end.
#[test]
fn two_long_computations_spawned_by_a_fiber_run_side_by_side() {
    let scheduler = workers(2);
    let met = scheduler.spawn(Builder::new(), || {
        // The other worker has long gone to sleep, and nothing but a spawn wakes it.
        squall_fiber::sleep(Duration::from_millis(50));
        let begun = Arc::new(AtomicU32::new(0));
        let fibers: Vec<_> = (0..2)
            .map(|_| {
                let begun = Arc::clone(&begun);
                squall_fiber::spawn(move || {
                    begun.fetch_add(1, Ordering::SeqCst);
                    let give_up_at = Instant::now() + Duration::from_secs(20);
                    while begun.load(Ordering::SeqCst) < 2 && Instant::now() < give_up_at {
                        compute();
                    }
                    begun.load(Ordering::SeqCst) == 2
                })
            })
            .collect();
        // The first of them to run ends only with the other.
        fibers.into_iter().map(|fiber| fiber.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(met.join().unwrap(), [true, true]);
}

#[test]
fn fibers_from_outside_run_on_every_worker() {
    let scheduler = workers(3);
    let arrived = Arc::new(AtomicUsize::new(0));
    let fibers: Vec<_> = (0..3)
        .map(|_| {
            let arrived = Arc::clone(&arrived);
            // Never waits as a fiber does, so the three can meet only on three threads.
            scheduler.spawn(Builder::new(), move || {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 3 {
                    thread::yield_now();
                }
                kernel_thread()
            })
        })
        .collect();
    let places: HashSet<i32> = fibers.into_iter().map(|fiber| fiber.join().unwrap()).collect();
    assert_eq!(places.len(), 3);
}

#[test]
fn a_fiber_moves_with_its_thread_locals_and_errno() {
    thread_local! {
        static MARK: Cell<u64> = const { Cell::new(0) };
    }
    if squall_fiber::private_tls_support().is_err() {
        eprintln!("skipped: no private thread-locals here");
        return;
    }
    let scheduler = workers(2);
    let moves = Arc::new(AtomicU64::new(0));
    let fibers: Vec<_> = (1..=64u64)
        .map(|mark| {
            let moves = Arc::clone(&moves);
            scheduler.spawn(Builder::new(), move || {
                MARK.set(mark);
                let mut place = kernel_thread();
                for step in 0..500 {
                    // SAFETY: errno's address is valid in the fiber.
                    unsafe { *libc::__errno_location() = mark as i32 + step };
                    if step % 10 == 0 {
                        squall_fiber::sleep(Duration::from_micros(100));
                    } else {
                        squall_fiber::yield_now();
                    }
                    // SAFETY: as above.
                    assert_eq!(unsafe { *libc::__errno_location() }, mark as i32 + step);
                    assert_eq!(MARK.get(), mark);
                    let now = kernel_thread();
                    moves.fetch_add(u64::from(now != place), Ordering::Relaxed);
                    place = now;
                }
            })
        })
        .collect();
    for fiber in fibers {
        fiber.join().unwrap();
    }
    assert!(moves.load(Ordering::Relaxed) > 0, "no fiber ever moved, so nothing was tested");
}

#[test]
fn shared_fibers_stay_where_they_started_and_keep_errno() {
    let scheduler = workers(2);
    let fibers: Vec<_> = (0..200)
        .map(|number| {
            scheduler.spawn(Builder::new().tls(Tls::Shared), move || {
                let place = kernel_thread();
                for step in 0..100 {
                    // SAFETY: errno's address is valid.
                    unsafe { *libc::__errno_location() = number * 100 + step };
                    if step % 25 == 0 {
                        squall_fiber::sleep(Duration::from_millis(1));
                    } else {
                        squall_fiber::yield_now();
                    }
                    // SAFETY: as above.
                    assert_eq!(unsafe { *libc::__errno_location() }, number * 100 + step);
                    assert_eq!(kernel_thread(), place);
                }
            })
        })
        .collect();
    for fiber in fibers {
        fiber.join().unwrap();
    }
}

#[test]
fn a_pinned_fiber_runs_on_its_worker_only() {
    let scheduler = workers(2);
    let threads: Vec<i32> = (0..2)
        .map(|worker| scheduler.spawn(Builder::new().worker(worker), kernel_thread).join().unwrap())
        .collect();
    assert_ne!(threads[0], threads[1]);
    let fibers: Vec<_> = (0..100usize)
        .map(|number| {
            let thread = threads[number % 2];
            scheduler.spawn(Builder::new().worker(number), move || {
                // Pinned to the other worker, from inside this one.
                let elsewhere = Builder::new().worker(number + 1).spawn(kernel_thread);
                for _ in 0..100 {
                    assert_eq!(kernel_thread(), thread);
                    compute();
                    squall_fiber::yield_now();
                }
                assert_ne!(elsewhere.join().unwrap(), thread);
            })
        })
        .collect();
    for fiber in fibers {
        fiber.join().unwrap();
    }
}

#[test]
fn with_use_caller_everything_runs_on_the_thread_that_stops() {
    let scheduler =
        Scheduler::new(SchedulerConfig { threads: 1, use_caller: true, ..Default::default() }).unwrap();
    let (here, other_threads) = (kernel_thread(), Arc::new(AtomicUsize::new(0)));
    let mut handles = Vec::new();
    for _ in 0..20 {
        let other_threads = Arc::clone(&other_threads);
        handles.push(scheduler.spawn(Builder::new(), move || {
            squall_fiber::sleep(Duration::from_millis(1));
            other_threads.fetch_add(usize::from(kernel_thread() != here), Ordering::SeqCst);
        }));
    }
    thread::sleep(Duration::from_millis(10));
    assert!(handles.iter().all(|handle| !handle.is_finished()), "nobody works before stop");
    scheduler.stop();
    assert!(handles.iter().all(|handle| handle.is_finished()));
    assert_eq!(other_threads.load(Ordering::SeqCst), 0);
}

#[test]
fn a_use_caller_scheduler_can_be_stopped_from_a_fiber_of_another() {
    let outer = workers(1);
    let ran = outer.spawn(Builder::new(), || {
        let this = squall_fiber::current().unwrap().id();
        let inner =
            Scheduler::new(SchedulerConfig { threads: 1, use_caller: true, ..Default::default() }).unwrap();
        let ran = Arc::new(AtomicU32::new(0));
        for tls in [Tls::Shared, Tls::Private] {
            let ran = Arc::clone(&ran);
            inner.spawn(Builder::new().tls(tls), move || {
                squall_fiber::yield_now();
                ran.fetch_add(1, Ordering::SeqCst);
            });
        }
        inner.stop();
        assert_eq!(
            squall_fiber::current().map(|fiber| fiber.id()),
            Some(this),
            "the fiber forgot which it is"
        );
        ran.load(Ordering::SeqCst)
    });
    assert_eq!(ran.join().unwrap(), 2);
}

#[test]
fn two_schedulers_live_side_by_side_and_wake_each_other() {
    let (left, right) = (workers(1), workers(1));
    let sum = left.spawn(Builder::new(), move || {
        let parts: Vec<_> = (0..50)
            .map(|number| {
                right.spawn(Builder::new(), move || {
                    squall_fiber::sleep(Duration::from_millis(number % 3));
                    number
                })
            })
            .collect();
        let before = squall_fiber::fibers().len();
        let sum: u64 = parts.into_iter().map(|part| part.join().unwrap()).sum();
        assert_eq!(before, 1, "the other scheduler's fibers are not this one's");
        // Stopped here, from a fiber, which is not one of its own.
        right.stop();
        sum
    });
    assert_eq!(sum.join().unwrap(), 1225);
}

#[test]
fn stop_waits_for_fibers_that_spawn_more_and_then_refuses() {
    let scheduler = workers(2);
    let ended = Arc::new(AtomicU32::new(0));
    fn chain(left: u32, ended: Arc<AtomicU32>) {
        squall_fiber::sleep(Duration::from_micros(200));
        ended.fetch_add(1, Ordering::SeqCst);
        if left > 1 {
            squall_fiber::spawn(move || chain(left - 1, ended));
        }
    }
    let counter = Arc::clone(&ended);
    scheduler.spawn(Builder::new(), move || chain(50, counter));
    scheduler.stop();
    assert_eq!(ended.load(Ordering::SeqCst), 50);
    scheduler.stop();
    assert!(scheduler.fibers().is_empty());
    assert!(scheduler.hold().is_none());
    // Before, such a fiber was queued where nobody looked any more, and its join never returned.
    catch_unwind(AssertUnwindSafe(|| scheduler.spawn(Builder::new(), || ()))).expect_err("it cannot run");
}

#[test]
fn a_spawn_that_races_with_stop_runs_or_is_refused() {
    for _ in 0..200 {
        let scheduler = workers(2);
        let (accepted, ran) = (AtomicU32::new(0), Arc::new(AtomicU32::new(0)));
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..50 {
                    let Some(hold) = scheduler.hold() else { break };
                    let ran = Arc::clone(&ran);
                    accepted.fetch_add(1, Ordering::SeqCst);
                    hold.spawn(Builder::new(), move || ran.fetch_add(1, Ordering::SeqCst));
                }
            });
            scope.spawn(|| scheduler.stop());
        });
        assert_eq!(accepted.load(Ordering::SeqCst), ran.load(Ordering::SeqCst));
    }
}

#[test]
fn a_hold_keeps_the_scheduler_for_fibers_to_come() {
    let scheduler = workers(1);
    let hold = scheduler.hold().unwrap();
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            scheduler.stop();
            stopped.store(true, Ordering::SeqCst);
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!stopped.load(Ordering::SeqCst));
        assert_eq!(hold.spawn(Builder::new(), || 5).join().unwrap(), 5);
        drop(hold);
    });
    assert!(stopped.load(Ordering::SeqCst));
}

#[test]
fn a_scheduler_cannot_be_stopped_from_inside() {
    let scheduler = Arc::new(workers(1));
    let inside = Arc::clone(&scheduler);
    let outcome = scheduler.spawn(Builder::new(), move || inside.stop()).join();
    outcome.expect_err("it would wait for itself");
    scheduler.stop();
}

#[test]
fn no_wake_up_from_two_threads_is_lost() {
    const ROUNDS: u64 = 50_000;
    let scheduler = workers(2);
    let pairs: Vec<_> = (0..2)
        .map(|_| {
            let posted = Arc::new(AtomicU64::new(0));
            let taken = Arc::new(AtomicU64::new(0));
            let (seen, done) = (Arc::clone(&posted), Arc::clone(&taken));
            let fiber = scheduler.spawn(Builder::new(), move || {
                let mut next = 1;
                while next <= ROUNDS {
                    // A lost wake-up hangs here: nothing else ends the park.
                    while seen.load(Ordering::Relaxed) < next {
                        squall_fiber::park();
                    }
                    done.store(next, Ordering::Release);
                    next += 1;
                }
            });
            (fiber, posted, taken)
        })
        .collect();
    thread::scope(|scope| {
        for (fiber, posted, taken) in &pairs {
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    posted.store(round, Ordering::Relaxed);
                    fiber.fiber().unpark();
                    while taken.load(Ordering::Acquire) < round {
                        std::hint::spin_loop();
                        thread::yield_now();
                    }
                }
            });
        }
    });
    for (fiber, ..) in pairs {
        fiber.join().unwrap();
    }
}

#[test]
fn a_timeout_and_an_unpark_that_race_end_one_wait_each() {
    let scheduler = workers(2);
    let stop = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&stop);
    let parks = scheduler.spawn(Builder::new(), move || {
        let mut parks = 0u64;
        while !over.load(Ordering::SeqCst) {
            // About as long as the other thread waits between two calls, so that either may come first.
            squall_fiber::park_timeout(Duration::from_micros(parks % 50));
            parks += 1;
        }
        parks
    });
    for round in 0..20_000u64 {
        parks.fiber().unpark();
        if round % 64 == 0 {
            thread::sleep(Duration::from_micros(50));
        }
    }
    stop.store(true, Ordering::SeqCst);
    assert!(parks.join().unwrap() > 0);
}

//! The life of a fiber as its user sees it: spawn, join, panic, yield, park, sleep, on a scheduler without I/O.

use squall_fiber::{Builder, Fiber, Scheduler, SchedulerConfig, Tls};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

fn workers(threads: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig { threads, ..Default::default() }).expect("a scheduler")
}

/// Runs `f` in a fiber of a scheduler with one worker, and waits for it and all that it spawned.
fn on_one_worker<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let scheduler = workers(1);
    let handle = scheduler.spawn(Builder::new(), f);
    scheduler.stop();
    handle.join().expect("the fiber did not panic")
}

#[test]
fn join_returns_the_value_to_fibers_and_threads() {
    let scheduler = workers(1);
    let outer = scheduler.spawn(Builder::new(), || {
        let inner = squall_fiber::spawn(|| {
            squall_fiber::yield_now();
            20
        });
        assert!(!inner.is_finished(), "it cannot have run: this fiber has the worker");
        inner.join().unwrap() + 1
    });
    assert_eq!(outer.join().unwrap(), 21);
}

#[test]
fn a_panic_reaches_join_with_its_payload_and_harms_nobody_else() {
    on_one_worker(|| {
        let other = squall_fiber::spawn(|| {
            squall_fiber::sleep(Duration::from_millis(5));
            "unharmed"
        });
        let panics = squall_fiber::spawn(|| -> () { std::panic::panic_any(42u32) });
        let payload = panics.join().expect_err("it panicked");
        assert_eq!(payload.downcast_ref::<u32>(), Some(&42));
        assert!(!thread::panicking());
        assert_eq!(other.join().unwrap(), "unharmed");
    });
}

#[test]
fn a_detached_fiber_runs_to_its_end() {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    on_one_worker(move || {
        drop(squall_fiber::spawn(move || {
            squall_fiber::sleep(Duration::from_millis(5));
            flag.store(true, Ordering::SeqCst);
        }));
    });
    assert!(ended.load(Ordering::SeqCst));
}

#[test]
fn is_finished_turns_true_without_a_join() {
    on_one_worker(|| {
        let short = squall_fiber::spawn(|| ());
        while !short.is_finished() {
            squall_fiber::yield_now();
        }
        short.join().unwrap();
    });
}

#[test]
fn fibers_that_yield_take_turns() {
    let turns = on_one_worker(|| {
        let turns = Arc::new(Mutex::new(Vec::new()));
        let fibers: Vec<_> = (0..3)
            .map(|number| {
                let turns = Arc::clone(&turns);
                squall_fiber::spawn(move || {
                    for _ in 0..50 {
                        turns.lock().unwrap().push(number);
                        squall_fiber::yield_now();
                    }
                })
            })
            .collect();
        for fiber in fibers {
            fiber.join().unwrap();
        }
        Arc::into_inner(turns).unwrap().into_inner().unwrap()
    });
    assert_eq!(turns.len(), 150);
    for round in turns.chunks(3) {
        assert_eq!(round, [0, 1, 2]);
    }
}

#[test]
fn a_flood_of_yielding_fibers_starves_neither_sleepers_nor_newcomers() {
    let scheduler = workers(1);
    let stop = Arc::new(AtomicBool::new(false));
    for _ in 0..10 {
        let stop = Arc::clone(&stop);
        scheduler.spawn(Builder::new(), move || {
            while !stop.load(Ordering::SeqCst) {
                squall_fiber::yield_now();
            }
        });
    }
    // Both would hang if the worker looked at its timers, or at the shared queue, only when it had nothing else to run.
    scheduler.spawn(Builder::new(), || squall_fiber::sleep(Duration::from_millis(1))).join().unwrap();
    scheduler.spawn(Builder::new(), || ()).join().unwrap();
    stop.store(true, Ordering::SeqCst);
}

#[test]
fn an_unpark_before_the_park_is_kept_and_several_count_as_one() {
    on_one_worker(|| {
        let this = squall_fiber::current().expect("in a fiber");
        for _ in 0..3 {
            this.unpark();
        }
        squall_fiber::park();
        // No token is left: only the timeout ends this one, or the assertion on the clock would not hold.
        let started = Instant::now();
        squall_fiber::park_timeout(Duration::from_millis(20));
        assert!(started.elapsed() >= Duration::from_millis(20));
    });
}

#[test]
fn unpark_wakes_a_parked_fiber_and_no_timeout_is_left_behind() {
    on_one_worker(|| {
        let parked = squall_fiber::spawn(|| {
            let started = Instant::now();
            squall_fiber::park_timeout(Duration::from_secs(600));
            assert!(started.elapsed() < Duration::from_secs(300));
        });
        squall_fiber::yield_now();
        parked.fiber().unpark();
        parked.join().unwrap();
    });
}

#[test]
fn sleepers_wake_in_the_order_of_their_deadlines() {
    let order = on_one_worker(|| {
        let order = Arc::new(Mutex::new(Vec::new()));
        let started = Instant::now();
        let sleepers: Vec<_> = [40u64, 10, 30, 20, 0]
            .into_iter()
            .map(|ms| {
                let order = Arc::clone(&order);
                squall_fiber::spawn(move || {
                    squall_fiber::sleep(Duration::from_millis(ms));
                    assert!(started.elapsed() >= Duration::from_millis(ms));
                    order.lock().unwrap().push(ms);
                })
            })
            .collect();
        for sleeper in sleepers {
            sleeper.join().unwrap();
        }
        Arc::into_inner(order).unwrap().into_inner().unwrap()
    });
    assert_eq!(order, [0, 10, 20, 30, 40]);
}

#[test]
fn a_sleep_past_the_end_of_the_clock_waits() {
    on_one_worker(|| {
        // It can never end, so it must not: the scheduler of this test would otherwise have nothing against stopping early.
        let (sender, ended) = mpsc::channel();
        let this = squall_fiber::current().expect("in a fiber");
        let sleeper = squall_fiber::spawn(move || {
            squall_fiber::park_timeout(Duration::MAX);
            sender.send(()).unwrap();
            this.unpark();
        });
        squall_fiber::sleep(Duration::from_millis(10));
        assert!(ended.try_recv().is_err());
        sleeper.fiber().unpark();
        squall_fiber::park();
        ended.try_recv().unwrap();
    });
}

#[test]
fn names_and_waits_are_listed() {
    on_one_worker(|| {
        let parked = Builder::new().name("parked").spawn(squall_fiber::park);
        let sleeping =
            Builder::new().name("sleeping").spawn(|| squall_fiber::sleep(Duration::from_millis(50)));
        squall_fiber::yield_now();
        let list = squall_fiber::fibers();
        let find = |fiber: &Fiber| {
            list.iter().find(|info| info.id == fiber.id()).expect("a live fiber is listed").clone()
        };
        assert_eq!(find(parked.fiber()).name.as_deref(), Some("parked"));
        assert_eq!(find(parked.fiber()).waits_for, squall_fiber::WaitKind::Park);
        assert_eq!(find(sleeping.fiber()).waits_for, squall_fiber::WaitKind::Sleep);
        assert_eq!(find(&squall_fiber::current().unwrap()).waits_for, squall_fiber::WaitKind::None);
        assert!(list.is_sorted_by_key(|info| info.id));

        let id = parked.fiber().id();
        parked.fiber().unpark();
        parked.join().unwrap();
        sleeping.join().unwrap();
        assert!(squall_fiber::fibers().iter().all(|info| info.id != id), "a fiber that has ended is listed");
    });
    assert!(squall_fiber::fibers().is_empty(), "a plain thread is in no scheduler");
}

#[test]
fn everything_works_in_a_plain_thread_too() {
    assert!(!squall_fiber::in_fiber());
    assert!(squall_fiber::current().is_none());
    squall_fiber::yield_now();
    squall_fiber::sleep(Duration::from_millis(1));
    thread::current().unpark();
    squall_fiber::park();
    assert_eq!(squall_fiber::run_blocking(|| 3), 3);
    assert_eq!(squall_fiber::spawn(|| 4).join().unwrap(), 4);
}

#[test]
fn a_shared_fiber_does_not_switch_while_it_unwinds() {
    struct SleepsInDrop;
    impl Drop for SleepsInDrop {
        fn drop(&mut self) {
            squall_fiber::sleep(Duration::from_millis(10));
            squall_fiber::yield_now();
            squall_fiber::park();
            squall_fiber::run_blocking(|| ());
        }
    }
    let scheduler = workers(1);
    let panicking_seen = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&panicking_seen);
    let shared = || Builder::new().tls(Tls::Shared);
    let unwinds = scheduler.spawn(shared(), || {
        // The other fiber is ready to run, so a switch during the unwinding would go to it.
        squall_fiber::spawn(|| ());
        squall_fiber::yield_now();
        let _guard = SleepsInDrop;
        panic!("on purpose");
    });
    let looks = scheduler.spawn(shared(), move || {
        for _ in 0..100 {
            seen.fetch_add(u64::from(thread::panicking()), Ordering::SeqCst);
            squall_fiber::yield_now();
        }
        catch_unwind(|| panic!("a second panic while one unwinds would abort")).unwrap_err();
    });
    unwinds.join().unwrap_err();
    looks.join().unwrap();
    assert_eq!(
        panicking_seen.load(Ordering::SeqCst),
        0,
        "a fiber found itself panicking for another's panic"
    );
}

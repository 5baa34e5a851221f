//! Cancellation and deadlines, without I/O: which waits they end, with what reason, and what a shield keeps out.

use squall_fiber::{
    Builder, Interrupt, Scheduler, SchedulerConfig, Tls, WaitKind, Wake, Waker, is_cancelled, lock::Lock,
    shield, with_current, with_deadline,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(5);

fn wait_interruptibly(deadline: Option<Instant>) -> Wake {
    with_current(|current| current.unwrap().begin_wait(WaitKind::Park, 0).block_interruptible(deadline))
}

fn interruption() -> Option<Interrupt> {
    with_current(|current| current.unwrap().interruption())
}

fn both_kinds(test: impl Fn(Builder)) {
    test(Builder::new());
    test(Builder::new().tls(Tls::Shared));
}

#[test]
fn cancel_ends_the_current_wait_and_all_later_ones() {
    both_kinds(|builder| {
        let (say, hear) = mpsc::channel();
        let fiber = builder.spawn(move || {
            assert!(!is_cancelled());
            assert_eq!(interruption(), None);
            say.send(()).unwrap();
            let first = wait_interruptibly(None);
            assert!(is_cancelled());
            assert_eq!(interruption(), Some(Interrupt::Cancelled));
            (first, wait_interruptibly(None), wait_interruptibly(Some(Instant::now() + LONG)))
        });
        hear.recv().unwrap();
        fiber.cancel();
        assert_eq!(fiber.join().unwrap(), (Wake::Cancelled, Wake::Cancelled, Wake::Cancelled));
    });
}

#[test]
fn cancel_during_compute_is_heard_at_the_next_wait() {
    let (say, hear) = mpsc::channel();
    let go_on = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&go_on);
    let fiber = squall_fiber::spawn(move || {
        say.send(()).unwrap();
        while !flag.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
        wait_interruptibly(None)
    });
    hear.recv().unwrap();
    fiber.fiber().cancel();
    go_on.store(true, Ordering::Release);
    assert_eq!(fiber.join().unwrap(), Wake::Cancelled);
}

#[test]
fn a_fiber_cancelled_before_it_starts_runs_to_its_first_wait() {
    let scheduler =
        Scheduler::new(SchedulerConfig { threads: 1, use_caller: true, ..Default::default() }).unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ran);
    let fiber = scheduler.spawn(Builder::new(), move || {
        flag.store(true, Ordering::Relaxed);
        wait_interruptibly(None)
    });
    fiber.cancel();
    scheduler.stop();
    assert!(ran.load(Ordering::Relaxed));
    assert_eq!(fiber.join().unwrap(), Wake::Cancelled);
}

#[test]
fn waits_without_errors_are_not_interrupted() {
    let (say, hear) = mpsc::channel::<Waker>();
    let fiber = squall_fiber::spawn(move || {
        with_deadline(Duration::ZERO, || {
            with_current(|current| {
                let wait = current.unwrap().begin_wait(WaitKind::Futex, 0);
                say.send(wait.waker()).unwrap();
                wait.block(None)
            })
        })
    });
    let waker = hear.recv().unwrap();
    fiber.cancel();
    std::thread::sleep(SHORT);
    assert!(!fiber.is_finished());
    assert!(waker.wake(Wake::Ready));
    assert_eq!(fiber.join().unwrap(), Wake::Ready);
}

#[test]
fn a_wake_that_came_first_is_not_lost() {
    let fiber = squall_fiber::spawn(|| {
        with_current(|current| {
            let current = current.unwrap();
            current.handle().cancel();
            let wait = current.begin_wait(WaitKind::Park, 0);
            assert!(wait.waker().wake(Wake::Closed));
            wait.block_interruptible(None)
        })
    });
    assert_eq!(fiber.join().unwrap(), Wake::Closed);
}

#[test]
fn the_earliest_deadline_counts_and_says_whose_it_is() {
    let fiber = squall_fiber::spawn(|| {
        let own = with_deadline(LONG, || wait_interruptibly(Some(Instant::now() + SHORT)));
        let scope = with_deadline(SHORT, || wait_interruptibly(Some(Instant::now() + LONG)));
        let outer = with_deadline(SHORT, || with_deadline(LONG, || wait_interruptibly(None)));
        let inner = with_deadline(LONG, || {
            let inner = with_deadline(SHORT, || {
                let inner = wait_interruptibly(None);
                assert_eq!(interruption(), Some(Interrupt::DeadlineExceeded));
                // It has passed already.
                assert_eq!(wait_interruptibly(None), Wake::Expired);
                inner
            });
            assert_eq!(interruption(), None);
            inner
        });
        assert!(!is_cancelled());
        [own, scope, outer, inner]
    });
    assert_eq!(fiber.join().unwrap(), [Wake::TimedOut, Wake::Expired, Wake::Expired, Wake::Expired]);
}

#[test]
fn a_shield_keeps_interruptions_out_and_lets_its_own_deadlines_in() {
    let fiber = squall_fiber::spawn(|| {
        with_current(|current| current.unwrap().handle().cancel());
        with_deadline(Duration::ZERO, || {
            let inside = shield(|| {
                assert!(is_cancelled());
                assert_eq!(interruption(), None);
                let timed_out = wait_interruptibly(Some(Instant::now() + SHORT));
                let expired = with_deadline(SHORT, || wait_interruptibly(None));
                let nested = shield(|| wait_interruptibly(Some(Instant::now() + SHORT)));
                [timed_out, expired, nested]
            });
            assert_eq!(inside, [Wake::TimedOut, Wake::Expired, Wake::TimedOut]);
            wait_interruptibly(None)
        })
    });
    assert_eq!(fiber.join().unwrap(), Wake::Cancelled);
}

#[test]
fn a_cancel_during_a_shield_is_heard_after_it() {
    let (say, hear) = mpsc::channel::<Waker>();
    let fiber = squall_fiber::spawn(move || {
        let inside = shield(|| {
            with_current(|current| {
                let wait = current.unwrap().begin_wait(WaitKind::Park, 0);
                say.send(wait.waker()).unwrap();
                wait.block_interruptible(None)
            })
        });
        (inside, wait_interruptibly(None))
    });
    let waker = hear.recv().unwrap();
    fiber.cancel();
    std::thread::sleep(SHORT);
    assert!(waker.wake(Wake::Ready));
    assert_eq!(fiber.join().unwrap(), (Wake::Ready, Wake::Cancelled));
}

#[test]
fn a_panic_restores_deadline_and_shield() {
    let fiber = squall_fiber::spawn(|| {
        let panicked = catch_unwind(AssertUnwindSafe(|| with_deadline(Duration::ZERO, || panic!("inside"))));
        assert!(panicked.is_err());
        assert_eq!(interruption(), None);
        let panicked = catch_unwind(AssertUnwindSafe(|| shield(|| panic!("inside"))));
        assert!(panicked.is_err());
        with_current(|current| current.unwrap().handle().cancel());
        wait_interruptibly(None)
    });
    assert_eq!(fiber.join().unwrap(), Wake::Cancelled);
}

#[test]
fn sleep_and_park_return_early() {
    both_kinds(|builder| {
        let fiber = builder.spawn(|| {
            with_deadline(SHORT, || squall_fiber::sleep(LONG));
            with_deadline(SHORT, squall_fiber::park);
            with_deadline(SHORT, || squall_fiber::park_timeout(LONG));
            squall_fiber::sleep(LONG);
            squall_fiber::park();
            squall_fiber::park_timeout(LONG);
        });
        std::thread::sleep(4 * SHORT);
        fiber.cancel();
        fiber.join().unwrap();
    });
}

#[test]
fn a_cancelled_fiber_that_tries_for_ever_leaves_the_others_their_turn() {
    let scheduler = Scheduler::new(SchedulerConfig { threads: 1, ..Default::default() }).unwrap();
    let enough = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&enough);
    let stubborn = scheduler.spawn(Builder::new(), move || {
        while !seen.load(Ordering::Relaxed) {
            squall_fiber::sleep(LONG);
        }
    });
    stubborn.cancel();
    let other = scheduler.spawn(Builder::new(), move || enough.store(true, Ordering::Relaxed));
    other.join().unwrap();
    stubborn.join().unwrap();
}

#[test]
fn a_scope_waits_for_its_cancelled_fibers_also_when_its_own_fiber_is_cancelled() {
    let fiber = squall_fiber::spawn(|| {
        let ended = AtomicUsize::new(0);
        squall_fiber::scope(|scope| {
            for _ in 0..10 {
                let child = scope.spawn(|| {
                    squall_fiber::sleep(LONG);
                    shield(|| squall_fiber::sleep(SHORT));
                    ended.fetch_add(1, Ordering::Relaxed);
                });
                child.cancel();
            }
            with_current(|current| current.unwrap().handle().cancel());
        });
        ended.load(Ordering::Relaxed)
    });
    assert_eq!(fiber.join().unwrap(), 10);
}

/// One side fires wakers, another cancels, timers expire: every wait ends exactly once, and for a reason that somebody gave.
#[test]
fn cancel_races_with_wakes_and_deadlines() {
    const ROUNDS: usize = 20_000;
    let scheduler = Scheduler::new(SchedulerConfig { threads: 2, ..Default::default() }).unwrap();
    let board: Arc<Lock<Option<Waker>>> = Arc::new(Lock::new(None));
    let (fired, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let waking = {
        let (board, fired, done) = (Arc::clone(&board), Arc::clone(&fired), Arc::clone(&done));
        std::thread::spawn(move || {
            while !done.load(Ordering::Acquire) {
                let waker = board.lock().take();
                if waker.is_some_and(|waker| waker.wake(Wake::Ready)) {
                    fired.fetch_add(1, Ordering::Relaxed);
                }
                core::hint::spin_loop();
            }
        })
    };
    let give_up = Instant::now() + Duration::from_secs(60);
    for round in 0.. {
        // On a busy machine the waking thread may get its turn late.
        let waker_ran = heard.load(Ordering::Relaxed) > 0;
        if round >= ROUNDS && (waker_ran || Instant::now() > give_up) {
            break;
        }
        let (board, heard) = (Arc::clone(&board), Arc::clone(&heard));
        let fiber = scheduler.spawn(Builder::new(), move || {
            let mut waits = 0;
            loop {
                waits += 1;
                let wake = with_current(|current| {
                    let wait = current.unwrap().begin_wait(WaitKind::Park, 0);
                    *board.lock() = Some(wait.waker());
                    wait.block_interruptible(Some(Instant::now() + Duration::from_micros(50)))
                });
                match wake {
                    Wake::Ready => drop(heard.fetch_add(1, Ordering::Relaxed)),
                    Wake::TimedOut => {}
                    Wake::Cancelled => return waits,
                    other => panic!("nobody said {other:?}"),
                }
            }
        });
        for _ in 0..round % 200 {
            core::hint::spin_loop();
        }
        fiber.cancel();
        assert!(fiber.join().unwrap() >= 1);
    }
    done.store(true, Ordering::Release);
    waking.join().unwrap();
    assert_eq!(fired.load(Ordering::Relaxed), heard.load(Ordering::Relaxed));
    assert!(heard.load(Ordering::Relaxed) > 0);
}

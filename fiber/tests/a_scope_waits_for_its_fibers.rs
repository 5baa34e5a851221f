//! Scoped fibers: what they may borrow, and what happens to their panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn fibers_borrow_from_the_caller_and_are_waited_for() {
    let mut numbers: Vec<u64> = (0..100).collect();
    let total = AtomicUsize::new(0);
    squall_fiber::scope(|scope| {
        for number in &mut numbers {
            let total = &total;
            scope.spawn(move || {
                squall_fiber::sleep(Duration::from_millis(*number % 5));
                *number *= 2;
                total.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 100);
    assert!(numbers.iter().enumerate().all(|(index, number)| *number == 2 * index as u64));
}

#[test]
fn a_scope_in_a_fiber_waits_without_its_worker() {
    let sum = squall_fiber::spawn(|| {
        let parts = [1u64, 2, 3, 4];
        squall_fiber::scope(|scope| {
            let (left, right) = parts.split_at(2);
            let left = scope.spawn(|| {
                squall_fiber::yield_now();
                left.iter().sum::<u64>()
            });
            let right = scope.spawn(|| right.iter().sum::<u64>());
            left.join().unwrap() + right.join().unwrap()
        })
    });
    assert_eq!(sum.join().unwrap(), 10);
}

#[test]
fn a_joined_panic_is_the_joiners() {
    let message = squall_fiber::scope(|scope| {
        let payload = scope.spawn(|| -> () { panic!("told to the joiner") }).join().unwrap_err();
        *payload.downcast_ref::<&str>().expect("a literal")
    });
    assert_eq!(message, "told to the joiner");
}

#[test]
fn an_unjoined_panic_is_the_scopes_after_all_have_ended() {
    let ended = AtomicUsize::new(0);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        squall_fiber::scope(|scope| {
            scope.spawn(|| panic!("nobody joins this"));
            scope.spawn(|| {
                squall_fiber::sleep(Duration::from_millis(20));
                ended.fetch_add(1, Ordering::SeqCst);
            });
        });
    }));
    let payload = outcome.unwrap_err();
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"a scoped fiber panicked"));
    assert_eq!(ended.load(Ordering::SeqCst), 1);
}

#[test]
fn a_panic_of_the_body_waits_for_the_fibers_too() {
    let ended = AtomicUsize::new(0);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        squall_fiber::scope(|scope| {
            scope.spawn(|| {
                squall_fiber::sleep(Duration::from_millis(20));
                ended.fetch_add(1, Ordering::SeqCst);
            });
            panic!("the body");
        })
    }));
    assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"the body"));
    assert_eq!(ended.load(Ordering::SeqCst), 1);
}

#[test]
fn a_scoped_fiber_may_spawn_into_its_own_scope() {
    let count = AtomicUsize::new(0);
    squall_fiber::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10 {
                scope.spawn(|| {
                    squall_fiber::yield_now();
                    count.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
    });
    assert_eq!(count.load(Ordering::SeqCst), 10);
}

#[test]
fn a_result_that_borrows_is_dropped_before_the_scope_ends() {
    struct CountsDrops<'a>(&'a AtomicUsize);
    impl Drop for CountsDrops<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    for _ in 0..200 {
        let drops = AtomicUsize::new(0);
        squall_fiber::scope(|scope| {
            // The handle is dropped while the fiber runs or before: either side may be the last to hold the result.
            drop(scope.spawn(|| CountsDrops(&drops)));
            let handle = scope.spawn(|| CountsDrops(&drops));
            squall_fiber::yield_now();
            drop(handle);
        });
        assert_eq!(drops.load(Ordering::SeqCst), 2);
    }
}

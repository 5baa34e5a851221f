//! Fiber-local storage: whose the values are, and where their destructors run.

use squall_fiber::{Builder, FiberLocal, Scheduler, SchedulerConfig, Tls, fiber_local, lock::Lock};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fiber_local! {
    static NUMBER: Cell<u64> = Cell::new(1);
    static WORDS: RefCell<Vec<String>> = RefCell::new(vec!["first".to_owned()])
}

#[test]
fn each_fiber_has_its_own_whatever_its_thread_locals() {
    for tls in [Tls::Private, Tls::Shared] {
        let scheduler = Scheduler::new(SchedulerConfig { threads: 2, ..Default::default() }).unwrap();
        let fibers: Vec<_> = (0..50)
            .map(|n| {
                scheduler.spawn(Builder::new().tls(tls), move || {
                    assert_eq!(NUMBER.get(), 1);
                    NUMBER.set(n);
                    WORDS.with_borrow_mut(|words| words.push(n.to_string()));
                    for _ in 0..10 {
                        squall_fiber::yield_now();
                        assert_eq!(NUMBER.get(), n);
                    }
                    // A borrow that outlasts suspensions is nobody else's business.
                    WORDS.with_borrow(|words| {
                        squall_fiber::yield_now();
                        assert_eq!(*words, ["first".to_owned(), n.to_string()]);
                    });
                    WORDS.take().len()
                })
            })
            .collect();
        for fiber in fibers {
            assert_eq!(fiber.join().unwrap(), 2);
        }
    }
}

#[test]
fn a_plain_thread_has_its_own() {
    NUMBER.set(5);
    std::thread::spawn(|| assert_eq!(NUMBER.replace(6), 1)).join().unwrap();
    squall_fiber::spawn(|| assert_eq!(NUMBER.get(), 1)).join().unwrap();
    assert_eq!(NUMBER.get(), 5);
}

/// The fibers in which a value was dropped; `None` is a plain thread.
type Seen = Arc<Lock<Vec<Option<u64>>>>;

/// Says where it is dropped.
struct Witness(Cell<Option<Seen>>);

impl Drop for Witness {
    fn drop(&mut self) {
        if let Some(seen) = self.0.take() {
            // The destructor is ordinary code of the fiber: it may suspend it.
            squall_fiber::yield_now();
            seen.lock().push(squall_fiber::current().map(|fiber| fiber.id()));
        }
    }
}

static WITNESS: FiberLocal<Witness> = FiberLocal::new(|| Witness(Cell::new(None)));

#[test]
fn values_are_dropped_in_their_fiber_before_it_ends() {
    for tls in [Tls::Private, Tls::Shared] {
        let seen = Arc::new(Lock::new(Vec::new()));
        let given = Arc::clone(&seen);
        let fiber = Builder::new().tls(tls).spawn(move || WITNESS.with(|witness| witness.0.set(Some(given))));
        let id = fiber.fiber().id();
        fiber.join().unwrap();
        assert_eq!(*seen.lock(), [Some(id)]);
    }
    let seen = Arc::new(Lock::new(Vec::new()));
    let given = Arc::clone(&seen);
    std::thread::spawn(move || WITNESS.with(|witness| witness.0.set(Some(given)))).join().unwrap();
    assert_eq!(*seen.lock(), [None]);
}

#[test]
fn a_value_is_dropped_also_after_a_panic() {
    let seen = Arc::new(Lock::new(Vec::new()));
    let given = Arc::clone(&seen);
    let fiber = squall_fiber::spawn(move || {
        WITNESS.with(|witness| witness.0.set(Some(given)));
        panic!("after its first use");
    });
    assert!(fiber.join().is_err());
    assert_eq!(seen.lock().len(), 1);
}

static DROPS: AtomicUsize = AtomicUsize::new(0);
static OUTER: FiberLocal<Chain> = FiberLocal::new(|| Chain);
struct Chain;

impl Drop for Chain {
    fn drop(&mut self) {
        DROPS.fetch_add(1, Ordering::SeqCst);
        // Made anew in every round: this must come to an end.
        OUTER.with(|_| {});
    }
}

#[test]
fn destructors_that_use_fiber_locals_come_to_an_end() {
    squall_fiber::spawn(|| OUTER.with(|_| {})).join().unwrap();
    assert_eq!(DROPS.load(Ordering::SeqCst), 4);
}

#[test]
fn making_a_value_may_use_others_and_itself() {
    static LEFT: FiberLocal<u64> = FiberLocal::new(|| RIGHT.with(|right| right + 1));
    static RIGHT: FiberLocal<u64> = FiberLocal::new(|| 10);
    static DEPTH: FiberLocal<Cell<u64>> = FiberLocal::new(|| Cell::new(0));
    static AGAIN: FiberLocal<u64> = FiberLocal::new(|| {
        DEPTH.set(DEPTH.get() + 1);
        if DEPTH.get() < 3 { AGAIN.with(|value| value + 1) } else { 100 }
    });
    let fiber = squall_fiber::spawn(|| {
        (LEFT.with(|left| *left), AGAIN.with(|again| *again), AGAIN.with(|again| *again))
    });
    assert_eq!(fiber.join().unwrap(), (11, 102, 102));
}

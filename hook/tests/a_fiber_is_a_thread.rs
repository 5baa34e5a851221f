//! Invariant 1: to every crate and to libc, a fiber is a thread of its own. All fibers of these tests share one worker, so
//! whatever blocks the thread instead of the fiber, or leaks from one fiber into another, shows as a hang or a wrong value.

use squall_hook::Builder;
use squall_iomanager::IoManager;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, RwLock, mpsc};
use std::thread;
use std::time::Duration;

/// Runs `f` in a fiber on a manager with a single worker, and waits for it and all that it spawned.
fn on_one_worker<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let manager = IoManager::new(1, false).expect("a manager");
    let handle = manager.spawn(f);
    manager.stop();
    handle.join().expect("the fiber did not panic")
}

#[test]
fn thread_locals_are_the_fibers_own_even_while_borrowed() {
    thread_local! {
        static LIST: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }
    on_one_worker(|| {
        for fiber in 0..20 {
            squall_hook::spawn(move || {
                LIST.with(|list| {
                    let mut list = list.borrow_mut();
                    for step in 0..5 {
                        list.push(fiber * 10 + step);
                        thread::sleep(Duration::from_millis(1));
                    }
                    assert_eq!(*list, (0..5).map(|step| fiber * 10 + step).collect::<Vec<_>>());
                });
            });
        }
    });
}

#[test]
fn destructors_of_thread_locals_run_when_the_fiber_ends_and_the_next_fiber_starts_afresh() {
    static DROPS: AtomicU32 = AtomicU32::new(0);
    struct CountsDrop(Cell<u32>);
    impl Drop for CountsDrop {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Ordering::SeqCst);
        }
    }
    thread_local! {
        static VALUE: CountsDrop = const { CountsDrop(Cell::new(7)) };
    }
    on_one_worker(|| {
        for _ in 0..100 {
            squall_hook::spawn(|| {
                // Blocks are pooled: without a reset this would be the 8 of the fiber before.
                assert_eq!(VALUE.with(|value| value.0.replace(8)), 7);
            })
            .join()
            .unwrap();
        }
    });
    assert_eq!(DROPS.load(Ordering::SeqCst), 100);
}

#[test]
fn errno_and_the_thread_identity_are_the_fibers_own() {
    on_one_worker(|| {
        let ids: Vec<_> = (1..=10)
            .map(|errno| {
                squall_hook::spawn(move || {
                    // SAFETY: errno's address is valid for the fiber.
                    unsafe { *libc::__errno_location() = errno };
                    let id = thread::current().id();
                    thread::sleep(Duration::from_millis(2));
                    assert_eq!(id, thread::current().id());
                    // SAFETY: as above.
                    assert_eq!(unsafe { *libc::__errno_location() }, errno);
                    // SAFETY: no arguments.
                    (format!("{id:?}"), unsafe { libc::pthread_self() })
                })
            })
            .map(|handle| handle.join().unwrap())
            .collect();
        let mut names: Vec<_> = ids.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 10, "two fibers had the same std thread id");
    });
}

#[test]
fn std_channels_pass_between_fibers_of_one_worker() {
    on_one_worker(|| {
        for _ in 0..50 {
            let (sender, receiver) = mpsc::channel();
            let (rendezvous, taker) = mpsc::sync_channel(0);
            squall_hook::spawn(move || {
                for number in 0..100 {
                    assert_eq!(receiver.recv().unwrap(), number);
                    rendezvous.send(number * 2).unwrap();
                }
            });
            squall_hook::spawn(move || {
                for number in 0..100 {
                    sender.send(number).unwrap();
                    assert_eq!(taker.recv().unwrap(), number * 2);
                }
            });
        }
    });
}

#[test]
fn a_channel_receive_with_a_timeout_times_out() {
    on_one_worker(|| {
        let (sender, receiver) = mpsc::channel::<()>();
        assert_eq!(receiver.recv_timeout(Duration::from_millis(20)), Err(mpsc::RecvTimeoutError::Timeout));
        drop(sender);
    });
}

#[test]
fn contended_std_locks_held_across_sleeps_exclude() {
    on_one_worker(|| {
        let state = Arc::new((Mutex::new(0u32), Condvar::new(), RwLock::new(0u32), Barrier::new(8)));
        let fibers: Vec<_> = (0..8)
            .map(|_| {
                let state = Arc::clone(&state);
                squall_hook::spawn(move || {
                    for _ in 0..10 {
                        let mut count = state.0.lock().unwrap();
                        let seen = *count;
                        thread::sleep(Duration::from_micros(100));
                        *count = seen + 1;
                        state.1.notify_all();
                        drop(count);
                        *state.2.write().unwrap() += 1;
                    }
                    let mut count = state.0.lock().unwrap();
                    while *count < 80 {
                        count = state.1.wait(count).unwrap();
                    }
                    drop(count);
                    state.3.wait();
                    assert_eq!(*state.2.read().unwrap(), 80);
                })
            })
            .collect();
        for fiber in fibers {
            fiber.join().unwrap();
        }
    });
}

#[test]
fn contended_parking_lot_locks_and_condvars_work() {
    on_one_worker(|| {
        let state = Arc::new((parking_lot::Mutex::new(0u32), parking_lot::Condvar::new()));
        for _ in 0..8 {
            let state = Arc::clone(&state);
            squall_hook::spawn(move || {
                for _ in 0..20 {
                    let mut count = state.0.lock();
                    let seen = *count;
                    thread::sleep(Duration::from_micros(100));
                    *count = seen + 1;
                }
                let mut count = state.0.lock();
                if *count == 160 {
                    state.1.notify_all();
                }
                while *count < 160 {
                    state.1.wait(&mut count);
                }
            });
        }
    });
}

#[test]
fn thread_park_and_unpark_address_the_fiber() {
    on_one_worker(|| {
        let (sender, receiver) = mpsc::channel();
        let parked = squall_hook::spawn(move || {
            sender.send(thread::current()).unwrap();
            thread::park();
        });
        let thread = receiver.recv().unwrap();
        thread::sleep(Duration::from_millis(5));
        assert!(!parked.is_finished());
        thread.unpark();
        parked.join().unwrap();
    });
}

#[test]
fn once_initialises_once_while_the_others_wait() {
    static CELL: OnceLock<u32> = OnceLock::new();
    on_one_worker(|| {
        for _ in 0..20 {
            squall_hook::spawn(|| {
                let value = CELL.get_or_init(|| {
                    static RUNS: AtomicU32 = AtomicU32::new(0);
                    thread::sleep(Duration::from_millis(5));
                    RUNS.fetch_add(1, Ordering::SeqCst) + 1
                });
                assert_eq!(*value, 1);
            });
        }
    });
}

#[test]
fn a_panic_stays_in_its_fiber_and_reaches_join() {
    on_one_worker(|| {
        let panics = squall_hook::spawn(|| -> u32 {
            let caught = std::panic::catch_unwind(|| {
                thread::sleep(Duration::from_millis(1));
                panic!("inner");
            });
            assert!(caught.is_err());
            panic!("outer {}", std::hint::black_box(1));
        });
        let other = squall_hook::spawn(|| {
            for _ in 0..10 {
                assert!(!thread::panicking());
                thread::sleep(Duration::from_micros(300));
            }
        });
        let payload = panics.join().unwrap_err();
        assert_eq!(payload.downcast_ref::<String>().unwrap(), "outer 1");
        other.join().unwrap();
    });
}

#[test]
fn a_fiber_may_wait_while_it_unwinds() {
    struct SleepsOnDrop;
    impl Drop for SleepsOnDrop {
        fn drop(&mut self) {
            assert!(thread::panicking());
            thread::sleep(Duration::from_millis(5));
            assert!(thread::panicking());
        }
    }
    on_one_worker(|| {
        let unwinding = squall_hook::spawn(|| {
            let _guard = SleepsOnDrop;
            panic!("on purpose");
        });
        let other = squall_hook::spawn(|| {
            thread::sleep(Duration::from_millis(2));
            assert!(!thread::panicking());
        });
        other.join().unwrap();
        assert!(unwinding.join().is_err());
    });
}

#[test]
fn real_threads_and_children_may_be_awaited_from_fibers() {
    on_one_worker(|| {
        let fibers: Vec<_> = (0..10)
            .map(|number| {
                squall_hook::spawn(move || {
                    let thread = thread::spawn(move || {
                        thread::sleep(Duration::from_millis(5));
                        number * 2
                    });
                    assert_eq!(thread.join().unwrap(), number * 2);
                    let output = std::process::Command::new("echo").arg("hi").output().unwrap();
                    assert_eq!(output.stdout, b"hi\n");
                })
            })
            .collect();
        for fiber in fibers {
            fiber.join().unwrap();
        }
    });
}

#[test]
fn recursive_pthread_mutexes_tell_fibers_apart() {
    struct Recursive(std::cell::UnsafeCell<libc::pthread_mutex_t>);
    // SAFETY: a pthread mutex is made to be shared.
    unsafe impl Send for Recursive {}
    // SAFETY: as above.
    unsafe impl Sync for Recursive {}
    let mutex = Arc::new(Recursive(std::cell::UnsafeCell::new(libc::PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP)));
    on_one_worker(move || {
        let holder = Arc::clone(&mutex);
        let holder = squall_hook::spawn(move || {
            // SAFETY: the mutex is initialised and outlives the calls; locked twice, unlocked twice.
            unsafe {
                assert_eq!(libc::pthread_mutex_lock(holder.0.get()), 0);
                assert_eq!(libc::pthread_mutex_lock(holder.0.get()), 0);
                thread::sleep(Duration::from_millis(5));
                assert_eq!(libc::pthread_mutex_unlock(holder.0.get()), 0);
                assert_eq!(libc::pthread_mutex_unlock(holder.0.get()), 0);
            }
        });
        squall_hook::yield_now();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::pthread_mutex_trylock(mutex.0.get()) }, libc::EBUSY);
        holder.join().unwrap();
    });
}

#[test]
fn destructors_of_pthread_keys_run_when_the_fiber_ends() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn destructor(value: *mut libc::c_void) {
        assert_eq!(value as usize, 5);
        RUNS.fetch_add(1, Ordering::SeqCst);
    }
    let mut key = 0;
    // SAFETY: fills the key.
    assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(destructor)) }, 0);
    on_one_worker(move || {
        for _ in 0..10 {
            squall_hook::spawn(move || {
                // SAFETY: the key exists.
                unsafe {
                    assert!(libc::pthread_getspecific(key).is_null());
                    libc::pthread_setspecific(key, 5 as *const libc::c_void);
                }
                thread::sleep(Duration::from_millis(1));
            });
        }
    });
    assert_eq!(RUNS.load(Ordering::SeqCst), 10);
}

#[test]
fn several_workers_run_thousands_of_contending_fibers() {
    let manager = IoManager::new(2, false).unwrap();
    let total = Arc::new(Mutex::new(0u64));
    let (sender, receiver) = mpsc::channel();
    for number in 0..3000u64 {
        let (total, sender) = (Arc::clone(&total), sender.clone());
        manager.spawn_with(Builder::new().name(format!("adder {number}")), move || {
            thread::sleep(Duration::from_micros(number % 500));
            *total.lock().unwrap() += number;
            sender.send(number).unwrap();
        });
    }
    drop(sender);
    let summer = manager.spawn(move || receiver.iter().sum::<u64>());
    manager.stop();
    assert_eq!(summer.join().unwrap(), 2999 * 3000 / 2);
    assert_eq!(*total.lock().unwrap(), 2999 * 3000 / 2);
}

//! C's locks, condition variables, semaphores and the like, contended by crowds of fibers on one worker and on two, and by threads at
//! the same time. A lost wake-up, or a lock that blocks the worker its holder needs, shows as a test that does not end.

use squall_hook as _;
use squall_iomanager::IoManager;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

unsafe extern "C" {
    fn pthread_cond_clockwait(
        condition: *mut libc::pthread_cond_t,
        mutex: *mut libc::pthread_mutex_t,
        clock: libc::clockid_t,
        time: *const libc::timespec,
    ) -> libc::c_int;
    fn pthread_once(control: *mut i32, initialise: extern "C" fn()) -> libc::c_int;
    fn mtx_lock(mutex: *mut libc::pthread_mutex_t) -> libc::c_int;
    fn mtx_unlock(mutex: *mut libc::pthread_mutex_t) -> libc::c_int;
    fn cnd_wait(condition: *mut libc::pthread_cond_t, mutex: *mut libc::pthread_mutex_t) -> libc::c_int;
    fn cnd_signal(condition: *mut libc::pthread_cond_t) -> libc::c_int;
    fn thrd_yield();
}

/// An object of C's with what it guards, shared as C shares it.
struct Shared<O> {
    object: UnsafeCell<O>,
    value: UnsafeCell<u64>,
}

// SAFETY: the object is made to be shared, and the value is touched only as the object allows.
unsafe impl<O> Sync for Shared<O> {}
// SAFETY: as above.
unsafe impl<O> Send for Shared<O> {}

impl<O> Shared<O> {
    fn new(object: O) -> Arc<Self> {
        Arc::new(Self { object: UnsafeCell::new(object), value: UnsafeCell::new(0) })
    }

    fn object(&self) -> *mut O {
        self.object.get()
    }

    /// # Safety
    /// The caller holds the object, or everybody else is done.
    unsafe fn get(&self) -> u64 {
        // SAFETY: by the contract.
        unsafe { *self.value.get() }
    }

    /// # Safety
    /// The caller holds the object.
    unsafe fn set(&self, value: u64) {
        // SAFETY: by the contract.
        unsafe { *self.value.get() = value };
    }

    /// Adds one, in two steps that show when somebody comes between.
    ///
    /// # Safety
    /// The caller holds the object.
    unsafe fn add_slowly(&self, pause: impl FnOnce()) {
        // SAFETY: by the contract.
        unsafe {
            let seen = self.get();
            pause();
            self.set(seen + 1);
        }
    }
}

fn mutex(kind: libc::c_int) -> libc::pthread_mutex_t {
    let mut attributes = MaybeUninit::uninit();
    let mut mutex = MaybeUninit::uninit();
    // SAFETY: the memory is this function's own; a mutex that nobody has used may be moved.
    unsafe {
        libc::pthread_mutexattr_init(attributes.as_mut_ptr());
        libc::pthread_mutexattr_settype(attributes.as_mut_ptr(), kind);
        assert_eq!(libc::pthread_mutex_init(mutex.as_mut_ptr(), attributes.as_ptr()), 0);
        mutex.assume_init()
    }
}

/// Runs `f` in so many fibers, with its number, on one worker and on two, and in so many threads at the same time.
fn crowd(fibers: usize, threads: usize, make: impl Fn() -> Box<dyn Fn(usize) + Send + Sync>) {
    for workers in [1, 2] {
        let f: Arc<dyn Fn(usize) + Send + Sync> = Arc::from(make());
        let manager = IoManager::new(workers, false).unwrap();
        let started: Vec<_> = (0..fibers)
            .map(|number| {
                let f = Arc::clone(&f);
                manager.spawn(move || f(number))
            })
            .collect();
        thread::scope(|scope| {
            for number in 0..threads {
                let f = Arc::clone(&f);
                scope.spawn(move || f(fibers + number));
            }
        });
        manager.stop();
        started.into_iter().for_each(|fiber| fiber.join().unwrap());
    }
}

fn pause(number: usize) {
    match number % 64 {
        0 => thread::sleep(Duration::from_micros(50)),
        1..32 => thread::yield_now(),
        _ => {}
    }
}

#[test]
fn a_mutex_excludes_fibers_and_threads() {
    const ROUNDS: u64 = 3;
    for kind in [libc::PTHREAD_MUTEX_NORMAL, libc::PTHREAD_MUTEX_ERRORCHECK, libc::PTHREAD_MUTEX_RECURSIVE] {
        crowd(2000, 3, || {
            let shared = Shared::new(mutex(kind));
            let done = AtomicU64::new(0);
            Box::new(move |number| {
                for _ in 0..ROUNDS {
                    // SAFETY: locked and unlocked by the same fiber or thread.
                    unsafe {
                        assert_eq!(libc::pthread_mutex_lock(shared.object()), 0);
                        shared.add_slowly(|| pause(number));
                        assert_eq!(libc::pthread_mutex_unlock(shared.object()), 0);
                    }
                }
                if done.fetch_add(1, Ordering::SeqCst) == 2002 {
                    // SAFETY: everybody else is done.
                    assert_eq!(unsafe { shared.get() }, 2003 * ROUNDS);
                }
            })
        });
    }
}

#[test]
fn kinds_of_mutex_know_their_owner() {
    let manager = IoManager::new(1, false).unwrap();
    let checked = Shared::new(mutex(libc::PTHREAD_MUTEX_ERRORCHECK));
    let recursive = Shared::new(mutex(libc::PTHREAD_MUTEX_RECURSIVE));
    let (others_checked, others_recursive) = (Arc::clone(&checked), Arc::clone(&recursive));
    let owner = manager.spawn(move || {
        // SAFETY: the mutexes are live.
        unsafe {
            assert_eq!(libc::pthread_mutex_lock(checked.object()), 0);
            assert_eq!(libc::pthread_mutex_lock(checked.object()), libc::EDEADLK);
            assert_eq!(libc::pthread_mutex_lock(recursive.object()), 0);
            assert_eq!(libc::pthread_mutex_lock(recursive.object()), 0);
            thread::sleep(Duration::from_millis(20));
            shared_order(&recursive, 1);
            assert_eq!(libc::pthread_mutex_unlock(recursive.object()), 0);
            thread::sleep(Duration::from_millis(5));
            shared_order(&recursive, 2);
            assert_eq!(libc::pthread_mutex_unlock(recursive.object()), 0);
            assert_eq!(libc::pthread_mutex_unlock(recursive.object()), libc::EPERM);
            assert_eq!(libc::pthread_mutex_unlock(checked.object()), 0);
        }
    });
    let other = manager.spawn(move || {
        // SAFETY: the mutexes are live.
        unsafe {
            assert_eq!(libc::pthread_mutex_unlock(others_checked.object()), libc::EPERM);
            assert_eq!(libc::pthread_mutex_trylock(others_checked.object()), libc::EBUSY);
            assert_eq!(libc::pthread_mutex_lock(others_recursive.object()), 0);
            shared_order(&others_recursive, 3);
            assert_eq!(libc::pthread_mutex_unlock(others_recursive.object()), 0);
        }
    });
    manager.stop();
    owner.join().unwrap();
    other.join().unwrap();
}

/// Whoever holds the mutex is the one who comes next.
///
/// # Safety
/// The caller holds the mutex.
unsafe fn shared_order(shared: &Shared<libc::pthread_mutex_t>, turn: u64) {
    // SAFETY: by the contract.
    unsafe {
        assert_eq!(shared.get() + 1, turn);
        shared.set(turn);
    }
}

/// A bounded queue as C writes it: one mutex, two condition variables.
struct Pipe {
    mutex: libc::pthread_mutex_t,
    not_empty: libc::pthread_cond_t,
    not_full: libc::pthread_cond_t,
}

type Parts = (*mut libc::pthread_mutex_t, *mut libc::pthread_cond_t, *mut libc::pthread_cond_t);

impl Pipe {
    fn new() -> Self {
        Self {
            mutex: mutex(libc::PTHREAD_MUTEX_NORMAL),
            not_empty: libc::PTHREAD_COND_INITIALIZER,
            not_full: libc::PTHREAD_COND_INITIALIZER,
        }
    }

    /// # Safety
    /// The pointer is to a live pipe.
    unsafe fn parts(this: *mut Self) -> Parts {
        // SAFETY: by the contract; no references are made.
        unsafe { (&raw mut (*this).mutex, &raw mut (*this).not_empty, &raw mut (*this).not_full) }
    }
}

#[test]
fn condition_variables_pass_everything_on() {
    const EACH: u64 = 20;
    for broadcast in [false, true] {
        crowd(600, 6, || {
            let pipe = Shared::new(Pipe::new());
            Box::new(move |number| {
                for _ in 0..EACH {
                    // SAFETY: the objects live as long as the closure; the value is touched under the mutex.
                    unsafe {
                        let (mutex, not_empty, not_full) = Pipe::parts(pipe.object());
                        assert_eq!(libc::pthread_mutex_lock(mutex), 0);
                        if number % 2 == 0 {
                            while pipe.get() == 4 {
                                assert_eq!(libc::pthread_cond_wait(not_full, mutex), 0);
                            }
                            pipe.set(pipe.get() + 1);
                            if broadcast {
                                libc::pthread_cond_broadcast(not_empty);
                            } else {
                                libc::pthread_cond_signal(not_empty);
                            }
                        } else {
                            while pipe.get() == 0 {
                                assert_eq!(libc::pthread_cond_wait(not_empty, mutex), 0);
                            }
                            pipe.set(pipe.get() - 1);
                            if broadcast {
                                libc::pthread_cond_broadcast(not_full);
                            } else {
                                libc::pthread_cond_signal(not_full);
                            }
                        }
                        assert_eq!(libc::pthread_mutex_unlock(mutex), 0);
                    }
                }
            })
        });
    }
}

#[test]
fn one_broadcast_reaches_all_who_wait() {
    crowd(300, 4, || {
        let gate = Shared::new(Pipe::new());
        Box::new(move |_| {
            // SAFETY: as above.
            unsafe {
                let (mutex, not_empty, _) = Pipe::parts(gate.object());
                assert_eq!(libc::pthread_mutex_lock(mutex), 0);
                gate.set(gate.get() + 1);
                if gate.get() == 304 {
                    libc::pthread_cond_broadcast(not_empty);
                }
                while gate.get() < 304 {
                    assert_eq!(libc::pthread_cond_wait(not_empty, mutex), 0);
                }
                assert_eq!(libc::pthread_mutex_unlock(mutex), 0);
            }
        })
    });
}

fn after(clock: libc::clockid_t, time: Duration) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct it is given.
    unsafe { libc::clock_gettime(clock, &mut now) };
    let nanoseconds = now.tv_nsec + time.as_nanos() as i64;
    libc::timespec { tv_sec: now.tv_sec + nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 }
}

#[test]
fn timed_waits_end_on_their_clock() {
    crowd(50, 1, || {
        Box::new(|_| {
            let mut attributes = MaybeUninit::uninit();
            let mut monotonic = MaybeUninit::uninit();
            let mut usual = libc::PTHREAD_COND_INITIALIZER;
            let mut mutex = mutex(libc::PTHREAD_MUTEX_NORMAL);
            let time = Duration::from_millis(5);
            // SAFETY: everything is this call's own.
            unsafe {
                libc::pthread_condattr_init(attributes.as_mut_ptr());
                libc::pthread_condattr_setclock(attributes.as_mut_ptr(), libc::CLOCK_MONOTONIC);
                libc::pthread_cond_init(monotonic.as_mut_ptr(), attributes.as_ptr());
                libc::pthread_mutex_lock(&mut mutex);
                let until = after(libc::CLOCK_MONOTONIC, time);
                let answer = libc::pthread_cond_timedwait(monotonic.as_mut_ptr(), &mut mutex, &until);
                assert_eq!(answer, libc::ETIMEDOUT);
                let until = after(libc::CLOCK_REALTIME, time);
                assert_eq!(libc::pthread_cond_timedwait(&mut usual, &mut mutex, &until), libc::ETIMEDOUT);
                let until = after(libc::CLOCK_MONOTONIC, time);
                let answer = pthread_cond_clockwait(&mut usual, &mut mutex, libc::CLOCK_MONOTONIC, &until);
                assert_eq!(answer, libc::ETIMEDOUT);
                let bad = libc::timespec { tv_sec: 0, tv_nsec: -1 };
                assert_eq!(libc::pthread_cond_timedwait(&mut usual, &mut mutex, &bad), libc::EINVAL);
                // Held again after all of that.
                assert_eq!(libc::pthread_mutex_trylock(&mut mutex), libc::EBUSY);
                let until = after(libc::CLOCK_REALTIME, time);
                assert_eq!(libc::pthread_mutex_timedlock(&mut mutex, &until), libc::ETIMEDOUT);
                libc::pthread_mutex_unlock(&mut mutex);
                assert_eq!(libc::pthread_mutex_timedlock(&mut mutex, &until), 0);
                libc::pthread_mutex_unlock(&mut mutex);
            }
        })
    });
}

#[test]
fn a_read_write_lock_excludes_writers() {
    crowd(1000, 3, || {
        let shared = Shared::new(libc::PTHREAD_RWLOCK_INITIALIZER);
        let readers = AtomicU32::new(0);
        Box::new(move |number| {
            for round in 0..4 {
                // SAFETY: locked and unlocked by the same fiber or thread.
                unsafe {
                    if (number + round) % 4 == 0 {
                        assert_eq!(libc::pthread_rwlock_wrlock(shared.object()), 0);
                        assert_eq!(readers.load(Ordering::SeqCst), 0);
                        assert_eq!(libc::pthread_rwlock_rdlock(shared.object()), libc::EDEADLK);
                        shared.add_slowly(|| pause(number));
                    } else {
                        assert_eq!(libc::pthread_rwlock_rdlock(shared.object()), 0);
                        readers.fetch_add(1, Ordering::SeqCst);
                        let seen = shared.get();
                        pause(number);
                        assert_eq!(shared.get(), seen);
                        readers.fetch_sub(1, Ordering::SeqCst);
                    }
                    assert_eq!(libc::pthread_rwlock_unlock(shared.object()), 0);
                }
            }
        })
    });
}

fn semaphore(count: u32) -> libc::sem_t {
    let mut semaphore = MaybeUninit::uninit();
    // SAFETY: the memory is this function's own; a semaphore that nobody waits for may be moved.
    unsafe {
        assert_eq!(libc::sem_init(semaphore.as_mut_ptr(), 0, count), 0);
        semaphore.assume_init()
    }
}

#[test]
fn a_semaphore_lets_so_many_in() {
    crowd(1000, 3, || {
        let shared = Shared::new(semaphore(5));
        let inside = AtomicU32::new(0);
        Box::new(move |number| {
            for _ in 0..3 {
                // SAFETY: the semaphore is live.
                unsafe {
                    assert_eq!(libc::sem_wait(shared.object()), 0);
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 5);
                    pause(number);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    assert_eq!(libc::sem_post(shared.object()), 0);
                }
            }
        })
    });
}

#[test]
fn a_semaphore_may_time_out() {
    crowd(20, 1, || {
        Box::new(|_| {
            let mut empty = semaphore(0);
            let until = after(libc::CLOCK_REALTIME, Duration::from_millis(5));
            // SAFETY: the semaphore is this call's own.
            unsafe {
                assert_eq!(libc::sem_timedwait(&mut empty, &until), -1);
                assert_eq!(*libc::__errno_location(), libc::ETIMEDOUT);
                libc::sem_post(&mut empty);
                assert_eq!(libc::sem_timedwait(&mut empty, &until), 0);
            }
        })
    });
}

#[test]
fn a_barrier_opens_for_all_and_names_one() {
    crowd(50, 2, || {
        let mut barrier = MaybeUninit::uninit();
        // SAFETY: the memory is this function's own; a barrier that nobody waits at may be moved.
        let barrier = unsafe {
            assert_eq!(libc::pthread_barrier_init(barrier.as_mut_ptr(), std::ptr::null(), 52), 0);
            Shared::new(barrier.assume_init())
        };
        let (named, passed) = (AtomicU32::new(0), AtomicU32::new(0));
        Box::new(move |_| {
            for _ in 0..3 {
                // SAFETY: the barrier is live.
                match unsafe { libc::pthread_barrier_wait(barrier.object()) } {
                    0 => {}
                    libc::PTHREAD_BARRIER_SERIAL_THREAD => {
                        named.fetch_add(1, Ordering::SeqCst);
                    }
                    other => panic!("{other}"),
                }
            }
            if passed.fetch_add(1, Ordering::SeqCst) == 51 {
                assert_eq!(named.load(Ordering::SeqCst), 3);
            }
        })
    });
}

static ONCE: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

#[test]
fn an_initialisation_that_waits_runs_once() {
    extern "C" fn initialise() {
        // On the only worker, which has others that need this to be over.
        thread::sleep(Duration::from_millis(20));
        ONCE[0].fetch_add(1, Ordering::SeqCst);
    }
    let control = Arc::new(AtomicU32::new(0));
    let shared = Arc::clone(&control);
    crowd(200, 2, move || {
        shared.store(0, Ordering::SeqCst);
        ONCE[0].store(0, Ordering::SeqCst);
        let control = Arc::clone(&shared);
        Box::new(move |_| {
            // SAFETY: the control word is live, and 0 at first.
            assert_eq!(unsafe { pthread_once(control.as_ptr().cast(), initialise) }, 0);
            assert_eq!(ONCE[0].load(Ordering::SeqCst), 1);
        })
    });
}

#[test]
fn a_spin_lock_whose_holder_waits_lets_it_run() {
    crowd(100, 0, || {
        let shared = Shared::<libc::pthread_spinlock_t>::new(0);
        // SAFETY: the lock is live.
        assert_eq!(unsafe { libc::pthread_spin_init(shared.object(), 0) }, 0);
        Box::new(move |number| {
            // SAFETY: locked and unlocked by the same fiber.
            unsafe {
                assert_eq!(libc::pthread_spin_lock(shared.object()), 0);
                shared.add_slowly(|| pause(number));
                assert_eq!(libc::pthread_spin_unlock(shared.object()), 0);
            }
        })
    });
}

#[test]
fn c11_has_other_names_for_them() {
    crowd(200, 2, || {
        let shared = Shared::new(Pipe::new());
        Box::new(move |number| {
            // SAFETY: the objects live as long as the closure; the value is touched under the mutex.
            unsafe {
                let (mutex, condition, _) = Pipe::parts(shared.object());
                assert_eq!(mtx_lock(mutex), 0);
                // In order of their numbers: each wakes the next by waking anybody, who wakes another if it is not its turn.
                while shared.get() != number as u64 {
                    assert_eq!(cnd_signal(condition), 0);
                    assert_eq!(cnd_wait(condition, mutex), 0);
                }
                shared.set(shared.get() + 1);
                assert_eq!(cnd_signal(condition), 0);
                assert_eq!(mtx_unlock(mutex), 0);
                thrd_yield();
            }
        })
    });
}

#[test]
fn a_thread_that_waits_gives_the_mutex_to_fibers() {
    // The thread releases the mutex inside the call that waits: the fiber must learn of that at once, not by and by.
    let shared = Shared::new(Pipe::new());
    const ROUNDS: u64 = 200;
    let ping_pong = |me: u64| {
        let shared = Arc::clone(&shared);
        move || {
            // SAFETY: as above.
            unsafe {
                let (mutex, not_empty, _) = Pipe::parts(shared.object());
                assert_eq!(libc::pthread_mutex_lock(mutex), 0);
                for round in 0..ROUNDS {
                    while shared.get() != 2 * round + me {
                        assert_eq!(libc::pthread_cond_wait(not_empty, mutex), 0);
                    }
                    shared.set(shared.get() + 1);
                    libc::pthread_cond_signal(not_empty);
                }
                assert_eq!(libc::pthread_mutex_unlock(mutex), 0);
            }
        }
    };
    let manager = IoManager::new(1, false).unwrap();
    let fiber = manager.spawn(ping_pong(0));
    let thread = thread::spawn(ping_pong(1));
    thread.join().unwrap();
    manager.stop();
    fiber.join().unwrap();
}

#[test]
fn another_process_may_hold_and_signal() {
    struct Page {
        mutex: libc::pthread_mutex_t,
        condition: libc::pthread_cond_t,
        ready: AtomicU32,
    }
    // SAFETY: the page is mapped for the test's length, shared with the child, and initialised before both use it.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(page, libc::MAP_FAILED);
        let page = &mut *page.cast::<Page>();
        let mut attributes = MaybeUninit::uninit();
        libc::pthread_mutexattr_init(attributes.as_mut_ptr());
        libc::pthread_mutexattr_setpshared(attributes.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED);
        libc::pthread_mutex_init(&mut page.mutex, attributes.as_ptr());
        let mut attributes = MaybeUninit::uninit();
        libc::pthread_condattr_init(attributes.as_mut_ptr());
        libc::pthread_condattr_setpshared(attributes.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED);
        libc::pthread_cond_init(&mut page.condition, attributes.as_ptr());
        libc::pthread_mutex_lock(&mut page.mutex);
        // The child is a copy of this thread, which holds the mutex: it is the child's to release.
        let child = libc::fork();
        if child == 0 {
            libc::usleep(20_000);
            libc::pthread_mutex_unlock(&mut page.mutex);
            libc::usleep(20_000);
            libc::pthread_mutex_lock(&mut page.mutex);
            page.ready.store(1, Ordering::SeqCst);
            libc::pthread_cond_signal(&mut page.condition);
            libc::pthread_mutex_unlock(&mut page.mutex);
            libc::_exit(0);
        }
        let page: &'static mut Page = page;
        let manager = IoManager::new(1, false).unwrap();
        let fiber = manager.spawn(move || {
            assert_eq!(libc::pthread_mutex_lock(&mut page.mutex), 0);
            while page.ready.load(Ordering::SeqCst) == 0 {
                assert_eq!(libc::pthread_cond_wait(&mut page.condition, &mut page.mutex), 0);
            }
            assert_eq!(libc::pthread_mutex_unlock(&mut page.mutex), 0);
        });
        manager.stop();
        fiber.join().unwrap();
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
    }
}

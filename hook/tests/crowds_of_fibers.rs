//! Invariant 1 under contention: the locks and channels of std, parking_lot, crossbeam-channel and once_cell in thousands of fibers that share
//! one worker, and in as many that move between two.
//!
//! Method: everybody waits for everybody else in the middle of what a lock guards, so that whatever takes the worker for the owner, or keeps
//! the worker while it waits, shows as a wrong sum or a hang.

use squall_fiber::JoinHandle;
use squall_hook as _;
use squall_iomanager::IoManager;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, LazyLock, Mutex, OnceLock, RwLock, mpsc};
use std::thread;
use std::time::Duration;

/// Fibers that found themselves on another thread after a pause.
static MOVES: AtomicUsize = AtomicUsize::new(0);

fn thread_id() -> i64 {
    // SAFETY: takes nothing and changes nothing.
    unsafe { squall_fiber::sys::raw_syscall(libc::SYS_gettid, [0; 6]) }
}

/// Lets others run: some for a moment, most not at all.
fn pause(number: usize) {
    let before = thread_id();
    match number % 64 {
        0 => thread::sleep(Duration::from_micros(50)),
        1..40 => thread::yield_now(),
        _ => return,
    }
    if thread_id() != before {
        MOVES.fetch_add(1, Ordering::Relaxed);
    }
}

/// Spawns so many fibers, each with its number, and waits for all.
fn crowd<T: Send + 'static>(count: usize, body: impl Fn(usize) -> T + Send + Sync + 'static) -> Vec<T> {
    let body = Arc::new(body);
    let fibers: Vec<JoinHandle<T>> = (0..count)
        .map(|number| {
            let body = Arc::clone(&body);
            squall_fiber::spawn(move || body(number))
        })
        .collect();
    fibers.into_iter().map(|fiber| fiber.join().expect("a fiber of the crowd panicked")).collect()
}

/// Runs a test in a fiber on one worker, and on two until some fiber has moved: all begin on the first, so the second must take them away.
fn on_one_worker_and_moving(test: fn()) {
    let run = |workers| {
        let manager = IoManager::new(workers, false).unwrap();
        let fiber = manager.spawn(test);
        manager.stop();
        fiber.join().expect("the test panicked in its fiber");
    };
    run(1);
    // Tests of this program run at the same time, so a move of another's is counted, too: for any of them to pass, fibers must move.
    let before = MOVES.load(Ordering::Relaxed);
    for _ in 0..20 {
        run(2);
        if MOVES.load(Ordering::Relaxed) > before {
            return;
        }
    }
    panic!("in twenty runs on two workers no fiber has moved");
}

const CROWD: usize = 2000;
const ROUNDS: usize = 3;

#[test]
fn std_mutexes_and_condvars() {
    on_one_worker_and_moving(|| {
        let state = Arc::new((Mutex::new(0usize), Condvar::new()));
        let shared = Arc::clone(&state);
        crowd(CROWD, move |number| {
            for _ in 0..ROUNDS {
                let mut count = shared.0.lock().unwrap();
                let seen = *count;
                pause(number);
                *count = seen + 1;
            }
            let mut count = shared.0.lock().unwrap();
            if *count == CROWD * ROUNDS {
                shared.1.notify_all();
            }
            while *count < CROWD * ROUNDS {
                count = shared.1.wait(count).unwrap();
            }
        });
        assert_eq!(*state.0.lock().unwrap(), CROWD * ROUNDS);
    });
}

#[test]
fn std_read_write_locks() {
    on_one_worker_and_moving(|| {
        let pair = Arc::new(RwLock::new((0usize, 0usize)));
        let shared = Arc::clone(&pair);
        crowd(CROWD, move |number| {
            for round in 0..ROUNDS {
                if (number + round).is_multiple_of(4) {
                    let mut pair = shared.write().unwrap();
                    pair.0 += 1;
                    pause(number);
                    pair.1 += 1;
                } else {
                    let pair = shared.read().unwrap();
                    pause(number);
                    assert_eq!(pair.0, pair.1, "somebody wrote while others read");
                }
            }
        });
        let writes = (0..CROWD).flat_map(|number| (0..ROUNDS).map(move |round| number + round));
        assert_eq!(pair.read().unwrap().0, writes.filter(|sum| sum % 4 == 0).count());
    });
}

#[test]
fn std_barriers_and_once() {
    on_one_worker_and_moving(|| {
        let runs = Arc::new(AtomicUsize::new(0));
        let state = Arc::new((Barrier::new(CROWD), OnceLock::new()));
        let initialised = Arc::clone(&runs);
        let leaders = crowd(CROWD, move |number| {
            let mut leads = 0;
            for _ in 0..ROUNDS {
                pause(number);
                leads += usize::from(state.0.wait().is_leader());
            }
            let value = *state.1.get_or_init(|| {
                pause(0);
                initialised.fetch_add(1, Ordering::SeqCst)
            });
            assert_eq!(value, 0);
            leads
        });
        assert_eq!(leaders.into_iter().sum::<usize>(), ROUNDS);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn lazy_values_of_std_and_once_cell() {
    on_one_worker_and_moving(|| {
        for _ in 0..10 {
            let runs = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&runs);
            let once = move |number| {
                pause(number);
                count.fetch_add(1, Ordering::SeqCst)
            };
            let (a, b) = (once.clone(), once.clone());
            let lazy = LazyLock::new(move || a(0));
            let other: once_cell::sync::Lazy<usize, Box<dyn FnOnce() -> usize + Send>> =
                once_cell::sync::Lazy::new(Box::new(move || b(1)));
            let cell = once_cell::sync::OnceCell::new();
            crowd(CROWD / 10, move |number| {
                pause(number);
                let values = [*lazy, *other, *cell.get_or_init(|| once(0))];
                assert!(values.iter().all(|value| *value < 3), "{values:?}");
                assert_ne!(values[0], values[1]);
            });
            assert_eq!(runs.load(Ordering::SeqCst), 3, "each is initialised once");
        }
    });
}

#[test]
fn std_channels_of_every_size() {
    on_one_worker_and_moving(|| {
        for size in [None, Some(0), Some(3)] {
            let (sum, answers) = match size {
                None => {
                    let (sender, receiver) = mpsc::channel();
                    let sender = Mutex::new(sender);
                    let consumer = squall_fiber::spawn(move || receiver.iter().sum::<usize>());
                    let answers = crowd(CROWD, move |number| {
                        let sender = sender.lock().unwrap().clone();
                        (0..ROUNDS).for_each(|_| {
                            pause(number);
                            sender.send(number).unwrap();
                        });
                    });
                    (consumer.join().unwrap(), answers.len())
                }
                Some(size) => {
                    let (sender, receiver) = mpsc::sync_channel(size);
                    let consumer = squall_fiber::spawn(move || receiver.iter().sum::<usize>());
                    let answers = crowd(CROWD, move |number| {
                        (0..ROUNDS).for_each(|_| {
                            pause(number);
                            sender.send(number).unwrap();
                        });
                    });
                    (consumer.join().unwrap(), answers.len())
                }
            };
            assert_eq!((sum, answers), (CROWD * (CROWD - 1) / 2 * ROUNDS, CROWD));
        }
    });
}

#[test]
fn a_token_goes_round_by_park_and_unpark() {
    on_one_worker_and_moving(|| {
        let places: Arc<Vec<OnceLock<thread::Thread>>> =
            Arc::new((0..CROWD).map(|_| OnceLock::new()).collect());
        let token = Arc::new(AtomicUsize::new(0));
        let at = Arc::clone(&token);
        crowd(CROWD, move |number| {
            places[number].set(thread::current()).expect("each has one place");
            for round in 0..ROUNDS {
                while at.load(Ordering::SeqCst) != round * CROWD + number {
                    thread::park();
                }
                pause(number);
                at.fetch_add(1, Ordering::SeqCst);
                // Whoever has not begun yet looks before it parks.
                if let Some(next) = places[(number + 1) % CROWD].get() {
                    next.unpark();
                }
            }
        });
        assert_eq!(token.load(Ordering::SeqCst), CROWD * ROUNDS);
    });
}

#[test]
fn parking_lot_of_every_kind() {
    on_one_worker_and_moving(|| {
        let state = Arc::new((
            parking_lot::Mutex::new(0usize),
            parking_lot::Condvar::new(),
            parking_lot::RwLock::new((0usize, 0usize)),
            parking_lot::ReentrantMutex::new(std::cell::Cell::new(0usize)),
            parking_lot::Once::new(),
        ));
        let shared = Arc::clone(&state);
        crowd(CROWD, move |number| {
            let (mutex, condition, pair, reentrant, once) = &*shared;
            for round in 0..ROUNDS {
                {
                    let mut count = mutex.lock();
                    let seen = *count;
                    pause(number);
                    *count = seen + 1;
                }
                {
                    let outer = reentrant.lock();
                    let seen = outer.get();
                    pause(number + 1);
                    // Its owner is the fiber, not the worker.
                    reentrant.lock().set(seen + 1);
                }
                if (number + round).is_multiple_of(4) {
                    let mut pair = pair.write();
                    pair.0 += 1;
                    pause(number);
                    pair.1 += 1;
                } else {
                    let pair = pair.read();
                    assert_eq!(pair.0, pair.1, "somebody wrote while others read");
                }
                once.call_once(|| pause(0));
            }
            let mut count = mutex.lock();
            if *count == CROWD * ROUNDS {
                condition.notify_all();
            }
            while *count < CROWD * ROUNDS {
                condition.wait(&mut count);
            }
        });
        assert_eq!(state.3.lock().get(), CROWD * ROUNDS);
        assert!(state.4.state().done());
    });
}

#[test]
fn crossbeam_channels_of_every_size() {
    on_one_worker_and_moving(|| {
        for size in [None, Some(0), Some(3)] {
            let (sender, receiver) =
                size.map_or_else(crossbeam_channel::unbounded, crossbeam_channel::bounded);
            let taken = Arc::new(AtomicU64::new(0));
            let consumers: Vec<_> = (0..4)
                .map(|number| {
                    let (receiver, taken) = (receiver.clone(), Arc::clone(&taken));
                    squall_fiber::spawn(move || {
                        for value in receiver {
                            pause(number);
                            taken.fetch_add(value, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            crowd(CROWD, move |number| {
                for _ in 0..ROUNDS {
                    pause(number);
                    sender.send(number as u64).unwrap();
                }
            });
            consumers.into_iter().for_each(|consumer| consumer.join().unwrap());
            assert_eq!(taken.load(Ordering::SeqCst) as usize, CROWD * (CROWD - 1) / 2 * ROUNDS);
        }
    });
}

#[test]
fn crossbeam_selects_among_channels() {
    on_one_worker_and_moving(|| {
        let ((left, from_left), (right, from_right)) =
            (crossbeam_channel::bounded::<usize>(0), crossbeam_channel::bounded::<usize>(2));
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let selector = squall_fiber::spawn(move || {
            let (mut sums, mut idle) = ((0, 0), 0);
            loop {
                crossbeam_channel::select! {
                    recv(from_left) -> value => sums.0 += value.unwrap(),
                    recv(from_right) -> value => sums.1 += value.unwrap(),
                    recv(stopped) -> _ => return (sums, idle),
                    default(Duration::from_millis(1)) => idle += 1,
                }
            }
        });
        // Else their end would be one more thing to select.
        let _open = (left.clone(), right.clone());
        crowd(CROWD, move |number| {
            pause(number);
            let sender = if number.is_multiple_of(2) { &left } else { &right };
            sender.send(number).unwrap();
        });
        // Nothing more comes, so its time passes.
        thread::sleep(Duration::from_millis(10));
        drop(stop);
        let (sums, idle) = selector.join().unwrap();
        let sum_of = |rest| (0..CROWD).filter(|number| number % 2 == rest).sum::<usize>();
        assert_eq!(sums, (sum_of(0), sum_of(1)));
        assert!(idle > 0);
    });
}

//! The benchmark program of may, as a user would write it.

use may::coroutine;
use may::sync::{Condvar, Mutex, mpsc};
use squall_bench_harness::{BATCH, BUFFER_BYTES, Measured, Measuring, Runtime, Test, measure, run};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

struct May;

fn spawn<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> coroutine::JoinHandle<T> {
    // SAFETY: may's contract: no thread-local is kept across a suspension, no stack is exhausted. What the tests run is small.
    unsafe { coroutine::spawn(f) }
}

fn ping_pong(count: u64) -> Measured {
    let (to, from_us) = mpsc::channel::<u64>();
    let (back, from_partner) = mpsc::channel::<u64>();
    let partner = spawn(move || {
        for number in from_us.iter() {
            back.send(number).expect("the other side listens");
        }
    });
    let measured = measure(count, || {
        for number in 0..count {
            to.send(number).expect("the partner listens");
            assert_eq!(from_partner.recv(), Ok(number));
        }
    });
    drop(to);
    partner.join().expect("the partner ends");
    measured
}

/// As `Turn` of the harness, with may's own lock and condition.
fn play(turn: &(Mutex<u64>, Condvar), mine: u64, count: u64) {
    let mut taken = turn.0.lock().expect("nobody panics with it");
    loop {
        while *taken < count && *taken % 2 != mine {
            taken = turn.1.wait(taken).expect("nobody panics with it");
        }
        if *taken >= count {
            turn.1.notify_one();
            return;
        }
        *taken += 1;
        turn.1.notify_one();
    }
}

fn hand_over(count: u64) -> Measured {
    let turn = Arc::new((Mutex::new(0), Condvar::new()));
    let theirs = Arc::clone(&turn);
    let partner = spawn(move || play(&theirs, 1, count));
    let measured = measure(count, || play(&turn, 0, count));
    partner.join().expect("the partner ends");
    measured
}

fn parked(count: u64) -> Measured {
    let measuring = Measuring::begin();
    let (started, ready) = mpsc::channel();
    for _ in 0..count {
        let started = started.clone();
        drop(spawn(move || {
            started.send(()).expect("somebody counts");
            loop {
                coroutine::park();
            }
        }));
    }
    for _ in 0..count {
        ready.recv().expect("they start");
    }
    measuring.end(count)
}

fn test(test: Test, count: u64) -> Option<Measured> {
    Some(match test {
        Test::Yield | Test::YieldNow => measure(count, || {
            let tasks = [(); 2].map(|()| spawn(move || (0..count / 2).for_each(|_| coroutine::yield_now())));
            tasks.into_iter().for_each(|task| task.join().expect("it only yields"));
        }),
        Test::SpawnJoin => measure(count, || {
            for _ in 0..count / BATCH {
                let tasks: Vec<_> = (0..BATCH).map(|number| spawn(move || number)).collect();
                let sum: u64 = tasks.into_iter().map(|task| task.join().expect("it returns")).sum();
                assert_eq!(sum, BATCH * (BATCH - 1) / 2);
            }
        }),
        Test::PingPong => ping_pong(count),
        Test::HandOver => hand_over(count),
        Test::Parked => parked(count),
        Test::Sleep => measure(count, || {
            let tasks: Vec<_> =
                (0..count).map(|_| spawn(|| coroutine::sleep(Duration::from_secs(1)))).collect();
            tasks.into_iter().for_each(|task| task.join().expect("it only sleeps"));
        }),
        Test::StdPingPong | Test::Mutex | Test::Echo => return None,
    })
}

impl Runtime for May {
    fn run(&self, test_: Test, count: u64, workers: usize) -> Option<Measured> {
        may::config().set_workers(workers);
        spawn(move || test(test_, count)).join().expect("a benchmark does not panic")
    }

    fn echo(&self, listener: TcpListener, workers: usize) -> bool {
        may::config().set_workers(workers);
        // SAFETY: the descriptor is the listener's, which gives it up.
        let listener = unsafe { may::net::TcpListener::from_raw_fd(listener.into_raw_fd()) };
        let server = spawn(move || {
            for mut connection in listener.incoming().flatten() {
                drop(spawn(move || {
                    connection.set_nodelay(true).expect("a socket option");
                    let mut buffer = [0; BUFFER_BYTES];
                    while let Ok(bytes @ 1..) = connection.read(&mut buffer) {
                        if connection.write_all(&buffer[..bytes]).is_err() {
                            break;
                        }
                    }
                }));
            }
        });
        server.join().expect("it listens for ever");
        true
    }
}

fn main() -> ExitCode {
    run(&[("may", &May)])
}

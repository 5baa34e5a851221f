//! The benchmark program of plain operating-system threads.

#![forbid(unsafe_code)]

use squall_bench_harness::{BATCH, BUFFER_BYTES, Measured, Measuring, Runtime, Test, Turn, measure, run};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// A thread's stack, in bytes: what the tests need and no more, so that many threads fit.
const STACK_BYTES: usize = 64 * 1024;

struct Threads;

fn spawn<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().stack_size(STACK_BYTES).spawn(f).expect("a thread can be started")
}

fn ping_pong(count: u64) -> Measured {
    let (to, from_us) = mpsc::channel::<u64>();
    let (back, from_partner) = mpsc::channel::<u64>();
    let partner = spawn(move || {
        for number in from_us {
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

fn hand_over(count: u64) -> Measured {
    let turn = Arc::new(Turn::default());
    let theirs = Arc::clone(&turn);
    let partner = spawn(move || theirs.play(1, count));
    let measured = measure(count, || turn.play(0, count));
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
                thread::park();
            }
        }));
    }
    ready.iter().take(count as usize).for_each(drop);
    measuring.end(count)
}

fn serve(mut connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut buffer = [0; BUFFER_BYTES];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            bytes => connection.write_all(&buffer[..bytes])?,
        }
    }
}

impl Runtime for Threads {
    fn run(&self, test: Test, count: u64, _workers: usize) -> Option<Measured> {
        Some(match test {
            Test::Yield | Test::YieldNow => measure(count, || {
                let threads =
                    [(); 2].map(|()| spawn(move || (0..count / 2).for_each(|_| thread::yield_now())));
                threads.into_iter().for_each(|thread| thread.join().expect("it only yields"));
            }),
            Test::SpawnJoin => measure(count, || {
                for _ in 0..count / BATCH {
                    let threads: Vec<_> = (0..BATCH).map(|number| spawn(move || number)).collect();
                    let sum: u64 = threads.into_iter().map(|t| t.join().expect("it returns")).sum();
                    assert_eq!(sum, BATCH * (BATCH - 1) / 2);
                }
            }),
            Test::PingPong | Test::StdPingPong => ping_pong(count),
            Test::Mutex => {
                let shared = Mutex::new(0u64);
                measure(count, || {
                    for _ in 0..count {
                        *std::hint::black_box(&shared).lock().expect("nobody panics with it") += 1;
                    }
                })
            }
            Test::HandOver => hand_over(count),
            Test::Parked => parked(count),
            Test::Sleep => measure(count, || {
                let threads: Vec<_> =
                    (0..count).map(|_| spawn(|| thread::sleep(Duration::from_secs(1)))).collect();
                threads.into_iter().for_each(|thread| thread.join().expect("it only sleeps"));
            }),
            Test::Echo => return None,
        })
    }

    fn echo(&self, listener: TcpListener, _workers: usize) -> bool {
        for connection in listener.incoming().flatten() {
            // An error is a client that has gone.
            drop(spawn(move || drop(serve(connection))));
        }
        true
    }
}

fn main() -> ExitCode {
    run(&[("threads", &Threads)])
}

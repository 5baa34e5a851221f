//! The benchmark program of Squall: plain std in fibers, with private or shared thread-locals.

#![forbid(unsafe_code)]

use squall::{Builder, IoManager, JoinHandle, Tls};
use squall_bench_harness::{BATCH, BUFFER_BYTES, Measured, Measuring, Runtime, Test, Turn, measure, run};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

struct Squall(Tls);

fn spawn<T: Send + 'static>(tls: Tls, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().tls(tls).spawn(f)
}

fn ping_pong(tls: Tls, count: u64) -> Measured {
    let (to, from_us) = squall::sync::unbounded::<u64>();
    let (back, from_partner) = squall::sync::unbounded::<u64>();
    let partner = spawn(tls, move || {
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

fn std_ping_pong(tls: Tls, count: u64) -> Measured {
    let (to, from_us) = mpsc::channel::<u64>();
    let (back, from_partner) = mpsc::channel::<u64>();
    let partner = spawn(tls, move || {
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

fn hand_over(tls: Tls, count: u64) -> Measured {
    let turn = Arc::new(Turn::default());
    let theirs = Arc::clone(&turn);
    let partner = spawn(tls, move || theirs.play(1, count));
    let measured = measure(count, || turn.play(0, count));
    partner.join().expect("the partner ends");
    measured
}

fn parked(tls: Tls, count: u64) -> Measured {
    let measuring = Measuring::begin();
    let started = Arc::new(AtomicU64::new(0));
    for _ in 0..count {
        let started = Arc::clone(&started);
        drop(spawn(tls, move || {
            started.fetch_add(1, Ordering::Relaxed);
            loop {
                squall::park();
            }
        }));
    }
    while started.load(Ordering::Relaxed) < count {
        squall::yield_now();
    }
    measuring.end(count)
}

fn test(test: Test, count: u64, tls: Tls) -> Option<Measured> {
    Some(match test {
        Test::Yield | Test::YieldNow => measure(count, || {
            let fibers =
                [(); 2].map(|()| spawn(tls, move || (0..count / 2).for_each(|_| squall::yield_now())));
            fibers.into_iter().for_each(|fiber| fiber.join().expect("it only yields"));
        }),
        Test::SpawnJoin => measure(count, || {
            for _ in 0..count / BATCH {
                let fibers: Vec<_> = (0..BATCH).map(|number| spawn(tls, move || number)).collect();
                let sum: u64 = fibers.into_iter().map(|fiber| fiber.join().expect("it returns")).sum();
                assert_eq!(sum, BATCH * (BATCH - 1) / 2);
            }
        }),
        Test::PingPong => ping_pong(tls, count),
        // std's channels keep a thread-local across a wait.
        Test::StdPingPong if tls == Tls::Private => std_ping_pong(tls, count),
        Test::Mutex => {
            let shared = Mutex::new(0u64);
            measure(count, || {
                for _ in 0..count {
                    *std::hint::black_box(&shared).lock().expect("nobody panics with it") += 1;
                }
            })
        }
        Test::HandOver => hand_over(tls, count),
        Test::Parked => parked(tls, count),
        Test::Sleep => measure(count, || {
            let fibers: Vec<_> =
                (0..count).map(|_| spawn(tls, || std::thread::sleep(Duration::from_secs(1)))).collect();
            fibers.into_iter().for_each(|fiber| fiber.join().expect("it only sleeps"));
        }),
        Test::StdPingPong | Test::Echo => return None,
    })
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

/// Runs `f` in a fiber. The process ends with it: fibers that are left are not waited for.
fn in_fiber<T: Send + 'static>(tls: Tls, workers: usize, f: impl FnOnce() -> T + Send + 'static) -> T {
    let manager = IoManager::new(workers, false).expect("a worker thread and an epoll descriptor");
    let fiber = manager.spawn_with(Builder::new().tls(tls), f);
    std::mem::forget(manager);
    fiber.join().expect("a benchmark does not panic")
}

impl Runtime for Squall {
    fn run(&self, test_: Test, count: u64, workers: usize) -> Option<Measured> {
        let tls = self.0;
        in_fiber(tls, workers, move || test(test_, count, tls))
    }

    fn echo(&self, listener: TcpListener, workers: usize) -> bool {
        let tls = self.0;
        in_fiber(tls, workers, move || {
            for connection in listener.incoming().flatten() {
                // An error is a client that has gone.
                drop(spawn(tls, move || drop(serve(connection))));
            }
        });
        true
    }
}

fn main() -> ExitCode {
    run(&[("private", &Squall(Tls::Private)), ("shared", &Squall(Tls::Shared))])
}

//! The benchmark program of open-coroutine, as a user would write it. It has no yield, no park and no channel of its own.

#![forbid(unsafe_code)]

use open_coroutine::task;
use squall_bench_harness::{BATCH, BUFFER_BYTES, Measured, Runtime, Test, measure, run};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

struct OpenCoroutine;

fn init(workers: usize) {
    // Everything but the number of event loops is what `Config::single` says.
    let mut config = open_coroutine::Config::single();
    config.set_event_loop_size(workers);
    open_coroutine::init(config);
}

impl Runtime for OpenCoroutine {
    fn run(&self, test: Test, count: u64, workers: usize) -> Option<Measured> {
        if !matches!(test, Test::SpawnJoin | Test::Sleep) {
            return None;
        }
        init(workers);
        let measured = match test {
            Test::SpawnJoin => measure(count, || {
                for _ in 0..count / BATCH {
                    let tasks: Vec<_> = (0..BATCH).map(|number| task!(|number| number, number)).collect();
                    let results = tasks.into_iter().map(|task| task.join().expect("it returns"));
                    assert_eq!(results.map(Option::unwrap_or_default).sum::<u64>(), BATCH * (BATCH - 1) / 2);
                }
            }),
            _ => measure(count, || {
                let sleep = |()| std::thread::sleep(Duration::from_secs(1));
                let tasks: Vec<_> = (0..count).map(|_| task!(sleep, ())).collect();
                for task in tasks {
                    task.join().expect("it only sleeps");
                }
            }),
        };
        Some(measured)
    }

    fn echo(&self, listener: TcpListener, workers: usize) -> bool {
        init(workers);
        let server = task!(
            |listener: TcpListener| {
                for connection in listener.incoming().flatten() {
                    let _ = task!(
                        |mut connection: std::net::TcpStream| {
                            connection.set_nodelay(true).expect("a socket option");
                            let mut buffer = [0; BUFFER_BYTES];
                            while let Ok(bytes @ 1..) = connection.read(&mut buffer) {
                                if connection.write_all(&buffer[..bytes]).is_err() {
                                    break;
                                }
                            }
                        },
                        connection
                    );
                }
            },
            listener
        );
        server.join().expect("it listens for ever");
        true
    }
}

fn main() -> ExitCode {
    run(&[("open-coroutine", &OpenCoroutine)])
}

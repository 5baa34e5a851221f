//! Micro benchmarks of the runtime against OS threads doing the same, in one run.

#![forbid(unsafe_code)]

use clap::Parser;
use serde_json::json;
use squall::{Builder, IoManager, Tls};
use squall_perf::{Benchmark, measure, time};
use std::io::{IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Measures what fibers cost, next to what threads cost for the same work in the same run.
///
/// Rounds of all benchmarks alternate; the table shows the median round, the spread, and the ratio to the baseline.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Rounds that count; one more warms up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs `f` in a fiber on a manager with one worker.
fn in_fiber<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let manager = IoManager::new(1, false).expect("a worker thread and an epoll descriptor");
    let fiber = manager.spawn(f);
    manager.stop();
    fiber.join().expect("a benchmark does not panic")
}

fn yields(tls: Tls) -> impl Fn(u64) -> Duration {
    move |operations| {
        in_fiber(move || {
            time(|| {
                let spin = move || {
                    for _ in 0..operations / 2 {
                        squall::yield_now();
                    }
                };
                let fibers = [Builder::new().tls(tls).spawn(spin), Builder::new().tls(tls).spawn(spin)];
                for fiber in fibers {
                    fiber.join().expect("a benchmark does not panic");
                }
            })
        })
    }
}

fn thread_yields(operations: u64) -> Duration {
    time(|| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..operations / 2).for_each(|_| thread::yield_now()));
            }
        });
    })
}

fn spawns(tls: Tls) -> impl Fn(u64) -> Duration {
    move |operations| {
        in_fiber(move || {
            time(|| {
                for _ in 0..operations / 1000 {
                    let fibers: Vec<_> =
                        (0..1000).map(|n| Builder::new().tls(tls).spawn(move || n)).collect();
                    for fiber in fibers {
                        std::hint::black_box(fiber.join().expect("a benchmark does not panic"));
                    }
                }
            })
        })
    }
}

fn thread_spawns(operations: u64) -> Duration {
    time(|| {
        for _ in 0..operations / 100 {
            let threads: Vec<_> = (0..100).map(|n| thread::spawn(move || n)).collect();
            for thread in threads {
                std::hint::black_box(thread.join().expect("a benchmark does not panic"));
            }
        }
    })
}

/// `partner` starts what answers, as a fiber or as a thread.
fn ping_pong(operations: u64, partner: impl FnOnce(Box<dyn FnOnce() + Send>)) -> Duration {
    let (to, from_us) = mpsc::channel::<u64>();
    let (back, from_partner) = mpsc::channel::<u64>();
    partner(Box::new(move || {
        for number in from_us {
            if back.send(number).is_err() {
                break;
            }
        }
    }));
    time(|| {
        for number in 0..operations {
            to.send(number).expect("the partner listens");
            assert_eq!(from_partner.recv(), Ok(number));
        }
    })
}

/// Round trips of 64 bytes over loopback TCP on plain std sockets.
fn echo(operations: u64, partner: impl FnOnce(Box<dyn FnOnce() + Send>)) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (mut server, _) = listener.accept().expect("a connection");
    client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).expect("a socket option");
    partner(Box::new(move || {
        let mut buffer = [0; 64];
        while server.read_exact(&mut buffer).is_ok() {
            server.write_all(&buffer).expect("the client reads");
        }
    }));
    let mut buffer = [7; 64];
    time(|| {
        for _ in 0..operations {
            client.write_all(&buffer).expect("the server reads");
            client.read_exact(&mut buffer).expect("the server answers");
        }
    })
}

fn lock_hand_over(operations: u64) -> Duration {
    let shared = Arc::new(std::sync::Mutex::new(0u64));
    time(|| {
        for _ in 0..operations {
            *shared.lock().expect("nobody panics with it") += 1;
        }
    })
}

fn fiber_partner(f: Box<dyn FnOnce() + Send>) {
    drop(squall::spawn(f));
}

fn thread_partner(f: Box<dyn FnOnce() + Send>) {
    drop(thread::spawn(f));
}

fn benchmarks() -> Vec<Benchmark> {
    let bench = |name, baseline, operations, run: Box<dyn Fn(u64) -> Duration>| Benchmark {
        name,
        baseline,
        operations,
        run,
    };
    vec![
        bench("yield, threads", None, 20_000, Box::new(thread_yields)),
        bench("yield, fibers", Some("yield, threads"), 1_000_000, Box::new(yields(Tls::Private))),
        bench(
            "yield, fibers with shared TLS",
            Some("yield, threads"),
            1_000_000,
            Box::new(yields(Tls::Shared)),
        ),
        bench("spawn + join, threads", None, 2_000, Box::new(thread_spawns)),
        bench("spawn + join, fibers", Some("spawn + join, threads"), 100_000, Box::new(spawns(Tls::Private))),
        bench(
            "spawn + join, fibers with shared TLS",
            Some("spawn + join, threads"),
            100_000,
            Box::new(spawns(Tls::Shared)),
        ),
        bench(
            "std mpsc round trip, threads",
            None,
            10_000,
            Box::new(|operations| ping_pong(operations, thread_partner)),
        ),
        bench(
            "std mpsc round trip, fibers",
            Some("std mpsc round trip, threads"),
            200_000,
            Box::new(|operations| in_fiber(move || ping_pong(operations, fiber_partner))),
        ),
        bench(
            "TCP echo round trip, threads",
            None,
            5_000,
            Box::new(|operations| echo(operations, thread_partner)),
        ),
        bench(
            "TCP echo round trip, fibers",
            Some("TCP echo round trip, threads"),
            20_000,
            Box::new(|operations| in_fiber(move || echo(operations, fiber_partner))),
        ),
        bench("free std Mutex, thread", None, 2_000_000, Box::new(lock_hand_over)),
        bench(
            "free std Mutex, fiber",
            Some("free std Mutex, thread"),
            2_000_000,
            Box::new(|operations| in_fiber(move || lock_hand_over(operations))),
        ),
    ]
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let show_progress = std::io::stderr().is_terminal();
    let benchmarks = benchmarks();
    let figures = measure(&benchmarks, arguments.rounds.into(), |round, name| {
        if show_progress {
            eprint!("\r\x1b[Kround {round} of {}: {name}", arguments.rounds);
        }
    });
    if show_progress {
        eprint!("\r\x1b[K");
    }
    let ratio = |benchmark: &Benchmark, median: f64| {
        let baseline = figures.iter().find(|figure| Some(figure.name) == benchmark.baseline)?;
        Some(median / baseline.median_ns())
    };
    if arguments.json {
        let rows: Vec<_> = benchmarks
            .iter()
            .zip(&figures)
            .map(|(benchmark, figure)| {
                json!({
                    "name": figure.name, "median_ns": figure.median_ns(), "min_ns": figure.spread_ns().0,
                    "max_ns": figure.spread_ns().1, "ratio_to": benchmark.baseline,
                    "ratio": ratio(benchmark, figure.median_ns()),
                })
            })
            .collect();
        println!("{}", json!({ "rounds": arguments.rounds, "figures": rows }));
        return Ok(());
    }
    println!("{:<40} {:>10} {:>22} {:>9}", "ns per operation", "median", "[min-max]", "ratio");
    for (benchmark, figure) in benchmarks.iter().zip(&figures) {
        let (min, max) = figure.spread_ns();
        let ratio = ratio(benchmark, figure.median_ns()).map_or(String::new(), |ratio| format!("{ratio:.3}"));
        let spread = format!("[{min:.0}-{max:.0}]");
        println!("{:<40} {:>10.1} {:>22} {:>9}", figure.name, figure.median_ns(), spread, ratio);
    }
    Ok(())
}

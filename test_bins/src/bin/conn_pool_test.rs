//! A pool of connections (the `r2d2` crate, as it is) under the load of many more fibers than it has connections.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use r2d2::{ManageConnection, Pool};
use serde_json::json;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shares a few connections among many fibers, which ask an echo server and check its answers.
///
/// Some connections are broken on purpose: the pool must notice and replace them, and nobody may get another one's answer. Exits with 1 if a
/// check fails.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Fibers that want a connection.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    fibers: u32,
    /// Connections in the pool.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Requests of each fiber.
    #[arg(long, default_value_t = 20)]
    requests: u32,
    /// Let the server end a connection after so many requests; 0 for never.
    #[arg(long, default_value_t = 500)]
    break_after: u32,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// A request that failed is made again so often.
const ATTEMPTS: u32 = 10;

struct Connection {
    stream: BufReader<TcpStream>,
    /// A request has failed: what comes next on it may belong to that one.
    broken: bool,
}

impl Connection {
    fn ask(&mut self, question: &str) -> io::Result<String> {
        self.broken = true;
        writeln!(self.stream.get_mut(), "{question}")?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.broken = false;
        Ok(answer.trim_end().to_owned())
    }
}

struct Connector {
    address: SocketAddr,
    made: Arc<AtomicU64>,
}

impl ManageConnection for Connector {
    type Connection = Connection;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(Connection { stream: BufReader::new(stream), broken: false })
    }

    fn is_valid(&self, connection: &mut Connection) -> io::Result<()> {
        connection.ask("ping").map(drop)
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.broken
    }
}

fn serve(listener: &TcpListener, break_after: u32) {
    for stream in listener.incoming().flatten() {
        squall::spawn(move || {
            // An answer is two writes: without this the second waits for the client to acknowledge the first, 40 ms each.
            stream.set_nodelay(true)?;
            let mut out = stream.try_clone()?;
            for (number, line) in BufReader::new(stream).lines().enumerate() {
                writeln!(out, "{}", line?)?;
                if break_after != 0 && number + 1 >= break_after as usize {
                    break;
                }
            }
            Ok::<_, io::Error>(())
        });
    }
}

#[derive(Clone, Copy, Default)]
struct Tally {
    answered: u64,
    wrong: u64,
    failed: u64,
    /// Broken connections that were met.
    broken: u64,
    waited: Duration,
    waited_max: Duration,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let Arguments { fibers, connections, requests, break_after, json } = arguments;
    let listener = TcpListener::bind("127.0.0.1:0").context("no port to listen at")?;
    let address = listener.local_addr()?;
    squall::spawn(move || serve(&listener, break_after));
    let made = Arc::new(AtomicU64::new(0));
    let connector = Connector { address, made: Arc::clone(&made) };
    let started = Instant::now();
    let tally = squall::spawn(move || {
        let pool = Pool::builder()
            .max_size(connections)
            .connection_timeout(Duration::from_secs(60))
            .test_on_check_out(false)
            .build(connector)?;
        let asking: Vec<_> = (0..fibers)
            .map(|fiber| {
                let pool = pool.clone();
                squall::spawn(move || ask(&pool, fiber, requests))
            })
            .collect();
        let mut all = Tally::default();
        for fiber in asking {
            let one = fiber.join().map_err(|_| anyhow::anyhow!("a fiber panicked"))?;
            all.answered += one.answered;
            all.wrong += one.wrong;
            all.failed += one.failed;
            all.broken += one.broken;
            all.waited += one.waited;
            all.waited_max = all.waited_max.max(one.waited_max);
        }
        anyhow::Ok(all)
    });
    let tally = tally.join().map_err(|_| anyhow::anyhow!("the test panicked"))??;
    let elapsed = started.elapsed();
    let expected = u64::from(fibers) * u64::from(requests);
    let rate = tally.answered as f64 / elapsed.as_secs_f64();
    let waited_ms = tally.waited.as_secs_f64() * 1000.0 / tally.answered.max(1) as f64;
    let made = made.load(Ordering::Relaxed);
    if json {
        println!(
            "{}",
            json!({
                "fibers": fibers, "connections": connections, "requests": tally.answered, "wrong": tally.wrong, "failed": tally.failed,
                "connections_made": made, "broken_met": tally.broken, "requests_per_second": rate,
                "wait_for_connection_ms_mean": waited_ms, "wait_for_connection_ms_max": tally.waited_max.as_secs_f64() * 1000.0,
            })
        );
    } else {
        println!("connection pool test: {fibers} fibers share {connections} connections");
        println!("requests: {} of {expected}, {rate:.0} per second", tally.answered);
        println!(
            "wait for a connection: {waited_ms:.2} ms on average, {:.2} ms at most",
            tally.waited_max.as_secs_f64() * 1000.0
        );
        println!("connections made: {made}; broken ones met and replaced: {}", tally.broken);
        println!("wrong answers: {}, failed: {}", tally.wrong, tally.failed);
    }
    let is_right = tally.answered == expected && tally.wrong == 0 && tally.failed == 0;
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn ask(pool: &Pool<Connector>, fiber: u32, requests: u32) -> Tally {
    let mut tally = Tally::default();
    for request in 0..requests {
        let question = format!("{fiber} asks for the time number {request}");
        let mut attempts = 0;
        let answer = loop {
            attempts += 1;
            let begun = Instant::now();
            let connection = pool.get();
            let waited = begun.elapsed();
            tally.waited += waited;
            tally.waited_max = tally.waited_max.max(waited);
            match connection.map(|mut connection| connection.ask(&question)) {
                Ok(Ok(answer)) => break Some(answer),
                Ok(Err(_)) => tally.broken += 1,
                Err(_) => break None,
            }
            if attempts == ATTEMPTS {
                break None;
            }
        };
        match answer {
            Some(answer) => {
                tally.answered += 1;
                tally.wrong += u64::from(answer != question);
            }
            None => tally.failed += 1,
        }
    }
    tally
}

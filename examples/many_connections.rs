//! Opens many connections to an echo server, keeps all of them open at once, and talks over each: a fiber per connection, plain
//! `std::net` in each.
//!
//! `cargo run --release --example many_connections -- 127.0.0.1:7777 10000 10` opens 10,000 and makes 10 round trips over each. The
//! server and this program need as many descriptors each: see `ulimit -n`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::time::Instant;
use std::{env, process};

/// Connects, waits until everybody has, and makes the round trips.
fn talk(number: u64, address: &str, round_trips: u64, everybody: &Barrier) -> io::Result<()> {
    let connected = TcpStream::connect(address);
    // Also after a failure: the others wait for all.
    everybody.wait();
    let mut connection = connected?;
    connection.set_nodelay(true)?;
    for trip in 0..round_trips {
        let message = (number << 32 | trip).to_be_bytes();
        connection.write_all(&message)?;
        let mut answer = [0; 8];
        connection.read_exact(&mut answer)?;
        if answer != message {
            return Err(io::Error::other(format!("connection {number} got another one's answer")));
        }
    }
    everybody.wait();
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let address: Arc<str> = arguments.next().unwrap_or_else(|| "127.0.0.1:7777".into()).into();
    let connections: u64 = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    let round_trips: u64 = arguments.next().map_or(Ok(10), |text| text.parse())?;

    let everybody = Arc::new(Barrier::new(connections as usize));
    let started = Instant::now();
    let fibers: Vec<_> = (0..connections)
        .map(|number| {
            let (address, everybody) = (Arc::clone(&address), Arc::clone(&everybody));
            squall::spawn(move || {
                let result = talk(number, &address, round_trips, &everybody);
                if result.is_err() {
                    // Whoever could talk waits for the end of all.
                    everybody.wait();
                }
                result
            })
        })
        .collect();
    let mut failed = 0u64;
    for fiber in fibers {
        if let Err(error) = fiber.join().map_err(|_| "a fiber panicked")? {
            if failed == 0 {
                eprintln!("{error}");
            }
            failed += 1;
        }
    }
    println!(
        "{connections} connections at once, {} round trips, {failed} failed, {:.2} s",
        connections * round_trips,
        started.elapsed().as_secs_f64()
    );
    process::exit(i32::from(failed > 0));
}

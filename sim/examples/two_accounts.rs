//! Two accounts on two machines, and a transfer between them: a service in blocking style, simulated with a lossy world around it.
//!
//! Alice's machine takes the money from her account and asks Bob's to add it. A message or an answer may be lost, so Alice asks again until
//! she has an answer; and so that Bob does not get the money twice, each transfer has a number, and he remembers the last one that he
//! took. `cargo run -p squall-sim --example two_accounts` runs 200 seeds; with `forgetful` Bob does not remember, and the sum of both
//! accounts shows it.

#![forbid(unsafe_code)]

use squall_sim::{Simulation, World};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const TRANSFERS: u8 = 20;

/// Bob's machine: a connection, a number and an amount; the answer is one byte.
fn serve(balance: &Arc<AtomicI64>, forgetful: bool) -> io::Result<()> {
    let taken = Arc::new(Mutex::new(0));
    for stream in TcpListener::bind("0.0.0.0:700")?.incoming() {
        let (mut stream, balance, taken) = (stream?, Arc::clone(balance), Arc::clone(&taken));
        squall_hook::spawn(move || -> io::Result<()> {
            let mut request = [0; 2];
            stream.read_exact(&mut request)?;
            let mut last = taken.lock().expect("nobody panics with the lock");
            if request[0] > *last || forgetful {
                *last = request[0];
                balance.fetch_add(request[1].into(), Ordering::Relaxed);
            }
            stream.write_all(&[1])
        });
    }
    Ok(())
}

/// Alice's machine asks for one transfer, once.
fn transfer(number: u8, amount: u8) -> io::Result<()> {
    let mut stream = TcpStream::connect("bob:700")?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    stream.write_all(&[number, amount])?;
    stream.read_exact(&mut [0])
}

fn scenario(world: &World, forgetful: bool) -> i64 {
    let (alices, bobs) = (Arc::new(AtomicI64::new(100)), Arc::new(AtomicI64::new(100)));
    let (alice, bob) = (world.add_host("alice"), world.add_host("bob"));
    world.set_link(&bob, &alice, Duration::from_millis(40), 0.3);
    let balance = Arc::clone(&bobs);
    bob.start("serve", move || serve(&balance, forgetful).expect("the port is free"));
    let balance = Arc::clone(&alices);
    let paying = alice.start("pay", move || {
        std::thread::sleep(Duration::from_millis(1));
        for number in 1..=TRANSFERS {
            balance.fetch_sub(5, Ordering::Relaxed);
            while transfer(number, 5).is_err() {}
        }
    });
    paying.wait();
    alices.load(Ordering::Relaxed) + bobs.load(Ordering::Relaxed)
}

fn main() {
    let forgetful = std::env::args().nth(1).as_deref() == Some("forgetful");
    for seed in 1..=200 {
        let sum = Simulation::new(seed).run(move |world| scenario(world, forgetful)).expect();
        if sum != 200 {
            println!(
                "seed {seed}: both accounts together have {sum} instead of 200, and will have in every run of this seed"
            );
            std::process::exit(1);
        }
    }
    println!("200 seeds, and not a coin was lost or made");
}

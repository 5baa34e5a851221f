//! An echo server with a fiber per connection: ordinary blocking code over std. `echo_threads.rs` is the same program on threads:
//! `diff examples/echo_threads.rs examples/echo_fibers.rs`.
//!
//! `cargo run --release --example echo_fibers -- 127.0.0.1:7777`

#![forbid(unsafe_code)]

use std::env;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

fn serve(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        let count = connection.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        connection.write_all(&buffer[..count])?;
    }
}

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7777".into());
    let listener = TcpListener::bind(&address)?;
    println!("listening on {}", listener.local_addr()?);
    for connection in listener.incoming() {
        let connection = connection?;
        squall::spawn(move || serve(connection));
    }
    Ok(())
}

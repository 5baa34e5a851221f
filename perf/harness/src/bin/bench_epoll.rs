//! The floor of the echo benchmark: one thread, one level-triggered epoll, no runtime.

#![forbid(unsafe_code)]

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use squall_bench_harness::{BUFFER_BYTES, Measured, Runtime, Test, run};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

struct Epoll;

/// Echoes what has come. False when the client has gone.
fn echo_once(connection: &mut TcpStream) -> bool {
    let mut buffer = [0; BUFFER_BYTES];
    match connection.read(&mut buffer) {
        // A message always fits into the socket's buffer of a client that waits for them.
        Ok(bytes) if bytes > 0 => connection.write_all(&buffer[..bytes]).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
        Ok(_) => false,
    }
}

fn serve(listener: TcpListener) -> std::io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    listener.set_nonblocking(true)?;
    let listener_data = epoll::EventData::new_u64(u64::MAX);
    epoll::add(&epoll, &listener, listener_data, epoll::EventFlags::IN)?;
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let data = event.data;
            if data.u64() == u64::MAX {
                while let Ok((connection, _)) = listener.accept() {
                    connection.set_nodelay(true)?;
                    connection.set_nonblocking(true)?;
                    let slot = connection.as_raw_fd() as usize;
                    let data = epoll::EventData::new_u64(slot as u64);
                    epoll::add(&epoll, &connection, data, epoll::EventFlags::IN)?;
                    if connections.len() <= slot {
                        connections.resize_with(slot + 1, || None);
                    }
                    connections[slot] = Some(connection);
                }
                continue;
            }
            let slot = &mut connections[data.u64() as usize];
            if slot.as_mut().is_some_and(|connection| !echo_once(connection)) {
                *slot = None;
            }
        }
    }
}

impl Runtime for Epoll {
    fn run(&self, _test: Test, _count: u64, _workers: usize) -> Option<Measured> {
        None
    }

    fn echo(&self, listener: TcpListener, _workers: usize) -> bool {
        if let Err(error) = serve(listener) {
            eprintln!("error: {error}");
        }
        true
    }
}

fn main() -> ExitCode {
    run(&[("epoll", &Epoll)])
}

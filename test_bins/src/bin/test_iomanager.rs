//! Shows events by callback: a non-blocking connect, and what happens when the socket becomes writable.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use socket2::{Domain, Socket, Type};
use squall::{Event, IoManager};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::{Arc, mpsc};

/// Connects without blocking, with one callback for "readable" and one for "writable".
///
/// Prints the milestones of a scheduler's life, "EINPROGRESS" when the connect is under way, a line per event added, and
/// "connect success" once the socket is writable and has no error. Exits with 1 if the connect fails.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where to connect; by default to a listener of the program's own.
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    squall_test_bins::log_milestones();
    let (address, _listener) = match &arguments.addr {
        Some(text) => {
            let address =
                text.to_socket_addrs().with_context(|| format!("--addr {text} is not HOST:PORT"))?.next();
            (address.with_context(|| format!("--addr {text} has no address"))?, None)
        }
        None => {
            let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
            (listener.local_addr()?, Some(listener))
        }
    };

    let manager = Arc::new(IoManager::new(1, true)?);
    let (sender, outcome) = mpsc::channel();
    let in_fiber = Arc::clone(&manager);
    let connecting = manager.spawn(move || connect(&in_fiber, address, sender));
    // The calling thread is the only worker: from here on it runs the fiber and the callbacks.
    manager.stop();
    connecting.join().expect("the fiber does not panic")?;
    outcome.recv().context("neither event came")?.with_context(|| format!("cannot connect to {address}"))
}

/// Begins to connect and adds the events, whose callbacks send the outcome.
fn connect(
    manager: &Arc<IoManager>,
    address: SocketAddr,
    outcome: mpsc::Sender<std::io::Result<()>>,
) -> anyhow::Result<()> {
    let socket = Arc::new(Socket::new(Domain::for_address(address), Type::STREAM, None)?);
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => println!("connected at once"),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => println!("EINPROGRESS"),
        Err(error) => return Err(error).with_context(|| format!("cannot connect to {address}")),
    }
    let fd = socket.as_raw_fd();
    manager.add_event(fd, Event::READ, || println!("read callback"))?;
    println!("add event success,fd = {fd}");
    let in_callback = Arc::clone(manager);
    manager.add_event(fd, Event::WRITE, move || {
        println!("write callback");
        let result = match socket.take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        if result.is_ok() {
            println!("connect success");
        }
        in_callback.del_event(fd, Event::READ);
        // Only fails when main has given up waiting, which it does not.
        let _ = outcome.send(result);
    })?;
    println!("add event success,fd = {fd}");
    Ok(())
}

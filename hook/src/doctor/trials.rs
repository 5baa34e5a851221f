//! Tries the hooks: for each family of calls, does another fiber run on the same worker while one waits?

use super::Finding;
use core::sync::atomic::{AtomicBool, Ordering};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

/// After this long a waiting call is taken to have blocked its worker, and a plain thread ends the wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// A call that waits, and what ends its wait.
struct Trial {
    /// Made in a fiber.
    wait: Box<dyn FnOnce() -> io::Result<()> + Send>,
    /// Made by another fiber, or by a thread if that does not get to run. Twice does no harm.
    end: Box<dyn Fn() + Send + Sync>,
}

impl Trial {
    fn new(
        wait: impl FnOnce() -> io::Result<()> + Send + 'static,
        end: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Ok(Self { wait: Box::new(wait), end: Box::new(end) })
    }
}

pub(super) fn run() -> Vec<Finding> {
    type Family = (&'static str, fn() -> io::Result<Trial>);
    let families: [Family; 9] = [
        ("nanosleep", sleeping),
        ("recv", receiving),
        ("accept", accepting),
        ("read of a pipe", reading),
        ("poll", polling),
        ("epoll_wait", waiting_for_events),
        ("Mutex and Condvar (futex)", waiting_for_condition),
        ("mpsc channel (futex)", waiting_for_message),
        ("waitpid", waiting_for_child),
    ];
    families
        .into_iter()
        .map(|(family, make)| {
            make()
                .and_then(|trial| attempt(family, trial))
                .unwrap_or_else(|error| Finding::notice(family, format!("could not be tried: {error}"), ""))
        })
        .collect()
}

fn attempt(family: &str, trial: Trial) -> io::Result<Finding> {
    let manager = squall_iomanager::IoManager::new(1, false)?;
    let Trial { wait, end } = trial;
    let end = Arc::new(end);
    let is_over = Arc::new(AtomicBool::new(false));
    let waiter = {
        let (is_over, end) = (is_over.clone(), end.clone());
        manager.spawn(move || {
            let other_ran = Arc::new(AtomicBool::new(false));
            let runs = other_ran.clone();
            drop(squall_fiber::spawn(move || {
                if !is_over.load(Ordering::SeqCst) {
                    runs.store(true, Ordering::SeqCst);
                    end();
                }
            }));
            // Asked for before the other one gets the worker, if it has not had it.
            wait().map(|()| other_ran.load(Ordering::SeqCst))
        })
    };
    let rescuer = {
        let is_over = is_over.clone();
        thread::spawn(move || {
            thread::park_timeout(PATIENCE);
            if !is_over.load(Ordering::SeqCst) {
                end();
            }
        })
    };
    let outcome = waiter.join();
    is_over.store(true, Ordering::SeqCst);
    rescuer.thread().unpark();
    manager.stop();
    // It has nothing to return, and does not panic.
    let _ = rescuer.join();
    Ok(match outcome {
        Ok(Ok(true)) => Finding::good(family, "yes"),
        Ok(Ok(false)) => Finding::bad(
            family,
            "no: the call blocked its worker",
            "see which of its names above is dead, and whether the calls of a module go past it",
        ),
        Ok(Err(error)) => return Err(error),
        Err(_) => Finding::bad(family, "the call panicked", "run it again with RUST_BACKTRACE=1"),
    })
}

fn sleeping() -> io::Result<Trial> {
    let wait = || {
        thread::sleep(Duration::from_millis(50));
        Ok(())
    };
    Trial::new(wait, || ())
}

fn receiving() -> io::Result<Trial> {
    let (mut ours, theirs) = UnixStream::pair()?;
    Trial::new(move || ours.read_exact(&mut [0]), move || drop((&theirs).write(&[1])))
}

fn accepting() -> io::Result<Trial> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    Trial::new(move || listener.accept().map(drop), move || drop(TcpStream::connect(address)))
}

fn reading() -> io::Result<Trial> {
    let (mut reader, writer) = io::pipe()?;
    Trial::new(move || reader.read_exact(&mut [0]), move || drop((&writer).write(&[1])))
}

fn polling() -> io::Result<Trial> {
    let (reader, writer) = io::pipe()?;
    let wait = move || {
        let mut entry = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live entry.
        match unsafe { libc::poll(&mut entry, 1, -1) } {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    Trial::new(wait, move || drop((&writer).write(&[1])))
}

fn waiting_for_events() -> io::Result<Trial> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: takes no memory.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and known to nobody else.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    let wait = move || {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: one live event, and open descriptors.
        let count = unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, reader.as_raw_fd(), &mut event);
            libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, -1)
        };
        if count == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    Trial::new(wait, move || drop((&writer).write(&[1])))
}

fn waiting_for_condition() -> io::Result<Trial> {
    let pair = Arc::new((Mutex::new(false), Condvar::new()));
    let other = pair.clone();
    let wait = move || {
        let happened = pair.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(pair.1.wait_while(happened, |happened| !*happened));
        Ok(())
    };
    let end = move || {
        *other.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        other.1.notify_all();
    };
    Trial::new(wait, end)
}

fn waiting_for_message() -> io::Result<Trial> {
    let (sender, receiver) = mpsc::channel();
    let end = move || {
        let _ = sender.send(());
    };
    Trial::new(move || receiver.recv().map_err(io::Error::other), end)
}

fn waiting_for_child() -> io::Result<Trial> {
    // It ends when its input does.
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let input = Mutex::new(child.stdin.take());
    let end = move || drop(input.lock().unwrap_or_else(PoisonError::into_inner).take());
    Trial::new(move || child.wait().map(drop), end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn a_call_that_blocks_its_worker_is_found_dead() {
        let (sender, receiver) = mpsc::channel::<()>();
        let sender = Mutex::new(sender);
        // A busy wait: what a dead hook looks like to the other fibers of the worker.
        let wait = move || {
            while receiver.try_recv().is_err() {
                core::hint::spin_loop();
            }
            Ok(())
        };
        let end = move || {
            let _ = sender.lock().expect("nobody panics").send(());
        };
        let trial = Trial::new(wait, end).expect("nothing can fail");
        let finding = attempt("spinning", trial).expect("a worker");
        assert_eq!(finding.level, Level::Bad, "{finding:?}");
    }
}

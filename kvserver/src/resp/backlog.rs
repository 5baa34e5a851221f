//! Output to a client that does not read yet.
//!
//! Many clients write a whole pipeline before they read the first reply. A server that blocks on the full
//! socket would then stop reading, the client would block on its own full socket, and both would wait
//! forever. So a write that the socket does not take for a moment goes to a backlog in memory, which another
//! activity writes out, and the connection goes on reading. The usual write goes straight to the socket, with
//! no activity to wake.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clients::lock;

/// How long a direct write waits before the backlog takes over.
const PATIENCE: Duration = Duration::from_millis(20);
/// A client that takes no byte for so long is cut off.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Writes to a socket, by way of a backlog when the client does not keep up.
///
/// # Blocking
/// Writing blocks for at most a moment, except when the backlog is full: then until there is room, or until
/// the client has taken nothing for a minute and the connection is cut.
#[derive(Debug)]
pub struct BacklogWriter {
    shared: Arc<Shared>,
    bytes_max: usize,
}

#[derive(Debug)]
struct Shared {
    stream: Arc<TcpStream>,
    backlog: Mutex<Backlog>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Backlog {
    chunks: VecDeque<Vec<u8>>,
    /// Invariant: the bytes of the chunks and of the one being written.
    bytes: usize,
    /// Whether an activity is writing the backlog out. If not, it is empty.
    active: bool,
    failed: Option<io::ErrorKind>,
}

impl BacklogWriter {
    /// A writer that holds back up to about `bytes_max` bytes. Sets the socket's write timeout.
    ///
    /// # Errors
    /// If the timeout cannot be set.
    pub fn new(stream: Arc<TcpStream>, bytes_max: usize) -> io::Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        let shared = Shared { stream, backlog: Mutex::new(Backlog::default()), changed: Condvar::new() };
        Ok(Self { shared: Arc::new(shared), bytes_max })
    }

    /// Waits until everything written has been handed to the system, or could not be.
    ///
    /// # Blocking
    /// As long as the client keeps taking bytes, and a minute longer.
    pub fn finish(self) {
        let backlog = lock(&self.shared.backlog);
        let wait = self.shared.changed.wait_while(backlog, |backlog| backlog.active);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds to the backlog and sees to it that it is written out.
    fn hold_back(&self, bytes: &[u8]) -> io::Result<usize> {
        let full = |backlog: &mut Backlog| backlog.bytes >= self.bytes_max && backlog.failed.is_none();
        let backlog = lock(&self.shared.backlog);
        let mut backlog =
            self.shared.changed.wait_while(backlog, full).unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = backlog.failed {
            return Err(kind.into());
        }
        backlog.chunks.push_back(bytes.to_vec());
        backlog.bytes += bytes.len();
        if !backlog.active {
            let shared = self.shared.clone();
            crate::spawn("redis-backlog", move || shared.write_out())?;
            backlog.active = true;
        }
        Ok(bytes.len())
    }
}

impl Write for BacklogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if lock(&self.shared.backlog).active {
            return self.hold_back(bytes);
        }
        match (&*self.shared.stream).write(bytes) {
            Err(error) if is_timeout(&error) => self.hold_back(bytes),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// Writes the backlog out until it is empty or the client is given up.
    fn write_out(&self) {
        loop {
            let chunk = {
                let mut backlog = lock(&self.backlog);
                match backlog.chunks.pop_front() {
                    Some(chunk) => chunk,
                    None => {
                        backlog.active = false;
                        self.changed.notify_all();
                        return;
                    }
                }
            };
            let result = self.write_patiently(&chunk);
            let mut backlog = lock(&self.backlog);
            backlog.bytes -= chunk.len();
            if let Err(error) = result {
                *backlog = Backlog { failed: Some(error.kind()), ..Backlog::default() };
                // Wakes the reader, which would otherwise wait for requests that it could not answer. An
                // error here means that the connection is gone already.
                let _ = self.stream.shutdown(Shutdown::Both);
                self.changed.notify_all();
                return;
            }
            self.changed.notify_all();
        }
    }

    /// Writes all of `bytes`, as long as some are taken every now and then.
    fn write_patiently(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut progress_at = Instant::now();
        while !bytes.is_empty() {
            match (&*self.stream).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    progress_at = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) && progress_at.elapsed() < STALL_MAX => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

//! A TCP connection with the time limits that keep a silent or stuck peer from holding it for ever.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::CloseReason;

/// A connection, shared by the activity that reads it, the one that writes it, and whoever closes it.
#[derive(Debug, Clone)]
pub(crate) struct TimedStream {
    stream: Arc<TcpStream>,
    idle_timeout: Duration,
    /// While set, reads fail when it has passed; else when nothing arrived for `idle_timeout`.
    read_deadline: Option<Instant>,
}

impl TimedStream {
    pub(crate) fn new(
        stream: TcpStream,
        idle_timeout: Duration,
        write_stall_timeout: Duration,
    ) -> Result<TimedStream, CloseReason> {
        let stream = TimedStream { stream: Arc::new(stream), idle_timeout, read_deadline: None };
        // Frames are already gathered into as few writes as possible; Nagle's delay would only add to each.
        stream.stream.set_nodelay(true).map_err(io_reason)?;
        stream.stream.set_write_timeout(Some(write_stall_timeout)).map_err(io_reason)?;
        stream.read_with_idle_timeout()?;
        Ok(stream)
    }

    /// Ends the connection; reads and writes in progress return at once.
    pub(crate) fn shutdown(&self) {
        // Fails only when it is not connected any more.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub(crate) fn read_until(&mut self, deadline: Instant) {
        self.read_deadline = Some(deadline);
    }

    pub(crate) fn end_read_deadline(&mut self) -> Result<(), CloseReason> {
        self.read_deadline = None;
        self.read_with_idle_timeout()
    }

    fn read_with_idle_timeout(&self) -> Result<(), CloseReason> {
        self.stream.set_read_timeout(Some(self.idle_timeout)).map_err(io_reason)
    }
}

impl Read for TimedStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.read_deadline {
            // The socket's own timeout starts anew with each byte; a peer that trickles must not live on
            // that.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
        }
        (&*self.stream).read(into)
    }
}

fn io_reason(error: io::Error) -> CloseReason {
    CloseReason::Io(error.kind())
}

/// Writes all of `parts`, one after the other, in as few system calls as the socket allows; returns how many.
pub(crate) fn write_all(stream: &TimedStream, parts: &[&[u8]]) -> Result<usize, CloseReason> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    // Also drops leading empty parts: a write of nothing returns 0, as one to a dead socket would.
    IoSlice::advance_slices(&mut rest, 0);
    let mut writes = 0;
    while !rest.is_empty() {
        writes += 1;
        match (&*stream.stream).write_vectored(rest) {
            Ok(0) => return Err(CloseReason::Io(io::ErrorKind::WriteZero)),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Err(CloseReason::WriteStalled),
                kind => return Err(CloseReason::Io(kind)),
            },
        }
    }
    Ok(writes)
}

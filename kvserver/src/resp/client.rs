//! A client of the Redis protocol, for this project's own tools and measurements: blocking, one connection, no retries. Whoever wants
//! retries and exactly-once writes uses the [`Clerk`](crate::clerk::Clerk).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;

use super::Reply;

/// What a reply may hold in all: a value of the greatest length there is, and some more.
const REPLY_BYTES_MAX: usize = 1 << 30;
const DEPTH_MAX: usize = 16;

/// A connection to a Redis server.
#[derive(Debug)]
pub struct RespClient {
    stream: BufReader<TcpStream>,
    out: Vec<u8>,
}

impl RespClient {
    /// Connects, and authenticates if there is a password. Every wait for the server ends after `timeout`.
    ///
    /// # Errors
    /// Those of the connection; [`io::ErrorKind::PermissionDenied`] with the server's words if it refuses the password.
    ///
    /// # Blocking
    /// Up to `timeout` for each step.
    pub fn connect(address: SocketAddr, password: Option<&[u8]>, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut client = Self { stream: BufReader::new(stream), out: Vec::new() };
        if let Some(password) = password
            && let Reply::Error(text) = client.call(&[b"AUTH", password])?
        {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text.into_owned()));
        }
        Ok(client)
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// Those of the connection, and [`io::ErrorKind::InvalidData`] for what is no reply. An error that the server answers is a reply.
    ///
    /// # Blocking
    /// Until the reply, or the timeout.
    pub fn call(&mut self, command: &[&[u8]]) -> io::Result<Reply> {
        self.push(command);
        self.flush()?;
        self.receive()
    }

    /// Adds a command to those that [`RespClient::flush`] sends.
    pub fn push(&mut self, command: &[&[u8]]) {
        self.out.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
        for argument in command {
            self.out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            self.out.extend_from_slice(argument);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    /// Sends what was pushed.
    ///
    /// # Errors
    /// Those of the connection.
    ///
    /// # Blocking
    /// Until the server has room for it, or the timeout.
    pub fn flush(&mut self) -> io::Result<()> {
        let result = self.stream.get_mut().write_all(&self.out);
        self.out.clear();
        result
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// As [`RespClient::call`].
    ///
    /// # Blocking
    /// Until the reply, or the timeout.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut budget = REPLY_BYTES_MAX;
        read_reply(&mut self.stream, &mut budget, 0)
    }
}

fn read_reply(input: &mut impl BufRead, budget: &mut usize, depth: usize) -> io::Result<Reply> {
    let malformed =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("malformed reply: {what}"));
    let mut line = Vec::new();
    input.by_ref().take(*budget as u64).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let [kind, text @ .., b'\r', b'\n'] = &line[..] else { return Err(malformed("a line without an end")) };
    *budget = budget.checked_sub(line.len()).ok_or_else(|| malformed("too long"))?;
    let text = String::from_utf8_lossy(text).into_owned();
    let number = || text.parse::<i64>().map_err(|_| malformed("a number that is none"));
    Ok(match kind {
        b'+' => Reply::Status(text.into()),
        b'-' => Reply::Error(text.into()),
        b':' => Reply::Integer(number()?),
        b'_' => Reply::Nil,
        b'$' | b'*' if number()? < 0 => Reply::Nil,
        b'$' => {
            let length = usize::try_from(number()?).map_err(|_| malformed("a length"))?;
            *budget = budget.checked_sub(length).ok_or_else(|| malformed("too long"))?;
            let mut bytes = Vec::new();
            if input.by_ref().take(length as u64).read_to_end(&mut bytes)? != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            input.read_exact(&mut [0; 2])?;
            Reply::Bulk(Bytes::from(bytes))
        }
        b'*' if depth < DEPTH_MAX => {
            let count = number()?;
            Reply::Array((0..count).map(|_| read_reply(input, budget, depth + 1)).collect::<io::Result<_>>()?)
        }
        _ => return Err(malformed("an unknown type")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Reply> {
        read_reply(&mut &bytes[..], &mut 100, 0)
    }

    #[test]
    fn replies_of_every_kind() {
        let reply = read(b"*6\r\n+OK\r\n-ERR x\r\n:-3\r\n$3\r\na\r\n\r\n$-1\r\n*1\r\n_\r\n").unwrap();
        let nested = Reply::Array(vec![Reply::Nil]);
        let error = Reply::Error("ERR x".into());
        assert_eq!(
            reply,
            Reply::Array(vec![
                Reply::OK,
                error,
                Reply::Integer(-3),
                Reply::bulk("a\r\n"),
                Reply::Nil,
                nested
            ])
        );
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bad in [&b"+OK"[..], b"?\r\n", b":x\r\n", b"$1\r\n", b"$200\r\n", b"*2\r\n:1\r\n", b""] {
            assert!(read(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(read(&b"*1\r\n".repeat(20)).is_err(), "nested too deeply");
    }
}

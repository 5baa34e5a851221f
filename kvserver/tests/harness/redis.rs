//! A small blocking Redis client.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Status(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    pub fn ok() -> Reply {
        Reply::Status("OK".into())
    }

    pub fn bulk(value: impl AsRef<[u8]>) -> Reply {
        Reply::Bulk(value.as_ref().to_vec())
    }

    /// The text of a bulk string, a status or an error.
    #[track_caller]
    pub fn text(&self) -> String {
        match self {
            Reply::Status(text) | Reply::Error(text) => text.clone(),
            Reply::Bulk(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            other => panic!("{other:?} has no text"),
        }
    }

    #[track_caller]
    pub fn integer(&self) -> i64 {
        match self {
            Reply::Integer(number) => *number,
            other => panic!("{other:?} is no integer"),
        }
    }
}

/// A connection to a server.
pub struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    pub fn connect(address: SocketAddr) -> io::Result<Redis> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Redis { stream: BufReader::new(stream) })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends commands in one piece and returns their replies.
    pub fn pipeline(&mut self, commands: &[Vec<String>]) -> io::Result<Vec<Reply>> {
        let bytes: Vec<u8> = commands.iter().flat_map(|command| encode(command)).collect();
        self.send(&bytes)?;
        commands.iter().map(|_| self.receive()).collect()
    }

    pub fn try_call<S: AsRef<str>>(&mut self, command: &[S]) -> io::Result<Reply> {
        self.send(&encode(command))?;
        self.receive()
    }

    /// Sends a command and returns its reply, where nothing is expected to fail.
    #[track_caller]
    pub fn call<S: AsRef<str>>(&mut self, command: &[S]) -> Reply {
        self.try_call(command).unwrap()
    }

    /// Reads until the server ends the connection.
    pub fn rest(mut self) -> String {
        let mut rest = Vec::new();
        // A reset ends it as well as an orderly end.
        let _ = self.stream.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }

    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("malformed reply {line:?}"));
        let (kind, text) = line.trim_end().split_at_checked(1).ok_or_else(malformed)?;
        let number = || text.parse::<i64>().map_err(|_| malformed());
        Ok(match kind {
            "+" => Reply::Status(text.into()),
            "-" => Reply::Error(text.into()),
            ":" => Reply::Integer(number()?),
            "$" | "*" if number()? < 0 => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; number()? as usize + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(bytes)
            }
            "*" => Reply::Array((0..number()?).map(|_| self.receive()).collect::<io::Result<_>>()?),
            _ => return Err(malformed()),
        })
    }
}

fn encode<S: AsRef<str>>(command: &[S]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for argument in command {
        let argument = argument.as_ref();
        bytes.extend_from_slice(format!("${}\r\n{argument}\r\n", argument.len()).as_bytes());
    }
    bytes
}

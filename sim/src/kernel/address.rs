//! Addresses of sockets: as programs give them, and by which a machine finds the socket that is meant.

use super::disk::Inode;
use squall_hook::{Errno, Result};
use std::net::{Ipv4Addr, SocketAddrV4};

/// A `sockaddr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Inet(SocketAddrV4),
    /// A path; empty for a socket without a name.
    Unix(Vec<u8>),
}

/// What a socket that can be reached has for itself on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Port {
    Tcp(u16),
    Udp(u16),
    /// The file that `bind` has made.
    Unix(Inode),
    /// One of a pair.
    Unnamed(u64),
}

impl Address {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let (family, rest) = bytes.split_first_chunk::<2>().ok_or(Errno::INVAL)?;
        match i32::from(u16::from_ne_bytes(*family)) {
            libc::AF_INET if rest.len() >= 6 => {
                let ip = Ipv4Addr::new(rest[2], rest[3], rest[4], rest[5]);
                Ok(Self::Inet(SocketAddrV4::new(ip, u16::from_be_bytes([rest[0], rest[1]]))))
            }
            libc::AF_UNIX => {
                let path = rest.split(|byte| *byte == 0).next().unwrap_or_default();
                // Linux's names without a file are not in this world.
                if path.is_empty() { Err(Errno::INVAL) } else { Ok(Self::Unix(path.to_vec())) }
            }
            _ => Err(Errno(libc::EAFNOSUPPORT)),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Inet(address) => {
                let mut bytes = vec![0; 16];
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
                bytes[4..8].copy_from_slice(&address.ip().octets());
                bytes
            }
            Self::Unix(path) => {
                let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
                if !path.is_empty() {
                    bytes.extend_from_slice(path);
                    bytes.push(0);
                }
                bytes
            }
        }
    }

    /// What a socket that was not bound has.
    pub(crate) fn unbound(unix: bool) -> Self {
        if unix { Self::Unix(Vec::new()) } else { Self::Inet(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)) }
    }

    pub(crate) fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

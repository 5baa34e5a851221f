//! Asks a running kvserver, at its admin port, for a profile of itself.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// What a node takes for it, beyond the time that it looks: names of functions, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Gets a page of the admin port.
///
/// # Errors
/// Nobody answers, or with another status than 200: then the error says what the node said.
pub fn get(admin: SocketAddr, path: &str, takes: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(takes + PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("not an answer of HTTP"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("{}: {}", head.lines().next().unwrap_or(""), body.trim()))),
    }
}

/// The admin port of a process, if it is a kvserver's node: that one of its listening ports which says so.
///
/// # Errors
/// The process is gone, or another user's.
pub fn admin_port_of(pid: u32) -> io::Result<Option<SocketAddr>> {
    let listening = listening_ports(pid)?;
    Ok(listening.into_iter().find(|address| {
        let status = get(*address, "/status", Duration::ZERO).ok();
        let status = status.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        status.is_some_and(|status| status["process_id"] == pid)
    }))
}

/// The ports that a process listens on.
fn listening_ports(pid: u32) -> io::Result<Vec<SocketAddr>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed meanwhile.
        let Ok(target) = entry.and_then(|entry| fs::read_link(entry.path())) else { continue };
        let target = target.to_string_lossy().into_owned();
        sockets.extend(target.strip_prefix("socket:[").map(|rest| rest.trim_end_matches(']').to_owned()));
    }
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    Ok(table
        .lines()
        .filter_map(listener)
        .filter(|(_, inode)| sockets.contains(inode))
        .map(|(at, _)| at)
        .collect())
}

/// A line of `/proc/net/tcp`, if it is about a socket that listens: its address, and its number.
fn listener(line: &str) -> Option<(SocketAddr, String)> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    if *state != LISTEN {
        return None;
    }
    let (ip, port) = address.split_once(':')?;
    // The bytes are in the order of the network, the word in that of the machine.
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
    let ip = if ip.is_unspecified() { Ipv4Addr::LOCALHOST } else { ip };
    Some((SocketAddr::new(IpAddr::V4(ip), u16::from_str_radix(port, 16).ok()?), (*inode).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn own_listening_ports_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it has one");
        assert!(listening_ports(std::process::id()).expect("own").contains(&address));
        drop(listener);
        assert!(!listening_ports(std::process::id()).expect("own").contains(&address));
    }

    #[test]
    fn what_does_not_listen_is_left_out() {
        let line = |state| {
            format!(
                "   0: 0100007F:1C9B 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 4711 1 0"
            )
        };
        let expected = ("127.0.0.1:7323".parse().expect("an address"), "4711".to_owned());
        if cfg!(target_endian = "little") {
            assert_eq!(listener(&line("0A")), Some(expected));
        }
        assert_eq!(listener(&line("01")), None);
        assert_eq!(listener("  sl  local_address rem_address   st"), None);
    }
}

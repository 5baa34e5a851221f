//! `poll` and `ppoll`.

use crate::harness::*;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::thread;

#[test]
fn poll_waits_reports_and_times_out() {
    differ(true, |notes| {
        let (mut client, server) = tcp_pair();
        let (reader, writer_end) = std::io::pipe().unwrap();
        let mut entries =
            [entry(server.as_raw_fd(), libc::POLLIN), entry(reader.as_raw_fd(), libc::POLLIN), entry(-1, 7)];
        raw(notes, "nothing", poll(&mut entries, 20));
        let writer = companion(move || {
            thread::sleep(pause());
            client.write_all(b"x").unwrap();
            thread::sleep(pause());
            drop(writer_end);
            thread::sleep(pause());
            drop(client);
        });
        raw(notes, "data", poll(&mut entries, -1));
        notes.push(format!("{:?}", entries.map(|entry| entry.revents)));
        raw(notes, "hang-up of a pipe", poll(&mut entries[1..], 5000));
        notes.push(format!("{:?}", entries.map(|entry| entry.revents)));
        writer();
        raw(notes, "a pause", poll(&mut [], 20));
    });
}

#[test]
fn poll_knows_files_devices_and_bad_descriptors() {
    differ(false, |notes| {
        let file = tempfile::tempfile().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut entries = [
            entry(file.as_raw_fd(), libc::POLLIN | libc::POLLOUT),
            entry(null.as_raw_fd(), libc::POLLIN),
            entry(999_999, libc::POLLIN),
        ];
        raw(notes, "poll", poll(&mut entries, -1));
        notes.push(format!("{:?}", entries.map(|entry| entry.revents)));
    });
}

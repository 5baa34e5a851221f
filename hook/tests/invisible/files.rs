//! Regular files, devices, terminals, the standard streams.

use crate::harness::*;
use std::io::Write;
use std::os::fd::AsRawFd;

#[test]
fn files_are_read_written_and_synced() {
    differ(false, |notes| {
        let mut file = tempfile::tempfile().unwrap();
        kind(notes, "write", file.write(b"some bytes"));
        kind(notes, "sync_data", file.sync_data());
        kind(notes, "sync_all", file.sync_all());
        kind(notes, "metadata", file.metadata().map(|metadata| metadata.len()));
        let (reader, _writer) = std::io::pipe().unwrap();
        // SAFETY: no memory is involved.
        raw(notes, "fsync of a pipe", unsafe { libc::fsync(reader.as_raw_fd()) });
    });
}

#[test]
fn standard_streams_are_left_alone() {
    differ(false, |notes| {
        for fd in 0..3 {
            // SAFETY: F_GETFL takes no argument.
            let before = unsafe { libc::fcntl(fd, libc::F_GETFL) };
            std::io::stderr().write_all(b"").unwrap();
            // SAFETY: as above.
            notes.push(format!("{}", before == unsafe { libc::fcntl(fd, libc::F_GETFL) }));
        }
    });
}

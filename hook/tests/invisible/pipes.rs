//! Pipes and FIFOs.

use crate::harness::*;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::thread;

#[test]
fn pipes_block_a_reader_and_a_writer_and_end() {
    differ(true, |notes| {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let other = companion(move || {
            thread::sleep(pause());
            // More than the pipe holds: waits for the reader.
            writer.write_all(&vec![3; 300_000]).unwrap();
        });
        let mut buffer = vec![0; 1000];
        kind(notes, "first read", reader.read(&mut buffer));
        thread::sleep(pause());
        let mut rest = Vec::new();
        kind(notes, "the rest", reader.read_to_end(&mut rest));
        // SAFETY: F_GETFL takes no argument.
        raw(notes, "flags", unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_GETFL) });
        other();
    });
}

//! What needs no server: std's processes and names, and the channels and locks that other crates are built on.

use squall_compat::crowd::{self, FIBERS};
use std::cell::Cell;
use std::net::ToSocketAddrs;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// Fibers of the contended tests.
const THOUSANDS: usize = 3_000;

#[test]
fn processes_are_started_and_their_output_read_by_200_fibers() {
    crowd::run("std::process::Command", FIBERS, |member| {
        member.meet();
        for round in 0..2 {
            let word = format!("{}-{round}", member.index);
            let output =
                Command::new("sh").args(["-c", "sleep 0.1; echo $0; exit 3", &word]).output().unwrap();
            assert_eq!(output.stdout, format!("{word}\n").as_bytes());
            assert_eq!(output.status.code(), Some(3));
        }
    });
}

#[test]
fn names_are_resolved_by_200_fibers() {
    crowd::run("getaddrinfo", FIBERS, |member| {
        member.meet();
        for _ in 0..25 {
            let port = 1_000 + member.index as u16;
            let addresses: Vec<_> = ("localhost", port).to_socket_addrs().unwrap().collect();
            assert!(addresses.iter().any(|address| address.ip().is_loopback() && address.port() == port));
        }
    });
}

#[test]
fn a_ring_of_std_channels_passes_a_token_through_thousands_of_fibers() {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THOUSANDS).map(|_| mpsc::sync_channel(0)).unzip();
    let receivers: Vec<_> =
        receivers.into_iter().map(|receiver| std::sync::Mutex::new(Some(receiver))).collect();
    crowd::run("std::sync::mpsc", THOUSANDS, move |member| {
        let receiver = receivers[member.index].lock().unwrap().take().unwrap();
        let next = &senders[(member.index + 1) % THOUSANDS];
        member.meet();
        for round in 0..3 {
            if member.index == 0 {
                next.send(round * THOUSANDS).unwrap();
                assert_eq!(receiver.recv().unwrap(), round * THOUSANDS + THOUSANDS - 1);
            } else {
                let token = receiver.recv().unwrap();
                next.send(token + 1).unwrap();
            }
        }
    });
}

#[test]
fn a_parking_lot_mutex_excludes_thousands_of_fibers_that_sleep_in_it() {
    let shared = Arc::new((parking_lot::Mutex::new(0_u64), parking_lot::Condvar::new()));
    let counter = Arc::clone(&shared);
    crowd::run("parking_lot::Mutex and Condvar", THOUSANDS, move |member| {
        member.meet();
        for round in 0..3 {
            let mut count = counter.0.lock();
            let before = *count;
            if (member.index + round) % 100 == 0 {
                thread::sleep(Duration::from_millis(1));
            } else {
                squall::yield_now();
            }
            *count = before + 1;
        }
        let mut count = counter.0.lock();
        counter.1.notify_all();
        while *count < 3 * THOUSANDS as u64 {
            counter.1.wait(&mut count);
        }
    });
    assert_eq!(*shared.0.lock(), 3 * THOUSANDS as u64);
}

#[test]
fn a_parking_lot_rwlock_shows_thousands_of_fibers_whole_pairs() {
    let pair = parking_lot::RwLock::new((0_u64, 0_u64));
    crowd::run("parking_lot::RwLock", THOUSANDS, move |member| {
        member.meet();
        for _ in 0..3 {
            if member.index.is_multiple_of(10) {
                let mut pair = pair.write();
                pair.0 += 1;
                squall::yield_now();
                pair.1 += 1;
            } else {
                let pair = pair.read();
                squall::yield_now();
                assert_eq!(pair.0, pair.1);
            }
        }
    });
}

#[test]
fn crossbeam_channels_carry_every_message_once_between_thousands_of_fibers() {
    let (sender, receiver) = crossbeam_channel::bounded::<u64>(4);
    let (tally_sender, tally) = crossbeam_channel::unbounded();
    crowd::run("crossbeam_channel", THOUSANDS, move |member| {
        member.meet();
        if member.index.is_multiple_of(2) {
            for round in 0..5 {
                sender.send((member.index * 5 + round) as u64).unwrap();
            }
        } else {
            let never = crossbeam_channel::never::<()>();
            for _ in 0..5 {
                crossbeam_channel::select! {
                    recv(receiver) -> message => tally_sender.send(message.unwrap()).unwrap(),
                    recv(never) -> _ => unreachable!("a channel that has no sender"),
                }
            }
        }
    });
    let mut messages: Vec<_> = tally.iter().collect();
    messages.sort_unstable();
    let sent: Vec<_> = (0..THOUSANDS as u64).step_by(2).flat_map(|index| index * 5..index * 5 + 5).collect();
    assert_eq!(messages, sent);
}

#[test]
fn a_once_cell_is_filled_once_while_thousands_of_fibers_wait() {
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    let filled = Arc::new(parking_lot::Mutex::new(0));
    let (cell, fills) = (once_cell::sync::OnceCell::new(), Arc::clone(&filled));
    crowd::run("once_cell", THOUSANDS, move |member| {
        MINE.set(member.index);
        member.meet();
        let value = *cell.get_or_init(|| {
            thread::sleep(Duration::from_millis(50));
            *fills.lock() += 1;
            member.index
        });
        assert!(value < THOUSANDS);
        assert_eq!(MINE.get(), member.index);
    });
    assert_eq!(*filled.lock(), 1);
}

//! `select` over channel operations.

use super::*;
use squall_fiber::sync::{
    Operation, RecvError, SendError, bounded, oneshot, select, select_timeout, try_select, unbounded,
};
use squall_fiber::{Interrupt, WaitKind};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn select_takes_what_is_there() {
    let ((a, from_a), (b, from_b)) = (unbounded(), bounded(1));
    a.send(1).unwrap();
    let got = select! {
        recv(from_a) -> value => value.unwrap(),
        recv(from_b) -> value => value.unwrap(),
    };
    assert_eq!(got, Ok(1));
    let sent = select! {
        recv(from_a) -> _ => "received",
        send(b, 7) -> result => {
            result.unwrap();
            "sent"
        }
    };
    assert_eq!(sent, Ok("sent"));
    assert_eq!(from_b.recv(), Ok(7));
}

#[test]
fn select_waits_for_the_first_whoever_waits() {
    for kind in KINDS {
        let scheduler = scheduler(2);
        let ((a, from_a), (b, from_b), (c, from_c)) = (bounded(0), unbounded(), oneshot());
        let member = Member::start(&scheduler, kind, move || {
            let mut got = Vec::new();
            let mut is_asked = true;
            while got.len() < 3 {
                select! {
                    recv(from_a) -> value => got.push(value.unwrap()),
                    recv(from_b) -> value => got.push(value.unwrap()),
                    recv(from_c) -> value => {
                        // Once received, it is disconnected.
                        if let Ok(value) = value { got.push(value) } else { is_asked = false }
                    }
                }
                .unwrap();
                pause();
            }
            (got, is_asked)
        });
        for (n, send) in
            [&(|n| a.send(n).unwrap()) as &dyn Fn(i32), &|n| b.send(n).unwrap()].iter().enumerate()
        {
            send(n as i32);
            thread::sleep(SHORT);
        }
        c.send(2).unwrap();
        let (mut got, _) = member.join();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2], "{kind:?}");
    }
}

#[test]
fn select_gives_up_in_time_and_can_do_without_waiting() {
    let (a, from_a) = bounded::<i32>(0);
    let late = select! {
        recv(from_a) -> _ => false,
        send(a, 1) -> _ => false,
        timeout(SHORT) => true,
    };
    assert_eq!(late, Ok(true));
    let now = select! {
        recv(from_a) -> _ => false,
        send(a, 1) -> _ => false,
        default => true,
    };
    assert!(now);
    drop(a);
    let disconnected = select! {
        recv(from_a) -> value => value == Err(RecvError::Disconnected),
        default => false,
    };
    assert!(disconnected);
}

#[test]
fn select_is_interrupted_and_then_has_done_nothing() {
    let scheduler = scheduler(1);
    let ((a, from_a), (b, from_b)) = (bounded(0), bounded(0));
    let (theirs, their_b) = (from_a.clone(), b.clone());
    let fiber = scheduler.spawn(Builder::new(), move || {
        select! {
            recv(theirs) -> value => value.unwrap(),
            send(their_b, 2) -> result => { result.unwrap(); 0 }
        }
    });
    until_it_waits(&scheduler, fiber.fiber(), WaitKind::Select);
    fiber.cancel();
    assert_eq!(fiber.join().unwrap(), Err(Interrupt::Cancelled));
    assert!(a.try_send(1).is_err());
    assert!(from_b.try_recv().is_err());
}

#[test]
fn select_hears_of_disconnection() {
    let scheduler = scheduler(1);
    for drop_receiver in [false, true] {
        let ((a, from_a), (b, from_b)) = (bounded::<i32>(0), bounded::<i32>(0));
        let fiber = scheduler.spawn(Builder::new(), move || {
            select! {
                recv(from_a) -> value => value.map(|_| ()).map_err(|_| "senders are gone"),
                send(b, 9) -> result => result.map_err(|error| {
                    assert_eq!(error, SendError::Disconnected(9));
                    "receivers are gone"
                }),
            }
        });
        until_it_waits(&scheduler, fiber.fiber(), WaitKind::Select);
        let expected = if drop_receiver { "receivers are gone" } else { "senders are gone" };
        if drop_receiver {
            drop(from_b)
        } else {
            drop(a)
        }
        assert_eq!(fiber.join().unwrap(), Ok(Err(expected)));
    }
}

#[test]
fn the_code_of_an_arm_may_drop_the_channel_and_leave_the_loop() {
    let (a, from_a) = unbounded();
    let mut receiver = Some(from_a);
    a.send(String::from("go on")).unwrap();
    a.send(String::from("stop")).unwrap();
    let word = loop {
        let Some(from_a) = receiver.take() else { panic!("each round leaves it for the next") };
        select! {
            recv(from_a) -> word => {
                let word = word.unwrap();
                if word == "stop" {
                    drop(from_a);
                    break word;
                }
                receiver = Some(from_a);
            }
        }
        .unwrap();
    };
    assert_eq!(word, "stop");
    assert_eq!(a.send(word).unwrap_err().into_inner(), "stop");
}

#[test]
fn busy_channels_have_their_turns() {
    let channels: Vec<_> = (0..3).map(|_| unbounded()).collect();
    for (sender, _) in &channels {
        (0..300).for_each(|_| sender.send(()).unwrap());
    }
    let mut counts = [0; 3];
    for _ in 0..300 {
        let mut receiving: Vec<_> = channels.iter().map(|(_, receiver)| receiver.receiving()).collect();
        let mut operations: Vec<_> = receiving.iter_mut().map(|one| one as &mut dyn Operation).collect();
        counts[select(&mut operations).unwrap()] += 1;
    }
    assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
}

#[test]
fn an_operation_that_was_not_done_can_be_used_again() {
    let ((a, from_a), (b, from_b)) = (bounded(1), bounded(1));
    a.send(1).unwrap();
    b.send(2).unwrap();
    let mut sending = b.sending(3);
    let mut receiving = from_a.receiving();
    assert_eq!(select(&mut [&mut sending, &mut receiving]), Ok(1));
    assert_eq!(receiving.finish(), Ok(1));
    assert!(select_timeout(&mut [&mut sending], SHORT).is_err());
    assert_eq!(from_b.recv(), Ok(2));
    assert_eq!(try_select(&mut [&mut sending]), Some(0));
    // Done, and not finished: it cannot be done again.
    assert!(catch_unwind(AssertUnwindSafe(|| try_select(&mut [&mut sending]))).is_err());
    assert_eq!(sending.finish(), Ok(()));
    assert_eq!(from_b.recv(), Ok(3));
    assert_eq!(b.sending(4).into_value(), 4);
    assert!(catch_unwind(AssertUnwindSafe(|| from_a.receiving().finish())).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| select(&mut []))).is_err());
}

#[test]
fn a_select_does_not_meet_itself() {
    let (a, from_a) = bounded::<i32>(0);
    let outcome = select! {
        send(a, 1) -> _ => "sent",
        recv(from_a) -> _ => "received",
        timeout(SHORT) => "neither",
    };
    assert_eq!(outcome, Ok("neither"));
}

#[test]
fn selects_meet_each_other() {
    const ROUNDS: usize = 2000;
    for workers in [1, 3] {
        let ((a, from_a), (b, from_b)) = (bounded::<usize>(0), bounded::<usize>(0));
        // Everybody offers to send on one channel and to receive from the other; each exchange has one on either side.
        let sums = mixture(workers, 6, &KINDS, move |n| {
            let (mut sent, mut received) = (0, 0);
            let (to, from) = if n % 2 == 0 { (&a, &from_b) } else { (&b, &from_a) };
            for round in 0..ROUNDS {
                let outcome = select! {
                    send(to, round) -> result => result.map(|()| sent += round).is_ok(),
                    recv(from) -> value => value.map(|value| received += value).is_ok(),
                    // The last one may find nobody left.
                    timeout(SHORT) => true,
                };
                assert_eq!(outcome, Ok(true));
            }
            (sent, received)
        });
        let (sent, received) =
            sums.iter().fold((0, 0), |(sent, received), sum| (sent + sum.0, received + sum.1));
        assert_eq!(sent, received);
        assert!(sent > 0);
    }
}

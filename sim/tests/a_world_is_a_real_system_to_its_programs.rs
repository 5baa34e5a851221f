//! Ordinary code over std in a simulated world: sockets, files, clocks, randomness, and what faults look like from inside.

use squall_sim::{DiskFaults, Exit, Simulation, World};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[test]
fn time_passes_only_when_nobody_has_anything_to_do() {
    let real = Instant::now();
    let outcome = Simulation::new(1).run(|world| {
        let started = Instant::now();
        let wall = SystemTime::now();
        std::thread::sleep(Duration::from_secs(86_400));
        assert_eq!(started.elapsed().as_secs(), 86_400);
        assert_eq!(wall.elapsed().unwrap().as_secs(), 86_400);
        assert_eq!(wall.duration_since(UNIX_EPOCH).unwrap().as_secs(), 1_767_225_600);
        let (sender, receiver) = mpsc::channel::<()>();
        assert!(receiver.recv_timeout(Duration::from_secs(5)).is_err());
        drop(sender);
        world.now().as_secs()
    });
    assert_eq!(outcome.expect(), 86_405);
    assert!(real.elapsed() < Duration::from_secs(60));
}

/// Everything that a program can observe and that could come from the machine.
fn observe(world: &World) -> String {
    let host = world.add_host("node");
    let (sender, seen) = mpsc::channel();
    for n in 0..4 {
        let sender = sender.clone();
        host.start("program", move || {
            let map: HashMap<u32, u32> = (0..50).map(|n| (n, n)).collect();
            let order: Vec<u32> = map.keys().copied().collect();
            sleep_ms(1);
            sender.send((n, order, std::process::id(), SystemTime::now())).unwrap();
        });
    }
    drop(sender);
    format!("{:?}", seen.iter().collect::<Vec<_>>())
}

#[test]
fn the_same_seed_has_the_same_run_and_another_seed_another() {
    let run = |seed| {
        let outcome = Simulation::new(seed).run(observe);
        let (digest, events) = (outcome.digest, outcome.events);
        (outcome.expect(), digest, events)
    };
    let first = run(7);
    assert_eq!(first, run(7));
    let other = run(8);
    assert_ne!(first.0, other.0);
    assert_ne!(first.1, other.1);
}

/// The check must be able to fail: an address in a decision, and the order of a map whose keys the machine has drawn.
#[test]
fn a_leak_of_the_machine_into_a_decision_changes_the_digest() {
    fn digest(leak: impl Fn() -> u64 + Send + 'static) -> u64 {
        Simulation::new(7).run(move |_| sleep_ms(leak() % 1000)).digest
    }
    assert_eq!(digest(|| 5), digest(|| 5));
    // Kept alive, so that no address is given out twice.
    let address = || Box::leak(Box::new([0_u8; 100_003])) as *const _ as u64 / 16;
    let addresses: std::collections::HashSet<u64> = (0..8).map(|_| digest(address)).collect();
    assert!(addresses.len() > 1, "an address did not show");
    let real = || {
        let map: HashMap<u64, ()> = (0..100).map(|n| (n, ())).collect();
        map.into_keys().next().unwrap()
    };
    let orders: std::collections::HashSet<u64> = (0..8)
        .map(|_| {
            let order = std::thread::spawn(real).join().unwrap();
            digest(move || order)
        })
        .collect();
    assert!(orders.len() > 1, "the order of a map did not show");
}

#[test]
fn programs_talk_over_tcp_by_name() {
    let outcome = Simulation::new(3).run(|world| {
        let server = world.add_host("server");
        server.start("server", || {
            let listener = TcpListener::bind(("0.0.0.0", 80)).unwrap();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                squall_hook::spawn(move || {
                    let mut text = Vec::new();
                    stream.read_to_end(&mut text).unwrap();
                    text.reverse();
                    stream.write_all(&text).unwrap();
                });
            }
        });
        sleep_ms(10);
        let clients: Vec<_> = (0..20_u8)
            .map(|n| {
                squall_hook::spawn(move || {
                    let mut stream = TcpStream::connect("server:80").unwrap();
                    assert_eq!(stream.peer_addr().unwrap().port(), 80);
                    let text: Vec<u8> = (0..100_000).map(|at| (at % 251) as u8 ^ n).collect();
                    stream.write_all(&text).unwrap();
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).unwrap();
                    answer.reverse();
                    assert_eq!(answer, text);
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        assert_eq!(TcpStream::connect("server:81").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(TcpStream::connect("nobody:81").is_err());
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(TcpListener::bind(own.local_addr().unwrap()).unwrap_err().kind(), ErrorKind::AddrInUse);
        let stream = TcpStream::connect_timeout(&own.local_addr().unwrap(), Duration::from_secs(1)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(7))).unwrap();
        let started = Instant::now();
        assert_eq!((&stream).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(started.elapsed().as_secs(), 7);
        stream.set_nonblocking(true).unwrap();
        assert_eq!((&stream).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    });
    outcome.expect();
}

#[test]
fn datagrams_may_be_lost_doubled_and_overtaken_on_a_bad_link_only() {
    let outcome = Simulation::new(11).run(|world| {
        let (server, outside) = (world.add_host("server"), world.host("outside"));
        server.start("server", || {
            let socket = UdpSocket::bind("0.0.0.0:53").unwrap();
            let mut buffer = [0; 16];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                socket.send_to(&buffer[..length], from).unwrap();
            }
        });
        sleep_ms(10);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_ne!(socket.local_addr().unwrap().port(), 0);
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.connect("server:53").unwrap();
        assert_eq!(socket.peer_addr().unwrap().port(), 53);
        let echo = || {
            (0..100_u8).for_each(|n| assert_eq!(socket.send(&[n, 7]).unwrap(), 2));
            let mut seen = Vec::new();
            let mut buffer = [0; 1];
            // A buffer that is too short loses the rest, as everywhere.
            while let Ok(length) = socket.recv(&mut buffer) {
                seen.push(buffer[length - 1]);
            }
            seen
        };
        let mut all = echo();
        assert!(!all.is_sorted(), "none was overtaken");
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<u8>>());
        world.set_link(&outside, &server, Duration::from_millis(5), 0.4);
        let some = echo();
        let distinct: std::collections::BTreeSet<u8> = some.iter().copied().collect();
        assert!((30..90).contains(&distinct.len()) && some.len() > distinct.len(), "{some:?}");
        world.cut(&outside, &server);
        assert!(echo().is_empty());
        // Nobody listens there, and nobody says so.
        let nobody = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(nobody.send_to(b"x", "server:54").unwrap(), 1);
        assert_eq!(UdpSocket::bind(nobody.local_addr().unwrap()).unwrap_err().kind(), ErrorKind::AddrInUse);
    });
    outcome.expect();
}

#[test]
fn unix_sockets_connect_programs_of_one_machine() {
    let outcome = Simulation::new(12).run(|world| {
        let host = world.add_host("node");
        let server = host.start("server", || {
            let listener = UnixListener::bind("/socket").unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            stream.write_all(text.to_uppercase().as_bytes()).unwrap();
        });
        let client = host.start("client", || {
            sleep_ms(10);
            let mut stream = UnixStream::connect("/socket").unwrap();
            assert_eq!(stream.peer_addr().unwrap().as_pathname(), Some("/socket".as_ref()));
            assert!(stream.local_addr().unwrap().is_unnamed());
            stream.write_all(b"hello").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert_eq!(text, "HELLO");
            assert_eq!(UnixListener::bind("/socket").unwrap_err().kind(), ErrorKind::AddrInUse);
            sleep_ms(10);
            assert_eq!(UnixStream::connect("/socket").unwrap_err().kind(), ErrorKind::ConnectionRefused);
            fs::remove_file("/socket").unwrap();
            assert_eq!(UnixStream::connect("/socket").unwrap_err().kind(), ErrorKind::NotFound);

            let (mut one, mut other) = UnixStream::pair().unwrap();
            one.write_all(b"pair").unwrap();
            drop(one);
            let mut text = String::new();
            other.read_to_string(&mut text).unwrap();
            assert_eq!(text, "pair");

            let (named, unnamed) =
                (UnixDatagram::bind("/datagrams").unwrap(), UnixDatagram::unbound().unwrap());
            unnamed.send_to(b"to a name", "/datagrams").unwrap();
            let mut buffer = [0; 32];
            let (length, from) = named.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from.is_unnamed()), (&b"to a name"[..], true));
            let (one, other) = UnixDatagram::pair().unwrap();
            one.send(b"first").unwrap();
            one.send(b"second").unwrap();
            assert_eq!(other.recv(&mut buffer).unwrap(), 5);
            assert_eq!(other.recv(&mut buffer).unwrap(), 6);
            other.set_nonblocking(true).unwrap();
            assert_eq!(other.recv(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        });
        assert_eq!((server.wait(), client.wait()), (Exit::Returned, Exit::Returned));
        // Another machine's file is another file.
        assert_eq!(UnixStream::connect("/datagrams").unwrap_err().kind(), ErrorKind::NotFound);
    });
    outcome.expect();
}

#[test]
fn a_cut_link_delays_and_a_lost_machine_is_not_noticed_until_it_is_back() {
    let outcome = Simulation::new(4).run(|world| {
        let server = world.add_host("server");
        let outside = world.host("outside");
        let serve = || {
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                squall_hook::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        };
        server.start("server", serve);
        sleep_ms(10);
        let mut stream = TcpStream::connect("server:80").unwrap();
        let mut echo = || -> std::io::Result<Duration> {
            let started = Instant::now();
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            Ok(started.elapsed())
        };
        assert!(echo().unwrap() < Duration::from_millis(100));
        // One direction only: the answer waits until somebody mends the way.
        world.cut(&server, &outside);
        let (mender, target, source) = (world.clone(), outside.clone(), server.clone());
        squall_hook::spawn(move || {
            sleep_ms(5_000);
            mender.mend(&source, &target);
        });
        assert!(echo().unwrap() >= Duration::from_secs(5));
        assert!(echo().unwrap() < Duration::from_millis(100));
        // Without power it is silent; afterwards it knows nothing of the connection.
        let (victim, again) = (server.clone(), serve);
        squall_hook::spawn(move || {
            victim.power_off();
            sleep_ms(60_000);
            victim.power_on();
            victim.start("server", again);
        });
        sleep_ms(1);
        let started = Instant::now();
        assert_eq!(echo().unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(started.elapsed() >= Duration::from_secs(59));
    });
    outcome.expect();
}

#[test]
fn files_behave_and_survive_a_kill_but_a_power_loss_only_if_they_were_synced() {
    for seed in 0..40 {
        let outcome = Simulation::new(seed).run(|world| {
            let host = world.add_host("node");
            let program = host.start("writer", || {
                fs::create_dir_all("/data/deep").unwrap();
                File::open("/").unwrap().sync_all().unwrap();
                File::open("/data").unwrap().sync_all().unwrap();
                let mut file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open("/data/a")
                    .unwrap();
                file.write_all(b"hello world").unwrap();
                file.write_all_at(b"W", 6).unwrap();
                file.set_len(100).unwrap();
                file.set_len(11).unwrap();
                assert_eq!(fs::read("/data/a").unwrap(), b"hello World");
                assert_eq!(file.metadata().unwrap().len(), 11);
                file.sync_data().unwrap();
                File::open("/data").unwrap().sync_all().unwrap();
                fs::write("/data/b", b"not synced").unwrap();
                fs::rename("/data/b", "/data/c").unwrap();
                assert!(fs::metadata("/data/b").is_err());
                assert!(fs::metadata("/data/deep").unwrap().is_dir());
                let mut names: Vec<_> =
                    fs::read_dir("/data").unwrap().map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                assert_eq!(names, ["a", "c", "deep"]);
                file.try_lock().unwrap();
                assert!(File::open("/data/a").unwrap().try_lock().is_err());
                loop {
                    sleep_ms(1000);
                }
            });
            sleep_ms(500);
            assert_eq!(program.exit(), None);
            program.kill();
            assert_eq!(program.wait(), Exit::Killed);
            let look = host.start("reader", || {
                // The lock has gone with its owner, the page cache has not.
                File::open("/data/a").unwrap().try_lock().unwrap();
                assert_eq!(fs::read("/data/c").unwrap(), b"not synced");
            });
            assert_eq!(look.wait(), Exit::Returned);
            host.power_off();
            host.power_on();
            let (sender, kept) = mpsc::channel();
            let look = host.start("reader", move || {
                assert_eq!(fs::read("/data/a").unwrap(), b"hello World");
                sender.send(fs::metadata("/data/c").is_ok()).unwrap();
            });
            assert_eq!(look.wait(), Exit::Returned);
            kept.recv().unwrap()
        });
        outcome.expect();
    }
}

#[test]
fn bad_disks_fail_as_they_are_told() {
    let outcome = Simulation::new(5).run(|world| {
        let host = world.add_host("node");
        host.set_disk_faults(DiskFaults { sync_error: 1.0, capacity_bytes: 1000, ..DiskFaults::default() });
        let program = host.start("writer", || {
            let mut file = File::create("/f").unwrap();
            file.write_all(&[1; 900]).unwrap();
            assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
            assert_eq!(file.write_all(&[1; 900]).unwrap_err().kind(), ErrorKind::StorageFull);
        });
        assert_eq!(program.wait(), Exit::Returned);
    });
    assert_eq!(outcome.faults.get("disk sync error"), Some(&1));
    outcome.expect();
}

#[test]
fn a_program_is_killed_in_any_of_its_calls_and_paused_without_noticing() {
    let mut lengths = Vec::new();
    for calls in 0..12 {
        let outcome = Simulation::new(6).run(move |world| {
            let host = world.add_host("node");
            let program = host.start("writer", || {
                for n in 0..10 {
                    OpenOptions::new()
                        .append(true)
                        .create(true)
                        .open("/log")
                        .unwrap()
                        .write_all(&[n])
                        .unwrap();
                }
            });
            program.kill_after(calls);
            assert_eq!(program.wait(), Exit::Killed);
            let (sender, length) = mpsc::channel();
            host.start("reader", move || {
                sender.send(fs::read("/log").map_or(0, |bytes| bytes.len())).unwrap()
            });
            length.recv().unwrap()
        });
        lengths.push(outcome.expect());
    }
    assert!(lengths.is_sorted() && lengths[0] == 0 && lengths[11] >= 2, "{lengths:?}");

    Simulation::new(6)
        .run(|world| {
            let host = world.add_host("node");
            let (sender, beats) = mpsc::channel();
            let program = host.start("heart", move || {
                loop {
                    sleep_ms(10);
                    sender.send(Instant::now()).unwrap();
                }
            });
            sleep_ms(100);
            program.pause();
            sleep_ms(5000);
            program.resume();
            sleep_ms(100);
            program.kill();
            let beats: Vec<_> = beats.try_iter().collect();
            let longest = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
            assert!(longest >= Duration::from_millis(4900), "{longest:?}");
        })
        .expect();
}

#[test]
fn clocks_can_be_wrong() {
    Simulation::new(9)
        .run(|world| {
            let host = world.add_host("node");
            host.set_clock(-3_600_000, 100_000);
            let true_wall = SystemTime::now();
            let program = host.start("clock", move || {
                let behind = true_wall.duration_since(SystemTime::now()).unwrap();
                assert_eq!(behind.as_secs().div_ceil(60), 60);
                let started = Instant::now();
                sleep_ms(11_000);
                assert_eq!(started.elapsed().as_secs(), 11);
            });
            let started = Instant::now();
            assert_eq!(program.wait(), Exit::Returned);
            assert_eq!(started.elapsed().as_secs(), 10);
        })
        .expect();
}

#[test]
fn what_a_world_does_not_have_is_refused_and_told() {
    let outcome = Simulation::new(1).run(|world| {
        let program = world.add_host("node").start("threads", || {
            assert!(std::thread::Builder::new().spawn(|| ()).is_err());
        });
        program.wait()
    });
    assert_eq!(outcome.result, Ok(Exit::Returned));
    assert!(outcome.failures[0].contains("pthread_create"), "{:?}", outcome.failures);

    let outcome =
        Simulation::new(1).run(|world| world.add_host("node").start("bad", || panic!("on purpose")).wait());
    assert_eq!(outcome.result, Ok(Exit::Panicked("on purpose".into())));
    assert!(outcome.failures[0].contains("on purpose"), "{:?}", outcome.failures);
}

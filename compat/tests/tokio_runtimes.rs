//! tokio: a current_thread runtime in every fiber, with its own epoll descriptor, timers and tasks.

use squall_compat::crowd::{self, FIBERS};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[test]
fn two_hundred_runtimes_echo_over_tcp_and_keep_their_timers() {
    crowd::run("tokio current_thread", FIBERS, |member| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        member.meet();
        let total = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 64];
                let mut total = 0;
                loop {
                    match stream.read(&mut buffer).await.unwrap() {
                        0 => return total,
                        count => {
                            total += count;
                            stream.write_all(&buffer[..count]).await.unwrap();
                        }
                    }
                }
            });
            let mut client = TcpStream::connect(address).await.unwrap();
            for round in 0..5_u8 {
                let message = [round ^ member.index as u8; 40];
                client.write_all(&message).await.unwrap();
                let mut answer = [0; 40];
                client.read_exact(&mut answer).await.unwrap();
                assert_eq!(answer, message);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            drop(client);
            server.await.unwrap()
        });
        assert_eq!(total, 5 * 40);
        let timeout = runtime.block_on(async {
            tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await
        });
        assert!(timeout.is_err());
        member.meet();
    });
}

#[test]
fn tasks_of_two_hundred_runtimes_talk_across_fibers() {
    let (sender, _) = tokio::sync::broadcast::channel::<usize>(2 * FIBERS);
    crowd::run("tokio channels across runtimes", FIBERS, move |member| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut receiver = sender.subscribe();
        member.meet();
        runtime.block_on(async {
            let announcer = sender.clone();
            let index = member.index;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                announcer.send(index).unwrap();
            });
            let mut sum = 0;
            for _ in 0..FIBERS {
                sum += receiver.recv().await.unwrap();
            }
            assert_eq!(sum, FIBERS * (FIBERS - 1) / 2);
        });
        // The work of another thread, waited for by this fiber.
        let answer = runtime.block_on(async { tokio::task::spawn_blocking(|| 6 * 7).await.unwrap() });
        assert_eq!(answer, 42);
    });
}

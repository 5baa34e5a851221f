//! The benchmark program of tokio, as a user would write it.

#![forbid(unsafe_code)]

use squall_bench_harness::{BATCH, BUFFER_BYTES, Measured, Measuring, Runtime, Test, measure, run};
use std::future::Future;
use std::net::TcpListener;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

struct CurrentThread;
struct MultiThread;

/// Wakes its own task, then gives way: the cheapest yield, because `yield_now` waits for the driver's next turn.
struct OwnWaker(bool);

impl Future for OwnWaker {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

async fn two<F: Future<Output = ()> + Send + 'static>(task: impl Fn() -> F) {
    let tasks = [tokio::spawn(task()), tokio::spawn(task())];
    for task in tasks {
        task.await.expect("a benchmark does not panic");
    }
}

async fn spawn_join(count: u64) -> Measured {
    let measuring = Measuring::begin();
    for _ in 0..count / BATCH {
        let tasks: Vec<_> = (0..BATCH).map(|number| tokio::spawn(async move { number })).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.expect("it returns");
        }
        assert_eq!(sum, BATCH * (BATCH - 1) / 2);
    }
    measuring.end(count)
}

async fn ping_pong(count: u64) -> Measured {
    let (to, mut from_us) = mpsc::unbounded_channel::<u64>();
    let (back, mut from_partner) = mpsc::unbounded_channel::<u64>();
    let partner = tokio::spawn(async move {
        while let Some(number) = from_us.recv().await {
            back.send(number).expect("the other side listens");
        }
    });
    let measuring = Measuring::begin();
    for number in 0..count {
        to.send(number).expect("the partner listens");
        assert_eq!(from_partner.recv().await, Some(number));
    }
    let measured = measuring.end(count);
    drop(to);
    partner.await.expect("the partner ends");
    measured
}

async fn parked(count: u64) -> Measured {
    let measuring = Measuring::begin();
    let (started, mut ready) = mpsc::unbounded_channel();
    let never = Arc::new(Notify::new());
    for _ in 0..count {
        let (started, never) = (started.clone(), Arc::clone(&never));
        tokio::spawn(async move {
            started.send(()).expect("somebody counts");
            never.notified().await;
        });
    }
    for _ in 0..count {
        ready.recv().await.expect("they start");
    }
    measuring.end(count)
}

async fn sleep(count: u64) -> Measured {
    let measuring = Measuring::begin();
    let tasks: Vec<_> =
        (0..count).map(|_| tokio::spawn(tokio::time::sleep(Duration::from_secs(1)))).collect();
    for task in tasks {
        task.await.expect("it only sleeps");
    }
    measuring.end(count)
}

async fn test(test: Test, count: u64) -> Option<Measured> {
    Some(match test {
        Test::Yield => {
            let measuring = Measuring::begin();
            two(move || async move {
                for _ in 0..count / 2 {
                    OwnWaker(false).await;
                }
            })
            .await;
            measuring.end(count)
        }
        Test::YieldNow => {
            let measuring = Measuring::begin();
            two(move || async move {
                for _ in 0..count / 2 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            measuring.end(count)
        }
        Test::SpawnJoin => spawn_join(count).await,
        Test::PingPong => ping_pong(count).await,
        Test::Mutex => {
            let shared = std::sync::Mutex::new(0u64);
            measure(count, || {
                for _ in 0..count {
                    *std::hint::black_box(&shared).lock().expect("nobody panics with it") += 1;
                }
            })
        }
        Test::Parked => parked(count).await,
        Test::Sleep => sleep(count).await,
        // A std channel or Condvar would block the thread, and the other task with it.
        Test::StdPingPong | Test::HandOver | Test::Echo => return None,
    })
}

async fn echo(listener: TcpListener) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut buffer = [0; BUFFER_BYTES];
            while let Ok(bytes @ 1..) = connection.read(&mut buffer).await {
                if connection.write_all(&buffer[..bytes]).await.is_err() {
                    break;
                }
            }
        });
    }
}

fn runtime(mut builder: tokio::runtime::Builder) -> tokio::runtime::Runtime {
    builder.enable_all().build().expect("a runtime")
}

/// In a task, so that no variant is measured from outside its workers.
fn run_in(runtime: &tokio::runtime::Runtime, test_: Test, count: u64) -> Option<Measured> {
    let measured = runtime.block_on(async move { tokio::spawn(test(test_, count)).await });
    measured.expect("a benchmark does not panic")
}

fn echo_in(runtime: &tokio::runtime::Runtime, listener: TcpListener) -> bool {
    let ended = runtime.block_on(async move { tokio::spawn(echo(listener)).await });
    eprintln!("error: {ended:?}");
    true
}

impl Runtime for CurrentThread {
    fn run(&self, test: Test, count: u64, _workers: usize) -> Option<Measured> {
        run_in(&runtime(tokio::runtime::Builder::new_current_thread()), test, count)
    }

    fn echo(&self, listener: TcpListener, _workers: usize) -> bool {
        echo_in(&runtime(tokio::runtime::Builder::new_current_thread()), listener)
    }
}

fn multi_thread(workers: usize) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(workers);
    runtime(builder)
}

impl Runtime for MultiThread {
    fn run(&self, test: Test, count: u64, workers: usize) -> Option<Measured> {
        run_in(&multi_thread(workers), test, count)
    }

    fn echo(&self, listener: TcpListener, workers: usize) -> bool {
        echo_in(&multi_thread(workers), listener)
    }
}

fn main() -> ExitCode {
    run(&[("current-thread", &CurrentThread), ("multi-thread", &MultiThread)])
}

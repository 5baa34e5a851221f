//! What the machine and the process offer, and what the runtime makes of it. Looks; changes nothing that anybody could notice.

use super::Finding;
use super::symbols::{module_of, program};
use core::ffi::{CStr, c_int};
use squall_fiber::GuardMethod;
use squall_fiber::sys::raw_syscall;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;

pub(super) fn examine() -> Vec<Finding> {
    vec![
        placement(),
        Finding::good("kernel", first_line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into())),
        Finding::good("C library", format!("glibc {}", glibc_version())),
        private_tls(),
        stack_guard(),
        or_notice(
            "membarrier",
            membarrier(),
            "allowed: the ends of fibers cost no barrier",
            "the end of a fiber costs one memory barrier more",
        ),
        or_notice(
            "RWF_NOWAIT on pipes",
            reading_without_waiting(),
            "works",
            "each read of a pipe asks the kernel once more whether it would wait",
        ),
        or_notice(
            "pidfd",
            opened(pidfd()),
            "allowed: waiting for a child takes no thread",
            "waiting for a child takes a thread of the blocking pool; Linux 5.3 or later has it",
        ),
        or_notice(
            "io_uring",
            opened(io_uring()),
            "allowed, not used: files are synced by a pool of threads",
            "not needed: files are synced by a pool of threads",
        ),
        or_notice(
            "perf",
            opened(perf()),
            "may observe this process",
            "no profiles by perf: set kernel.perf_event_paranoid to 1, or allow perf_event_open in the container",
        ),
        observer_signal(),
        descriptors(),
    ]
}

fn first_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

fn glibc_version() -> String {
    // SAFETY: returns a C string that lives for ever.
    unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) }.to_string_lossy().into_owned()
}

fn placement() -> Finding {
    let subject = "the hooks are";
    match module_of(examine as *const () as usize) {
        Some(path) if path == program() => {
            let is_preloaded =
                std::env::var("LD_PRELOAD").is_ok_and(|list| list.contains("libsquall_preload"));
            match is_preloaded {
                true => Finding::notice(
                    subject,
                    "linked into the program, and preloaded once more",
                    "take libsquall_preload.so out of LD_PRELOAD: the program has its own, and only those are used",
                ),
                false => Finding::good(subject, "linked into the program"),
            }
        }
        Some(path) => Finding::good(subject, format!("in {path}")),
        None => Finding::bad(
            subject,
            "in no file that the dynamic linker knows",
            "link the program dynamically: static programs call their own libc",
        ),
    }
}

fn private_tls() -> Finding {
    match squall_fiber::private_tls_support() {
        Ok(()) if cfg!(target_arch = "x86_64") => {
            Finding::good("thread-locals", "private: every fiber has its own, switched by FSGSBASE")
        }
        Ok(()) => Finding::good("thread-locals", "private: every fiber has its own"),
        Err(reason) => Finding::notice(
            "thread-locals",
            format!("shared by the fibers of a worker: {reason}"),
            "needs glibc on x86_64 or aarch64; on x86_64 Linux 5.9 or later and a processor with FSGSBASE",
        ),
    }
}

fn stack_guard() -> Finding {
    let limit = first_line("/proc/sys/vm/max_map_count").unwrap_or_else(|| "unknown".into());
    match squall_fiber::guard_method() {
        GuardMethod::GuardInstall => Finding::good(
            "stack guards",
            format!("MADV_GUARD_INSTALL: vm.max_map_count ({limit}) is no limit for fibers"),
        ),
        method => Finding::notice(
            "stack guards",
            format!("{method:?}: vm.max_map_count is {limit}, and every fiber counts for two"),
            "beyond that an overflow is noticed late: raise the limit, or use Linux 6.13 or later",
        ),
    }
}

fn or_notice(subject: &str, result: io::Result<()>, good: &str, otherwise: &str) -> Finding {
    match result {
        Ok(()) => Finding::good(subject, good),
        Err(error) => Finding::notice(subject, format!("not available: {error}"), otherwise),
    }
}

/// What a system call has answered.
fn answer(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result as c_int)) } else { Ok(result) }
}

/// Closes what a system call has opened.
fn opened(result: i64) -> io::Result<()> {
    let fd = answer(result)?;
    // SAFETY: the descriptor was made by the caller's system call, and nobody else knows it.
    unsafe { raw_syscall(libc::SYS_close, [fd, 0, 0, 0, 0, 0]) };
    Ok(())
}

fn membarrier() -> io::Result<()> {
    const QUERY: i64 = 0;
    const PRIVATE_EXPEDITED: i64 = 1 << 3;
    // SAFETY: no memory is involved.
    let offered = answer(unsafe { raw_syscall(libc::SYS_membarrier, [QUERY, 0, 0, 0, 0, 0]) })?;
    if (offered & PRIVATE_EXPEDITED) == 0 { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
}

fn reading_without_waiting() -> io::Result<()> {
    let (reader, _writer) = io::pipe()?;
    let mut byte = 0u8;
    let vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let arguments =
        [reader.as_raw_fd().into(), (&raw const vector) as i64, 1, -1, -1, libc::RWF_NOWAIT.into()];
    // SAFETY: one live buffer of one byte.
    match unsafe { -raw_syscall(libc::SYS_preadv2, arguments) } as c_int {
        libc::EAGAIN => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn io_uring() -> i64 {
    // `struct io_uring_params`, 120 bytes: all zeroes asks for nothing special.
    let mut parameters = [0u64; 15];
    // SAFETY: the kernel fills the struct that it is given.
    unsafe { raw_syscall(libc::SYS_io_uring_setup, [1, (&raw mut parameters) as i64, 0, 0, 0, 0]) }
}

fn pidfd() -> i64 {
    // SAFETY: numbers only.
    unsafe { raw_syscall(libc::SYS_pidfd_open, [std::process::id().into(), 0, 0, 0, 0, 0]) }
}

/// Opens what `perf record` would: a clock of this process, in user space alone.
fn perf() -> i64 {
    const SOFTWARE: u64 = 1;
    const BYTES: u64 = 64;
    const DISABLED_EXCLUDE_KERNEL_AND_HYPERVISOR: u64 = 1 | 1 << 5 | 1 << 6;
    // The first version of `struct perf_event_attr`: type and size, config, period, sample type, read format, flags.
    let mut attributes = [0u64; 8];
    attributes[0] = SOFTWARE | BYTES << 32;
    attributes[5] = DISABLED_EXCLUDE_KERNEL_AND_HYPERVISOR;
    const CLOSE_ON_EXEC: i64 = 1 << 3;
    let arguments = [(&raw const attributes) as i64, 0, -1, -1, CLOSE_ON_EXEC, 0];
    // SAFETY: the struct is as long as it says, and the descriptor's closing ends its use.
    unsafe { raw_syscall(libc::SYS_perf_event_open, arguments) }
}

fn observer_signal() -> Finding {
    let subject = "running fibers";
    match squall_fiber::observer_signal() {
        Some(signal) => Finding::good(subject, format!("tell where they stand, by signal {signal}")),
        None => Finding::notice(
            subject,
            "have no backtraces: the program handles all real-time signals",
            "leave one of SIGRTMIN..SIGRTMAX alone until the first scheduler has been made",
        ),
    }
}

fn descriptors() -> Finding {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the struct that it is given.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let found = format!("{} at once (ulimit -n), of {} allowed", limit.rlim_cur, limit.rlim_max);
    match limit.rlim_cur {
        ..4096 => Finding::notice(
            "descriptors",
            found,
            "a connection is a descriptor: raise the limit with ulimit -n",
        ),
        _ => Finding::good("descriptors", found),
    }
}

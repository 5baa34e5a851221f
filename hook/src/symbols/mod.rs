//! The interposed symbols: thin shims with C's signatures that pass on to the fiber's [`Os`](crate::Os), or outside a fiber to
//! libc. Nothing here allocates, logs or panics.
//!
//! [`hooked`] is the complete list; docs/fibers.md has it by family, with the test that covers each. Not covered: calls that libc makes inside
//! itself (stdio, its resolver's sockets), programs that make system calls by hand, and what docs/fibers.md lists as not hooked.

mod aliases;
mod descriptors;
mod disk;
mod files;
mod multiplex;
mod pooled;
mod pthread;
mod queues;
mod signals;
mod sockets;
mod threads;
mod time;

/// A function that stands in for libc's of the same name.
pub(crate) type Symbol = (&'static str, usize);

macro_rules! list {
    ($($module:ident: $($name:ident)*;)*) => {
        [$($((stringify!($name), $module::$name as *const () as usize),)*)*]
    };
}

/// Every hooked symbol, with the address of the definition here.
pub(crate) fn hooked() -> impl Iterator<Item = Symbol> {
    let list: [Symbol; _] = list! {
        aliases: __close __connect __dup2 __fcntl __nanosleep __poll __poll_chk __ppoll_chk __read __read_chk __recv_chk
            __recvfrom_chk __sched_yield __select __send __sigsuspend __wait __waitpid __write;
        descriptors: close close_range closefrom dup dup2 dup3 fclose fcntl fcntl64 freopen freopen64 ioctl pipe pipe2;
        disk: __open __open64 __open64_2 __open_2 __openat64_2 __openat_2 __pread64 __pread64_chk __pread_chk __pwrite64
            creat creat64 flock lockf lockf64 open open64 openat openat64 pread pread64 preadv preadv2 preadv64 preadv64v2
            pwrite pwrite64 pwritev pwritev2 pwritev64 pwritev64v2 splice tee vmsplice;
        files: fdatasync fsync poll ppoll read readv sendfile sendfile64 write writev;
        multiplex: epoll_pwait epoll_pwait2 epoll_wait pselect select;
        sockets: accept accept4 connect getsockopt recv recvfrom recvmmsg recvmsg send sendmmsg sendmsg sendto setsockopt
            shutdown socket socketpair;
        pooled: copy_file_range fallocate fallocate64 gethostbyaddr gethostbyaddr_r gethostbyname gethostbyname2
            gethostbyname2_r gethostbyname_r getnameinfo msgrcv msgsnd msync pclose popen
            posix_fallocate posix_fallocate64 posix_spawn posix_spawnp semop semtimedop
            sync sync_file_range syncfs system;
        pthread: call_once cnd_broadcast cnd_signal cnd_timedwait cnd_wait mtx_lock mtx_timedlock mtx_unlock
            pthread_barrier_wait pthread_clockjoin_np pthread_cond_broadcast pthread_cond_clockwait pthread_cond_signal
            pthread_cond_timedwait pthread_cond_wait pthread_join pthread_mutex_clocklock pthread_mutex_lock
            pthread_mutex_timedlock pthread_mutex_unlock pthread_once pthread_rwlock_clockrdlock
            pthread_rwlock_clockwrlock pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock
            pthread_rwlock_unlock pthread_rwlock_wrlock pthread_spin_lock pthread_timedjoin_np sem_clockwait sem_post
            sem_timedwait sem_wait thrd_join thrd_sleep thrd_yield;
        queues: mq_receive mq_send mq_timedreceive mq_timedsend;
        signals: sigsuspend sigtimedwait sigwait sigwaitinfo;
        threads: getaddrinfo pthread_key_create pthread_key_delete syscall wait wait3 wait4 waitid waitpid;
        time: clock_nanosleep nanosleep sched_yield sleep usleep;
    };
    list.into_iter()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::CString;
    use std::path::Path;

    /// The names of the functions in this folder's other files that take the place of libc's.
    fn defined() -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/symbols");
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(folder).expect("the sources are there") {
            let path = entry.expect("a folder can be listed").path();
            if path.ends_with("mod.rs") {
                continue;
            }
            let text = std::fs::read_to_string(path).expect("a source");
            let definitions = text.split("#[unsafe(no_mangle)]").skip(1);
            names.extend(definitions.filter_map(|definition| {
                let name = definition.split_once(" fn ")?.1.split('(').next()?;
                (!name.starts_with('$')).then(|| name.to_owned())
            }));
            // Those that a macro defines by three: `name name name (object: type)`.
            names.extend(text.lines().filter_map(|line| line.trim().split_once(" (")).flat_map(
                |(left, _)| {
                    let words: Vec<&str> = left.split(' ').collect();
                    let are_names =
                        words.iter().all(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
                    let words = if words.len() == 3 && are_names { words } else { Vec::new() };
                    words.into_iter().map(str::to_owned)
                },
            ));
            // Those that a macro defines: `alias = module::name(...)`.
            names.extend(text.lines().filter_map(|line| {
                let (name, rest) = line.trim().split_once(" = ")?;
                let is_alias = rest.ends_with(';') && rest.contains("::") && rest.contains(") -> ");
                (is_alias && !name.starts_with('$')).then(|| name.to_owned())
            }));
        }
        names
    }

    #[test]
    fn the_list_has_all_definitions_and_nothing_else() {
        let listed: BTreeSet<String> = super::hooked().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(listed, defined());
    }

    #[test]
    fn every_hook_is_live_in_this_process() {
        for (name, address) in super::hooked() {
            let c_name = CString::new(name).expect("a name has no NUL");
            // SAFETY: a C string; dlsym only looks it up.
            let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c_name.as_ptr()) } as usize;
            assert_eq!(found, address, "{name} resolves to somebody else's function");
        }
    }
}

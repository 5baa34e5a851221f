//! Linking this crate is enough to have its symbols stand in for libc's, and in a program without a world they change nothing.

use std::collections::HashMap;
use std::ffi::CString;
use std::time::{Instant, SystemTime};

#[test]
fn every_symbol_resolves_to_the_definition_here() {
    let symbols: HashMap<_, _> = squall_hook_world::interposed_symbols().collect();
    assert!(symbols.len() > 30);
    for (name, address) in symbols {
        let c_name = CString::new(name).expect("a name has no NUL");
        // SAFETY: a C string; dlsym only looks it up.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c_name.as_ptr()) } as usize;
        assert_eq!(found, address, "{name} resolves to somebody else's function");
    }
}

#[test]
fn threads_and_fibers_of_the_real_world_see_the_real_one() {
    let look = || {
        let before = (Instant::now(), SystemTime::now());
        let directory = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let names: Vec<_> =
            std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let bytes = std::fs::metadata(std::env::current_exe().unwrap()).unwrap().len();
        assert!(!names.is_empty() && bytes > 0);
        assert!(before.0 <= Instant::now());
        assert!(before.1.elapsed().is_ok());
        std::thread::spawn(std::process::id).join().unwrap()
    };
    assert_eq!(look(), squall_hook::spawn(look).join().unwrap());
}

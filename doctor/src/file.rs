//! What a program's file tells about the hooks without being run: whether they are in it, and whether they could be preloaded.

use anyhow::{Context, bail};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::FileHeader;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What to expect of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Squall is linked into it.
    Linked,
    /// The dynamic linker can put the hooks into it.
    Preloadable,
    /// No hook can be live in it.
    Inert {
        /// What it is.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
}

/// Follows `#!` lines to the program that is run in the end.
///
/// # Errors
/// A file cannot be read, is not executable, or the lines go in a circle.
pub fn resolve(program: &Path) -> anyhow::Result<PathBuf> {
    // As many as the kernel follows.
    const SCRIPTS_MAX: usize = 5;
    let mut path = find(program)?;
    for _ in 0..SCRIPTS_MAX {
        let start = read_start(&path).with_context(|| path.display().to_string())?;
        let Some(line) = start.strip_prefix(b"#!") else { return Ok(path) };
        let line =
            String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next().unwrap_or(&[])).into_owned();
        let mut words = line.split_whitespace();
        let interpreter =
            words.next().with_context(|| format!("{}: no interpreter after #!", path.display()))?;
        // `env` looks the real one up by its name.
        let by_name = words.find(|word| !word.starts_with('-')).filter(|_| interpreter.ends_with("/env"));
        path = find(Path::new(by_name.unwrap_or(interpreter)))?;
    }
    bail!("{}: a script whose interpreter is a script, and so on", program.display())
}

fn read_start(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut start = Vec::new();
    fs::File::open(path)?.take(256).read_to_end(&mut start)?;
    Ok(start)
}

/// As a shell finds it: by its path, or in the folders of PATH.
fn find(program: &Path) -> anyhow::Result<PathBuf> {
    let is_executable = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if program.as_os_str().as_bytes().contains(&b'/') {
        let metadata = program.metadata().with_context(|| program.display().to_string())?;
        if !metadata.is_file() || !is_executable(program) {
            bail!("{} is not an executable file", program.display());
        }
        return Ok(program.to_owned());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|path| is_executable(path))
        .with_context(|| format!("{}: no such program in PATH", program.display()))
}

/// Looks at a program's file.
///
/// # Errors
/// It cannot be read, or is not an ELF file.
pub fn examine(path: &Path) -> anyhow::Result<Program> {
    let metadata = path.metadata().with_context(|| path.display().to_string())?;
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let program = classify(&bytes).with_context(|| path.display().to_string())?;
    let runs_with_others_rights = takes_others_rights(&metadata) || has_capabilities(path);
    Ok(match program {
        Program::Preloadable if runs_with_others_rights => Program::Inert {
            reason: "it runs with rights that its caller lacks (setuid, setgid or file capabilities), so the dynamic linker \
                     preloads nothing"
                .into(),
            advice: "link squall into it, or run a copy without those rights",
        },
        program => program,
    })
}

fn classify(bytes: &[u8]) -> anyhow::Result<Program> {
    let inert = |reason: &str, advice| Program::Inert { reason: reason.into(), advice };
    if !bytes.starts_with(b"\x7fELF") {
        bail!("neither an ELF program nor a script");
    }
    let own = match cfg!(target_arch = "x86_64") {
        true => object::elf::EM_X86_64,
        false => object::elf::EM_AARCH64,
    };
    let Ok(header) = FileHeader64::<Endianness>::parse(bytes) else {
        return Ok(inert("it is a program of another kind than 64-bit ELF", "use a 64-bit build of it"));
    };
    let endian = header.endian()?;
    if header.e_machine(endian) != own {
        return Ok(inert("it is for another processor", "use a build of it for this machine"));
    }
    let mut interpreter = None;
    for segment in header.program_headers(endian, bytes)? {
        use object::read::elf::ProgramHeader;
        interpreter = interpreter.or(segment.interpreter(endian, bytes)?);
    }
    // What Go's own tools know its programs by.
    if contains_reversed(bytes, b":fnidliub oG \xff") {
        return Ok(inert(
            "it is written in Go, which makes system calls by itself",
            "its goroutines need no fibers; C libraries that it uses cannot get them",
        ));
    }
    let Some(interpreter) = interpreter else {
        return Ok(inert(
            "it is linked statically: its calls go to the libc inside it",
            "link it dynamically, with glibc (Rust: without -C target-feature=+crt-static)",
        ));
    };
    if !String::from_utf8_lossy(interpreter).contains("ld-linux") {
        return Ok(inert(
            &format!("its dynamic linker is {}, not glibc's", String::from_utf8_lossy(interpreter)),
            "build it for glibc (Rust: a target that ends in -gnu)",
        ));
    }
    Ok(match contains_reversed(bytes, b".ni deknil si :kooh-llauqs") {
        true => Program::Linked,
        false => Program::Preloadable,
    })
}

/// Whether the bytes have these, the other way round: so that this program, which looks for them, does not have them itself.
fn contains_reversed(bytes: &[u8], reversed: &[u8]) -> bool {
    let wanted: Vec<u8> = reversed.iter().rev().copied().collect();
    memchr::memmem::find(bytes, &wanted).is_some()
}

/// Whether the program runs as another user or group than its caller.
fn takes_others_rights(file: &Metadata) -> bool {
    const SETUID: u32 = 0o4000;
    const SETGID_AND_GROUP_EXECUTES: u32 = 0o2010;
    (file.mode() & SETUID != 0 && file.uid() != rustix::process::getuid().as_raw())
        || (file.mode() & SETGID_AND_GROUP_EXECUTES == SETGID_AND_GROUP_EXECUTES
            && file.gid() != rustix::process::getgid().as_raw())
}

/// Whether it gets capabilities that its caller lacks: root lacks none.
fn has_capabilities(path: &Path) -> bool {
    let mut value = [0u8; 64];
    !rustix::process::getuid().is_root()
        && rustix::fs::getxattr(path, "security.capability", &mut value[..]).is_ok_and(|length| length > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a program for this machine, with the given dynamic linker.
    fn elf(interpreter: Option<&str>) -> Vec<u8> {
        let machine = if cfg!(target_arch = "x86_64") { 62u16 } else { 183 };
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend(3u16.to_le_bytes());
        bytes.extend(machine.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        // Entry, program headers, section headers, flags.
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(64u64.to_le_bytes());
        bytes.extend([0; 12]);
        for half in [64u16, 56, u16::from(interpreter.is_some()), 64, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        if let Some(interpreter) = interpreter {
            const PT_INTERP: u32 = 3;
            bytes.extend(PT_INTERP.to_le_bytes());
            bytes.extend(4u32.to_le_bytes());
            let size = interpreter.len() as u64 + 1;
            for word in [120, 0, 0, size, size, 1] {
                bytes.extend(u64::to_le_bytes(word));
            }
            bytes.extend(interpreter.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    fn reason(program: &Program) -> &str {
        match program {
            Program::Inert { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn programs_are_told_apart() {
        let classify = |bytes: &[u8]| classify(bytes).expect("a program");
        assert!(reason(&classify(&elf(None))).contains("statically"));
        assert!(reason(&classify(&elf(Some("/lib/ld-musl-x86_64.so.1")))).contains("ld-musl"));
        assert_eq!(classify(&elf(Some("/lib64/ld-linux-x86-64.so.2"))), Program::Preloadable);
        let mut with_hooks = elf(Some("/lib64/ld-linux-x86-64.so.2"));
        with_hooks.extend(b"...squall-hook: is linked in.\0...");
        assert_eq!(classify(&with_hooks), Program::Linked);
        let mut go = elf(Some("/lib64/ld-linux-x86-64.so.2"));
        go.extend(b"...\xff Go buildinf:...");
        assert!(reason(&classify(&go)).contains("Go"));
        let mut foreign = elf(Some("/lib/ld-linux.so.2"));
        foreign[18] = 8;
        assert!(reason(&classify(&foreign)).contains("another processor"));
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        assert!(classify(b"").is_err());
        assert!(classify(b"plain text").is_err());
        // Cut off in the middle of the header, and of the program headers.
        assert!(matches!(classify(&elf(None)[..40]), Ok(Program::Inert { .. })));
        assert!(classify(&elf(Some("/lib64/ld-linux-x86-64.so.2"))[..100]).is_err());
    }
}

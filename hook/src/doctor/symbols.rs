//! Who wins each hooked name: what the dynamic linker resolves it to, and what the loaded modules have in their tables of imported
//! functions, which is what their calls really go through.

use super::HookedSymbol;
use crate::symbols::hooked;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::MaybeUninit;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::sync::OnceLock;

/// The file of the program.
pub(super) fn program() -> String {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    let find = || fs::read_link("/proc/self/exe").map(|path| path.display().to_string());
    PROGRAM.get_or_init(|| find().unwrap_or_else(|_| "the program".into())).clone()
}

/// The file that an address belongs to.
pub(super) fn module_of(address: usize) -> Option<String> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: fills the struct that it is given, with a name that lives as long as the module.
    let name = unsafe {
        if libc::dladdr(address as *const c_void, info.as_mut_ptr()) == 0 {
            return None;
        }
        CStr::from_ptr(info.assume_init().dli_fname).to_string_lossy().into_owned()
    };
    // The program goes by the name that it was started with.
    let is_program = !name.contains('/')
        || fs::canonicalize(&name).is_ok_and(|path| path.display().to_string() == program());
    Some(if is_program { program() } else { name })
}

fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

pub(super) fn examine() -> Vec<HookedSymbol> {
    let hooks: BTreeMap<&str, usize> = hooked().collect();
    let mut symbols: BTreeMap<&str, HookedSymbol> =
        hooks.iter().map(|(name, hook)| (*name, look_up(name, *hook))).collect();
    for import in imports(&hooks) {
        let Some(symbol) = symbols.get_mut(import.name) else { continue };
        let target = module_of(import.address);
        // A slot that still points into its own module is filled by the first call, with what the name resolves to.
        let is_unbound = import.address != hooks[import.name] && target.as_ref() == Some(&import.module);
        let module = file_name(&import.module);
        if !symbol.is_live {
            // Nobody reaches it, and its own line says why.
        } else if import.address == hooks[import.name] || is_unbound {
            symbol.callers.push(module);
        } else {
            let target = target.map_or_else(|| "nowhere".into(), |path| file_name(&path));
            symbol.bypassed_by.push(format!("{module} (to {target})"));
        }
    }
    for symbol in symbols.values_mut() {
        for modules in [&mut symbol.callers, &mut symbol.bypassed_by] {
            modules.sort();
            modules.dedup();
        }
    }
    symbols.into_values().collect()
}

fn look_up(name: &str, hook: usize) -> HookedSymbol {
    let c_name = CString::new(name).expect("a symbol has no NUL");
    // SAFETY: a C string; dlsym only looks it up.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c_name.as_ptr()) } as usize;
    let module = module_of(address);
    let resolves_to = module.as_deref().map_or_else(|| "nothing".into(), file_name);
    // In a library the second half is not implied by the first: even its own mention of the name goes to whoever comes first.
    let is_live = address == hook && module == module_of(examine as *const () as usize);
    let advice = match module {
        _ if is_live => String::new(),
        Some(path) if path == program() => format!(
            "the program defines `{name}` itself, and its own definitions come first: take it out, or link squall in its place"
        ),
        Some(_) if resolves_to.starts_with("libc.so") => {
            "libc comes before the hooks: link squall into the program itself, or preload libsquall_preload.so; a library \
             that is loaded with dlopen comes too late"
                .into()
        }
        Some(_) => format!(
            "{resolves_to} comes before the hooks: preload libsquall_preload.so in front of it, or do without it"
        ),
        None => "the program exports no such name: link it dynamically".into(),
    };
    HookedSymbol {
        name: name.to_owned(),
        resolves_to,
        is_live,
        advice,
        callers: Vec::new(),
        bypassed_by: Vec::new(),
    }
}

/// An entry in a loaded module's table of imported functions.
struct Import<'a> {
    module: String,
    name: &'a str,
    address: usize,
}

/// What all loaded modules import under hooked names, but for libc and the dynamic linker, which are what is hooked, and for the
/// library of the hooks itself.
fn imports<'a>(hooks: &'a BTreeMap<&'a str, usize>) -> Vec<Import<'a>> {
    struct Search<'a> {
        hooks: &'a BTreeMap<&'a str, usize>,
        own: Option<String>,
        imports: Vec<Import<'a>>,
    }
    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
        // SAFETY: the dynamic linker passes a valid description, and `data` is the search below.
        let (info, search) = unsafe { (&*info, &mut *(data as *mut Search<'_>)) };
        // SAFETY: the name is a C string of the linker's.
        let name = unsafe { CStr::from_ptr(info.dlpi_name) }.to_string_lossy().into_owned();
        let module = if name.is_empty() { program() } else { name };
        let file = file_name(&module);
        let is_system = ["libc.so", "ld-linux", "linux-vdso"].iter().any(|prefix| file.starts_with(prefix));
        if is_system || (search.own.as_ref() == Some(&module) && module != program()) {
            return 0;
        }
        // SAFETY: the linker describes `dlpi_phnum` program headers at `dlpi_phdr`.
        let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize) };
        if let Some(dynamic) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) {
            let base = info.dlpi_addr as usize;
            // SAFETY: the header says where the module's dynamic section is; the module stays loaded during the visit.
            let found = unsafe { imports_of(base, base + dynamic.p_vaddr as usize, search.hooks) };
            let module = &module;
            search.imports.extend(found.into_iter().map(|(name, address)| Import {
                module: module.clone(),
                name,
                address,
            }));
        }
        0
    }
    let mut search = Search { hooks, own: module_of(examine as *const () as usize), imports: Vec::new() };
    // SAFETY: the callback gets the search it expects, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.imports
}

// Entries of the dynamic section, as the ELF standard numbers them.
const DT_NULL: u64 = 0;
const DT_PLTRELSZ: u64 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_JMPREL: u64 = 23;

/// Relocations that put a function's address somewhere: into the table of imported functions, or into data.
#[cfg(target_arch = "x86_64")]
const FUNCTION_RELOCATIONS: [u32; 3] = [7, 6, 1];
#[cfg(target_arch = "aarch64")]
const FUNCTION_RELOCATIONS: [u32; 3] = [1026, 1025, 257];

/// # Safety
/// `dynamic` is the dynamic section of a module that is loaded at `base` and stays so.
unsafe fn imports_of<'a>(
    base: usize,
    dynamic: usize,
    hooks: &'a BTreeMap<&'a str, usize>,
) -> Vec<(&'a str, usize)> {
    let mut entries: BTreeMap<u64, usize> = BTreeMap::new();
    let mut entry = dynamic as *const [u64; 2];
    // SAFETY: the section ends with DT_NULL.
    unsafe {
        while (*entry)[0] != DT_NULL {
            entries.insert((*entry)[0], (*entry)[1] as usize);
            entry = entry.add(1);
        }
    }
    // The dynamic linker has turned these into addresses, but for modules whose section is read-only.
    let address = |tag| entries.get(&tag).map(|value| if *value < base { base + value } else { *value });
    let (Some(names), Some(symbols)) = (address(DT_STRTAB), address(DT_SYMTAB)) else { return Vec::new() };
    let mut imports = Vec::new();
    for (table, bytes) in [(DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)] {
        let (Some(table), Some(bytes)) = (address(table), entries.get(&bytes)) else { continue };
        for index in 0..bytes / size_of::<libc::Elf64_Rela>() {
            // SAFETY: the table has that many entries; each names a symbol of the module's table and an offset in its memory.
            unsafe {
                let relocation = &*(table as *const libc::Elf64_Rela).add(index);
                let kind = (relocation.r_info & 0xFFFF_FFFF) as u32;
                let symbol = (relocation.r_info >> 32) as usize;
                if symbol == 0 || !FUNCTION_RELOCATIONS.contains(&kind) {
                    continue;
                }
                let symbol = &*(symbols as *const libc::Elf64_Sym).add(symbol);
                let name = CStr::from_ptr((names + symbol.st_name as usize) as *const c_char);
                let Some((name, _)) = name.to_str().ok().and_then(|name| hooks.get_key_value(name)) else {
                    continue;
                };
                let slot = (base + relocation.r_offset as usize) as *const usize;
                imports.push((*name, slot.read_unaligned().wrapping_sub(relocation.r_addend as usize)));
            }
        }
    }
    imports
}

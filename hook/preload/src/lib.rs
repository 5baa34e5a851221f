//! The hooks as a shared library: `LD_PRELOAD=libsquall_preload.so program`. All there is to it is in `squall-hook`.

use squall_hook as _;

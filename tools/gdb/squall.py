"""Fibers in gdb: lists them, and shows the calls of one that waits.

    gdb -x tools/gdb/squall.py -p PID            a running process
    gdb -x tools/gdb/squall.py PROGRAM CORE      a core file
    (gdb) info fibers
    (gdb) fiber 17                               then: bt, up, down, frame
    (gdb) fiber 17 bt
    (gdb) fiber apply all bt
    (gdb) fiber off                              back to the thread

Needs symbols (a program that is not stripped); names of inlined functions and lines need line tables, which release builds of squall
have. Nothing is written to the process: an unwinder tells gdb that the selected thread's innermost frame was called from where the
fiber stands. So the thread's own frame is number 0 and is left out of backtraces, and it works on core files, too, if the kernel has
written them: gdb's generate-core-file gives up on a mapping at its first guard page, and every stack has one.
"""

import itertools
import re
import time

import gdb
import gdb.unwinder

WORD = 8
# pc, sp, frame pointer, and the one other register that a switch saves.
REGISTERS = {"i386:x86-64": ("rip", "rsp", "rbp", "rbx"), "aarch64": ("pc", "sp", "x29", "x19")}
WORDS = (
    "first_chunk chunk_next chunk_slots chunk_slot_count id name home stack_bytes guard_end stack_top stands runs since_ms state "
    "wait_kind wait_detail saved_pc saved_fp saved_register saved_bytes"
).split()
# Waits whose detail is an address.
AT = {"futex", "lock", "condvar", "semaphore", "barrier", "wait-group", "once", "send", "receive"}
FRAMES_MAX = 64


def memory(address, length):
    return gdb.selected_inferior().read_memory(address, length).tobytes()


def word(address):
    return int.from_bytes(memory(address, WORD), "little")


class Table:
    """The runtime's own description of itself: the static SQUALL_DEBUGGER (fiber/src/debugger.rs)."""

    def __init__(self):
        try:
            text = gdb.execute("info address SQUALL_DEBUGGER", to_string=True)
        except gdb.error as error:
            raise gdb.GdbError("no fibers: the program is not linked with squall, or is stripped") from error
        address = int(re.search(r"0x[0-9a-f]+", text).group(), 16)
        try:
            magic = memory(address, 8)
        except gdb.MemoryError as error:
            raise gdb.GdbError("the program does not run yet") from error
        if magic != b"SQUALL01":
            raise gdb.GdbError("this script is for another version of squall: its table begins with %r" % magic)
        for index, name in enumerate(WORDS):
            setattr(self, name, word(address + 8 + WORD * index))
        kinds = memory(address + 8 + WORD * len(WORDS), 256)
        self.wait_kinds = kinds.rstrip(b"\0").decode().split()

    def fibers(self):
        found = []
        chunk = self.first_chunk
        while chunk:
            slots = memory(chunk + self.chunk_slots, WORD * self.chunk_slot_count)
            for at in range(0, len(slots), WORD):
                fiber = int.from_bytes(slots[at : at + WORD], "little")
                if fiber:
                    found.append(Fiber(self, fiber))
            chunk = word(chunk + self.chunk_next)
        return sorted(found, key=lambda fiber: fiber.id)


FIELDS = "id name home stack_bytes guard_end stack_top stands runs since_ms state wait_kind wait_detail".split()


class Fiber:
    def __init__(self, table, address):
        self.table = table
        # All in one piece: a read costs more than the bytes between the fields.
        offsets = [getattr(table, field) for field in FIELDS]
        start = min(offsets)
        block = memory(address + start, max(offsets) + 2 * WORD - start)
        read = lambda at: int.from_bytes(block[at - start : at - start + WORD], "little")
        for field, offset in zip(FIELDS, offsets):
            setattr(self, field, read(offset))
        length = read(table.name + WORD)
        self.name = memory(self.name, length).decode(errors="replace") if self.name else None
        kind = self.wait_kind & 0xFF
        self.wait_kind = table.wait_kinds[kind] if kind < len(table.wait_kinds) else "?"

    @property
    def is_new(self):
        return self.runs == 0

    @property
    def is_running(self):
        return not self.is_new and self.stands == 0

    def status(self):
        if self.is_new:
            return "new"
        if self.is_running:
            return "running"
        if self.state & 3 == 0:
            return "ready"
        if self.wait_kind in AT:
            return "%s at %#x" % (self.wait_kind, self.wait_detail)
        if self.wait_kind in ("read", "write"):
            return "%s descriptor %d" % (self.wait_kind, self.wait_detail)
        if self.wait_kind == "join":
            return "join fiber %d" % self.wait_detail
        if self.wait_kind in ("poll", "select"):
            return "%s of %d" % (self.wait_kind, self.wait_detail)
        return self.wait_kind

    def since(self):
        """For how long it has waited; not known of a process on another machine, or that is over."""
        connection = gdb.selected_inferior().connection
        if self.is_new or self.is_running or self.state & 3 == 0 or not connection or connection.type != "native":
            return ""
        seconds = time.clock_gettime(time.CLOCK_MONOTONIC) - self.since_ms / 1000
        return "%.1f s" % max(seconds, 0)

    def registers(self):
        """As they will be when it goes on: pc, sp, frame pointer, one more."""
        at = self.stands
        table = self.table
        return (
            word(at + table.saved_pc),
            at + table.saved_bytes,
            word(at + table.saved_fp),
            word(at + table.saved_register),
        )

    def calls(self):
        """Return addresses along the frame pointers, innermost first."""
        pc, low, frame, _ = self.registers()
        yield pc
        for _ in range(FRAMES_MAX):
            if not low <= frame <= self.stack_top - 2 * WORD or frame % WORD:
                return
            low, pc, frame = frame + 2 * WORD, word(frame + WORD), word(frame)
            if frame == 0:
                return
            yield pc

    def place(self):
        """The innermost function that is neither the runtime's nor a library's."""
        if self.is_new or self.is_running:
            return ""
        calls = list(self.calls())
        own = (own_function_at(pc - 1) for pc in calls)
        return next((name for name in own if name), function_at(calls[0] - 1))

    def thread(self):
        """The thread that runs it."""
        selected = gdb.selected_thread()
        try:
            for thread in gdb.selected_inferior().threads():
                thread.switch()
                # Not only the innermost frame: a signal handler runs on another stack.
                frame = gdb.newest_frame()
                for _ in range(FRAMES_MAX):
                    if frame is None:
                        break
                    if self.guard_end <= int(frame.read_register("sp")) < self.stack_top:
                        return thread
                    frame = frame.older()
        finally:
            selected.switch()
        return None

    def title(self):
        name = " '%s'" % self.name if self.name else ""
        return "fiber %d%s on worker %d: %s" % (self.id, name, self.home, self.status())


LIBRARIES = re.compile(r"[<&*]*(squall_(fiber|hook|iomanager)|std|core|alloc|mio)\b")
LIBRARY_FILES = re.compile(r"(^|/)(rustc/|library/(std|core|alloc)/|(fiber|hook|iomanager)/src/)|^/rustc/")
FUNCTIONS = {}
OWN_FUNCTIONS = {}


def find_own_function(pc):
    """Of the functions at an address, inlined ones first, one that is neither the runtime's nor a library's."""
    try:
        block = gdb.block_for_pc(pc)
    except RuntimeError:
        block = None
    while block is not None and not block.is_static and not block.is_global:
        function, block = block.function, block.superblock
        if function is None or LIBRARY_FILES.search(function.symtab.filename):
            continue
        if block.is_static or block.is_global:
            break
        # What was put into another function is known by its last name only.
        return "%s in %s" % (function.print_name, function.symtab.filename)
    name = function_at(pc)
    return name if "::" in name and not LIBRARIES.match(name) else None


def own_function_at(pc):
    if pc not in OWN_FUNCTIONS:
        OWN_FUNCTIONS[pc] = find_own_function(pc)
    return OWN_FUNCTIONS[pc]


def function_at(pc):
    if pc not in FUNCTIONS:
        text = gdb.execute("info symbol %#x" % pc, to_string=True)
        match = re.match(r"(.*?)(?: \+ \d+)? in section", text)
        FUNCTIONS[pc] = match.group(1) if match else "%#x" % pc
    return FUNCTIONS[pc]


class FrameId:
    def __init__(self, sp, pc):
        self.sp, self.pc = sp, pc


def thread_frame():
    """The outermost of the functions in the selected thread's innermost frame, and how many there are: some were put into it."""
    frame, count = gdb.newest_frame(), 1
    while frame.type() == gdb.INLINE_FRAME and frame.older() is not None:
        frame, count = frame.older(), count + 1
    return frame, count


class FiberUnwinder(gdb.unwinder.Unwinder):
    """While a fiber is selected, its innermost frame comes after the thread's innermost one."""

    def __init__(self):
        super().__init__("squall fiber")
        self.fiber = None
        self.thread = None
        self.at = None

    def select(self, fiber):
        self.clear()
        frame = gdb.newest_frame()
        self.at = (int(frame.read_register("pc")), int(frame.read_register("sp")))
        self.thread = gdb.selected_thread().ptid
        self.fiber = fiber
        gdb.invalidate_cached_frames()
        frame, _ = thread_frame()
        older = frame.older()
        if older is None:
            self.clear()
            raise gdb.GdbError("gdb does not unwind here: %s" % gdb.frame_stop_reason_string(frame.unwind_stop_reason()))
        older.select()

    def clear(self):
        if self.fiber is not None:
            self.fiber = None
            gdb.invalidate_cached_frames()

    def __call__(self, pending):
        if self.fiber is None or gdb.selected_thread().ptid != self.thread:
            return None
        at = (int(pending.read_register("pc")), int(pending.read_register("sp")))
        if at != self.at:
            return None
        architecture = pending.architecture()
        names = REGISTERS.get(architecture.name())
        if names is None:
            return None
        type = architecture.integer_type(64, False)
        value = lambda number: gdb.Value(number).cast(type)
        # Below the fiber's own frames, or gdb takes its stack for a corrupt one.
        info = pending.create_unwind_info(FrameId(value(self.fiber.stands - 2 * WORD), value(at[0])))
        for name, number in zip(names, self.fiber.registers()):
            info.add_saved_register(name, value(number))
        return info


class FiberFrames:
    """Leaves the thread's frame out of a fiber's backtrace."""

    def __init__(self):
        self.name = "squall fiber"
        self.enabled = True
        self.priority = 1000
        gdb.frame_filters[self.name] = self

    def filter(self, frames):
        if UNWINDER.fiber is not None:
            frames = itertools.islice(frames, thread_frame()[1], None)
        return frames


UNWINDER = FiberUnwinder()
gdb.unwinder.register_unwinder(None, UNWINDER, replace=True)
FiberFrames()
gdb.events.cont.connect(lambda event: UNWINDER.clear())


class InfoFibers(gdb.Command):
    """List the fibers: info fibers [TEXT]

With TEXT, only those whose name, state or place has it."""

    def __init__(self):
        super().__init__("info fibers", gdb.COMMAND_STATUS)

    def invoke(self, argument, from_tty):
        rows = [("", "Id", "Name", "Worker", "State", "Since", "Function")]
        selected = UNWINDER.fiber.id if UNWINDER.fiber else None
        fibers = Table().fibers()
        for fiber in fibers:
            mark = "*" if fiber.id == selected else ""
            row = (mark, str(fiber.id), fiber.name or "", str(fiber.home), fiber.status(), fiber.since(), fiber.place())
            if argument in " ".join(row):
                rows.append(row)
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) + "  " + row[6])
        print("%d fibers" % len(fibers))


class FiberCommand(gdb.Command):
    """Look at a fiber: fiber ID, fiber ID COMMAND, fiber apply all|ID... COMMAND, fiber off

fiber ID          select it: bt, up, down and frame are about its stack; a fiber that runs selects its thread
fiber ID COMMAND  run one command there, and come back
fiber apply ...   the same for several fibers, or for all of them
fiber off         back to the thread, as does letting the program go on"""

    def __init__(self):
        super().__init__("fiber", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        words = argument.split()
        if not words:
            print(UNWINDER.fiber.title() if UNWINDER.fiber else "no fiber is selected: see info fibers, help fiber")
        elif words[0] == "off":
            UNWINDER.clear()
        elif words[0] == "apply":
            self.apply(words[1:])
        else:
            command = argument.split(None, 1)[1] if len(words) > 1 else None
            fiber = self.find(words[0])
            print(fiber.title())
            self.visit(fiber, command)

    def find(self, text, fibers=None):
        if not text.isdigit():
            raise gdb.GdbError("%r is not the number of a fiber: see info fibers" % text)
        for fiber in fibers or Table().fibers():
            if fiber.id == int(text):
                return fiber
        raise gdb.GdbError("there is no fiber %s: see info fibers" % text)

    def apply(self, words):
        fibers = Table().fibers()
        if words[:1] == ["all"]:
            chosen, command = fibers, words[1:]
        else:
            count = next((index for index, text in enumerate(words) if not text.isdigit()), len(words))
            chosen, command = [self.find(text, fibers) for text in words[:count]], words[count:]
        if not chosen or not command:
            raise gdb.GdbError("fiber apply all|ID... COMMAND")
        for fiber in chosen:
            print("\n" + fiber.title())
            try:
                self.visit(fiber, " ".join(command))
            except gdb.error as error:
                print(error)

    def visit(self, fiber, command):
        if fiber.is_new:
            print("it has not started: it has no calls")
            return
        before, thread = UNWINDER.fiber, gdb.selected_thread()
        if fiber.is_running:
            runs_it = fiber.thread()
            if runs_it is None:
                print("it runs on no thread that gdb can unwind to it")
                return
            UNWINDER.clear()
            runs_it.switch()
        else:
            UNWINDER.select(fiber)
        if command is None:
            gdb.execute("frame")
            return
        try:
            gdb.execute(command)
        finally:
            thread.switch()
            if before is None:
                UNWINDER.clear()
            else:
                UNWINDER.select(before)


InfoFibers()
FiberCommand()

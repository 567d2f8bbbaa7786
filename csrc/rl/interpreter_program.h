// What csrc/rl/interpreter.cpp has Python run: python3 -I -S -c PROGRAM TIME_S MEMORY_MIB OUTPUT. It reads requests from its standard input,
// each a line with the number of bytes and then these, and answers each by a line: "v VALUE" or "e NAME".
#pragma once

namespace isentrope::rl {

inline constexpr const char* kInterpreterProgram = R"py(
import ast, os, resource, select, signal, struct, sys, time

FUNCTIONS = {f.__name__: f for f in (abs, all, any, bool, divmod, enumerate, float, int, len, list, max, min, pow, range,
                                     reversed, round, sorted, sum, tuple, zip)}
NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple, ast.List, ast.Subscript, ast.Slice,
         ast.Call, ast.Name, ast.Constant, ast.ListComp, ast.GeneratorExp, ast.comprehension, ast.Load, ast.Store,
         ast.operator, ast.unaryop, ast.boolop, ast.cmpop) + ((ast.Index,) if sys.version_info < (3, 9) else ())


class Refused(Exception):
    pass


# Parses an expression, or raises SyntaxError; Refused where it has more than the nodes above.
def read(text):
    tree = ast.parse(text.strip(), mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            raise Refused(type(node).__name__)
        if isinstance(node, ast.Constant) and type(node.value) not in (int, float, bool):
            raise Refused("a constant that is no number")
        if isinstance(node, ast.Call) and (not isinstance(node.func, ast.Name) or node.keywords):
            raise Refused("a call of what is no name")
        if isinstance(node, ast.Name) and "__" in node.id:
            raise Refused(node.id)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in FUNCTIONS:
            raise Refused(node.id)
    return tree


# The system calls of a computation: read, write, exit, exit_group, mmap, munmap, mremap, madvise, brk, futex, rt_sigaction, rt_sigprocmask,
# rt_sigreturn, getrandom, clock_gettime, by the number of the processor in seccomp_data.
CALLS = {"x86_64": (0xC000003E, (0, 1, 60, 231, 9, 11, 25, 28, 12, 202, 13, 14, 15, 318, 228)),
         "aarch64": (0xC00000B7, (63, 64, 93, 94, 222, 215, 216, 233, 214, 98, 134, 135, 139, 278, 113))}


# A function that puts the process under a filter which answers EPERM to all other calls; None where that is not known here.
def make_filter():
    try:
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        arch, calls = CALLS[os.uname().machine]
    except Exception:
        return None
    n = len(calls)
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, arch), (0x06, 0, 0, 0x80000000), (0x20, 0, 0, 0)]  # load arch; another: kill; load the number
    code += [(0x15, n - i, 0, call) for i, call in enumerate(calls)]
    code += [(0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]  # EPERM; allow
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    class Prog(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
    prog = Prog(len(code), ctypes.addressof(program))
    pointer = ctypes.byref(prog)
    null = ctypes.c_void_p(None)
    def confine(keep=(program, prog)):
        return libc.prctl(38, ctypes.c_ulong(1), null, null, null) == 0 and libc.prctl(22, ctypes.c_ulong(2), pointer, null, null) == 0
    return confine


# Takes from this process what a computation does not need. Returns whether a filter of system calls holds.
def confine(confine_calls, time_s, memory_mib):
    with open("/proc/self/statm") as file:
        memory = int(file.read().split()[0]) * resource.getpagesize() + (memory_mib << 20)
    seconds = int(time_s) + 2
    for name, limit in (("AS", memory), ("CPU", seconds), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0), ("NOFILE", 0)):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
    return confine_calls is not None and confine_calls()


def work_out(text, out, confine_calls, time_s, memory_mib, output):
    try:
        confine(confine_calls, time_s, memory_mib)
        try:
            code = compile(read(text), "", "eval")
        except (SyntaxError, ValueError):
            raise SyntaxError
        value = repr(eval(code, {"__builtins__": {}, **FUNCTIONS}))
        answer = "v " + value if len(value) <= output else "e output"
    except MemoryError:
        answer = "e memory"
    except SyntaxError:
        answer = "e syntax"
    except Refused:
        answer = "e refused"
    except RecursionError:
        answer = "e memory"
    except BaseException:
        answer = "e raised"
    os.write(out, (answer + "\n").encode("ascii", "replace"))


def ask(text, confine_calls, time_s, memory_mib, output):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work_out(text, theirs, confine_calls, time_s, memory_mib, output)
        finally:
            os._exit(0)
    os.close(theirs)
    end, answer = time.monotonic() + time_s, b""
    late = False
    while not answer.endswith(b"\n") and not late:
        late = not select.select([ours], [], [], max(0.0, end - time.monotonic()))[0]
        piece = b"" if late else os.read(ours, 1 << 16)
        answer += piece
        if not piece:
            break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ours)
    return answer if answer.endswith(b"\n") else b"e time\n" if late else b"e memory\n"


def main(time_s, memory_mib, output):
    confine_calls = make_filter()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"ready\n")
    answers.flush()
    while True:
        head = requests.readline()
        if not head:
            return
        text = requests.read(int(head)).decode("utf-8", "replace")
        answers.write(ask(text, confine_calls, time_s, memory_mib, output))
        answers.flush()


if __name__ == "__main__" and len(sys.argv) == 4:
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
)py";

}  // namespace isentrope::rl

"""Runs inside the sandbox: isolates itself, then runs one candidate program (or the trusted tests of one).

Started by path as `python -I -S child.py SOCKET`, standard library only, nothing of llmrl. That process runs nothing foreign:
it forks one that does for each request on its socket, so that no program waits for an interpreter to start. A request is
JSON: role (function | stdio | tester), rung (namespaces | seccomp | none), limits; with it come the two pipes that carry
one JSON object a line, and the program's stdin and stdout if it has them. The candidate never gets an expected value: it is
asked to evaluate calls, and the answers are compared elsewhere. The order matters: namespaces, mounts, limits, capabilities,
Landlock, seccomp, then foreign code.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import types
from collections.abc import Iterator

LEFT_OUT = ("from llmrl.", "from __future__", "from typing ")  # imports that the text does not need
LIBC: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MACHINE = os.uname().machine
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of the system calls a candidate must not make. Landlock and mount_setattr have one number everywhere.
FORBIDDEN = {
    "x86_64": {
        "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "ptrace": 101, "process_vm_readv": 310,
        "process_vm_writev": 311, "socket": 41, "mount": 165, "umount2": 166, "pivot_root": 155,
        "chroot": 161, "setns": 308, "unshare": 272, "add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "init_module": 175, "finit_module": 313, "delete_module": 176,
        "kexec_load": 246, "reboot": 169, "swapon": 167, "open_by_handle_at": 304, "io_uring_setup": 425,
        "pidfd_open": 434, "pidfd_getfd": 438, "open_tree": 428, "move_mount": 429, "fsopen": 430, "mount_setattr": 442,
        "kcmp": 312, "acct": 163, "personality": 135, "setrlimit": 160, "prlimit64": 302, "shmget": 29, "msgget": 68,
    },
    "aarch64": {
        "execve": 221, "execveat": 281, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "socket": 198,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "setns": 268, "unshare": 97,
        "add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104, "reboot": 142, "swapon": 224,
        "open_by_handle_at": 265, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438, "open_tree": 428,
        "move_mount": 429, "fsopen": 430, "mount_setattr": 442, "kcmp": 272, "acct": 89, "personality": 92,
        "setrlimit": 164, "prlimit64": 261, "shmget": 194, "msgget": 186,
    },
}  # fmt: skip
CLONE = {"x86_64": 56, "aarch64": 220}
KILLS = {"x86_64": (62, 200), "aarch64": (129, 130)}  # kill, tkill
CAPSET = {"x86_64": 126, "aarch64": 91}
CLONE3, MOUNT_SETATTR, CLONE_THREAD = 435, 442, 0x10000


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    texts = [text.encode() for text in (source, target, kind)]
    check(LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def enter_namespaces() -> None:
    """New user, mount, pid, net, ipc and uts namespaces; works for root and for an ordinary user."""
    uid, gid = os.getuid(), os.getgid()
    check(LIBC.unshare(NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def read_only(path: str) -> None:
    """Make the mount at `path`, and those below it, read-only; flags that the kernel locked are repeated."""
    attributes = struct.pack("QQQQ", 1 | 2 | 4, 0, 0, 0)
    if LIBC.syscall(MOUNT_SETATTR, -100, path.encode(), 0x8000, attributes, len(attributes)) == 0:
        return
    flags, seen = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_REMOUNT | MS_BIND, os.statvfs(path).f_flag
    for theirs, ours in ((8, MS_NOEXEC), (1024, 1024), (2048, 2048), (4096, 1 << 21)):
        flags |= ours if seen & theirs else 0
    mount("none", path, "", flags)


def build_root(paths: list[str], tmp_bytes: int) -> None:
    """A root of read-only system and interpreter folders, four devices and a small writable /tmp; nothing else."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    root = "/sys" if os.path.isdir("/sys") else "/mnt"
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir(root + "/tmp")
    mount("tmpfs", root + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={tmp_bytes},nr_inodes=2000,mode=700")
    for path in paths:
        target = root + path
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, mode=0o755, exist_ok=True)
        else:
            open(target, "w").close()
        mount(path, target, "", MS_BIND | MS_REC)
        if not path.startswith("/dev/"):
            read_only(target)
    os.chdir(root)
    here = ctypes.c_char_p(b".")
    number = {"x86_64": 155, "aarch64": 41}[MACHINE]
    check(LIBC.syscall(number, here, here), "pivot_root")
    check(LIBC.umount2(b".", 2), "umount")
    mount("none", "/", "", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_REMOUNT | MS_BIND)
    os.chdir("/tmp")


def drop_capabilities() -> None:
    header, nothing = struct.pack("Ii", 0x20080522, 0), struct.pack("IIIIII", 0, 0, 0, 0, 0, 0)
    check(LIBC.syscall(CAPSET[MACHINE], header, nothing), "capset")


def landlock(paths: list[str], writable: str) -> bool:
    """Without namespaces: only these paths can be read, only `writable` written. False where the kernel lacks it."""
    if LIBC.syscall(444, None, 0, 1) < 1:
        return False
    everything, reading = (1 << 13) - 1, (1 << 0) | (1 << 2) | (1 << 3)
    rules = LIBC.syscall(444, struct.pack("Q", everything), 8, 0)
    if rules < 0:
        return False
    for path in [*paths, writable]:
        if not os.path.exists(path):
            continue
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = everything if path == writable else reading
        if not os.path.isdir(path):
            allowed = (1 << 2) | (1 << 1 if path.startswith("/dev/") else 0)
        check(LIBC.syscall(445, rules, 1, struct.pack("=Qi", allowed, place), 0), f"landlock {path}")
        os.close(place)
    check(LIBC.syscall(446, rules, 0), "landlock_restrict_self")
    os.close(rules)
    return True


def seccomp(*, forbid_kill: bool) -> None:
    """No new processes, no program start, no sockets, no tracing, no mounts: those calls fail with EPERM."""
    numbers = list(FORBIDDEN[MACHINE].values()) + (list(KILLS[MACHINE]) if forbid_kill else [])
    ld, jeq, jge, jset, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, deny, missing, allow = 0x80000000, 0x50000 | 1, 0x50000 | 38, 0x7FFF0000
    code = [(ld, 0, 0, 4), (jeq, 1, 0, AUDIT_ARCH[MACHINE]), (ret, 0, 0, kill), (ld, 0, 0, 0)]
    if MACHINE == "x86_64":
        code += [(jge, 0, 1, 0x40000000), (ret, 0, 0, kill)]  # the x32 doubles of every call
    code += [(jeq, 0, 1, CLONE3), (ret, 0, 0, missing)]  # its flags cannot be seen; libc falls back to clone
    code += [
        (jeq, 0, 4, CLONE[MACHINE]),
        (ld, 0, 0, 16),
        (jset, 1, 0, CLONE_THREAD),
        (ret, 0, 0, deny),
        (ret, 0, 0, allow),
    ]
    for number in numbers:
        code += [(jeq, 0, 1, number), (ret, 0, 0, deny)]
    code += [(ret, 0, 0, allow)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    filters = Filter(len(code), ctypes.cast(program, ctypes.c_void_p))
    check(LIBC.prctl(22, 2, ctypes.byref(filters), 0, 0), "seccomp")


def limit(limits: dict[str, int]) -> None:
    """Kernel limits. Processes need none: seccomp forbids them."""
    cpu = limits["cpu_s"]
    for what, amount in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (amount, amount))


def isolate(config: dict) -> None:
    """The whole ladder rung that CONFIG names; raises OSError where it is not available."""
    rung, limits = config["rung"], config["limits"]
    LIBC.prctl(1, 9, 0, 0, 0)
    if os.getppid() != config["parent"]:
        os._exit(1)
    if rung == "namespaces":
        enter_namespaces()
        child = os.fork()
        if child:
            for pipe in {0, 1, 2, *config["pipes"]}:
                os.close(pipe)
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        LIBC.prctl(1, 9, 0, 0, 0)
        build_root(config["paths"], limits["file_bytes"])
        drop_capabilities()
    elif rung == "none":
        os.chdir(config["folder"])
    elif rung == "seccomp":
        os.chdir(config["folder"])
        if os.getuid() == 0 and config["drop_uid"]:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            LIBC.prctl(1, 9, 0, 0, 0)
    else:
        raise OSError(f"no rung {rung}")
    limit(limits)
    check(LIBC.prctl(38, 1, 0, 0, 0), "no_new_privs")
    LIBC.prctl(4, 0, 0, 0, 0)  # not dumpable: no other process of this user may read this one
    if rung == "seccomp" and not landlock(config["paths"], config["folder"]) and not config["drop_uid"]:
        raise OSError("this kernel has no Landlock, and the interpreter is not readable for another user")
    if rung != "none":
        seccomp(forbid_kill=rung == "seccomp")


def read_lines(pipe: int) -> Iterator[dict]:
    """One message a line; several may have come at once. Ends the process with the pipe."""
    data = b""
    while True:
        line, found, rest = data.partition(b"\n")
        if found:
            data = rest
            yield json.loads(line)
        elif part := os.read(pipe, 1 << 16):
            data += part
        else:
            os._exit(0)


def trusted(*names: str) -> types.CodeType:
    """The half of the harness that works beside a program: how values travel, then what the role does with them."""
    lines = ["from __future__ import annotations"]
    for name in ("values", "standins", *names):
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py"), encoding="utf-8") as file:
            lines += [line for line in file.read().splitlines() if not line.startswith(LEFT_OUT)]
    return compile("\n".join(lines), "<runner>", "exec")


def serve(number: int) -> dict:
    """Answer requests for processes; returns in each new process, with what was asked for. Ends with the other end."""
    requests, alive, own = socket.socket(fileno=number), set(), os.getpid()
    testing, running = trusted("witness", "tester"), trusted("runner")
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    while True:
        data, pipes, _, _ = socket.recv_fds(requests, 1 << 18, 8)
        message = json.loads(data or '{"stop": true}')
        if "role" in message:
            pid = os.fork()
            if not pid:
                requests.close()
                os.setsid()
                for place, pipe in enumerate(pipes[2:] or (nothing, nothing)):
                    os.dup2(pipe, place)
                for pipe in (*pipes[2:], nothing):
                    os.close(pipe)
                code = testing if message["role"] == "tester" else running
                return {**message, "pipes": pipes[:2], "parent": own, "code": code}
            alive.add(pid)
            answer: dict = {"pid": pid}
        else:
            for pid in [message["kill"]] if "kill" in message else alive if "stop" in message else ():
                for kill in (os.killpg, os.kill):  # it may not lead its group yet
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        kill(pid, signal.SIGKILL)
            if "stop" in message:
                os._exit(0)
            pid = message.get("kill") or message["wait"]
            ended, status = os.waitpid(pid, 0 if "kill" in message else os.WNOHANG)
            alive -= {ended}
            answer = {"status": os.waitstatus_to_exitcode(status) if ended else None}
        for pipe in pipes:
            os.close(pipe)
        requests.send(json.dumps(answer).encode())


def main(config: dict) -> None:
    requests, results = config["pipes"]

    def send(message: dict, _write=os.write, _dumps=json.dumps) -> None:
        data = memoryview(_dumps({**message, "nonce": config["nonce"]}).encode() + b"\n")
        while data:
            data = data[_write(results, data) :]

    try:
        isolate(config)
    except OSError as error:
        send({"no_isolation": str(error)})
        os._exit(3)
    send({"ready": True})
    messages = read_lines(requests)
    first = next(messages)
    sys.argv = ["program.py"]
    sys.path[:] = ["", *sys.path, *config["imports"]]
    scope: dict = {}
    exec(config.pop("code"), scope)
    scope["run"](config["role"], first, lambda: next(messages), send)


if __name__ == "__main__":
    main(serve(int(sys.argv[1])))

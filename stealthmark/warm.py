"""A warm process for many short commands: the libraries are imported once, then forked for every command.

Importing torch and its companions takes seconds, which a DAG of many small jobs would pay at every step. Whoever starts
many commands starts this server first (`start`) and hands the environment on; `python -m stealthmark ...` then runs in
a fork of it, with its own arguments, folder, environment and streams, and ends with the same exit status. Without a
server, or on a system without fork, the command runs as it always would.

Nobody outlives whom they work for. The server ends with the process that started it, and kills its commands. A command
ends with its client, and with the server: a pipe whose other end only the server holds closes when the server is gone,
however it went. Whoever notices that first removes the server's folder too.

Snakemake's own means do not replace it. The `run:` directive starts a Snakemake for every job, which takes longer than the
command. With `--force-use-threads` jobs are threads of Snakemake itself, and about as fast. But torch has one random
generator for all threads, so that on two cores the small study of `tests/test_workflow.py` came out with other rows; and
one job that runs out of memory takes the study with it. Job groups have no effect on one machine. A `service` job can start
a server, but all jobs that use it run at the same time.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "STEALTHMARK_WARM"
#: What the names of servers' folders start with; the process that started the server follows.
PREFIX = "stealthmark-"


def start() -> subprocess.Popen | None:
    """Start a server for this process and its children and wait until it answers; it ends with this process. None where
    it cannot be had."""
    if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
        return None
    _remove_abandoned()
    address = str(Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")) / "socket")
    server = subprocess.Popen(
        [sys.executable, "-m", "stealthmark.warm", address, str(os.getpid())],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # no thread may exist before a fork
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    # A command that found no server yet would run by itself, and outlive its owner; importing takes it as long anyway.
    while server.poll() is None and not Path(address).exists():
        time.sleep(0.05)
    if server.poll() is not None:
        _remove_folder(address)
        return None
    os.environ[VARIABLE] = address
    return server


def run(argv: list[str]) -> int | None:
    """Run a command in a fork of the server; its exit status, or None where there is no server to ask."""
    address = os.environ.get(VARIABLE)
    if not address:
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
        except ConnectionRefusedError:  # it was killed, and no command of its was there to notice
            _remove_folder(address)
            return None
        except OSError:
            return None
        request = json.dumps({"argv": argv, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
        try:
            socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
            connection.sendall(request)
            answer = connection.recv(1)
        except OSError:
            answer = b""
    if not answer:
        print("error: the warm process died; run the command again", file=sys.stderr)
        return 1
    return answer[0]


def serve(address: str, owner: int) -> None:
    """Answer commands until the process `owner`, which started this one, is gone. Never returns."""
    import segmentation_models_pytorch  # noqa: F401  (these imports are what makes the fork warm)

    from stealthmark import cli, collate, report  # noqa: F401
    from stealthmark.stages import attack, examine, explain, mark, prepare, scan, train  # noqa: F401

    wake, waker = socket.socketpair()
    for end in (wake, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lifeline, held = os.pipe()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + "~")
    listener.listen(128)
    os.rename(address + "~", address)  # it is there once it answers
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    children: dict[int, socket.socket] = {}
    while os.getppid() == owner:
        for key, _ in selector.select(timeout=0.5):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                pid = _fork(connection, [listener, wake, waker, *children.values()], (lifeline, held), address)
                if pid:
                    children[pid] = connection
                    selector.register(connection, selectors.EVENT_READ)
            elif key.fileobj is wake:
                wake.recv(4096)
            else:  # a client says nothing more: readable means that it is gone, and its command with it
                gone = [pid for pid, connection in children.items() if connection is key.fileobj]
                selector.unregister(key.fileobj)
                for pid in gone:
                    _kill(pid)
        for pid, status in _ended(children):
            connection = children.pop(pid)
            if connection in selector.get_map():
                selector.unregister(connection)
            with suppress(OSError):  # the client may not have waited
                connection.send(bytes([os.waitstatus_to_exitcode(status) % 256]))
            connection.close()
    for pid in children:
        _kill(pid)
    _remove_folder(address)
    os._exit(0)  # cleaning up after torch takes seconds, for nobody


def _kill(pid: int) -> None:
    """Kill a command and what it started: it leads a group of its own."""
    for kill in (os.killpg, os.kill):  # its group may not be there yet
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _ended(children: dict[int, socket.socket]) -> list[tuple[int, int]]:
    done = (os.waitpid(pid, os.WNOHANG) for pid in list(children))
    return [(pid, status) for pid, status in done if pid]


def _fork(connection: socket.socket, others: list[socket.socket], pipe: tuple[int, int], address: str) -> int | None:
    """A command's process, or None where the client was gone before it had said what to run."""
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request, length = b"", int.from_bytes(head, "big")
    while len(request) < length and (part := connection.recv(65536)):
        request += part
    pid = os.fork() if request and len(request) == length else None
    if pid == 0:
        _child(json.loads(request), streams, [connection, *others], pipe, address)
    for stream in streams:
        os.close(stream)
    if pid is None:
        connection.close()
    return pid


def _child(request: dict, streams: list[int], sockets: list[socket.socket], pipe: tuple[int, int], address: str) -> None:
    """Become the command. Never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in sockets:
            end.close()
        lifeline, held = pipe
        os.close(held)
        threading.Thread(target=_end_with_the_server, args=(lifeline, address), daemon=True).start()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["stealthmark", *request["argv"]]
        from stealthmark.cli import main

        status = main(request["argv"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_with_the_server(lifeline: int, address: str) -> None:
    """Wait until nobody can write into the pipe any more, then end this process and what it started."""
    os.read(lifeline, 1)
    _remove_folder(address)
    os.killpg(0, signal.SIGKILL)


def _remove_folder(address: str) -> None:
    """Remove a server's folder, which somebody else may be doing just now."""
    with suppress(OSError):
        for name in (address, address + "~"):
            Path(name).unlink(missing_ok=True)
        Path(address).parent.rmdir()


def _remove_abandoned() -> None:
    """Remove the folders of servers that were killed together with all who would have noticed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = folder.name.split("-")[1]
        with suppress(OSError):
            if owner.isdecimal() and not _lives(int(owner)) and folder.stat().st_uid == os.getuid():
                _remove_folder(str(folder / "socket"))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))

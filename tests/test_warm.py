"""The warm process: a command through it does what it does without it, and neither outlives whom it works for."""

import os
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stealthmark import cli, warm

ROOT = Path(__file__).parent.parent
SUITE = str(ROOT / "benchmarks/quick.yaml")
DATASET = "{name: phantom-endoscopy, groups: 8, cases_per_group: 1}"
OWNER = """
import os, sys, threading
from stealthmark import warm
server = warm.start()
print(os.environ[warm.VARIABLE], server.pid, flush=True)
threading.Thread(target=lambda: (server.wait(), os._exit(1)), daemon=True).start()
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(not hasattr(socket, "send_fds"), reason="no fork or no passing of files here")


def listens(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(address) == 0


def start_owner() -> subprocess.Popen:
    """A process that starts a server, says its address and process, and ends with it."""
    return subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def server():
    """The address of a server that a process of its own started, which therefore ends when that process does."""
    owner = start_owner()
    address = owner.stdout.readline().split()[0]
    # It listens when it has imported what it needs. Should it die of that, owner and output end, and the tests say so.
    while not listens(address) and not select.select([owner.stdout], [], [], 0.05)[0]:
        pass
    yield address
    owner.communicate()  # its input ends, so it does; its output ends when the server has ended as well
    assert not Path(address).parent.exists(), "the server left its folder behind"


@pytest.fixture
def client(server, monkeypatch):
    """Run a command through the server, as `python -m stealthmark` would."""
    monkeypatch.setenv(warm.VARIABLE, server)

    def run(*argv: object) -> int | None:
        status = warm.run([str(word) for word in argv])
        assert status is not None, "the server did not answer"
        return status

    return run


def test_a_command_leaves_the_same_files_as_without_the_server(client, tmp_path):
    argv = ["prepare", "--dataset", DATASET, "--size", 32, "--seed", 5, "--out"]
    assert client(*argv, tmp_path / "warm") == 0
    assert cli.main([str(word) for word in [*argv, tmp_path / "cold"]]) == 0
    names = ["cases.csv", "images.npy", "manifest.json", "masks.npy"]
    assert set(names) <= {file.name for file in (tmp_path / "warm").iterdir()}
    for name in names:
        assert (tmp_path / "warm" / name).read_bytes() == (tmp_path / "cold" / name).read_bytes(), name


def test_the_folder_and_the_streams_are_the_clients(client, tmp_path, monkeypatch, capfd):
    (tmp_path / "suite.yaml").write_text(Path(SUITE).read_text())
    monkeypatch.chdir(tmp_path)
    assert client("check", "suite.yaml") == 0
    assert '"suite": "quick"' in capfd.readouterr().out
    assert client("check", "nothing.yaml") == 1
    assert capfd.readouterr().err == "error: there is no suite at nothing.yaml\n"


def test_the_exit_status_is_the_commands(client, tmp_path, capfd):
    assert client("check", SUITE) == 0
    assert client("check", tmp_path / "nothing.yaml") == 1
    assert client("--help") == 0
    assert client("melt") == 2
    assert "invalid choice: 'melt'" in capfd.readouterr().err


def test_a_command_that_crashes_is_status_1_with_its_trace(client, tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    assert client("prepare", "--dataset", DATASET, "--size", 32, "--out", tmp_path / "file/data") == 1
    assert "Traceback" in capfd.readouterr().err
    assert client("check", SUITE) == 0, "the server did not survive it"


def test_commands_at_once_get_their_own_answers(client, tmp_path):
    wanted = [SUITE, tmp_path / "nothing.yaml"] * 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda file: client("check", file), wanted)) == [0, 1] * 4


def test_clients_that_vanish_before_they_say_what_to_run_do_no_harm(client, server):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server)
    with socket.socket(socket.AF_UNIX) as connection, open(os.devnull) as nothing:
        connection.connect(server)
        socket.send_fds(connection, [(1000).to_bytes(4, "big")], [nothing.fileno()] * 3)
        connection.sendall(b'{"argv"')
    assert client("check", SUITE) == 0


def test_the_module_uses_the_server(client, server, tmp_path):
    """`python -m stealthmark` hands its command on: it does not import what it would need itself."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "stealthmark", "check", SUITE], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and '"suite": "quick"' in done.stdout
    assert "stealthmark.warm" in done.stderr and "torch" not in done.stderr


def test_a_command_dies_with_its_client(client, server, tmp_path):
    """As when Snakemake is interrupted. The command's messages end when the last process that could write them has."""
    data = tmp_path / "data"
    assert client("prepare", "--dataset", DATASET, "--size", 32, "--out", data) == 0
    argv = ["train", "--data", data, "--schedule", "{epochs: 200, batch: 2}", "--out", tmp_path / "model"]
    command = subprocess.Popen(
        [sys.executable, "-m", "stealthmark", *map(str, argv)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert command.stderr.readline().startswith("epoch 1/200")
    command.send_signal(signal.SIGKILL)
    command.wait()
    rest = command.stderr.read()
    command.stderr.close()
    assert "epoch 200/200" not in rest and not (tmp_path / "model/card.json").exists()
    assert client("check", SUITE) == 0


def test_without_a_server_there_is_nobody_to_ask(monkeypatch, tmp_path):
    monkeypatch.delenv(warm.VARIABLE, raising=False)
    assert warm.run(["check", SUITE]) is None
    monkeypatch.setenv(warm.VARIABLE, str(tmp_path / "gone"))
    assert warm.run(["check", SUITE]) is None


def test_a_command_dies_with_the_server_and_removes_its_folder(client, tmp_path, monkeypatch):
    """As when the machine runs out of memory. A run that goes on would write the files that the command still writes."""
    data = tmp_path / "data"
    assert client("prepare", "--dataset", DATASET, "--size", 32, "--out", data) == 0
    owner = start_owner()
    address, pid = owner.stdout.readline().split()
    monkeypatch.setenv(warm.VARIABLE, address)
    argv = ["train", "--data", data, "--schedule", "{epochs: 200, batch: 2}", "--out", tmp_path / "model"]
    command = subprocess.Popen(
        [sys.executable, "-m", "stealthmark", *map(str, argv)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert command.stderr.readline().startswith("epoch 1/200")
    os.kill(int(pid), signal.SIGKILL)
    rest = command.stderr.read()  # to the end: nobody is left who could write
    command.stderr.close()
    assert command.wait() == 1 and rest.endswith("error: the warm process died; run the command again\n")
    assert "epoch 200/200" not in rest and not (tmp_path / "model/card.json").exists()
    assert not Path(address).parent.exists()
    owner.communicate()


def test_the_folder_of_a_server_that_was_killed_goes_with_the_next_command(monkeypatch):
    owner = start_owner()
    address, pid = owner.stdout.readline().split()
    monkeypatch.setenv(warm.VARIABLE, address)
    os.kill(int(pid), signal.SIGKILL)
    owner.communicate()
    assert Path(address).exists() and warm.run(["check", SUITE]) is None
    assert not Path(address).parent.exists()


def test_abandoned_folders_are_those_of_processes_that_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(warm.tempfile, "gettempdir", lambda: str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f"stealthmark-{gone.pid}-abc", f"stealthmark-{os.getpid()}-abc", "stealthmark-mine", "stealthmark-x-y"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "socket").touch()
    warm._remove_abandoned()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])

"""Run a study, alone in its folder: python workflow/alone.py snakemake --configfile benchmarks/quick.yaml --cores 2

Snakemake locks a folder, and a run that was killed leaves its lock behind. Whose lock it is the lock does not say. So this
script holds a lock of its own on a file beside it, which the system lets go of when the run ends, however it ends. Only
whoever has that lock, and finds no other Snakemake at work in the folder, removes what a killed run has left.
"""

import os
import subprocess
import sys
from pathlib import Path

LOCKS = Path(".snakemake/locks")
#: Holds the process of the run; what counts is the lock on it.
OWN_LOCK = Path(".snakemake/reproduce.pid")


def main(command: list[str]) -> int:
    """Become the command, or refuse with one sentence and status 1 while another run is alive in this folder."""
    import fcntl  # not at the top: Windows has none

    OWN_LOCK.parent.mkdir(exist_ok=True)
    descriptor = os.open(OWN_LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _refuse(OWN_LOCK.read_text().strip())
    if LOCKS.is_dir() and any(LOCKS.iterdir()):
        if living := _snakemake_in(Path.cwd()):
            return _refuse(str(living))
        if status := subprocess.call([*command, "--unlock", "--quiet", "all"]):
            return status
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    os.set_inheritable(descriptor, True)  # Snakemake holds it on; what Snakemake starts does not inherit it
    os.execvp(command[0], command)


def _refuse(process: str) -> int:
    print(f"error: another run is at work in this folder (process {process}): wait for it, or stop it", file=sys.stderr)
    return 1


def _snakemake_in(folder: Path) -> int | None:
    """A process of this user that runs Snakemake in the folder, started by other means than this script."""
    import psutil  # comes with Snakemake

    for process in psutil.process_iter():
        try:
            words = process.cmdline()[:3]
            if any(Path(word).name == "snakemake" for word in words) and Path(process.cwd()) == folder:
                return process.pid
        except (psutil.Error, OSError):
            continue
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

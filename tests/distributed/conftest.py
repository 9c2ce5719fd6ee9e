"""Real processes that find each other on this machine, as the hosts of a pod would. None outlives its test."""

import contextlib
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 300  # seconds that a launch may take on a machine that others use, too


def free_port():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


class Launch:
    """`processes` runs of one command with `devices` CPU devices each; process i writes its words to `words(i)`."""

    def __init__(self, folder, command, processes, devices, **environment):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        shared = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices),
                  "PYTHONPATH": str(ROOT), **environment}
        if processes > 1:
            shared |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
        self.processes = []
        for i in range(processes):
            with open(folder / f"{i}.log", "w") as log:
                self.processes.append(subprocess.Popen(
                    [sys.executable, "-W", "ignore", *map(str, command)], cwd=ROOT, stdout=log, stderr=log,
                    env=shared | ({"JAX_PROCESS_ID": str(i)} if processes > 1 else {})))

    def words(self, i=0):
        return (self.folder / f"{i}.log").read_text()

    def wait(self, limit=LIMIT):
        """The exit codes of all; fails where one takes longer."""
        end = time.monotonic() + limit
        for process in self.processes:
            process.wait(max(end - time.monotonic(), 0.1))
        return [process.returncode for process in self.processes]

    def wait_until(self, condition, limit=LIMIT):
        end = time.monotonic() + limit
        while not condition():
            ended = [process.poll() for process in self.processes]
            assert ended == [None] * len(ended) and time.monotonic() < end, self.words()
            time.sleep(0.01)

    def kill(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


@pytest.fixture
def launch(tmp_path):
    """Starts a Launch; all are killed in the end."""
    started = []

    def start(name, command, processes, devices, **environment):
        started.append(Launch(tmp_path / name, command, processes, devices, **environment))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture(scope="session")
def objectives():
    """tests/training/conftest.py: four objectives on a tiny model."""
    spec = importlib.util.spec_from_file_location("objectives", ROOT / "tests/training/conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Meshes

"""A Triton that is killed, started again on the ports that it had, stopped and continued, while others use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from tests.conformance.triton import TritonProcess, triton
from tests.faults.oracle import wait_for

_SHARED = "/dev/shm/triton_python_backend_shm_region_"
_READY_S = 60.0


class Killable:
    """One server, first as `triton` started it, later as the same command line starts it."""

    def __init__(self, process: TritonProcess) -> None:
        self.http, self.grpc = process.http, process.grpc
        self.pid = process.pid
        self._restarted: subprocess.Popen[bytes] | None = None
        running = psutil.Process(process.pid)
        self._command, self._environment, self._folder = running.cmdline(), running.environ(), running.cwd()

    def kill(self) -> None:
        """SIGKILL, to the server and its model's process."""
        left = self._shared_memory()
        os.killpg(self.pid, signal.SIGKILL)
        if self._restarted is not None:
            self._restarted.wait()
        else:  # `triton` reaps it, at its end
            wait_for(lambda: psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        for path in left:  # nobody else would
            path.unlink(missing_ok=True)

    def start(self) -> None:
        """Begin to start it again."""
        self._restarted = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=self._folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pid = self._restarted.pid

    def stop(self) -> None:
        """SIGSTOP: connections stand, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def is_ready(self) -> bool:
        """Whether it says so itself."""
        try:
            urllib.request.urlopen(f"http://{self.http}/v2/models/dbl/ready", timeout=0.5).close()
        except OSError:
            return False
        return True

    def answered(self) -> int:
        """Items that it has worked on since it was started."""
        with urllib.request.urlopen(f"http://{self.http}/v2/models/dbl/stats", timeout=5) as reply:
            return int(json.load(reply)["model_stats"][0]["inference_count"])

    def close(self) -> None:
        """Leave nothing behind."""
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            self.go_on()
        if self._restarted is not None and self._restarted.poll() is None:
            self.kill()

    def _shared_memory(self) -> set[Path]:
        found = psutil.Process(self.pid).memory_maps(grouped=True)
        return {Path(mapped.path) for mapped in found if mapped.path.startswith(_SHARED)}


@contextmanager
def killables(folder: Path, repository: Path, count: int) -> Iterator[list[Killable]]:
    """So many servers."""
    with ExitStack() as stack:
        found = []
        for i in range(count):
            (folder / str(i)).mkdir()
            found.append(Killable(stack.enter_context(triton(folder / str(i), repository))))
            stack.callback(found[-1].close)
        yield found


def wait_ready(servers: list[Killable]) -> None:
    """Until all of them are."""
    wait_for(lambda: all(server.is_ready() for server in servers), within_s=_READY_S)

"""Jobs in processes of this machine, or on a Ray cluster, through the interface of ``concurrent.futures``.

Ray chooses its cluster: the one named by RAY_ADDRESS, else one that runs on this machine, else a new one on this
machine alone. The files that workers write are gathered on the driver's disk, so that no disk needs to be shared. A
worker sends the files of its run whenever they change, and a worker that replaces a dead one first receives them.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as _wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from loopprobe.errors import LoopprobeError
from loopprobe.support.memory import keep_freed_memory
from loopprobe.support.storage import MANIFEST, atomic, claim_shared, new_folder, owned

RETRIES = 3  # the number of times that a job is tried again after its worker died
PATIENCE = 120.0  # seconds that interrupted jobs have to save their state


class Keeper:
    """The owner of the runs' folders on the driver's disk: a Ray actor that workers on any machine can call."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def put(self, name: str, files: dict[str, bytes], names: list[str]) -> None:
        """Write the files that changed, each completely or not at all, and delete those that no longer exist."""
        folder = self.root / name
        if not (folder / MANIFEST).exists():
            claim_shared(folder).release()
        for file, content in files.items():
            with atomic(folder / file) as partial:
                partial.write_bytes(content)
        ours = owned(folder)
        for path in _files(folder):
            if path.name in ours and path.name not in names:
                path.unlink()

    def get(self, name: str) -> dict[str, bytes]:
        """Read all files of a run."""
        return {path.name: path.read_bytes() for path in _files(self.root / name)}


@contextmanager
def kept(keeper: Any, name: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield a local folder with the files that the keeper has of a run, and a function that sends changed files back.

    The files are also sent when the block ends, with or without an error.
    """
    import ray

    with tempfile.TemporaryDirectory() as root:
        folder = new_folder(Path(root) / name)
        sent: dict[str, int] = {}
        for file, content in ray.get(keeper.get.remote(name)).items():
            with atomic(folder / file) as partial:
                partial.write_bytes(content)
            sent[file] = (folder / file).stat().st_mtime_ns

        def send() -> None:
            times = {path.name: path.stat().st_mtime_ns for path in _files(folder)}
            changed = {file: (folder / file).read_bytes() for file, time in times.items() if sent.get(file) != time}
            if changed or times.keys() != sent.keys():
                ray.get(keeper.put.remote(name, changed, list(times)))
            sent.clear()
            sent.update(times)

        try:
            yield folder, send
        finally:
            send()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))


def threads_of(workers: int) -> int:
    """Return the threads of each of several workers: those of the machine, or of OMP_NUM_THREADS, divided among them.

    Two threads on one free core wait for each other, and are ten times slower than one.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, (int(asked) if asked.isdecimal() and int(asked) else os.cpu_count() or 1) // workers)


class Processes(ProcessPoolExecutor):
    """An executor of jobs in processes of this machine, each of which does one job after the other.

    Args:
        workers: the number of jobs at a time, which share the machine's threads.
        device: the device that the jobs compute on, see ``support.device.pick_device``.
    """

    def __init__(self, workers: int, *, device: str = "auto") -> None:
        # spawn: a forked child would inherit torch's thread pool in an unusable state
        super().__init__(workers, mp_context=get_context("spawn"), initializer=_start_worker)
        self.threads = threads_of(workers)
        self.device = device

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a job when there is room for it."""
        return super().submit(_work, fn, args, kwargs)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool | None:
        """Wait for the jobs; after an error or Ctrl-C, end the processes of this pool."""
        ended = _end(self) if kind is not None else []
        result = super().__exit__(kind, *rest)
        for process in ended:
            process.join(PATIENCE)
        return result


class FreshProcesses(Executor):
    """An executor that gives every job a process of its own, and a new process where that one is killed.

    Args:
        workers: the number of jobs at a time, which share the machine's threads.
    """

    def __init__(self, workers: int) -> None:
        self.threads = threads_of(workers)
        self._waiters = ThreadPoolExecutor(workers)
        self._pools: set[ProcessPoolExecutor] = set()
        self._ending = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a job when there is room for it; the job must be able to start again after it was killed."""
        return self._waiters.submit(self._tried, fn, args, kwargs)

    def _tried(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for _ in range(RETRIES):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
                self._pools.add(pool)
                try:
                    return pool.submit(_work, fn, args, kwargs).result()
                except (BrokenProcessPool, KeyboardInterrupt):  # killed, or interrupted and saved
                    if self._ending:
                        raise KeyboardInterrupt from None
                finally:
                    self._pools.discard(pool)
        raise LoopprobeError(f"its process was killed {RETRIES} times, perhaps for want of memory: use fewer --workers")

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Wait for the jobs; after an error or Ctrl-C, interrupt them, so that they save their state."""
        self.shutdown(cancel_futures=kind is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the jobs; with ``cancel_futures``, interrupt those that run and start no others."""
        if cancel_futures and not self._ending:
            self._ending = True
            for pool in list(self._pools):
                _end(pool)
        self._waiters.shutdown(wait, cancel_futures=cancel_futures)


def _end(pool: ProcessPoolExecutor) -> list[Any]:
    """End the processes of a pool by SIGTERM, upon which a training saves its state, and return them."""
    processes = list((pool._processes or {}).values())
    for process in processes:
        process.terminate()
    return processes


def _start_worker() -> None:
    """Set up a worker process: it ignores Ctrl-C, ends with its parent, and keeps freed memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()


def _work(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do a job in a worker; end this process if the parent has died, since nothing waits for the result then."""
    try:
        return fn(*args, **kwargs)
    finally:
        if (parent := parent_process()) is not None and not parent.is_alive():
            os._exit(1)


def _end_with_parent() -> None:
    """Wait until the parent ends or is killed, and then end this process by SIGTERM, so that a training saves."""
    if (parent := parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class RayPool(Executor):
    """An executor whose jobs are Ray tasks.

    Args:
        cpus: the CPUs of one job, and the number of its torch threads.
        gpus: the GPUs of one job; a fraction where several jobs share a GPU.

    Attributes:
        room: the number of jobs that the cluster, as it is now, runs at once.

    Raises:
        LoopprobeError: Ray is not installed, or no node of the cluster has the CPUs and GPUs of a job.
    """

    def __init__(self, cpus: float = 1, gpus: float = 0) -> None:
        try:
            import ray
        except ImportError:
            raise LoopprobeError("the engine ray needs Ray: pip install 'loopprobe[ray]'") from None
        self.ray: Any = ray
        self.threads, self.device, self.gpus = max(1, int(cpus)), "auto", gpus
        self.references: dict[Future[Any], Any] = {}
        self.started = not ray.is_initialized()
        if self.started:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        wanted = {kind: amount for kind, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.room = sum(min((int(n.get(kind, 0) / wanted[kind]) for kind in wanted), default=1) for n in nodes)
        if not self.room:
            self.shutdown()
            most = ", ".join(f"{max((n.get(k, 0) for n in nodes), default=0):g} {k}" for k in ("CPU", "GPU"))
            raise LoopprobeError(
                f"no node of the Ray cluster has {cpus:g} CPU and {gpus:g} GPU (the most on one: {most}): ask for less"
            )
        self.task = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a job; its future fails with the job's error, or with Ray's error where its worker kept dying."""
        reference = self.task.remote(fn, args, kwargs)
        future: Future[Any] = Future()
        reference.future().add_done_callback(lambda done: _pass_on(done, future))
        self.references[future] = reference
        return future

    def keeper(self, root: Path) -> Any:
        """Start a ``Keeper`` of a folder on this machine."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        return self.ray.remote(num_cpus=0, scheduling_strategy=here)(Keeper).remote(str(root.resolve()))

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Wait for the jobs, or interrupt them after an error, and leave the cluster."""
        self.shutdown(cancel_futures=kind is not None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; with ``cancel_futures``, first interrupt the jobs and give them time to save."""
        if not self.ray.is_initialized():  # it was left before
            return
        if cancel_futures:
            for reference in self.references.values():
                self.ray.cancel(reference)
        if wait:
            _wait(self.references, timeout=PATIENCE if cancel_futures else None)
        if self.started:
            self.ray.shutdown()


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    keep_freed_memory()
    return fn(*args, **kwargs)


def _pass_on(done: Future[Any], future: Future[Any]) -> None:
    """Copy the outcome of a job to its future, and take an error out of Ray's wrapper."""
    if (error := done.exception()) is not None:
        future.set_exception(getattr(error, "cause", None) or error)
    else:
        future.set_result(done.result())

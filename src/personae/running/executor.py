"""Work spread over workers: `executor.map(function, items)`, results in order, whatever happens to a worker.

    items ─▶ ready (a few ahead) ─▶ one item a worker ─▶ results, held until it is their turn ─▶ caller

No more than a few items a worker are taken from `items` before the caller has taken the results before them, so
memory does not grow with the work. A worker that dies is replaced and its item is done again; an item that
costs several workers their lives ends the run. What an item's result is does not depend on who computed it, so
neither the number of workers nor their deaths change a bit of it.

Not here: what is computed (`instruments.workers`), workers on a cluster (`running.ray_executor`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from personae.errors import BackendError, InvalidSettings

Item = TypeVar("Item")
Result = TypeVar("Result")

EXECUTORS = ("serial", "processes", "ray")
_HELD_PER_WORKER = 4
_MOST_LOSSES = 3
# Whatever an item's function raises must reach the caller: a worker is no place to handle errors.
_ANY = (Exception,)


class Executor(Protocol):
    """Anything that can map a function over items."""

    @property
    def n_workers(self) -> int:
        """How many items are worked on at once."""
        ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of every item, in the items' order; both must survive pickling."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


class SerialExecutor:
    """One item after another, here."""

    n_workers = 1

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of every item, when it is asked for."""
        return map(function, items)

    def close(self) -> None:
        """Nothing to let go."""


class WorkerLost(Exception):
    """A worker died before it answered; never leaves this package."""


class Worker(Protocol):
    """A process that does one item at a time and keeps what a function loads."""

    def give(self, function: Callable[[Any], Any], item: object) -> None:
        """Begin an item."""
        ...

    def take(self) -> Any:
        """The result of the item; raises what the function raised, or `WorkerLost`."""
        ...

    def stop(self) -> None:
        """End the process, also in the middle of an item."""
        ...


class Employer(Protocol):
    """Where workers come from."""

    def hire(self) -> Worker:
        """A new worker."""
        ...

    def wait(self, busy: Sequence[Worker]) -> Sequence[Worker]:
        """Those of `busy` that have answered or died; at least one."""
        ...

    def close(self) -> None:
        """After the last worker has gone."""
        ...


class _Task:
    __slots__ = ("index", "item", "losses")

    def __init__(self, index: int, item: object) -> None:
        self.index, self.item, self.losses = index, item, 0


class Pool:
    """An executor over workers of one kind. Workers are hired when there is work, and kept between maps.

    Args:
        employer: Where workers come from.
        n_workers: Most workers at once.
    """

    def __init__(self, employer: Employer, n_workers: int) -> None:
        if n_workers < 1:
            raise InvalidSettings(f"--workers is {n_workers}; it must be at least 1.")
        self._employer, self._n = employer, n_workers
        self._free: list[Worker] = []
        self.n_lost = 0

    @property
    def n_workers(self) -> int:
        """How many items are worked on at once."""
        return self._n

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of every item, in the items' order.

        Raises:
            BackendError: If an item was the end of three workers.
            Exception: What `function` raises; work that was under way is given up.
        """
        source = enumerate(items)
        ready: deque[_Task] = deque()
        busy: dict[Worker, _Task] = {}
        results: dict[int, Result] = {}
        turn, taken = 0, 0
        try:
            while True:
                while len(ready) < self._n and taken < turn + _HELD_PER_WORKER * self._n:
                    index, item = next(source, (-1, None))
                    if index < 0:
                        break
                    ready.append(_Task(index, item))
                    taken = index + 1
                    self._begin(function, ready, busy)  # before the next is made: making one takes time too
                self._begin(function, ready, busy)
                if turn in results:
                    yield results.pop(turn)
                    turn += 1
                elif not busy:
                    return
                else:
                    for worker in self._employer.wait(list(busy)):
                        self._collect(worker, busy.pop(worker), ready, results)
        finally:
            for worker in busy:  # only where the caller or an item gave up
                worker.stop()

    def _begin(self, function: Callable[[Any], Any], ready: deque[_Task], busy: dict[Worker, _Task]) -> None:
        while ready and len(busy) < self._n:
            worker = self._free.pop() if self._free else self._employer.hire()
            task = ready.popleft()
            busy[worker] = task
            worker.give(function, task.item)

    def _collect(self, worker: Worker, task: _Task, ready: deque[_Task], results: dict[int, Any]) -> None:
        try:
            results[task.index] = worker.take()
        except WorkerLost as loss:
            worker.stop()
            self.n_lost += 1
            task.losses += 1
            if task.losses >= _MOST_LOSSES:
                raise BackendError(
                    f"{_MOST_LOSSES} workers died one after another at the same work ({loss}).",
                    hint="Often the memory is short: use fewer --workers. What was scored is kept; the same command "
                    "goes on from here.",
                ) from loss
            ready.appendleft(task)
            return
        except BaseException:
            self._free.append(worker)  # it answered, and can go on
            raise
        self._free.append(worker)

    def close(self) -> None:
        """End every worker."""
        for worker in self._free:
            worker.stop()
        self._free.clear()
        self._employer.close()


class ProcessEmployer:
    """Workers that are processes of this machine, started afresh (`spawn`).

    Args:
        environment: Variables set in every worker before anything is loaded.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)

    def hire(self) -> Worker:
        """A new process."""
        return _ProcessWorker(self._environment)

    def wait(self, busy: Sequence[Worker]) -> Sequence[Worker]:
        """Those whose pipe has an answer or is closed."""
        by_pipe = {w.pipe: w for w in busy if isinstance(w, _ProcessWorker)}
        return [by_pipe[p] for p in wait(list(by_pipe)) if isinstance(p, Connection)]

    def close(self) -> None:
        """Nothing is shared."""


class _ProcessWorker:
    def __init__(self, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, environment), daemon=True)
        self._process.start()
        theirs.close()  # so that its death closes the pipe

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def give(self, function: Callable[[Any], Any], item: object) -> None:
        try:
            self.pipe.send((function, item))
        except OSError:
            return  # it has died; `take` says so

    def take(self) -> Any:
        try:
            done, value = self.pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=10)
            raise WorkerLost(f"exit status {self._process.exitcode}") from error
        if not done:
            raise value
        return value

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, environment: Mapping[str, str]) -> None:
    """What a worker does until the pipe is closed, by the driver or by its death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    os.environ.update(environment)
    try:
        while True:
            function, item = pipe.recv()
            try:
                answer = (True, function(item))
            except _ANY as error:
                error.add_note("In a worker:\n" + traceback.format_exc())
                answer = (False, error)
            pipe.send(answer)
    except (EOFError, OSError):
        return


def threads_of_a_worker(n_workers: int) -> int:
    """Threads that leave no core idle and none contended: the user's OMP_NUM_THREADS, else cores by workers."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() and int(chosen) > 0 else max(1, (os.cpu_count() or 1) // n_workers)


def make_executor(
    kind: str, *, workers: int | None = None, address: str | None = None, gpus_per_worker: float = 0
) -> Executor:
    """The executor of that name.

    Args:
        kind: "serial", "processes" or "ray".
        workers: How many; by default one a core, or with GPUs as many as the cluster's GPUs feed.
        address: Of a Ray cluster ("auto", HOST:PORT); None starts one here.
        gpus_per_worker: Share of GPUs that Ray reserves for each worker; 0 for none.

    Raises:
        InvalidSettings: If the settings contradict each other or the cluster is too small.
        MissingCapability: If ray is not installed.
        BackendError: If the cluster cannot be reached.
    """
    if kind not in EXECUTORS:
        raise InvalidSettings(f"--executor is '{kind}'; it can be {', '.join(EXECUTORS)}.")
    if workers is not None and workers < 1:
        raise InvalidSettings(f"--workers is {workers}; it must be at least 1.")
    if gpus_per_worker < 0:
        raise InvalidSettings(f"--gpus-per-worker is {gpus_per_worker:g}; it must be 0 or more.")
    if kind != "ray" and (address is not None or gpus_per_worker):
        raise InvalidSettings("--address and --gpus-per-worker need --executor ray.")
    if kind == "serial":
        if workers not in (None, 1):
            raise InvalidSettings("--workers needs --executor processes or ray.")
        return SerialExecutor()
    if kind == "ray":
        from personae.running.ray_executor import ray_pool  # a large package, and an extra

        return ray_pool(workers=workers, address=address, gpus_per_worker=gpus_per_worker)
    n = workers or os.cpu_count() or 1
    return Pool(ProcessEmployer({"OMP_NUM_THREADS": str(threads_of_a_worker(n))}), n)

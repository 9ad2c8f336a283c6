"""Workers on a Ray cluster: actors that keep what a function loads, one item at a time.

Scheduling, transport and placement are Ray's (Moritz et al. 2018, arXiv:1712.05889); order, back-pressure and
retries are those of `running.executor.Pool`, so that every executor behaves the same. Not here: what is computed.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from personae.errors import BackendError, InvalidSettings, MissingCapability
from personae.running.executor import Pool, Worker, WorkerLost, threads_of_a_worker

try:
    import ray
    from ray import exceptions as failures
except ModuleNotFoundError as error:
    raise MissingCapability(
        f"--executor ray needs the package '{error.name}', which is not installed.",
        hint="Install it: pip install 'personae[ray]'   (or use --executor processes)",
    ) from error

_LOST = (
    failures.RayActorError,
    failures.WorkerCrashedError,
    failures.ObjectLostError,
    failures.OutOfMemoryError,
    failures.NodeDiedError,
)
_STARTS = 3
_KNOCK_S = 10.0
_ANY = (Exception,)  # Ray has no exception of its own for a cluster that does not start
# Read by personae and by the libraries under it; a worker on another machine keeps its own where these are unset.
_PASSED_ON = ("PERSONAE_HOME", "HF_HUB_OFFLINE", "PERSONAE_DEBUG", "VLLM_CPU_KVCACHE_SPACE")


def ray_pool(*, workers: int | None, address: str | None, gpus_per_worker: float) -> Pool:
    """A pool of actors, on the cluster at `address` or on one started here.

    Raises:
        InvalidSettings: If the cluster has too few processors or GPUs for the workers.
        BackendError: If the cluster cannot be reached.
    """
    begun = not ray.is_initialized()
    if begun:
        _connect(address, workers)
    have = ray.cluster_resources()
    cpus, gpus = int(have.get("CPU", 0)), have.get("GPU", 0.0)
    n = workers or (int(gpus // gpus_per_worker) if gpus_per_worker else cpus) or 1
    if n > cpus or n * gpus_per_worker > gpus:
        if begun:
            ray.shutdown()
        raise InvalidSettings(
            f"{n} workers with {gpus_per_worker:g} GPUs each do not fit the cluster: it has {cpus} processors and "
            f"{gpus:g} GPUs.",
            hint="Lower --workers or --gpus-per-worker, or add machines.",
        )
    threads = threads_of_a_worker(n) if address is None else max(1, cpus // n)
    variables = {k: os.environ[k] for k in _PASSED_ON if k in os.environ} | {"OMP_NUM_THREADS": str(threads)}
    return Pool(RayEmployer(variables, gpus_per_worker, ends_ray=begun), n)


def _connect(address: str | None, workers: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "num_cpus": max(workers or 1, os.cpu_count() or 1)}
    else:
        options |= {"address": address}
        _knock(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for attempt in range(_STARTS):
        try:
            ray.init(**options)
            return
        except _ANY as error:
            # A loaded machine may be too slow for the time Ray gives the parts of a new cluster.
            if address is not None or attempt == _STARTS - 1:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise BackendError(
                    f"the Ray cluster {address or 'on this machine'} cannot be used: {reason}",
                    hint="Is it running (`ray status`), and of the same version? `--executor ray` without --address "
                    "starts one here.",
                ) from error
            ray.shutdown()


def _knock(address: str) -> None:
    """Ray itself tries for minutes; an address where nobody listens is told at once."""
    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isdigit():
        return  # "auto", or Ray's own scheme
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise BackendError(
            f"the Ray cluster {address} cannot be used: nobody listens there ({error}).",
            hint="Is it running (`ray status`)? The port is that of its head, usually 6379.",
        ) from error


class _Actor:
    """What runs on a node: it applies what it is given."""

    def run(self, function: Callable[[Any], Any], item: object) -> Any:
        return function(item)


class RayEmployer:
    """Hires actors.

    Args:
        environment: Variables of every actor.
        gpus: Share of GPUs reserved for each.
        ends_ray: Whether closing ends the connection (and a cluster started here).
    """

    def __init__(self, environment: Mapping[str, str], gpus: float, *, ends_ray: bool) -> None:
        self._ends_ray = ends_ray
        # Restarted by the pool and not by Ray, so that a lost item is counted once.
        self._make: Any = ray.remote(_Actor).options(  # type: ignore[attr-defined]
            num_cpus=1, num_gpus=gpus, max_restarts=0, runtime_env={"env_vars": dict(environment)}
        )

    def hire(self) -> Worker:
        """A new actor."""
        return _RayWorker(self._make.remote())

    def wait(self, busy: Sequence[Worker]) -> Sequence[Worker]:
        """Those whose answer, or the news of whose death, is there."""
        by_answer = {w.answer: w for w in busy if isinstance(w, _RayWorker)}
        ready, rest = ray.wait(list(by_answer), num_returns=1)
        more, _ = ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], [])
        return [by_answer[r] for r in (*ready, *more)]

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._ends_ray:
            ray.shutdown()


class _RayWorker:
    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.answer: Any = None

    def give(self, function: Callable[[Any], Any], item: object) -> None:
        self.answer = self._actor.run.remote(function, item)

    def take(self) -> Any:
        try:
            return ray.get(self.answer)
        except _LOST as error:
            raise WorkerLost(str(error).splitlines()[0]) from error
        except failures.RayTaskError as error:
            raise error.cause from None
        except failures.RaySystemError as error:
            raise BackendError(f"the Ray cluster failed: {error}", hint="`ray status` shows its state.") from error

    def stop(self) -> None:
        ray.kill(self._actor)

"""The processes of a launch: how they find each other, and how they act as one.

The same command runs on every host. Each process computes with its own devices inside one program over the mesh of all
of them; what exists once (a workdir's small files, what a person reads) is done by the first process, and an outcome
that decides what happens next is made known to all, so that none waits for one that has gone.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import pathlib
import sys
from typing import Any, Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
GOOGLE = "0x1ae0"
TPU_CHIPS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}  # PCI devices of that vendor


def initialize() -> None:
    """Joins the processes of the launch, if this process is one of several; to be called before any other use of JAX.

    The three variables of EXPLICIT say it in any environment, JAX_NUM_PROCESSES=1 alone that there is nobody to join.
    Without them JAX finds the others itself, and is asked only where the environment speaks of a cluster: elsewhere
    it would wait for a metadata server that is not there. Raises ValueError for a launch that is described by half.
    """
    given = {name: os.environ[name] for name in EXPLICIT if os.environ.get(name)}
    if given.get("JAX_NUM_PROCESSES") == "1":
        return
    jax.config.update("jax_enable_preemption_service", True)  # SIGTERM to one process is known to all
    if set(given) == set(EXPLICIT):
        jax.distributed.initialize(
            given["JAX_COORDINATOR_ADDRESS"], _number(given, "JAX_NUM_PROCESSES"), _number(given, "JAX_PROCESS_ID"),
            cluster_detection_method="deactivate")
    elif given:
        missing = [name for name in EXPLICIT if name not in given]
        raise ValueError(f"{' and '.join(given)} without {' and '.join(missing)}; a launch of several processes sets "
                         f"all three, one process by itself sets none.")
    elif speaks_of_a_cluster(os.environ):
        jax.distributed.initialize()


def _number(given: Mapping[str, str], name: str) -> int:
    if not given[name].isdigit():
        raise ValueError(f"{name} is '{given[name]}'; it must be a whole number.")
    return int(given[name])


def speaks_of_a_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this process is one of several whom JAX can find by itself.

    Raises ValueError where there are others and JAX could not find them.
    """
    several = lambda name: environment.get(name, "").isdigit() and int(environment[name]) > 1
    if "SLURM_STEP_NODELIST" in environment:  # started by srun, and not in a shell beside the job
        return several("SLURM_STEP_NUM_TASKS")
    if several("OMPI_COMM_WORLD_SIZE"):
        if "OMPI_MCA_orte_hnp_uri" not in environment:
            raise ValueError(f"This version of Open MPI does not say where its launcher is; set {', '.join(EXPLICIT)}.")
        return True
    if tpu_on_this_host(environment):
        return True
    if "JOB_COMPLETION_INDEX" in environment and "KUBERNETES_SERVICE_HOST" in environment:
        if importlib.util.find_spec("kubernetes") is None:
            raise ValueError(f"This pod belongs to an indexed Job; set {', '.join(EXPLICIT)} in its manifest (as "
                             f"experiments/launch/gke_jobset_gpu.yaml does), or JAX_NUM_PROCESSES=1 for a pod by "
                             f"itself.")
        return True
    return False


def tpu_on_this_host(environment: Mapping[str, str], pci: str = "/sys/bus/pci/devices") -> bool:
    """Whether JAX will compute on TPU chips of this host, which may be one of a pod's: chips are plugged in, their
    library is installed, and JAX_PLATFORMS does not ask for something else."""
    wanted = "tpu" in (environment.get("JAX_PLATFORMS") or "tpu").split(",")
    if not wanted or importlib.util.find_spec("libtpu") is None:
        return False
    ids = ([pathlib.Path(device, name).read_text().strip() for name in ("vendor", "device")]
           for device in glob.glob(f"{pci}/*"))
    return any(vendor == GOOGLE and device in TPU_CHIPS for vendor, device in ids)


def on_all(action: Callable[[], Any]) -> list[Any]:
    """What `action` returns (JSON) on each process, known to all, in the order of the processes.

    A mistake (ValueError or OSError) on one of them is raised on every one, as one that `all_know`.
    """
    if jax.process_count() == 1:
        return [action()]
    try:
        own, error = {"result": action()}, None
    except (ValueError, OSError) as raised:
        own, error = {"error": str(raised)}, raised
    outcomes = [json.loads(text) for text in _gathered(json.dumps(own))]
    failed = {i: outcome["error"] for i, outcome in enumerate(outcomes) if "error" in outcome}
    if error is None and failed:
        process = min(failed)
        error = ValueError(f"Process {process} of this launch stopped: {failed[process]}")
    if error is not None:
        error.known = True
        raise error
    return [outcome["result"] for outcome in outcomes]


def all_know(error: BaseException) -> bool:
    """Whether every process of the launch ends for this reason."""
    return not jax.distributed.is_initialized() or getattr(error, "known", False)


def on_first(action: Callable[[], Any]) -> Any:
    """What `action` returns (JSON) on the first process, which alone runs it, known to all; see `on_all`."""
    return on_all(lambda: action() if jax.process_index() == 0 else None)[0]


def _gathered(text: str) -> list[str]:
    """The text of each process."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.pad(data, (0, int(sizes.max()) - len(data)))
    return [bytes(row[:size]).decode() for row, size in zip(multihost_utils.process_allgather(padded), sizes)]


def say(text: str, end: str = "\n") -> None:
    """Prints on standard error, once for the launch."""
    if jax.process_index() == 0:
        print(text, end=end, file=sys.stderr, flush=True)

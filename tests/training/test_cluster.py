"""When a process joins a launch, and what several say to each other (here one; two are in tests/distributed)."""

import os

import jax
import pytest

from vlm_jax.training import cluster

WHO = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize was called with, after `initialize` in an environment."""
    def under(environment, packages=()):
        calls = []
        monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((args, options)))
        monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name in packages or None)
        monkeypatch.setattr(os, "environ", environment)
        cluster.initialize()
        return calls
    return under


@pytest.mark.parametrize("environment", [
    {}, {"JAX_PLATFORMS": "cpu"}, {"JAX_NUM_PROCESSES": "1"}, {**SRUN, "JAX_NUM_PROCESSES": "1"},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},  # sbatch, outside srun
    {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},  # a shell in an allocation of several tasks
    {**MPI, "OMPI_COMM_WORLD_SIZE": "1"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    {"TPU_WORKER_HOSTNAMES": "a,b"}])  # no chip is here
def test_a_process_by_itself_joins_nobody(joined, environment):
    assert joined(environment, packages=("libtpu", "kubernetes")) == []


def test_the_three_variables_are_enough_and_nothing_else_is_asked(joined):
    assert joined({**SRUN, **WHO}) == [(("host:1234", 4, 3), {"cluster_detection_method": "deactivate"})]


@pytest.mark.parametrize("environment, packages", [
    (SRUN, ()), ({**MPI, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:34"}, ()), (POD, ("kubernetes",))])
def test_where_the_environment_speaks_of_a_cluster_jax_looks_for_it(joined, environment, packages):
    assert joined(environment, packages) == [((), {})]


@pytest.mark.parametrize("name", WHO)
def test_a_launch_described_by_half_is_an_error(joined, name):
    with pytest.raises(ValueError, match=f"without {name}; a launch of several processes sets all three"):
        joined({key: value for key, value in WHO.items() if key != name})


@pytest.mark.parametrize("environment, says", [
    ({**WHO, "JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID is 'first'; it must be a whole number."),
    (MPI, "Open MPI does not say"), (POD, "This pod belongs to an indexed Job")])
def test_where_jax_would_fail_a_sentence_says_what_to_set(joined, environment, says):
    with pytest.raises(ValueError, match=says):
        joined(environment)


@pytest.mark.parametrize("vendor, device, platforms, expected", [
    ("0x1ae0", "0x0063", "", True), ("0x1ae0", "0x0063", "tpu,cpu", True), ("0x1ae0", "0x0063", "cpu", False),
    ("0x1ae0", "0x0042", "", False),  # a network card of the same vendor
    ("0x10de", "0x0063", "", False)])
def test_chips_on_this_host(tmp_path, monkeypatch, vendor, device, platforms, expected):
    (tmp_path / "0000:00:04.0").mkdir()
    (tmp_path / "0000:00:04.0/vendor").write_text(vendor + "\n")
    (tmp_path / "0000:00:04.0/device").write_text(device + "\n")
    environment = {"JAX_PLATFORMS": platforms} if platforms else {}
    for installed in (True, False):
        monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: installed or None)
        assert cluster.tpu_on_this_host(environment, str(tmp_path)) == (expected and installed)


def test_alone_an_action_is_just_done():
    assert cluster.on_all(lambda: 3) == [3] and cluster.on_first(lambda: "x") == "x"
    with pytest.raises(FileNotFoundError, match="gone"):
        cluster.on_first(lambda: (_ for _ in ()).throw(FileNotFoundError("gone")))

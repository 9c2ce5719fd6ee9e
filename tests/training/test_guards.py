"""What ends a run early: a notice, a hang, numbers that are not finite."""

import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest

from vlm_jax.training.guards import Finite, Notice, watchdog


def test_a_notice_is_heard_once_and_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with Notice() as notice:
        assert not notice.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.reached(2) and notice.reached(3)
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the process at once
    assert signal.getsignal(signal.SIGTERM) == before


def watched(code):
    lines = "import time\nfrom vlm_jax.training.guards import watchdog\n" + code
    return subprocess.run([sys.executable, "-W", "ignore", "-c", lines], capture_output=True, text=True, timeout=120)


def test_a_hang_ends_the_process_and_says_where_it_was():
    done = watched("""
def waits_for_the_others():
    time.sleep(100)

with watchdog(1) as alive:
    for _ in range(3):  # longer than a second together, and each a sign of life
        time.sleep(0.5)
        alive()
    print("alive", flush=True)
    waits_for_the_others()
""")
    assert done.returncode == 1 and done.stdout == "alive\n"
    assert "Timeout" in done.stderr and "in waits_for_the_others" in done.stderr


def test_after_its_time_it_watches_no_more_and_0_never_does():
    done = watched("""
with watchdog(1):
    pass
with watchdog(0) as alive:
    alive()
    time.sleep(1.5)
""")
    assert done.returncode == 0 and done.stderr == ""


GOOD, BAD = {"loss": jnp.float32(1), "grad_norm": jnp.float32(2)}, {"loss": jnp.float32(1), "grad_norm": jnp.inf}


def looks(finite, *steps):
    for step, metrics in enumerate(steps, start=1):
        finite.settle()
        finite.watch(step, metrics)
    finite.settle()


@pytest.mark.parametrize("bad", [BAD, {**GOOD, "loss": jnp.nan}, {**GOOD, "grad_norm": jnp.nan}])
def test_the_first_bad_step_stops(bad):
    looks(Finite(0, str), GOOD, GOOD)
    with pytest.raises(ValueError, match="step 3"):
        looks(Finite(0, "step {}".format), GOOD, GOOD, bad)


def test_bad_steps_are_counted_and_too_many_in_a_row_stop():
    finite = Finite(2, "step {}".format)
    looks(finite, BAD, BAD, GOOD, BAD, BAD, GOOD)
    assert finite.lap() == 4 and finite.lap() == 0
    with pytest.raises(ValueError, match="step 4"):
        looks(finite, GOOD, BAD, BAD, BAD, GOOD)

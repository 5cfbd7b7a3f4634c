"""Two processes of four devices return what one process of eight returns, as the example for clusters shows."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.processes import ROOT, environment, in_processes
from helpers.promotion import of_models_alone
from helpers.studies import fresh, study

EXAMPLE = ROOT / "examples" / "many_processes.py"


@pytest.fixture(scope="module")
def example():
    """The functions of the example, for this process of eight devices."""
    namespace = {"__name__": "example"}
    exec(compile(EXAMPLE.read_text(), EXAMPLE, "exec"), namespace)
    return namespace


def of_two(tmp_path, *options):
    """What the example finds in two processes."""
    found = tmp_path / "found.json"
    command = [sys.executable, EXAMPLE, "--local", "2", "--devices", "4", "--out", found, *options]
    ran = subprocess.run(command, env=environment(4), capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(found.read_text())


def assert_close(found, wanted):
    """Equal names, and equal numbers to rounding."""
    found, wanted = (jax.tree_util.tree_flatten_with_path(json.loads(json.dumps(x)))[0] for x in (found, wanted))
    assert [path for path, _ in found] == [path for path, _ in wanted]
    for (path, x), (_, y) in zip(found, wanted, strict=True):
        if isinstance(x, float):
            assert x == pytest.approx(y, rel=1e-3, abs=1e-5), jax.tree_util.keystr(path)
        else:
            assert x == y, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path, example):
    found = of_two(tmp_path)
    assert found.pop("processes") == 2
    with of_models_alone():
        wanted = example["whole_model"]() | example["study"](None, 8)
    shards = "shards of a matrix here"
    assert (found.pop(shards), wanted.pop(shards)) == (1, 2)  # each draws and holds its own
    assert found.pop("study") == wanted.pop("study")  # to the last bit
    assert_close(found, wanted)


STUDY = """
from helpers.studies import fresh, study
from jaxinit._study import _programs, _run
_programs._LEAST_STEPS = 1
path, seeds, ticks = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
tick = _run.Runner._tick
def counted(self, *taken):
    global ticks
    tick(self, *taken)
    ticks -= 1
    if ticks == 0:
        raise KeyboardInterrupt
_run.Runner._tick = counted
_run._CHECKPOINT_SECONDS = 0.0
try:
    result = study({"fresh": fresh}, seeds=seeds, path=path, devices=None)
    print("losses", result.losses.tolist())
except KeyboardInterrupt:
    print("interrupted")
"""


def losses(output):
    return np.array(json.loads(output.split("losses ")[1].split("\n")[0]), np.float32)


def test_a_study_that_two_processes_share_is_the_study_of_one(tmp_path):
    outputs = in_processes(2, 2, STUDY, tmp_path / "study.npz", 5, -1)
    wanted = study({"fresh": fresh}, seeds=5, devices=jax.devices())
    for output in outputs:
        np.testing.assert_array_equal(losses(output), wanted.losses)
    assert [file.name for file in tmp_path.iterdir()] == ["study.npz"]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [((2, 2), (1, 3)), ((1, 2), (3, 1))])
def test_it_goes_on_with_other_devices_and_another_number_of_processes(tmp_path, first, then):
    path = tmp_path / "study.npz"
    assert all("interrupted" in output for output in in_processes(*first, STUDY, path, 5, 3))
    outputs = in_processes(*then, STUDY, path, 7, -1)
    for output in outputs:
        np.testing.assert_array_equal(losses(output), study({"fresh": fresh}, seeds=7, devices=jax.devices()).losses)


def test_devices_of_some_other_processes_are_refused():
    class Device:
        def __init__(self, process):
            self.process_index = process

    from jaxinit._study._processes import Processes

    assert Processes([Device(0), Device(0)]).count == 1
    with pytest.raises(ValueError, match=r"this process, number 0, or to all 1 of them.*got those of processes \[1\]"):
        Processes([Device(1)])

"""The record of a run with limited time keeps its results: rows that fail or are skipped do not affect others."""

import json
import pathlib
import time

import jax
import numpy as np
import pytest
import scipy.stats as st


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent.parent / "benchmarks"))


def test_every_section_finds_what_it_needs_of_the_package():
    """The sections reach into the sampler, which may be moved; their rows are built on demand."""
    from gpu import haar_speed, speed

    assert haar_speed.name_of((6, 24, 24)) == "6×24×24"
    assert haar_speed._usual_width((1024, 1024)) > 0
    assert set(haar_speed._samplers((64, 8, 8))) > {"reflectors", "small", "qr", "numbers"}
    key = jax.random.key(0)
    for sampler in (
        haar_speed._of_width((40, 40), 20),
        haar_speed._unrolled_of((40, 40)),
        *haar_speed._samplers((40, 40)).values(),
    ):
        assert jax.eval_shape(sampler, key) is not None
    assert len(list(speed.draws(rehearse=True))) == 6


def test_rows_that_fail_or_find_no_time_are_kept_as_such(tmp_path):
    from gpu.record import Record

    def broken():
        raise RuntimeError("no such kernel")

    record = Record(tmp_path / "kept.json", {}, seconds=60)
    record.section("first", 0.05, [("fails", broken), ("takes long", lambda: time.sleep(0.1) or {}), ("late", dict)])
    record.section("second", 30, [("has time", lambda: {"passed": True})])
    kept = json.loads((tmp_path / "kept.json").read_text())["sections"]
    rows = kept["first"]["rows"]
    assert "no such kernel" in rows["fails"]["failed"]
    assert "seconds" in rows["takes long"]
    assert rows["late"] == {"skipped": "the section's time was spent"}
    assert kept["second"]["rows"]["has time"]["passed"]


def test_what_is_missing_or_wrong_is_printed():
    from gpu.tables import _missing

    contenders = {"qr": {"failed": "...\nRuntimeError: out of memory"}, "small": {"error": 1.0, "passed": False}}
    rows = {"a": {"skipped": "no time"}, "b": {"passed": False}, "c": {"contenders": contenders}, "d": {"passed": True}}
    assert list(_missing(rows)) == [
        ("a", "skipped: no time"),
        ("b", "NOT PASSED"),
        ("c, qr", "failed: RuntimeError: out of memory"),
        ("c, small", "NOT PASSED"),
    ]


def test_the_claims_accept_scipys_matrices_and_reject_qr_without_sign_correction():
    """4,000 matrices of either kind; a claim on a right sampler fails with a probability of 1e-6."""
    from gpu import law

    right = law.claims(st.ortho_group.rvs(5, size=4_000, random_state=0))
    wrong = law.claims(np.linalg.qr(np.random.default_rng(0).normal(size=(4_000, 5, 5)))[0])
    assert min(right.values()) > law.FALSE_ALARM
    assert min(wrong.values()) < law.POWER
    rotations = law.claims(st.special_ortho_group.rvs(5, size=4_000, random_state=0), special=True)
    unitary = law.claims(st.unitary_group.rvs(4, size=4_000, random_state=0))
    assert min(rotations.values()) > law.FALSE_ALARM
    assert min(unitary.values()) > law.FALSE_ALARM

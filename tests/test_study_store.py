"""Studies on disk: they resume to the same numbers, can grow, and damaged or foreign files are refused."""

import json
import zipfile

import jax
import numpy as np
import pytest
from helpers.studies import fresh, metrics_fn, planted, study, usual

from jaxinit import StudyResult
from jaxinit._study import _programs, _run, _store
from jaxinit._study._records import Plan, Records

STARTS = {"fresh": fresh}


@pytest.fixture
def saved(tmp_path):
    """A small result, and the file that it was saved to."""
    result = planted(np.random.default_rng(0).normal(size=(2, 3, 4)))
    path = tmp_path / "sub" / "study.npz"
    result.save(path)
    return result, path


def rewritten(path, change):
    """Writes a file anew with a changed header."""
    header, arrays = _store.read(path)
    change(header, arrays)
    text = json.dumps(header).encode()
    np.savez(path, header=np.frombuffer(text, np.uint8), **arrays)


def test_results_come_back(saved):
    result, path = saved
    loaded = StudyResult.load(path)
    assert loaded.to_dict() == result.to_dict()
    assert str(loaded) == str(result)
    np.testing.assert_array_equal(loaded.losses, result.losses)
    assert sorted(loaded.final) == sorted(result.final)


def test_an_interrupted_study_resumes_to_the_same_numbers_and_grows(tmp_path, monkeypatch):
    path, options = tmp_path / "study.npz", {"metrics_fn": metrics_fn, "metric": "loss"}
    expected, written, write, steps = usual().losses[:1], [], Records.write, []

    def interrupted(self, *arguments):
        write(self, *arguments)
        written.append(self.running and self.running.step)
        if len(written) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(_programs.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(_programs, "_LEAST_STEPS", 1)
    monkeypatch.setattr(_run, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(Records, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study(STARTS, seeds=5, path=path, **options)
    assert written[3] == 4  # in the midst of training
    with pytest.raises(ValueError, match="interrupted: 0 of its 5 runs"):
        StudyResult.load(path)

    tick = _run.Runner._tick
    monkeypatch.setattr(_run, "_CHECKPOINT_SECONDS", 20.0)
    monkeypatch.setattr(_run.Runner, "_tick", lambda self, k, t: (steps.append(k), tick(self, k, t)))
    grown = study(STARTS, seeds=7, path=path, **options)
    np.testing.assert_array_equal(grown.losses, expected)
    taken = written[3] * 4  # by the wave that was interrupted: two groups of two seeds
    assert sum(steps) == 7 * 9 - taken

    steps.clear()
    loaded = study(STARTS, seeds=7, path=path, **options)
    assert steps == []
    np.testing.assert_array_equal(loaded.losses, StudyResult.load(path).losses)
    loaded.save(tmp_path / "copy.npz")  # of a study with a path: it tells what it is of, and can be continued
    assert study(STARTS, seeds=8, path=tmp_path / "copy.npz", **options).losses.shape[2] == 8
    assert sum(steps) == 9
    with pytest.raises(ValueError, match="its start 'fresh', model, loss"):
        study({"fresh": "auto"}, seeds=7, path=path, **options)


def filled(starts=("a", "b"), seeds=(0, 1), rates=(0.1,), steps=3, programs="12", **settings):
    """Records with one entry, and their plan."""
    plan = Plan(rates, steps, {"data": "x", **settings}, dict(zip("abc", programs, strict=False)))
    records = Records(plan, starts, seeds)
    shape = len(seeds), len(rates)
    records.enter(starts[0], seeds, np.ones((*shape, steps), np.float32), {}, {"m": np.ones(shape, np.float32)})
    return records


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"steps": 4}, "its steps is 4, but here it is 3"),
        ({"rates": (0.2,)}, "its learning_rates is"),
        ({"data": "y"}, "its data is 'y'"),
        ({"seeds": (0, 2)}, r"does not ask for: \[2\]"),
        ({"starts": ("c",)}, r"does not ask for: \['c'\]"),
        ({"programs": "32"}, "its start 'a', model, loss, optimizer or metrics"),
    ],
)
def test_records_of_another_study_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        filled().take_over(filled(**other), "study.npz")


def test_records_of_the_same_study_are_taken_over():
    wider = Records(filled(programs="12").plan, ("b", "a"), (3, 1, 0))
    wider.take_over(filled(programs="13"), "study.npz")  # its start "b" has no entries yet
    assert wider.done.tolist() == [[False] * 3, [False, True, True]]
    assert wider.pending("a") == [3]
    wider.take_over(Records(Plan((), 1, {}, {}), ("z",), (9,)), "study.npz")  # an empty one is nobody's


def test_a_study_that_failed_leaves_no_file(tmp_path):
    def broken(key):
        raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck") as caught:
        study({"fresh": broken}, seeds=2, path=tmp_path / "study.npz")
    assert "in the start 'fresh' of a study" in caught.value.__notes__
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(saved, monkeypatch):
    result, path = saved
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half of")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        result.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_refused(saved, share):
    _, path = saved
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"study.npz is damaged, or not a study of jaxinit .*move the file away"):
        StudyResult.load(path)


def test_a_flipped_byte_anywhere_in_the_numbers_is_found(saved):
    _, path = saved
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [len(info.filename) for info in archive.infolist()]
        # After 30 bytes, the name and what zip64 adds come a header of 128 bytes and the numbers.
        places = [
            i.header_offset + 30 + n + 20 + i.file_size // 2 for i, n in zip(archive.infolist(), names, strict=True)
        ]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="damaged"):
            StudyResult.load(path)


def test_foreign_files_are_refused(tmp_path):
    foreign = {"text.npz": b"hello", "empty.npz": b""}
    for name, contents in foreign.items():
        (tmp_path / name).write_bytes(contents)
    np.save(tmp_path / "array.npy", np.ones(3))
    np.savez(tmp_path / "others.npz", weights=np.ones(3))
    np.savez(tmp_path / "objects.npz", header=np.array([{}], object))
    np.savez(tmp_path / "json.npz", header=np.frombuffer(b'{"format": "something"}', np.uint8))
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match="not a study of jaxinit"):
            StudyResult.load(path)
        with pytest.raises(ValueError, match="not a study of jaxinit"):
            study([fresh], path=path)
    with pytest.raises(FileNotFoundError):
        StudyResult.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    "change",
    [
        lambda header, arrays: arrays.pop("losses"),
        lambda header, arrays: arrays.pop("done"),
        lambda header, arrays: header.pop("plan"),
        lambda header, arrays: header.update(seeds=[0]),
        lambda header, arrays: header.update(facts={"metric": "score"}),
        lambda header, arrays: header.update(facts=3),
        lambda header, arrays: arrays.update({"final/score": arrays["final/score"][:1]}),
    ],
)
def test_studies_that_lack_something_are_refused(saved, change):
    _, path = saved
    rewritten(path, change)
    with pytest.raises(ValueError, match="damaged"):
        StudyResult.load(path)


def test_other_formats_are_named(saved):
    _, path = saved
    rewritten(path, lambda header, arrays: header.update(version=99))
    with pytest.raises(ValueError, match="format 99, and this version of jaxinit reads format 1"):
        StudyResult.load(path)


def test_nothing_is_lost_to_another_set_of_starts(saved):
    result, path = saved
    with pytest.raises(ValueError, match=r"without path=.*can be loaded, but not continued. Pass another path"):
        study([fresh], path=path)
    assert StudyResult.load(path).to_dict() == result.to_dict()
    assert jax.tree.leaves(result.settings) == []

"""Arrays in saved findings: what is read is what was written, and damage is named."""

import base64
import dataclasses
import json
import math
import pathlib
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from fake_report import fake_report, wide_report

import basis_probe as bp
from basis_probe.results.codec import Damaged, decode, encode
from basis_probe.results.evidence import ScoreResult

RANDOM = np.random.default_rng(0)
MANY = 1000


def _counted(many: int, over: int) -> np.ndarray:
    """What counting among `over - 1` alternatives gives."""
    return np.r_[1, RANDOM.integers(1, over + 1, many - 1)] / over


def _single(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64)


ARRAYS: dict[str, np.ndarray] = {
    "doubles": RANDOM.standard_normal(MANY),
    "singles": RANDOM.standard_normal(MANY).astype(np.float32).astype(np.float64),
    "counts": RANDOM.integers(0, 5, MANY).astype(np.float64),
    "NaN throughout": np.full(MANY, math.nan),
    "some NaN": np.where(np.arange(MANY) % 3, RANDOM.standard_normal(MANY), math.nan),
    "infinities": np.where(np.arange(MANY) % 7, RANDOM.standard_normal(MANY), -math.inf),
    "beyond single precision": RANDOM.standard_normal(MANY) * 1e300,
    "below single precision": RANDOM.standard_normal(MANY) * 1e-300,
    "matrix": RANDOM.standard_normal((40, 25)),
    "block": RANDOM.standard_normal((5, 20, 10)),
    "few": RANDOM.standard_normal(7),
    "few in a matrix": RANDOM.standard_normal((3, 2)),
    "none": np.zeros(0),
    "no rows": np.zeros((0, 7)),
    "no columns": np.zeros((7, 0)),
    "no rows and no columns": np.zeros((0, 0)),
    "no rows of a block": np.zeros((3, 0, 2)),
    "as many as are written as a list": RANDOM.standard_normal(63),
    "one more": RANDOM.standard_normal(64),
    "whole numbers of either sign": RANDOM.integers(-200, 200, MANY).astype(np.float64),
    "one below the largest byte": RANDOM.integers(0, 255, MANY).astype(np.float64),
    "the largest byte": np.r_[255.0, np.zeros(MANY), math.nan],
    "large whole numbers": np.r_[2.0**31, -(2.0**40), np.arange(MANY)],
    "whole numbers and NaN": np.where(np.arange(MANY) % 5, np.arange(MANY) * 70.0, math.nan),
    "counted p-values": _counted(MANY, 6337),
    "counted p-values in single precision": _single(_counted(MANY, 6337)),
    "counted p-values, some missing": np.where(np.arange(MANY) % 4, _counted(MANY, 601), math.nan),
    "counted among millions": _counted(MANY, 8_000_001),
    "p-values, one of them not counted": np.r_[_counted(MANY, 6337), 0.123456789],
    "p-values that were never counted": RANDOM.random(MANY),
    "p-values far below any count": RANDOM.random(MANY) * 1e-310,
    "a zero among p-values": np.r_[0.0, _counted(MANY, 100)],
    "halves of either sign": RANDOM.integers(-9, 9, MANY) / 2,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_what_is_read_is_what_was_written(name: str) -> None:
    array = ARRAYS[name]
    text = json.dumps(encode(array), allow_nan=False)
    found = decode(np.ndarray, json.loads(text))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, array)
    found[...] = 0.0


@pytest.mark.parametrize("name", [name for name in ARRAYS if ARRAYS[name].ndim == 1])
def test_files_that_hold_lists_are_read(name: str) -> None:
    listed = [value if math.isfinite(value) else str(value) for value in ARRAYS[name].tolist()]
    np.testing.assert_array_equal(decode(np.ndarray, listed), ARRAYS[name])


def _by_hand(written: dict[str, Any], values: np.ndarray | None = None) -> np.ndarray:
    """The numbers of a file, read as the description of the format says."""
    (name,) = set(written) - {"shape", "over", "as"}
    kind, *how = name.split(" ")
    data, size = base64.b64decode(written[name]), np.dtype(kind).itemsize
    if "zlib" in how:
        data = zlib.decompress(data)
    if "shuffled" in how:
        data = np.frombuffer(data, "u1").reshape(size, -1).T.copy().tobytes()
    held = np.frombuffer(data, np.dtype(kind).newbyteorder("<"))
    if "steps" in how:
        assert values is not None
        steps, held = held, np.empty_like(held)
        held[values.argsort(kind="stable")] = np.cumsum(steps, dtype=steps.dtype)
    found = held.astype(np.float64)
    if "int" in kind:
        found[held == np.iinfo(kind).max] = math.nan
        found = found / written.get("over", 1)
    return (_single(found) if "as" in written else found).reshape(written["shape"])


@pytest.mark.parametrize("name", [name for name in ARRAYS if ARRAYS[name].size >= 64])
def test_numbers_can_be_read_as_the_format_says(name: str) -> None:
    np.testing.assert_array_equal(_by_hand(encode(ARRAYS[name])), ARRAYS[name])


@pytest.mark.parametrize(
    ("name", "kind", "over"),
    [
        ("doubles", "float64", None),
        ("singles", "float32", None),
        ("beyond single precision", "float64", None),
        ("counts", "uint8", None),
        ("one below the largest byte", "uint8", None),
        ("the largest byte", "uint16", None),
        ("whole numbers of either sign", "int16", None),
        ("whole numbers and NaN", "uint32", None),
        ("large whole numbers", "float32", None),
        ("counted p-values", "uint16", 6337),
        ("counted p-values in single precision", "uint16", 6337),
        ("counted p-values, some missing", "uint16", 601),
        ("counted among millions", "uint32", 8_000_001),
        ("p-values, one of them not counted", "float64", None),
        ("p-values that were never counted", "float64", None),
        ("halves of either sign", "float32", None),
    ],
)
def test_numbers_take_the_smallest_type_that_holds_them(
    name: str, kind: str, over: int | None
) -> None:
    written = encode(ARRAYS[name])
    assert next(iter(written)).split(" ")[0] == kind
    assert written.get("over") == over
    assert ("as" in written) == (name == "counted p-values in single precision")


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_is_read_as_it_was_written(seed: int) -> None:
    """Arrays of random kinds, some of them spoilt in one place."""
    random = np.random.default_rng(seed)
    many = int(random.integers(64, 3000))
    over = int(random.integers(1, 2 ** int(random.integers(1, 27))))
    kinds: list[np.ndarray] = [
        random.integers(0, over + 1, many) / over,
        _single(random.integers(1, over + 1, many) / over),
        random.integers(-over, over + 1, many).astype(np.float64),
        random.standard_cauchy(many),
        _single(random.gamma(0.3, 1.0, many)),
    ]
    array = kinds[seed % len(kinds)]
    spoilt = random.integers(0, many, 3)
    if random.random() < 0.5:
        array[spoilt] = [math.nan, -math.inf, 1 / 3][int(random.integers(3))]
    np.testing.assert_array_equal(decode(np.ndarray, json.loads(json.dumps(encode(array)))), array)
    np.testing.assert_array_equal(_by_hand(encode(array)), array)


def test_equal_arrays_have_one_text() -> None:
    array = ARRAYS["some NaN"].copy()
    array[1] = 0.0
    other = np.where(np.isnan(array), -np.nan, array)
    other[1] = -0.0
    assert encode(array) == encode(other)
    other[2] = np.nextafter(other[2], 9)
    assert encode(array) != encode(other)


def test_a_file_takes_far_less_than_lists_do() -> None:
    sizes = (
        ("singles", 0.3),
        ("doubles", 0.5),
        ("NaN throughout", 0.05),
        ("counted p-values", 0.15),
    )
    for name, most in sizes:
        array = np.tile(ARRAYS[name], 8)
        listed = len(json.dumps([str(v) if math.isnan(v) else v for v in array.tolist()]))
        assert len(json.dumps(encode(array))) < most * listed


OLDER = pathlib.Path(__file__).with_name("report_with_plain_arrays.json")


def test_a_report_of_an_older_version_is_read_and_then_stays_the_same() -> None:
    """It was written before bytes were shuffled and counts were counts."""
    text = OLDER.read_text(encoding="utf-8")
    (old,), (site,) = json.loads(text)["report"]["site_reports"], bp.Report.from_json(text)
    arrays = 0
    for held, scores in ((old["scores"], site.scores), (old["beside"], site.beside)):
        for name, score in scores.items():
            for field in ("null_values", "per_direction", "per_direction_p"):
                written = held[name][field]
                expected = _by_hand(written) if isinstance(written, dict) else np.array(written)
                if not score.decides and field != "null_values":
                    expected = _single(expected)
                np.testing.assert_array_equal(getattr(score, field), expected)
                arrays += isinstance(written, dict)
    assert arrays > 12
    report = bp.Report.from_json(text)
    assert bp.Report.from_json(report.to_json()) == report
    assert len(report.to_json()) < 0.8 * len(text)


def test_what_is_saved_is_what_is_held_after_one_round_and_after_two() -> None:
    report = wide_report(3, frames=99, dim=500)
    once = bp.Report.from_json(report.to_json())
    twice = bp.Report.from_json(once.to_json())
    assert once == report
    assert twice == report
    assert twice.to_json() == report.to_json()


def test_scores_that_decide_nothing_hold_single_precision_of_axes_and_others_all_digits() -> None:
    score = next(iter(fake_report().site_reports[0].scores.values()))
    values, p = RANDOM.standard_normal(MANY), RANDOM.random(MANY)
    for decides in (True, False):
        held = dataclasses.replace(score, decides=decides, per_direction=values, per_direction_p=p)
        for found, given in ((held.per_direction, values), (held.per_direction_p, p)):
            np.testing.assert_array_equal(found, given if decides else _single(given))
            assert found.dtype == np.float64
    # Numbers that single precision has not are left as they are.
    large = dataclasses.replace(score, decides=False, per_direction=values * 1e300)
    np.testing.assert_array_equal(large.per_direction, values * 1e300)
    some = dataclasses.replace(
        score, decides=False, per_direction=np.array([math.inf, math.nan, 0.1])
    )
    np.testing.assert_array_equal(some.per_direction, [math.inf, math.nan, np.float32(0.1)])


def _unimodal(values: np.ndarray) -> np.ndarray:
    """Two-sided p-values, counted among 6,336 alternatives."""
    others = RANDOM.standard_normal(6336)
    upper = 1 + (others[None] >= values[:, None]).sum(1)
    lower = 1 + (others[None] <= values[:, None]).sum(1)
    found = np.minimum(1.0, 2 * np.minimum(upper, lower) / 6337)
    return np.where(np.isnan(values), math.nan, found)


@pytest.mark.parametrize("decides", [True, False])
@pytest.mark.parametrize("kind", ["of values", "ties", "some missing", "of nothing", "constant"])
def test_p_values_are_held_as_steps_along_the_values_where_they_follow_them(
    kind: str, decides: bool
) -> None:
    score = next(iter(fake_report().site_reports[0].scores.values()))
    values = RANDOM.standard_normal(MANY)
    if kind == "ties":
        values = values.round(1) + 0.0 * RANDOM.choice([-1.0, 1.0], MANY)
    if kind == "some missing":
        values[RANDOM.random(MANY) < 0.3] = math.nan
    p = _unimodal(values)
    if kind == "of nothing":
        p = RANDOM.random(MANY)
    if kind == "constant":
        p = np.full(MANY, 1 / 6337)
    held = dataclasses.replace(score, decides=decides, per_direction=values, per_direction_p=p)
    written = json.loads(json.dumps(encode(held)))
    found = decode(ScoreResult, written)
    assert found == held
    np.testing.assert_array_equal(found.per_direction_p, held.per_direction_p)
    (name,) = set(written["per_direction_p"]) - {"shape", "over", "as"}
    assert ("steps" in name) == (kind in ("of values", "ties", "some missing"))
    by_hand = _by_hand(written["per_direction_p"], held.per_direction)
    np.testing.assert_array_equal(by_hand, held.per_direction_p)
    if kind == "of values":
        assert len(written["per_direction_p"][name]) < 1.2 * MANY
        for changed in (values[:-1], np.zeros(0), values[:, None]):
            with pytest.raises(Damaged, match=r"per_direction_p.*1000 numbers for"):
                decode(ScoreResult, written | {"per_direction": changed.tolist()})
        with pytest.raises(Damaged, match="no numbers"):
            decode(np.ndarray, written["per_direction_p"])


@pytest.mark.slow
def test_a_report_of_wide_layers_takes_little_space_and_memory(tmp_path: pathlib.Path) -> None:
    """A tenth of 80 layers of five sites with 8,192 axes."""
    report = wide_report(40, frames=99, dim=8192)
    tracemalloc.start()
    saved = report.save(tmp_path / "r.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert saved.stat().st_size < 11e6
    assert peak < 70e6
    assert bp.Report.load(saved) == report


def _text(numbers: bytes) -> str:
    return base64.b64encode(numbers).decode()


# fmt: off
DAMAGED: dict[str, Any] = {
    "nothing": {},
    "no shape": {"float64": _text(bytes(80))},
    "no numbers": {"shape": [10]},
    "two kinds of numbers": {"float64": _text(bytes(80)), "float32": _text(bytes(40))},
    "another type": {"float16": _text(bytes(20)), "shape": [10]},
    "another way": {"float64 lzma": _text(bytes(80)), "shape": [10]},
    "more than that": {"float64": _text(bytes(80)), "shape": [10], "zlib": True},
    "too few": {"float64": _text(bytes(72)), "shape": [10]},
    "too many": {"float64": _text(bytes(88)), "shape": [10]},
    "no base64": {"float64": "ä" * 20, "shape": [10]},
    "a number": {"float64": 5, "shape": [10]},
    "a list": {"float64": [0.0] * 10, "shape": [10]},
    "not compressed": {"float64 zlib": _text(bytes(80)), "shape": [10]},
    "cut off": {"float64 zlib": _text(zlib.compress(bytes(range(80)))[:-9]), "shape": [10]},
    "its last bytes cut off": {"float64 zlib": _text(zlib.compress(bytes(80))[:-4]), "shape": [10]},
    "something behind it": {"float64 zlib": _text(zlib.compress(bytes(80)) + b"!"), "shape": [10]},
    "more than it says": {"float64 zlib": _text(zlib.compress(bytes(10**6))), "shape": [10]},
    "less than it says": {"float64 zlib": _text(zlib.compress(bytes(80))), "shape": [10**7]},
    "a shape of no numbers": {"float64": _text(bytes(80)), "shape": ["10"]},
    "a shape of truths": {"float64": _text(bytes(8)), "shape": [True]},
    "a negative shape": {"float64": _text(bytes(80)), "shape": [-10, -1]},
    "an enormous shape": {"float64 zlib": _text(zlib.compress(bytes(80))), "shape": [2**40]},
    "an enormous shape of nothing": {"float64": "", "shape": [2**70, 0, 2**70]},
    "a shape of many axes": {"float64": _text(bytes(8)), "shape": [1] * 40},
    "a shape that is none": {"float64": _text(bytes(80)), "shape": 10},
    "an empty shape": {"float64": _text(bytes(8)), "shape": []},
    "whole numbers over none": {"uint8": _text(bytes(10)), "shape": [10], "over": 0},
    "whole numbers over a half": {"uint8": _text(bytes(10)), "shape": [10], "over": 0.5},
    "whole numbers over a truth": {"uint8": _text(bytes(10)), "shape": [10], "over": True},
    "whole numbers over too many": {"uint8": _text(bytes(10)), "shape": [10], "over": 2**70},
    "fractions of fractions": {"float64": _text(bytes(80)), "shape": [10], "over": 3},
    "rounded to another type": {
        "uint8": _text(bytes(10)), "shape": [10], "over": 3, "as": "float16",
    },
    "rounded whole numbers": {"uint8": _text(bytes(10)), "shape": [10], "as": "float32"},
    "shuffled and not compressed": {"uint16 shuffled": _text(bytes(20)), "shape": [10]},
    "too many shuffled": {
        "uint16 shuffled zlib": _text(zlib.compress(bytes(22))), "shape": [10],
    },
    "words": "float64",
}
# fmt: on


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused(name: str) -> None:
    with pytest.raises(Damaged):
        decode(np.ndarray, DAMAGED[name])
    with pytest.raises(Damaged, match="'3'"):
        decode(tuple[np.ndarray, ...], [[1.0], [2.0], [], DAMAGED[name]])


def test_arrays_that_would_take_far_more_memory_than_their_text_are_never_made() -> None:
    """Each of them is of a size that an array may have; together they are not."""
    report = json.loads(fake_report().to_json())
    (site, *_) = report["report"]["site_reports"]
    (score, *_) = site["scores"].values()
    bomb = {"uint8 shuffled zlib": _text(zlib.compress(bytes(2**25))), "shape": [2**25]}
    score["null_values"] = {**bomb, "shape": [2**26]}
    with pytest.raises(ValueError, match="its shape is none"):
        bp.Report.from_json(json.dumps(report))
    score["null_values"] = bomb
    site["scores"] = {f"score {n}": score for n in range(40)}
    many = json.dumps(report)
    tracemalloc.start()
    with pytest.raises(ValueError, match="far more memory"):
        bp.Report.from_json(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(many)

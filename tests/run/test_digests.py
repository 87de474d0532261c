"""A report says which weights and which data it is of, and comparisons say where they are alike."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp

pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)).eval()


def _data(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(120, 5, generator=generator) for _ in range(3)]


def _report(model: nn.Module, data: list[Tensor], **options: object) -> bp.Report:
    null = bp.nulls.Rotation(frames=19)
    return bp.probe(
        model, data, sites="1", null=null, progress=False, certificates=False, **options
    )  # pyright: ignore


@pytest.mark.slow
def test_equal_weights_and_equal_batches_have_equal_digests_and_others_have_not() -> None:
    one = _report(_model(), _data()).provenance
    again = _report(copy.deepcopy(_model()), _data(), seed=7).provenance
    assert one.model_digest and one.data_digest
    assert (again.model_digest, again.data_digest) == (one.model_digest, one.data_digest)
    assert _report(_model(1), _data()).provenance.model_digest != one.model_digest
    other = _report(_model(), _data(2)).provenance
    assert other.data_digest != one.data_digest and other.data == one.data
    turned = _report(_model(), _data()[::-1]).provenance
    assert turned.data_digest != one.data_digest


def test_parts_have_the_digest_of_the_whole() -> None:
    whole = _report(_model(), _data()).provenance
    null = bp.nulls.Rotation(frames=19)
    parts = [
        bp.observe(_model(), _data(), sites="1", null=null, shard=(part, 2), progress=False)
        for part in range(2)
    ]
    made = (parts[1] + parts[0]).report(_model(), null=null, progress=False).provenance
    assert (made.model_digest, made.data_digest) == (whole.model_digest, whole.data_digest)


def test_a_comparison_says_what_is_alike_and_what_is_not() -> None:
    base = _report(_model(), _data())
    same = " ".join(bp.compare_reports({"a": base, "b": base}).notes)
    assert same == "These are reports of the same weights: a, b."
    other = " ".join(bp.compare_reports({"a": base, "b": _report(_model(3), _data(5))}).notes)
    assert other == "The data differ, or are batched otherwise, though they are alike in size."


def test_reports_without_digests_are_read() -> None:
    base = _report(_model(), _data())
    value = json.loads(base.to_json())
    del value["report"]["provenance"]["model_digest"], value["report"]["provenance"]["data_digest"]
    old = bp.Report.from_json(json.dumps(value))
    assert old.provenance.model_digest == "" and old.site_reports == base.site_reports
    assert bp.compare_reports({"old": old, "new": base}).notes == ()

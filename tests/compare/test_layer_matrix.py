"""All layers against all layers: the numbers of single pairs, error bars, a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.compare.kernels import Hsic, Kernel, Maps, hsic_of


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        ).eval()  # fmt: skip


def images(count: int = 5, size: int = 24) -> list[Tensor]:
    return list(torch.randn(count * size, 3, 8, 8, generator=seeded(0)).split(size))


@pytest.mark.parametrize("kernel", ["linear", "max"])
def test_every_cell_is_the_similarity_of_the_pair(kernel: str) -> None:
    a, b = network(0), network(1)
    found = bp.compare_layers(a, b, images(), kernel=kernel)
    assert found.sites == found.other_sites == ("1", "3", "5")
    for i, j in ((0, 0), (0, 2), (2, 1)):
        one = bp.similarity(
            a, b, images(), site=found.sites[i], other_site=found.other_sites[j], measure="cka",
            kernel=kernel,
        )  # fmt: skip
        assert found.similarity[i, j] == pytest.approx(one.similarity, abs=1e-9)
        assert found.std_error[i, j] == pytest.approx(one.std_error, abs=1e-9)
        assert one.std_error > 0


def test_kernels_of_batches_are_added_up() -> None:
    a, b = network(0), network(1)
    found = bp.compare_layers(a, b, images())
    total = Hsic()
    with torch.no_grad():
        for batch in images():
            maps = [net[:4](batch).flatten(2) for net in (a, b)]
            total += hsic_of(*(Maps(m, Kernel.MAX, True) for m in maps))
    assert found.similarity[1, 1] == pytest.approx(total.cka, abs=1e-6)


@pytest.mark.slow
def test_a_network_and_its_twin_match_layer_by_layer() -> None:
    a = network(0)
    twin = a
    for site, dim in (("1", 6), ("3", 8), ("5", 8)):
        element = bp.groups.PositiveMonomial(dim).draw(seeded(dim))
        twin = bp.reparametrize(twin, site, element, example_input=images()[0])
    for options in ({"measure": "procrustes"}, {"kernel": "max"}, {"kernel": "smooth"}):
        found = bp.compare_layers(a, twin, images(), **options)
        assert np.allclose(np.diag(found.similarity), 1, atol=1e-5)
        assert found.matched == found.sites
        off = found.similarity[~np.eye(3, dtype=bool)]
        assert (off < 0.99).all()
    assert found.group == "positive-monomial"


def test_groups_that_only_move_axes_are_compared_up_to_the_one_that_holds_them() -> None:
    a = network(0)
    smooth = network(1)
    smooth[3] = nn.GELU()
    found = bp.compare_layers(a, smooth, images(2), kernel="max")
    assert found.group == "positive-monomial" and "several groups" in found.notes[0]
    parts = bp.groups.DirectSum((bp.groups.Permutation(2), bp.groups.PositiveMonomial(4)))
    x = torch.randn(60, 6, generator=seeded(0), dtype=torch.float64).relu()
    moved = parts.draw(seeded(1)).act(x)
    for options in ({}, {"measure": "cka"}):
        assert bp.similarity(x, moved, group=parts, **options).similarity > 1 - 1e-9


def test_the_matrix_shows_itself() -> None:
    found = bp.compare_layers(network(0), network(0), images(), measure="procrustes")
    wide, long = found.to_dataframe(), found.to_long()
    assert wide.shape == (3, 3) and wide.loc["1", "1"] == pytest.approx(1.0, abs=1e-9)
    assert len(long) == 9 and set(long.columns) == {"site", "other_site", "similarity", "std_error"}
    row = long[(long.site == "3") & (long.other_site == "1")].iloc[0]
    assert row.similarity == found.similarity[1, 0] and row.std_error == found.std_error[1, 0]
    figure = found.plot()
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said[0] == "1.00\n±0.00" and len(said) == 9
    assert "<table" in found._repr_html_()


def test_one_batch_has_no_error_bars_and_says_so() -> None:
    found = bp.compare_layers(network(0), network(1), images(1), kernel="max")
    assert np.isnan(found.std_error).all() and "no error bars" in found.notes[0]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("batches", [1, 4])
def test_what_is_fitted_is_held_out_by_example(batches: int, folds: int) -> None:
    a, b, data = network(0), network(1), images(batches)
    found = bp.compare_layers(a, b, data, measure=["procrustes", "partial"], folds=folds)
    for measure, table in found.items():
        assert np.isnan(table.std_error).all() == (folds == 1)
        assert ("Nothing was held out, so that the fit flatters." in table.notes) == (folds == 1)
        one = bp.similarity(a, b, data, site="3", other_site="5", measure=measure, folds=folds)
        assert table.similarity[1, 2] == pytest.approx(one.similarity, abs=1e-9)
        assert table.std_error[1, 2] == pytest.approx(one.std_error, abs=1e-9, nan_ok=True)


def test_what_holds_of_some_pairs_is_said_once_with_the_first() -> None:
    found = bp.compare_layers(network(0), network(0), images(2), measure="procrustes")
    assert [note for note in found.notes if "widths differ" in note] == [
        "1 and 3: The widths differ, so that axes are matched in parts (soft matching). The like "
        "holds of 3 more of 9 pairs."
    ]


@pytest.mark.usefixtures("as_shipped")
def test_layers_of_several_kinds_need_a_named_group() -> None:
    a, gelu = network(0), network(0)
    gelu[3] = nn.Identity()
    with pytest.raises(ValueError, match="name sites of one kind, or the group"):
        bp.compare_layers(gelu, gelu, images(2), sites=("1", "2"))
    found = bp.compare_layers(a, gelu, images(2), sites=("1", "2"), group="orthogonal")
    assert found.group == "orthogonal" and found.measure == "linear CKA"
    with pytest.raises(ValueError, match="cca allows every linear map"):
        bp.compare_layers(a, a, images(), measure="cca")
    with pytest.raises(bp.DataError, match="NaN or infinite"):
        bp.compare_layers(a, a, [torch.full((4, 3, 8, 8), math.nan)])
    with pytest.raises(bp.DataError, match="no batch"):
        bp.compare_layers(a, a, [])
    with pytest.raises(bp.DataError, match="no batch holds four examples"):
        bp.compare_layers(a, a, images(2, 3))

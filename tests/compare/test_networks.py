"""Saved activations and many networks: the same numbers as of the models, laws of the distances."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from draws import seeded
from networks import mlp, rows
from torch import Tensor

import basis_probe as bp


def held(seed: int, widths: tuple[int, ...] = (5, 7), samples: int = 90) -> dict[str, Tensor]:
    shared = torch.randn(samples, 3, generator=seeded(0), dtype=torch.float64)
    generator = seeded(seed)
    return {
        f"layer {place}": shared @ torch.randn(3, width, generator=generator, dtype=torch.float64)
        + torch.randn(samples, width, generator=generator, dtype=torch.float64)
        for place, width in enumerate(widths)
    }


MEASURES: list[dict[str, Any]] = [
    {"measure": "procrustes"}, {"measure": "cka"}, {"measure": "cka", "kernel": "rbf"},
    {"measure": "cca"}, {"measure": "svcca"}, {"measure": "pwcca"}, {"measure": "rsa"},
    {"measure": "knn"}, {"measure": "regression"}, {"measure": "procrustes", "whitening": 0.3},
]  # fmt: skip


@pytest.mark.sample(default=10)
@pytest.mark.parametrize("how", MEASURES, ids=str)
@pytest.mark.parametrize("folds", [1, 3])
def test_saved_layers_are_compared_pair_by_pair(how: dict[str, Any], folds: int) -> None:
    one, other = held(1), held(2, (6, 4, 5))
    found = bp.compare_layers(one, other, folds=folds, **how)
    assert found.sites == tuple(one) and found.other_sites == tuple(other)
    for i, x in enumerate(one.values()):
        for j, y in enumerate(other.values()):
            wanted = bp.similarity(x, y, folds=folds, **how)
            assert found.similarity[i, j] == pytest.approx(wanted.similarity, abs=1e-12)
            assert found.std_error[i, j] == pytest.approx(wanted.std_error, nan_ok=True)


def test_files_and_dicts_hold_the_same(tmp_path: pathlib.Path) -> None:
    from safetensors.torch import save_file

    one, other = held(1), held(2)
    wanted = bp.compare_layers(one, other, measure="procrustes").similarity
    save_file(one, tmp_path / "one.safetensors")
    np.savez(tmp_path / "other.npz", **{name: value.numpy() for name, value in other.items()})
    paths = tmp_path / "one.safetensors", str(tmp_path / "other.npz")
    assert np.array_equal(bp.compare_layers(*paths, measure="procrustes").similarity, wanted)
    alike = bp.similarity(*paths)
    assert [alike["layer 0"].similarity, alike["layer 1"].similarity] == wanted.diagonal().tolist()
    crossed = bp.similarity(*paths, site="layer 0", other_site="layer 1")
    assert crossed.similarity == wanted[0, 1] and crossed.sites == ("layer 0", "layer 1")
    chosen = bp.compare_layers(one, other, sites="layer 1", measure="procrustes")
    assert chosen.similarity.tolist() == [[wanted[1, 1]]]


class Cache(dict[str, Tensor]):
    """What a hooked run leaves: mappings that are no plain dict are read as caches."""


def test_a_cache_is_read_as_it_is(tmp_path: pathlib.Path) -> None:
    from collections import UserDict

    del tmp_path
    values = torch.randn(8, 12, 6, generator=seeded(3))
    cache: Any = UserDict(
        {
            "blocks.0.hook_resid_post": values,
            "blocks.0.attn.hook_z": values.unflatten(-1, (2, 3)),
            "blocks.0.attn.hook_pattern": torch.rand(8, 2, 12, 12),
            "blocks.0.ln1.hook_scale": torch.rand(8, 12, 1),
            "hook_tokens": torch.zeros(8, 12, dtype=torch.int64),
        }
    )
    found = bp.compare_layers(cache, cache, measure="procrustes")
    assert found.sites == ("blocks.0.hook_resid_post", "blocks.0.attn.hook_z")
    assert found.similarity == pytest.approx(1)
    assert found.n_examples == 8


@pytest.mark.slow
def test_several_measures_come_from_one_pass() -> None:
    a, b, reads = mlp(0), mlp(1), 0

    def batches() -> Any:
        nonlocal reads
        reads += 1
        yield from rows().split(30)

    names = ["procrustes", "cka", "cca", "svcca", "rsa", "knn"]
    group = dict.fromkeys(names, "orthogonal") | {"cca": "general-linear"}
    found = bp.compare_layers(a, b, batches(), sites=["1", "3"], measure=names, group=group)  # pyright: ignore
    assert [*found] == names and reads == 1
    for name in names[1:4:2]:
        alone = bp.compare_layers(
            a,
            b,
            rows().split(30),
            sites=["1", "3"],
            measure=name,
            group=group[name],  # pyright: ignore
        )
        assert np.array_equal(alone.similarity, found[name].similarity)
    assert len(found.to_dataframe()) == 6 * 4


@pytest.mark.sample(default=4)
@pytest.mark.parametrize(
    "how", [how for how in MEASURES if how["measure"] not in ("regression", "pwcca")], ids=str
)
def test_distances_are_zero_to_oneself_symmetric_and_those_of_pairs(how: dict[str, Any]) -> None:
    nets = {name: held(seed)["layer 1"] for name, seed in (("a", 1), ("b", 2), ("c", 3))}
    turn = torch.linalg.qr(torch.randn(7, 7, generator=seeded(5), dtype=torch.float64)).Q
    nets["turned a"] = 3 * nets["a"] @ turn + 1
    found = bp.compare_networks(nets, **how)
    assert found.names == tuple(nets) and np.array_equal(found.matrix, found.matrix.T)
    assert (found.matrix.diagonal() == 0).all() and found.matrix[0, 3] < 1e-3
    wanted = bp.similarity(nets["a"], nets["b"], **how)
    assert found.matrix[0, 1] == pytest.approx(wanted.distance, abs=1e-12)
    assert found.low[0, 1] <= found.matrix[0, 1] <= found.high[0, 1]
    swapped = bp.similarity(nets["b"], nets["a"], **how)
    assert swapped.distance == pytest.approx(wanted.distance, abs=1e-9)
    assert len(found.to_long()) == 6 and found.to_dataframe().loc["a", "turned a"] < 1e-3
    for figure in (found.plot(), found.dendrogram(), found.map()):
        assert figure.axes


def test_an_embedding_in_a_plane_gives_its_distances_back() -> None:
    places = np.random.default_rng(0).standard_normal((5, 2))
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    nets = {str(i): held(i)["layer 0"] for i in range(5)}
    import dataclasses

    found = dataclasses.replace(bp.compare_networks(nets), matrix=distances).embedding()
    made = np.linalg.norm(found[:, None] - found[None], axis=2)
    assert np.allclose(made, distances)


def test_models_are_compared_as_their_activations_are() -> None:
    models: dict[str, Any] = {str(seed): mlp(seed) for seed in range(3)}
    given = {name: model[:2](rows()).detach() for name, model in models.items()}
    found = bp.compare_networks(models, rows().split(40), sites="1", group="orthogonal", folds=1)
    wanted = bp.compare_networks(given, folds=1)
    assert np.allclose(found.matrix, wanted.matrix, atol=1e-6)
    named = bp.compare_networks(
        models, [rows()], sites={"0": "1", "1": "3", "2": "1"}, group="orthogonal", folds=1
    )
    assert named.matrix[0, 2] == pytest.approx(found.matrix[0, 2], abs=1e-6)
    assert named.matrix[0, 1] != pytest.approx(found.matrix[0, 1], abs=1e-3)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "one network": (lambda: bp.compare_networks({"a": rows()}), ValueError, "1 networks: give at"),
    "no names": (lambda: bp.compare_networks([rows(), rows()]), TypeError, "networks is a list"),  # pyright: ignore
    "other samples": (
        lambda: bp.compare_networks({"a": rows(), "b": rows()[1:]}),
        bp.DataError,
        "give the same samples of both",
    ),
    "mixed": (
        lambda: bp.compare_networks({"a": rows(), "b": mlp(0)}),
        TypeError,
        "'a' is no model and others are",
    ),
    "no data": (
        lambda: bp.compare_networks({"a": mlp(0), "b": mlp(1)}),
        bp.DataError,
        "models are given without data",
    ),
    "no site": (
        lambda: bp.compare_networks({"a": mlp(0), "b": mlp(1)}, [rows()]),
        ValueError,
        "models are given without sites",
    ),
    "a site too few": (
        lambda: bp.compare_networks({"a": mlp(0), "b": mlp(1)}, [rows()], sites={"a": "1"}),
        ValueError,
        "sites names no place in 'b'",
    ),
    "one-sided": (
        lambda: bp.compare_networks({"a": rows(), "b": rows()}, measure="pwcca"),
        ValueError,
        "is not the same for both orders",
    ),
    "no file": (
        lambda: bp.similarity("nowhere.npz", "nowhere.npz"),
        bp.DataError,
        "there is no file nowhere.npz",
    ),
    "no such layer": (
        lambda: bp.compare_layers(held(1), held(2), sites="layer 9"),
        bp.SiteError,
        "has no activations called 'layer 9'; there are layer 0",
    ),
    "nothing shared": (
        lambda: bp.similarity({"a": rows()}, {"b": rows()}),
        bp.SiteError,
        "the two have no name in common",
    ),
    "uneven": (
        lambda: bp.similarity({"a": rows(), "b": rows()[1:]}, {"a": rows()}),
        bp.DataError,
        "give the same samples of all",
    ),
    "a model and a dict": (
        lambda: bp.compare_layers(mlp(0), held(1), [rows()]),
        TypeError,
        "give two of one kind",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_a_network_that_never_varies_is_named() -> None:
    nets = {str(seed): torch.randn(60, 4, generator=seeded(seed)) for seed in range(4)}
    nets["silent"] = torch.full((60, 3), 2.5)
    with pytest.raises(bp.DataError, match="0 and silent: one of the two is the same"):
        bp.compare_networks(nets)
    with pytest.raises(bp.DataError, match="1 and silent: one of the two is the same"):
        bp.compare_layers({"1": nets["1"]}, nets, measure="procrustes", group="orthogonal")

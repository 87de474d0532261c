"""What is said of families whose models come from a recipe: groups, and their proofs."""

from __future__ import annotations

import time

import families
import pytest
from families import CONVOLUTIONAL, FROM_RECIPE, MORE, MORE_TINIES, NETWORKS, ROWS, Family
from families.places import KINDS, all_of, kind_of, most, spoken, unknown
from torch import nn

import basis_probe as bp
from basis_probe.architecture.completeness import LARGEST

# Annotations are checked in the other tests; here it would take most of the time.
pytestmark = pytest.mark.usefixtures("as_shipped")


def named(chosen: tuple[Family, ...]) -> list[object]:
    return [pytest.param(family, id=family.name) for family in chosen]


def check_proofs(found: dict[str, bp.Symmetry]) -> None:
    """Nothing is refuted, and every claim is proved."""
    for site, symmetry in found.items():
        made = symmetry.certificate
        assert made is None or made.holds, (site, symmetry.because)
        assert unknown(symmetry) or made is not None, (site, symmetry.unproved)


@pytest.mark.sample(default=2, slow=40)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", named(FROM_RECIPE))
def test_families_have_the_groups_that_were_expected_of_them(family: Family) -> None:
    row, model = ROWS[family.name], family.make(0)
    start = time.process_time()
    found = bp.symmetries(model, family.example(0))
    # Three seconds where nothing else runs.
    assert time.process_time() - start < 9
    check_proofs(found)
    for kind, right in (("residual stream", row.stream), ("neurons", row.neurons), ("z", row.z)):
        assert right is None or all_of(found, kind) == right, kind


@pytest.mark.sample(default=2, slow=10)
@pytest.mark.parametrize("family", named(CONVOLUTIONAL))
def test_networks_of_convolutions_have_the_groups_that_were_expected_of_them(
    family: Family,
) -> None:
    found = bp.symmetries(family.make(0), family.example(0))
    check_proofs(found)
    right = NETWORKS[family.name][1]
    assert {site: spoken(found[site].group) for site in right} == right


TINY_BY_NAME = {family.name: family for family in MORE_TINIES}


COUNTED = "Arcee", "Doge", "DeiT", "DenseNet"
"""Families that are counted with the slow tests; the others take a while together."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family,
            id=family.name,
            marks=pytest.mark.slow if family.name in COUNTED else pytest.mark.battery,
        )
        for family in MORE
    ],
)
def test_no_claim_holds_a_direction_that_moves_the_function(family: Family) -> None:
    tiny = TINY_BY_NAME[family.name]
    try:
        model = tiny.make(0)
    except (ValueError, RuntimeError, AssertionError):
        pytest.xfail("the class takes no sizes as small as these")
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
        return
    found = bp.symmetries(families.without_epsilons(model), tiny.example(0)).completeness
    assert found.claimed <= found.nullity
    assert found.largest_stray < 1e-6


def test_names_are_told_apart() -> None:
    names = [family.name for family in (*families.FAMILIES, *MORE)]
    assert len(names) == len({*names}) >= 150
    assert [family.name for family in MORE_TINIES] == [family.name for family in MORE]


def test_kinds_of_places_are_read_from_names() -> None:
    right = {
        "model.layers.0:in": "residual stream",
        "transformer.h.1": "residual stream",
        "blocks.0.hook_resid_pre": "residual stream",
        "bert.encoder.layer.1.output.dense:in": "neurons",
        "bert.encoder.layer.1.attention.output.dense:in": "z",
        "bert.encoder.layer.1.attention.self.query": "queries",
        "model.layers.0.self_attn.k_proj": "keys",
        "model.layers.0.self_attn.v_proj": "values",
        "model.layers.0.self_attn.v_proj:in": None,
        "model.layers.0.self_attn.o_proj:in": "z",
        "model.layers.0.mlp.gate": "router",
        "model.layers.0.mlp.down_proj:in": "neurons",
        "model.layers.0.mlp.act_fn": "neurons",
        "model.layers.0.input_layernorm": None,
    }
    assert {name: kind_of(name) for name in right} == right
    assert {kind for kind in right.values() if kind} == {*KINDS}


def test_groups_of_places_are_gathered() -> None:
    groups = bp.groups.Permutation(4), bp.groups.Monomial(4), bp.groups.Orthogonal(3)
    sites = "layers.0.mlp.act_fn", "layers.0.mlp.down_proj:in", "layers.1:in"
    found = {
        site: bp.Symmetry(group, group.privileged, "It is.", "algebra")
        for site, group in zip(sites, groups, strict=True)
    }
    assert all_of(found, "neurons") == most(found, "neurons") == "S≠0(4)"
    assert all_of(found, "residual stream") == "O(3)" and most(found, "z") == "-"
    found["layers.2:in"] = found["layers.0.mlp.act_fn"]
    assert all_of(found, "residual stream") == "O(3) / S(4)"


@pytest.mark.slow
def test_what_a_family_takes_and_how_it_was_drawn_follow_from_its_seed() -> None:
    family = next(one for one in MORE if one.name == "ResNet")
    first, again, other = family.make(1), family.make(1), family.make(2)
    assert isinstance(first, nn.Module)
    for name, tensor in first.state_dict().items():
        assert (tensor == again.state_dict()[name]).all(), name
        if name.endswith(("running_mean", "running_var", "weight", "bias")):
            assert (tensor != other.state_dict()[name]).all(), name

"""Trained networks on real images: all layers by several measures, and units under two rules."""

from __future__ import annotations

import math

import assets
import numpy as np
import pytest

import basis_probe as bp

pytestmark = pytest.mark.slow

MEASURES = ("procrustes", "cka", "svcca", "pwcca", "partial", "rsa")


@pytest.mark.parametrize(
    "measures",
    [
        pytest.param(MEASURES[1:3], id="two"),
        pytest.param(MEASURES, marks=pytest.mark.battery, id="six"),
    ],
)
def test_all_layers_of_two_networks_are_compared_by_several_measures_in_one_call(
    measures: tuple[str, ...],
) -> None:
    one, other = assets.resnet(20), assets.resnet(32)
    images = list(assets.cifar(40, colours=assets.RESNET_COLOURS)[0].split(20))
    groups = {"svcca": "orthogonal", "pwcca": "permutation", "rsa": "orthogonal"}
    groups = {measure: groups[measure] for measure in measures if measure in groups}
    found = bp.compare_layers(one, other, images, measure=measures, group=groups)
    assert tuple(found) == measures
    for measure, table in found.items():
        assert table.similarity.shape == (19, 31) and table.n_examples == 40
        assert np.isfinite(table.similarity).all() and np.isfinite(table.std_error).all()
        assert table.group == groups.get(measure, "positive-monomial")
        # What comes early in the one resembles what comes early in the other more than the end.
        assert table.similarity[0, 0] > table.similarity[0, -1] + 0.1, measure
    frame = found.to_dataframe()
    assert len(frame) == len(measures) * 19 * 31 and set(frame.measure) == set(measures)
    alone = bp.similarity(one, other, images, site=found["cka"].sites[3], measure="cka")
    assert found["cka"].similarity[3, 3] == pytest.approx(alone.similarity, abs=1e-9)


def test_squeezenet_is_dissected_under_the_published_rule_and_ours() -> None:
    from benchmarks.published import loaded, rules, table

    assets.folder("msrc_v2"), assets.folder("squeezenet_imagenet")
    network, images, concepts = loaded(40)
    found = rules(network, images, concepts, sites=("fire5.act",), frames=19, resamples=20)
    lines = table(found)
    assert len(lines) == 2 + 4 and all(line.count("|") == lines[0].count("|") for line in lines)
    published, ours = (dissection["fire5.act"] for dissection in found.values())
    for site in (published, ours):
        assert {one.null.name for one in site.comparisons} == {"counterfactual", "rotation"}
        for one in site.comparisons:
            assert one.distinct.low <= one.distinct.observed + 2 and not math.isnan(
                one.distinct.low
            )
            assert len(one.distinct.null_values) == 19
    # Axes score the same whatever stands beside them, and held-out counts are lower.
    assert len({one.distinct.observed for one in published.comparisons}) == 1
    assert ours.comparison().distinct.observed < published.comparison().distinct.observed

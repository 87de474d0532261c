"""Hidden bases are found, judged on samples not used to find them, and placed against the axes."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from draws import seeded
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.statistics.bases import (
    ALL as BASES,
)
from basis_probe.statistics.bases import (
    ICA,
    PCA,
    Candidate,
    Given,
    Hadamard,
    Quartimax,
    Random,
    Standard,
    Varimax,
    ceiling_effect,
    compare_bases,
    hadamard_rotation,
    matched_cosines,
)
from basis_probe.statistics.scores import KURTOSIS, NEGENTROPY, NON_GAUSSIANITY, SAMPLE_KURTOSIS


def _uniform(samples: int, dim: int, seed: int = 0) -> Tensor:
    return torch.rand(samples, dim, generator=seeded(seed), dtype=torch.float64) - 0.5


def _laplace(samples: int, dim: int, seed: int = 0) -> Tensor:
    uniform = _uniform(samples, dim, seed)
    return -uniform.sign() * (1 - 2 * uniform.abs()).log()


SOURCES: dict[str, Callable[[int, int], Tensor]] = {
    "laplace": _laplace,
    "uniform": _uniform,
    "sinusoid": lambda samples, dim: (2 * math.pi * _uniform(samples, dim)).sin(),
    "binary": lambda samples, dim: _uniform(samples, dim).sign(),
}


def _odd(samples: int) -> Tensor:
    return torch.arange(samples) % 2 == 1


@pytest.mark.parametrize("candidate", BASES.values(), ids=list(BASES))
def test_every_candidate_gives_unit_directions_and_the_same_again(candidate: Candidate) -> None:
    x = _laplace(600, 6) @ haar(6, seeded(1)) * torch.arange(1, 7) + 5
    basis = candidate.fit(x)
    assert basis.name == candidate.name
    assert basis.directions.shape == (6, 6)
    torch.testing.assert_close(basis.directions.norm(dim=1), torch.ones(6).double())
    assert torch.equal(candidate.fit(x).directions, basis.directions)
    torch.testing.assert_close(basis.read(x), x @ basis.directions.T)
    if candidate.name != "ica":
        gram = basis.directions @ basis.directions.T
        torch.testing.assert_close(gram, torch.eye(6).double(), rtol=0, atol=1e-10)
    # Where the rows lie is no matter.
    torch.testing.assert_close(candidate.fit(x - 3).directions, basis.directions, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SOURCES)
def test_ica_finds_a_hidden_basis_of_heavy_tailed_or_flat_sources(name: str) -> None:
    turn = haar(12, seeded(2))
    x = SOURCES[name](8000, 12) @ turn.T
    basis = ICA().fit(x)
    assert basis.note == ""
    assert matched_cosines(basis.directions, turn.T).mean >= 0.98


@pytest.mark.slow
def test_a_laplace_basis_hidden_by_a_secret_rotation_is_recovered() -> None:
    turn = haar(64, seeded(3))
    x = _laplace(20_000, 64) @ turn.T
    assert matched_cosines(ICA().fit(x).directions, turn.T).mean >= 0.98


@pytest.mark.parametrize("candidate", [Varimax(), Quartimax()], ids=lambda c: c.name)
def test_orthomax_finds_a_hidden_basis_of_heavy_tailed_sources(candidate: Candidate) -> None:
    turn = haar(10, seeded(4))
    x = _laplace(8000, 10) @ turn.T
    found = candidate.fit(x)
    assert found.note == ""
    assert matched_cosines(found.directions, turn.T).mean >= 0.98


@pytest.mark.parametrize(("candidate", "weight"), [(Varimax(), 1), (Quartimax(), 0)])
def test_orthomax_is_a_maximum_of_its_criterion(candidate: Candidate, weight: int) -> None:
    x = _laplace(500, 5) @ haar(5, seeded(5)) * torch.arange(1, 6)
    x = x - x.mean(0)

    def criterion(basis: Tensor) -> float:
        square = (x @ basis.T) ** 2
        return float((square**2).mean(0).sum() - weight * (square.mean(0) ** 2).sum())

    found = candidate.fit(x).directions
    best = criterion(found)
    for seed in range(200):
        skew = 0.02 * torch.randn(5, 5, generator=seeded(seed)).double()
        near = torch.linalg.matrix_exp(skew - skew.T)
        assert criterion(near @ found) <= best + 1e-9
        assert criterion(haar(5, seeded(seed)).T) <= best


def test_a_search_that_has_not_settled_says_so() -> None:
    x = torch.randn(300, 8, generator=seeded(6), dtype=torch.float64)
    assert "had not settled after 1 " in Varimax(iterations=1).fit(x).note
    assert "had not settled after 1 " in ICA(iterations=1).fit(x).note


def test_principal_axes_are_eigenvectors_by_falling_variance() -> None:
    x = _laplace(2000, 4) @ haar(4, seeded(7)) * torch.tensor([1.0, 5.0, 2.0, 9.0])
    found = PCA().fit(x)
    variances = found.read(x).var(0)
    assert variances.tolist() == sorted(variances.tolist(), reverse=True)
    read = found.read(x - x.mean(0))
    covariance = read.T @ read / len(x)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-9


def test_ica_of_fewer_directions_than_axes() -> None:
    x = _laplace(3000, 3) @ torch.randn(3, 7, generator=seeded(8), dtype=torch.float64)
    assert ICA().fit(x).directions.shape == (3, 7)
    x[:, 2] = 0
    assert ICA().fit(x).directions.shape == (3, 7)


@pytest.mark.parametrize(("rounds", "kurtosis"), [(1, 1.000), (2, 2.97), (3, 2.91)])
def test_an_axis_through_rounds_of_hadamard(rounds: int, kurtosis: float) -> None:
    generator = seeded(9)
    found = []
    for _ in range(400):
        image = hadamard_rotation(64, rounds=rounds, generator=generator)[:, 5]
        found.append(64 * image.pow(4).sum() / image.square().sum() ** 2)
    values = torch.stack(found)
    error = 4 * float(values.std()) / 20 + 1e-9
    exact = {1: 1.0, 2: 3 - 2 / 64, 3: 3 - 6 / 64 + 4 / 64**2}[rounds]
    assert abs(float(values.mean()) - exact) < error
    assert exact == pytest.approx(kurtosis, abs=5e-3)


@pytest.mark.parametrize("dim", [1, 3, 8, 12, 43])
def test_hadamard_of_every_size_is_orthogonal(dim: int) -> None:
    turn = hadamard_rotation(dim, rounds=3, generator=seeded())
    torch.testing.assert_close(turn @ turn.T, torch.eye(dim).double(), rtol=0, atol=1e-12)


def test_matching_is_the_best_of_all_pairings() -> None:
    one, other = (haar(5, seeded(seed)) for seed in (10, 11))
    cosines = (one @ other.T).abs()
    best = max(
        sum(float(cosines[i, j]) for i, j in enumerate(order))
        for order in itertools.permutations(range(5))
    )
    found = matched_cosines(one, 3 * other)
    assert found.mean == pytest.approx(best / 5)
    torch.testing.assert_close(found.cosines, (one @ other.T)[found.rows, found.columns])
    few = matched_cosines(one, other[:2])
    assert sorted(few.columns.tolist()) == [0, 1]


# --- the comparison -------------------------------------------------------------------------------


def test_a_basis_on_the_axes_has_the_ceiling() -> None:
    x = _laplace(4000, 8)
    found = compare_bases(
        x, [ICA(), PCA(), Random()], NEGENTROPY, held_out=_odd(4000), generator=seeded()
    )
    assert [s.basis.name for s in found.standings] == ["standard", "ica", "pca", "random"]
    assert found.axes.ceiling > 0.95
    assert found.standings[1].ceiling > 0.95
    assert found.best.basis.name in ("standard", "ica")
    assert found.standings[1].to_axes.mean > 0.98
    assert abs(found.standings[3].ceiling) < 0.5
    assert found.axes.effect > 10
    assert (found.fitted_on, found.judged_on, found.frames) == (2000, 2000, 49)
    expected = (found.axes.score - found.null_mean) / found.null_std
    assert found.axes.effect == pytest.approx(expected)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("score", [NEGENTROPY, NON_GAUSSIANITY], ids=lambda s: s.name)
def test_a_hidden_basis_is_not_credited_to_the_axes(name: str, score) -> None:
    turn = haar(12, seeded(12))
    x = SOURCES[name](6000, 12) @ turn.T
    secret = Given(turn.T, "secret")
    found = compare_bases(x, [ICA(), secret], score, held_out=_odd(6000), generator=seeded())
    assert found.axes.ceiling < 0.3
    assert abs(found.axes.effect) < 4
    by_name = {s.basis.name: s for s in found.standings}
    assert by_name["ica"].ceiling > 0.95
    assert by_name["secret"].ceiling > 0.95
    assert matched_cosines(by_name["ica"].basis.directions, turn.T).mean > 0.98


def test_on_gaussian_data_no_basis_is_best_out_of_sample() -> None:
    x = torch.randn(2000, 16, generator=seeded(13), dtype=torch.float64)
    ica = ICA(iterations=100)
    found = compare_bases(x, [ica], NEGENTROPY, held_out=_odd(2000), generator=seeded())
    # In sample the search finds structure where there is none; held out, it does not.
    inside = ica.fit(x[~_odd(2000)])
    fitted = NEGENTROPY.per_direction(_rows(inside.read(x[~_odd(2000)]))).mean()
    assert (float(fitted) - found.null_mean) / found.null_std > 8
    assert all(math.isnan(s.ceiling) for s in found.standings)
    assert all(abs(s.effect) < 4 for s in found.standings)


def _rows(x: Tensor):
    from basis_probe.statistics.scores import Rows

    return Rows(x)


def test_a_dictionary_of_any_number_of_directions_is_judged() -> None:
    x = _laplace(2000, 6)
    atoms = torch.cat([torch.eye(6) * 3, torch.randn(10, 6, generator=seeded(14))])
    for directions in (atoms, atoms.numpy(), np.asarray(atoms.double())):
        found = compare_bases(
            x, [Given(directions, "atoms")], KURTOSIS, held_out=_odd(2000), generator=seeded()
        )
        standing = found.standings[1]
        assert standing.per_direction.shape == (16,)
        torch.testing.assert_close(standing.per_direction[:6], found.axes.per_direction)
        assert standing.to_axes.mean == pytest.approx(1)


def test_a_score_that_is_lower_than_chance_counts_where_both_sides_do() -> None:
    # Flat sources: kurtosis is two-sided, so the axes are best although their kurtosis is lowest.
    found = compare_bases(
        _uniform(4000, 8), [Random()], KURTOSIS, held_out=_odd(4000), generator=seeded()
    )
    assert found.axes.effect < -10
    assert found.axes.ceiling == 1
    assert found.best is found.axes


def test_the_ceiling_is_a_ratio() -> None:
    assert ceiling_effect(2.0, 4.0, null_mean=3.0, null_std=0.01) == -1
    assert math.isnan(ceiling_effect(3.0, 3.0, null_mean=3.0, null_std=0.0))


@pytest.mark.usefixtures("as_shipped")
def test_errors_say_what_was_given_and_what_to_do() -> None:
    x, generator = _laplace(100, 4), seeded()
    with pytest.raises(ValueError, match=r"\[samples, dim\], got \[3\]"):
        PCA().fit(torch.ones(3))
    for candidate in (ICA(), Varimax()):
        with pytest.raises(ValueError, match="no direction of the activations varies"):
            candidate.fit(torch.ones(10, 3))
    with pytest.raises(ValueError, match="one direction a row"):
        Given(torch.ones(3))
    with pytest.raises(ValueError, match="zero, NaN or infinite: leave those out"):
        Given(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"of 3 entries, and the activations have 4 axes"):
        Given(torch.ones(2, 3)).fit(x)
    with pytest.raises(ValueError, match="both must be at least 1"):
        hadamard_rotation(4, rounds=0, generator=generator)
    with pytest.raises(ValueError, match="not of one space"):
        matched_cosines(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="100 samples to fit on and 0 to judge on"):
        compare_bases(x, [], KURTOSIS, held_out=torch.zeros(100).bool(), generator=generator)
    with pytest.raises(ValueError, match="frames=3"):
        compare_bases(x, [], KURTOSIS, held_out=_odd(100), frames=3, generator=generator)
    with pytest.raises(ValueError, match="given has 2 directions: judge it by a score of axes"):
        compare_bases(
            x, [Given(torch.ones(2, 4))], SAMPLE_KURTOSIS, held_out=_odd(100), generator=generator
        )


def test_candidates_with_names() -> None:
    assert list(BASES) == [
        c().name for c in (Standard, PCA, ICA, Varimax, Quartimax, Hadamard, Random)
    ]


@pytest.mark.slow
def test_the_rotated_twin_of_a_real_model_loses_on_the_axes_what_the_hidden_basis_keeps() -> None:
    import assets

    import basis_probe as bp

    trained, tokens = assets.llama(), assets.story_tokens(64).split(32)
    site, turn = "model.layers.0", haar(64, seeded(5))
    found = {}
    for name, model, hidden in (
        ("trained", trained, torch.eye(64)),
        ("twin", bp.reparametrize(trained, site, turn), turn.T),
    ):
        report = bp.probe(
            model,
            tokens,
            sites=site,
            bases=[ICA(), Given(hidden, "hidden")],
            certificates=False,
            progress=False,
        )
        found[name] = report[site]
    own, twin = found["trained"], found["twin"]
    assert own.scores["sample_kurtosis"].effect > 8
    assert abs(twin.scores["sample_kurtosis"].effect) < 4
    # On the same held-out samples the hidden basis has just what the axes had.
    kept, had = twin.bases["hidden"].score, own.bases["standard"].score
    assert kept == pytest.approx(had, rel=1e-3)
    # The function is the same and so is the best basis: the search does not start at the axes.
    assert twin.bases["ica"].score == pytest.approx(own.bases["ica"].score, rel=0.05)
    assert "Another basis stands out: ica" in twin.verdict.sentence
    orders = {name: {o.order: o.effect for o in site.orders} for name, site in found.items()}
    assert max(orders["trained"].values()) > 10
    assert max(map(abs, orders["twin"].values())) < 4

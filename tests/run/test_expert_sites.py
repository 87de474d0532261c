"""Experts of a mixture as sites: their rows, their numbers, and that mixing shows nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.model.capture import catching
from basis_probe.model.experts import origin_of
from basis_probe.results.report import Outcome, Report
from basis_probe.run.watch import Choices, Watched
from basis_probe.show import selection
from basis_probe.statistics.nulls import Counterfactual

WIDTH, HIDDEN, EXPERTS, CHOSEN, TOKENS = 12, 20, 6, 2, 3000


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """Experts of one hidden layer, of which each token goes to two; how they are run is to be said.

    Every way computes the same function of the same weights.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        up, down = drawn(EXPERTS, HIDDEN, WIDTH, seed=1), drawn(EXPERTS, WIDTH, HIDDEN, seed=2)
        bias = drawn(EXPERTS, HIDDEN, seed=3, scale=0.3)
        with torch.no_grad():
            self.router.weight.copy_(drawn(EXPERTS, WIDTH, seed=4))
        if way == "modules":
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH, False))
                for _ in range(EXPERTS)
            )
            with torch.no_grad():
                for expert, one in enumerate(self.experts):
                    for name, value in (("0.weight", up), ("0.bias", bias), ("2.weight", down)):
                        one.get_parameter(name).copy_(value[expert])
        else:
            turned = way in ("dense", "sorted")
            self.up = nn.Parameter(up.mT.contiguous() if turned else up)
            self.down = nn.Parameter(down.mT.contiguous() if turned else down)
            self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        shape, x = x.shape, x.reshape(-1, WIDTH)
        weight, chosen = self.router(x).softmax(-1).topk(CHOSEN, -1)
        made = getattr(self, f"by_{self.way}")(x, weight, chosen)
        return made.view(shape)

    def by_loop(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        made = torch.zeros_like(x)
        for expert in chosen.unique():
            row, place = torch.where(chosen == expert)
            pre = F.linear(x[row], self.up[expert], self.bias[expert])
            out = F.linear(F.gelu(pre), self.down[expert])
            made.index_add_(0, row, out * weight[row, place, None])
        return made

    def by_loop_with_sums(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        made = torch.zeros_like(x)
        for expert in range(EXPERTS):
            row, place = torch.where(chosen == expert)
            pre = x[row] @ self.up[expert].T + self.bias[expert]
            made.index_add_(0, row, F.gelu(pre) @ self.down[expert].T * weight[row, place, None])
        return made

    def by_modules(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        made = torch.zeros_like(x)
        for expert, one in enumerate(self.experts):
            row, place = torch.where(chosen == expert)
            if len(row):
                made.index_add_(0, row, one(x[row]) * weight[row, place, None])
        return made

    def by_dense(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """Every expert computes all rows, those of others as zeros."""
        scores = torch.zeros(len(x), EXPERTS).scatter(1, chosen, 1.0)
        given = x.repeat(EXPERTS, 1) * scores.T.reshape(-1, 1)
        pre = torch.bmm(given.view(EXPERTS, -1, WIDTH), self.up) + self.bias[:, None]
        out = torch.bmm(F.gelu(pre), self.down)
        shares = torch.zeros(len(x), EXPERTS).scatter(1, chosen, weight)
        return (out * shares.T[..., None]).sum(0)

    def by_sorted(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """Rows in the order of their experts, in one grouped product."""
        order = chosen.flatten().argsort(stable=True)
        ends = torch.bincount(chosen.flatten(), minlength=EXPERTS).cumsum(0).int()
        given = x[order // CHOSEN]
        pre = torch._grouped_mm(given, self.up, offs=ends) + self.bias[chosen.flatten()[order]]
        out = torch._grouped_mm(F.gelu(pre), self.down, offs=ends)
        made = torch.zeros_like(x)
        return made.index_add(0, order // CHOSEN, out * weight.flatten()[order][:, None])


class Model(nn.Module):
    """Token ids, an embedding, a mixture of experts, logits."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.embed, self.block, self.head = (
            nn.Embedding(TOKENS, WIDTH),
            Block(way),
            nn.Linear(12, 5),
        )
        with torch.no_grad():
            self.embed.weight.copy_(drawn(TOKENS, WIDTH, seed=5))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.embed(input_ids)
        return self.head(h + self.block(F.rms_norm(h, (WIDTH,))))


WAYS = ["loop", "loop_with_sums", "modules", "sorted", "dense"]


def tokens(rows: int, length: int, seed: int = 6) -> Tensor:
    return torch.randint(TOKENS, (rows, length), generator=torch.Generator().manual_seed(seed))


def by_hand(model: Model, ids: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Expert -> the places of the tokens that reach it, and its neurons on them."""
    reference = Model("loop")
    block = reference.block
    x = F.rms_norm(model.embed(ids), (WIDTH,)).reshape(-1, WIDTH)
    chosen = block.router(x).topk(CHOSEN, -1).indices
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for expert in range(EXPERTS):
        row = torch.where(chosen == expert)[0]
        found[expert] = row, F.gelu(F.linear(x[row], block.up[expert], block.bias[expert]))
    return found


def experts_of(watching: Watched) -> dict[int, str]:
    return {
        place.expert[0]: name for name, place in watching.places.items() if place.expert is not None
    }


def watched(model: nn.Module, ids: Tensor) -> Watched:
    from basis_probe.model.batches import batch_of
    from basis_probe.model.network import recognise

    choices = Choices.of(
        sites=None, scores=None, null=None, groups=None, seed=0, max_samples=None,
        certificates=False, progress=False,
    )  # fmt: skip
    batch = batch_of(ids, number=0, tokenizer=None, device=torch.device("cpu"))
    return Watched.of(recognise(model), batch, choices)


@pytest.mark.parametrize("way", WAYS)
def test_an_expert_is_seen_on_the_rows_that_reach_it(way: str) -> None:
    model, ids = Model(way).eval(), tokens(8, 5)
    watching = watched(model, ids)
    names = experts_of(watching)
    assert sorted(names) == [*range(EXPERTS)]
    caught: dict[int, tuple[Tensor, Any]] = {}

    def keep(expert: int) -> Callable[[Tensor], None]:
        def catch(rows: Tensor) -> None:
            caught[expert] = rows.clone(), origin_of(rows)

        return catch

    places = {expert: watching.places[name] for expert, name in names.items()}
    wanted = {place.site.address: keep(expert) for expert, place in places.items()}
    roots = {place.plan.root for place in places.values()}
    other = tokens(7, 4, seed=8)
    with torch.no_grad(), catching(model, wanted, roots):
        model(other)
    for expert, (row, neurons) in by_hand(model, other).items():
        if not len(row):
            assert expert not in caught or not len(caught[expert][0])
            continue
        rows, origin = caught[expert]
        assert origin is not None and origin.lead == (7, 4)
        assert torch.equal(origin.rows.sort().values, row)
        order = origin.rows.argsort()
        assert torch.allclose(rows[order], neurons, atol=1e-5)


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    ids = tokens(60, 7)
    return {way: neurons_of(way, [ids]) for way in WAYS}


def neurons_of(way: str, data: Any) -> Report:
    sites = "block.experts.?.1" if way == "modules" else "block.?.down:in"
    return probed(Model(way).eval(), data, sites=sites, null=Counterfactual(frames=39))


def probed(model: nn.Module, data: Any, **more: Any) -> Report:
    return bp.probe(model, data, progress=False, certificates=False, **more)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_running_experts_gives_the_same_numbers(
    reports: dict[str, Report], way: str
) -> None:
    first, other = reports["loop"].experts(), reports[way].experts()
    assert [*other.n_samples] == [*first.n_samples]
    assert np.allclose(other.effect, first.effect, atol=0.02)
    assert [*other.outcome] == [*first.outcome]
    assert math.isclose(float(other.share.sum()), CHOSEN)
    # Untrained neurons do not stand out.
    assert not {"PRIVILEGED", "EMERGENT"}.intersection(other.outcome)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("way", ["modules", "sorted"])
def test_batch_size_changes_nothing_at_experts(reports: dict[str, Report], way: str) -> None:
    ids = tokens(60, 7)
    other = neurons_of(way, [*ids.split(9)]).experts()
    assert [*other.n_samples] == [*reports[way].experts().n_samples]
    assert np.allclose(other.effect, reports[way].experts().effect, atol=0.02)
    assert np.allclose(other.share, reports[way].experts().share)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["modules", "sorted", "dense"])
def test_padding_does_not_count_at_experts(way: str) -> None:
    model, ids = Model(way).eval(), tokens(40, 7)
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    sites = "block.experts.?.*" if way == "modules" else "block.?.down:in"
    found = probed(
        model, [{"input_ids": ids, "attention_mask": mask}], sites=sites, scores=["kurtosis"]
    )
    kept = {int(place) for place in torch.nonzero(mask.flatten())}
    right = {e: sum(int(r) in kept for r in row) for e, (row, _) in by_hand(model, ids).items()}
    told = found.experts().groupby("expert").n_samples
    assert dict(told.max()) == dict(told.min()) == right


@pytest.mark.slow
def test_no_place_of_several_experts_is_probed_unasked() -> None:
    for way in WAYS:
        found = probed(Model(way).eval(), [tokens(20, 7)], scores=["kurtosis"])
        assert not [site.site for site in found if "neurons" in site.kind and site.routed is None]


class Halves(nn.Module):
    """Two stacks that read rows which each picks by itself, or rows that are two tokens wide."""

    def __init__(self, *, pairs: bool) -> None:
        super().__init__()
        self.pairs, width = pairs, WIDTH * (1 + pairs)
        self.embed, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, 5)
        self.router = nn.Linear(width, EXPERTS)
        self.gate = nn.Parameter(drawn(EXPERTS, width, HIDDEN, seed=1))
        self.up = nn.Parameter(drawn(EXPERTS, width, HIDDEN, seed=2))
        self.down = nn.Parameter(drawn(EXPERTS, HIDDEN, width, seed=3))

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embed(input_ids)
        x = h.reshape(-1, self.gate.shape[1])
        chosen, made = self.router(x).argmax(-1), torch.zeros_like(x)
        for expert in range(EXPERTS):
            row = torch.where(chosen == expert)[0]
            own = F.silu(x[row] @ self.gate[expert]) * (x[row] @ self.up[expert])
            made.index_add_(0, row, own @ self.down[expert])
        return self.head(h + made.view(h.shape))


@pytest.mark.slow
def test_rows_that_are_picked_twice_are_one_input() -> None:
    found = probed(Halves(pairs=False).eval(), [tokens(200, 6)], sites="*.down:in")
    assert len(found) == EXPERTS
    for site in found:
        assert site.null is not None and site.null.name == "counterfactual", site.verdict.sentence


def test_rows_of_two_tokens_belong_to_no_single_one() -> None:
    """Their number is known; which example each is of is not said where it is not known."""
    model, ids = Halves(pairs=True).eval(), tokens(200, 6)
    found = probed(model, [ids], sites="*.down:in", scores=["kurtosis"])
    x = model.embed(ids).reshape(-1, 2 * WIDTH)
    right = model.router(x).argmax(-1).bincount(minlength=EXPERTS).tolist()
    assert [site.n_samples for site in found] == right


def test_mixed_rows_of_experts_are_not_compared() -> None:
    found = probed(Model("sorted").eval(), [tokens(60, 7)], sites="block.gelu()")
    (site,) = found
    assert site.verdict.outcome is Outcome.UNDECIDED
    assert "several experts are mixed" in site.verdict.sentence
    assert "block.0.down:in" in site.verdict.sentence


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("way", ["modules", "loop", "sorted"])
def test_an_expert_that_nothing_reaches_says_so(way: str) -> None:
    model = Model(way).eval()
    with torch.no_grad():
        # The first feature of a norm's output times a large number of one sign.
        model.block.router.weight[4] = 0.0
        model.block.router.weight[:4].add_(0.0)
    ids = tokens(60, 7)
    reached = {
        expert for expert, (row, _) in by_hand(model, ids).items() if len(row) and expert != 4
    }
    assert len(reached) == EXPERTS - 1
    with torch.no_grad():
        model.embed.weight[:, 0] = 40.0
        model.block.router.weight[4, 0] = -1000.0
    found = probed(model, [ids], scores=["kurtosis"])
    lost = [site for site in found if site.routed is not None and site.routed.expert == 4]
    if way == "modules":
        # A module that never runs has no sites; that it exists is seen in the others' count.
        assert not lost and all(s.routed.count == EXPERTS for s in found if s.routed)
    else:
        assert lost[0].n_samples == 0
        assert "no row of the data reached" in lost[0].verdict.sentence


@pytest.mark.slow
def test_a_feature_that_is_planted_in_one_expert_is_found_there_alone() -> None:
    """Two neurons of expert 2 fire for one token each; all others have random directions."""
    model = Model("sorted").eval()
    ids = tokens(400, 7)
    row, _ = by_hand(model, ids)[2]
    x = F.rms_norm(model.embed(torch.arange(TOKENS)), (WIDTH,))
    common = ids.flatten()[row].bincount(minlength=TOKENS).argsort(descending=True)[:8]
    with torch.no_grad():
        for neuron in range(HIDDEN):
            own = x[common[neuron % len(common)]]
            model.block.up[2, :, neuron] = 2.0 * own / own.norm()
            model.block.bias[2, neuron] = -0.8 * 2.0 * own.norm()
    told = probed(model, [ids], sites="block.?.down:in").experts()
    outcomes = dict(zip(told.expert, told.outcome, strict=True))
    assert outcomes.pop(2) == "PRIVILEGED"
    assert "PRIVILEGED" not in outcomes.values()


def test_the_table_and_the_map_of_experts(reports: dict[str, Report], tmp_path: Any) -> None:
    report = reports["sorted"]
    path = tmp_path / "report.json"
    report.save(path)
    again = Report.load(path)
    assert [site.routed for site in again] == [site.routed for site in report]
    report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Table of the experts" in page
    report.save(tmp_path / "report.md")
    assert "## Experts" in (tmp_path / "report.md").read_text()
    # One place on the map for all experts of a block, and it is of the one furthest out.
    grid = selection.grid(report)
    shown = [cell for row in grid.rows for cell in row.cells if cell is not None]
    experts = [place for place in shown if report.site_reports[place].routed is not None]
    assert len(experts) == 1
    decided = report.experts().query("outcome != 'UNDECIDED'")
    best = decided.effect.abs().max() if len(decided) else report.experts().effect.abs().max()
    speaker = selection.speaker(report.site_reports[experts[0]])
    assert speaker is not None and math.isclose(abs(speaker.effect), best)
    assert not report.experts().empty
    assert (
        probed(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [drawn(99, 4)])
        .experts()
        .empty
    )


@pytest.mark.slow
def test_of_very_many_experts_some_are_probed_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("basis_probe.model.sites.MOST_EXPERTS", 3)
    found = probed(Model("sorted").eval(), [tokens(20, 7)])
    assert [site.routed.expert for site in found if site.routed] == [0, 2, 4]
    assert any("3 of 6 experts were probed" in note for note in found.notes)
    everything = probed(Model("sorted").eval(), [tokens(20, 7)], sites=["block.*.down:in"])
    assert len(everything) == EXPERTS
    assert not any("experts were probed" in note for note in everything.notes)


class Several(nn.Module):
    """Mixtures one after another, in a stream of features or behind a nonlinearity."""

    def __init__(self, way: str, blocks: int, *, bent: bool = False) -> None:
        super().__init__()
        self.bent = bent
        self.embed, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(Block(way) for _ in range(blocks))

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embed(input_ids)
        for block in self.blocks:
            h = torch.tanh(block(h)) if self.bent else h + block(F.rms_norm(h, (WIDTH,)))
        return self.head(h)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("way", ["loop", "sorted"])
def test_a_layer_between_two_mixtures_is_of_no_expert(way: str) -> None:
    found = probed(Several(way, 2, bent=True).eval(), [tokens(20, 7)], scores=["kurtosis"])
    layers = [site for site in found if "tanh" in site.kind]
    assert len(layers) == 2 and all(site.routed is None for site in layers)
    assert {site.n_samples for site in layers} == {20 * 7}
    assert not any("several experts" in site.verdict.sentence for site in layers)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("way", ["loop", "sorted"])
def test_what_leads_from_one_mixture_to_the_next_mixes_no_experts(way: str) -> None:
    model = Several(way, 2).eval()
    found = probed(model, [tokens(20, 7)], scores=["kurtosis"])
    streams = [site for site in found if site.dim == WIDTH and site.routed is None]
    # Before, between and behind them.
    assert len({tuple(site.scores["kurtosis"].per_direction) for site in streams}) == 3
    assert not any("several experts" in site.verdict.sentence for site in streams)


class Written(nn.Module):
    """Experts whose rows are given out in some way of a user's own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        reference = Block("modules")
        self.way, self.router = way, reference.router
        firsts = [reference.get_submodule(f"experts.{e}.0") for e in range(EXPERTS)]
        lasts = [reference.get_submodule(f"experts.{e}.2") for e in range(EXPERTS)]
        if way in ("names", "attributes"):
            both = zip(firsts, lasts, strict=True)
            pairs = {f"expert_{e}": nn.Sequential(a, nn.GELU(), b) for e, (a, b) in enumerate(both)}
            if way == "names":
                self.experts = nn.ModuleDict(pairs)
            else:
                for name, pair in pairs.items():
                    self.add_module(name, pair)
            return
        up = torch.stack([one.get_parameter("weight").detach() for one in firsts])
        down = torch.stack([one.get_parameter("weight").detach() for one in lasts])
        self.bias = nn.Parameter(
            torch.stack([one.get_parameter("bias").detach() for one in firsts])
        )
        if way == "last_axis":
            up, down = up.movedim(0, 2).contiguous(), down.movedim(0, 2).contiguous()
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    def forward(self, x: Tensor) -> Tensor:
        shape, x = x.shape, x.reshape(-1, WIDTH)
        weight, chosen = self.router(x).softmax(-1).topk(CHOSEN, -1)
        if self.way == "einsum":
            taken = F.one_hot(chosen, EXPERTS).sum(1).to(x)
            given = torch.einsum("ne,nd->end", taken, x)
            pre = torch.einsum("end,ehd->enh", given, self.up) + self.bias[:, None]
            out = torch.einsum("enh,edh->end", F.gelu(pre), self.down)
            share = torch.zeros_like(taken).scatter(1, chosen, weight)
            return torch.einsum("end,ne->nd", out, share).view(shape)
        if self.way == "split":
            place = chosen.flatten().argsort(stable=True)
            row, counts = place // CHOSEN, chosen.flatten().bincount(minlength=EXPERTS).tolist()
            several = zip(x[row].split(counts), self.up, self.bias, strict=True)
            hidden = F.gelu(torch.cat([F.linear(h, w, b) for h, w, b in several]))
            several = zip(hidden.split(counts), self.down, strict=True)
            out = torch.cat([F.linear(h, w) for h, w in several]) * weight.flatten()[place, None]
            return torch.zeros_like(x).index_add(0, row, out).view(shape)
        made = torch.zeros_like(x)
        rounds = range(CHOSEN) if self.way == "rounds" else [slice(None)]
        for column in rounds:
            for expert in range(EXPERTS):
                hit = chosen[:, column] == expert
                row = torch.where(hit if hit.ndim == 1 else hit.any(1))[0]
                share = (weight * (chosen == expert)).sum(1)[row, None]
                made = made.index_add(0, row, self.one(expert, x[row]) * share)
        return made.view(shape)

    def one(self, expert: int, x: Tensor) -> Tensor:
        if self.way in ("names", "attributes"):
            inside = "experts." if self.way == "names" else ""
            return self.get_submodule(f"{inside}expert_{expert}")(x)
        if self.way == "last_axis":
            up, down = self.up[:, :, expert], self.down[:, :, expert]
        else:
            up, down = self.up[expert], self.down[expert]
        return F.linear(F.gelu(F.linear(x, up, self.bias[expert])), down)


def written(way: str) -> Model:
    model = Model("loop").eval()
    model.block = Written(way)  # pyright: ignore[reportAttributeAccessIssue]
    return model


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("way", ["names", "attributes", "einsum", "split"])
def test_experts_under_other_names_and_in_other_products_are_seen_on_their_rows(way: str) -> None:
    ids = tokens(40, 7)
    found = probed(written(way), [ids], scores=["kurtosis"])
    told = {site.routed.expert: site for site in found if site.routed is not None}
    assert sorted(told) == [*range(EXPERTS)]
    for expert, (row, neurons) in by_hand(Model("loop"), ids).items():
        assert told[expert].n_samples == len(row)
        centred = neurons.double() - neurons.double().mean(0)
        right = (centred**4).mean(0) / (centred**2).mean(0) ** 2
        shown = told[expert].scores.get("kurtosis")
        assert shown is None or np.allclose(shown.per_direction, right.detach(), atol=1e-3)


@pytest.mark.slow
def test_a_stack_whose_experts_are_not_its_first_axis_makes_no_experts_up() -> None:
    found = probed(written("last_axis"), [tokens(40, 7)], scores=["kurtosis"])
    assert found.experts().empty
    counts = {len(row) for row, _ in by_hand(Model("loop"), tokens(40, 7)).values()}
    assert {site.n_samples for site in found if site.dim == HIDDEN} == counts


@pytest.mark.slow
def test_an_expert_that_works_more_than_once_in_a_pass_says_so() -> None:
    for way, often in (("rounds", True), ("plain", False)):
        found = probed(written(way), [tokens(40, 7)], scores=["kurtosis"])
        told = [site for site in found if site.routed is not None]
        assert len(told) == EXPERTS
        noted = [any("2 times" in note for note in site.notes) for site in told]
        assert all(noted) if often else not any(noted)

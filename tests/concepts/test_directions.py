"""What directions are selective for, read together, respond to, and do."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import io
import json
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar
from basis_probe.concepts.causes import gini, top_share
from basis_probe.concepts.examples import Top
from basis_probe.concepts.selectivity import best_share, mean_share, shares
from basis_probe.concepts.thumbnails import Thumbnails, encoded


def _classes(samples: int = 3000, dim: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    x = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    x[:, 0] += labels
    x[:, 1] += 3 * (labels == 2)
    return 50 + x * torch.tensor([1.0, 2.0, 0.1, 5.0, 1.0, 1.0]), labels


# --- selectivity ----------------------------------------------------------------------------------


def test_shares_are_those_of_an_analysis_of_variance() -> None:
    x, labels = _classes()
    shift = x[:10].mean(0)
    parts = [
        bp.concepts.Scatter.of(x[rows], labels[rows], 4, shift)
        for rows in torch.arange(3000).split(700)
    ]
    scatter = sum(parts[1:], parts[0])
    generator = torch.Generator().manual_seed(1)
    turn = haar(6, generator)
    found = shares(scatter.between, scatter.total, turn)
    turned = (x @ turn).numpy()
    for direction in range(6):
        column = turned[:, direction]
        groups = [column[labels.numpy() == value] for value in range(4)]
        between = sum(len(g) * (g.mean() - column.mean()) ** 2 for g in groups)
        assert abs(found[direction] - between / ((column - column.mean()) ** 2).sum()) < 1e-10


def test_the_closed_form_is_the_mean_over_rotations() -> None:
    x, labels = _classes()
    scatter = bp.concepts.Scatter.of(x, labels, 4)
    between, total = scatter.between, scatter.total
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(6, 400_000, generator=generator, dtype=torch.float64)
    drawn = shares(between, total, z)
    error = float(drawn.std()) / 400_000**0.5
    assert abs(mean_share(between, total) - float(drawn.mean())) < 4 * error
    # Where every direction varies alike, it is the trace.
    eye = torch.eye(6, dtype=torch.float64)
    assert abs(mean_share(between, eye) - float(between.trace()) / 6) < 1e-9


def test_the_ceiling_is_that_of_linear_discriminant_analysis() -> None:
    x, labels = _classes()
    scatter = bp.concepts.Scatter.of(x, labels, 4)
    share, _ = best_share(scatter.between, scatter.total)
    fitted = LinearDiscriminantAnalysis(solver="eigen", n_components=1).fit(x, labels)
    told = torch.from_numpy(fitted.transform(x.numpy()))
    again = bp.concepts.Scatter.of(told, labels, 4)
    assert abs(share - float(again.between / again.total)) < 1e-8
    found = bp.selectivity(scatter, "class", frames=19)
    assert share > found.highest.observed > found.highest.null_mean
    assert found.chance < 0.002 and "class: axes" in str(found)
    with pytest.raises(ValueError, match="labels go from 0 to 3 and there are 2 values"):
        bp.concepts.Scatter.of(x, labels, 2)
    with pytest.raises(ValueError, match="different shifts"):
        scatter + bp.concepts.Scatter.of(x[:9], labels[:9], 4)


# --- probes ---------------------------------------------------------------------------------------


def test_few_axes_tell_what_lies_on_few_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 20, generator=generator, dtype=torch.float64)
    either = (x[:, 3] + x[:, 7] > 1.8)[:, None]
    found = bp.sparse_probes(x, {"either": either[:, 0]}, group="orthogonal", sizes=(1, 2, 20))
    assert set(found[1].axes) == {3, 7}
    assert found[1].auc.observed > 0.99 > found[1].auc.null_high and found[1].auc.p_value == 0.05
    # All directions together are the same space in every frame.
    assert abs(found[2].auc.observed - found[2].auc.null_mean) < 1e-3
    with pytest.raises(ValueError, match="none of the 1 concepts can be scored"):
        bp.sparse_probes(x, {"none": either[:, 0] & False})
    with pytest.raises(ValueError, match="give numbers of directions"):
        bp.sparse_probes(x, {"either": either[:, 0]}, sizes=())


def test_sparse_probes_of_a_site_are_those_of_its_activations() -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(600, 6, generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU()).double().eval()
    x = model(inputs.double()).detach()
    x[:, 4] = 0.0
    labels = {"a": x[:, 2] > x[:, 2].quantile(0.8), "rare": torch.arange(600) < 3}
    layer = model[0]
    with torch.no_grad():
        layer.weight[4], layer.bias[4] = 0.0, -1.0  # pyright: ignore
    one, four = bp.sparse_probes(
        model, inputs.double().split(100), labels, site="1", sizes=(1, 4), progress=False
    )
    assert (one.concept, one.k, one.axes) == ("a", 1, (2,)) and one.auc.observed == 1.0
    assert len(set(four.axes)) == 4 and 4 not in four.axes
    given = bp.sparse_probes(
        x, labels, inputs=inputs, weight=layer.weight.detach(), bias=layer.bias.detach(),  # pyright: ignore
        nonlinearity="relu", sizes=(1,),
    )  # fmt: skip
    assert given[0].axes == (2,) and given[0].auc.observed == 1.0
    # Axes are scored as they are, beside whichever null and group.
    for group in ("permutation", "general-linear", "orthogonal"):
        turned = bp.sparse_probes(x, labels, group=group, sizes=(1,))
        assert turned[0].auc.observed == 1.0 and turned[0].auc.null_mean < 1
    with pytest.raises(ValueError, match="with the name of one site"):
        bp.sparse_probes(model, inputs, labels)  # pyright: ignore
    with pytest.raises(ValueError, match="a matrix was given"):
        bp.sparse_probes(x, labels, site="1")  # pyright: ignore


# --- examples -------------------------------------------------------------------------------------


def test_the_top_of_a_stream_does_not_depend_on_its_order() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 9, (200, 3), generator=generator).double()
    keys = torch.arange(200)
    whole = Top.of(values, keys, 7)
    order = torch.randperm(200, generator=generator)
    parts = Top.empty(7, 3)
    for rows in order.split(31):
        parts = parts + Top.of(values[rows], keys[rows], 7)
    assert torch.equal(parts.values, whole.values) and torch.equal(parts.keys, whole.keys)
    for direction in range(3):
        expected = sorted(range(200), key=lambda i: (-values[i, direction].item(), i))[:7]
        assert whole.keys[:, direction].tolist() == expected


class Reader(nn.Module):
    """Token ids -> neurons, one of which responds to token 5 -> logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.act = nn.Embedding(12, 8), nn.ReLU()
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 12)
        with torch.no_grad():
            self.embed.weight[:, 0] = 0.0
            self.embed.weight[5, 0] = 10.0
            self.up.weight[4] = torch.eye(8)[0]

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(self.act(self.up(self.embed(ids))))


def _ids() -> Tensor:
    return torch.randint(0, 12, (30, 9), generator=torch.Generator().manual_seed(1))


def _examples(**options: Any) -> bp.results.Examples:
    ids = _ids()
    return bp.top_examples(
        Reader().eval(), ids.split(7), site="act", axes=[4, 5], rotated=3, size=8,
        concepts={"five": ids == 5, "even": ids % 2 == 0}, **{"seed": 2} | options,
    )  # fmt: skip


def test_top_contexts_are_the_most_active_ones() -> None:
    found = _examples()
    assert [top.label for top in found.axes] == ["axis 4", "axis 5"]
    assert len(found.rotated) == 3
    five = found.axes[0]
    assert five.scores == {"token purity": 1.0, "concept purity": 1.0} and five.concept == "five"
    ids, model = _ids(), Reader().eval()
    with torch.no_grad():
        activations = model.act(model.up(model.embed(ids)))
    for top in found.axes:
        values = [context.activation for context in top.contexts]
        expected = activations[..., top.axis].flatten().sort(descending=True).values[:8]
        assert torch.allclose(torch.tensor(values), expected.float(), atol=1e-6)
        for context in top.contexts:
            assert context.tokens[context.at] == f" {ids[context.example, context.position]}"
    assert found.mean("token purity")[0] > 0.5
    assert sorted(top.label for top in found.blind()) == sorted(
        top.label for top in (*found.axes, *found.rotated)
    )
    assert bp.results.Examples.from_json(found.to_json()) == found
    assert 'data-kind="rotated"' in found._repr_html_() and "axis 4" in five._repr_html_()


def test_tokens_are_shown_escaped() -> None:
    context = bp.results.Context(("<b>", "x"), (1.0, 0.5), 0, 0, 0)
    top = bp.results.TopContexts("axis <i>", 0, 1, (context,), {"token purity": 1.0})
    html = top._repr_html_()
    assert "axis <i>" not in html and '"t5"><b>' not in html
    assert '<b class="t5">&lt;b&gt;</b>' in html and "&lt;i&gt;" in html and context.shade(1) == 0.5


class Letters:
    """Names a token of twelve by a letter."""

    def __len__(self) -> int:
        return 12

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return ["Ġ" + "abcdefghijkl"[token] for token in ids]


class Changing(nn.Sequential):
    """Features -> neurons, whose activation changes them in place."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 3))


@pytest.mark.slow
def test_a_report_shows_what_activates_its_axes() -> None:
    ids = _ids().repeat(2, 1)
    model = Reader().eval()
    data: Any = ids.split(20)
    quick: dict[str, Any] = {"certificates": False, "progress": False}
    report = bp.probe(model, data, sites=["up", "act"], examples=4, **quick)
    assert "from 60 examples in 3 batches" in report.provenance.settings["examples"]
    assert bp.Report.from_json(report.to_json()) == report
    with torch.no_grad():
        up = model.up(model.embed(ids))
    for name, x, sides in (("up", up, 2), ("act", up.relu(), 1)):
        found, site = report[name].examples, report[name]
        assert found is not None and len(found.axes) == len(found.rotated) == 5 * sides
        name = found.chosen.removeprefix("by ").split(",")[0].replace(" ", "_")
        lead = site.scores[name]
        assert lead.decides
        order = np.argsort(-np.nan_to_num(lead.per_direction, nan=-np.inf), kind="stable")[:5]
        assert [top.axis for top in found.axes[::sides]] == order.tolist()
        for top in found.axes:
            values = (top.sign * x[..., top.axis]).flatten().sort(descending=True).values[:4]
            told = torch.tensor([context.activation for context in top.contexts])
            assert torch.allclose(told, values, rtol=1e-5, atol=1e-6)
            for context in top.contexts:
                assert context.tokens[context.at] == f" {ids[context.example, context.position]}"
    html = report._repr_html_()
    assert html.count('class="judged"') == 2
    bare = tuple(dataclasses.replace(site, examples=None) for site in report)
    plain = dataclasses.replace(report, site_reports=bare)
    again = bp.with_examples(plain, model, data, size=4, progress=False)
    assert again.site_reports == report.site_reports
    named = bp.with_examples(plain, model, data, size=4, tokenizer=Letters(), progress=False)
    one, other = named["act"].examples, report["act"].examples
    assert one is not None and other is not None
    for top, same in zip(one.axes, other.axes, strict=True):
        for context, ids in zip(top.contexts, same.contexts, strict=True):
            assert context.tokens == tuple(f" {'abcdefghijkl'[int(i)]}" for i in ids.tokens)


@pytest.mark.slow
def test_places_of_images_are_named_and_read_before_they_change() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 1, 9, 9, generator=generator)
    model = Changing().eval()
    quick: dict[str, Any] = {"certificates": False, "progress": False}
    report = bp.probe(model, [images[:30], images[30:]], sites=["0", "1"], **quick)
    report = bp.with_examples(report, model, [images], axes=2, size=3, progress=False)
    with torch.no_grad():
        maps = nn.functional.conv2d(images, model[0].weight, model[0].bias)
    found = report["0"].examples
    assert found is not None and [top.sign for top in found.axes] == [1, -1, 1, -1]
    for top in found.axes:
        values = top.sign * maps[:, top.axis]
        best = values.flatten().sort(descending=True).values[:3]
        for context, value in zip(top.contexts, best, strict=True):
            row, column = divmod(context.position, 7)
            assert abs(float(values[context.example, row, column]) - float(value)) < 1e-5
            assert context.tokens == (f"example {context.example}, row {row}, column {column}",)
        assert top.scores == {}


@pytest.mark.slow
def test_what_goes_wrong_on_the_second_pass_loses_nothing() -> None:
    model, ids = Reader().eval(), _ids().repeat(2, 1)
    with pytest.raises(bp.DataError, match="examples=2 reads the data a second time"):
        bp.probe(model, iter([ids]), sites="act", examples=2, progress=False)
    with pytest.raises(ValueError, match="examples=-1: give a whole number from 0"):
        bp.probe(model, [ids], sites="act", examples=-1)

    class Once:
        def __init__(self, error: BaseException) -> None:
            self.error, self.read = error, 0

        def __iter__(self) -> Iterator[Tensor]:
            self.read += 1
            if self.read > 1:
                raise self.error
            yield ids

    quick: dict[str, Any] = {
        "certificates": False,
        "progress": False,
        "sites": "act",
        "examples": 2,
    }
    with pytest.raises(bp.StreamError, match="second pass over the data, for the examples") as info:
        bp.probe(model, Once(OSError("gone")), **quick)
    kept = info.value.report()
    assert kept["act"].scores and kept["act"].examples is None and not kept.partial
    stopped = bp.probe(model, Once(KeyboardInterrupt()), **quick)
    assert stopped.partial and "while examples were collected" in stopped.notes[-1]
    assert stopped["act"].scores
    with pytest.raises(bp.SiteError, match="no site matches 'act'"):
        bp.with_examples(kept, nn.Sequential(nn.Embedding(12, 4), nn.ReLU()), [ids])


def _decoded(picture: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


def test_pictures_are_small_and_only_of_images() -> None:
    images = torch.rand(6, 1, 120, 90, generator=torch.Generator().manual_seed(0))
    made = Thumbnails.of(images)
    assert made is not None
    assert made.picture(images[0], (0, 0, 120, 90)).shape == (48, 36, 1)
    assert _decoded(encoded(made.picture(images[0], (0, 10, 50, 90)))).shape == (30, 48)
    assert Thumbnails.of(torch.randn(6, 2, 8, 8)) is None
    assert Thumbnails.of(torch.randint(0, 9, (6, 8))) is None
    assert Thumbnails.of(torch.full((6, 3, 8, 8), torch.nan)) is None
    flat = Thumbnails.of(torch.ones(2, 3, 8, 8))
    assert flat is not None and flat.picture(
        torch.ones(3, 8, 8), (0, 0, 8, 8)
    ).unique().tolist() == [0]


@pytest.mark.slow
def test_a_page_shows_what_places_of_maps_see() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU())
    images = torch.randn(40, 3, 10, 10)
    quick = {"certificates": False, "progress": False}
    report = bp.probe(model, [images], examples=2, **quick)
    shown = [site for site in report if site.examples is not None]
    assert len(shown) == 2
    page = report._repr_html_()
    for site, side in zip(shown, (3, 5), strict=True):
        assert site.examples is not None
        for top in site.examples.axes:
            for context in top.contexts:
                assert context.box is not None
                assert (context.box[2] - context.box[0], context.box[3] - context.box[1]) == (
                    side, side,
                )  # fmt: skip
                assert _decoded(context.picture).shape == (side, side, 3)
                assert f'src="data:image/png;base64,{context.picture}"' in page
    assert bp.Report.from_json(report.to_json()) == report


def test_patches_of_images_are_what_the_places_see() -> None:
    # 3x3 stride 2, 2x2 pooling, 3x3 with padding: a place sees 3 + 2 + 2 * 2 * 2 = 13 pixels in
    # steps of four, but for the edge; rows and columns have their own sizes.
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1),
    )  # fmt: skip
    images = torch.randn(24, 3, 33, 25, generator=generator)
    found = bp.top_examples(
        model, images.split(7), site="3", axes=[0, 3], rotated=2, size=4, seed=1
    )
    height, width = model(images[:1]).shape[2:]
    for top in (*found.axes, *found.rotated):
        for context in top.contexts:
            row, column = divmod(context.position, width)
            expected = (
                max(0, 4 * (row - 1)), max(0, 4 * (column - 1)),
                min(4 * (height - 1) + 5, 4 * (row + 1) + 5),
                min(4 * (width - 1) + 5, 4 * (column + 1) + 5),
            )  # fmt: skip
            assert context.box == expected
            patch = context.crop(images)
            assert torch.equal(
                patch, images[context.example, :, expected[0] : expected[2],
                              expected[1] : expected[3]],
            )  # fmt: skip
            shown = _decoded(context.picture)
            assert shown.shape == (*patch.shape[1:], 3)
            # The colours are those of the patch: brighter where it is brighter.
            bright, dark = (patch > 1.5).permute(1, 2, 0), (patch < -1.5).permute(1, 2, 0)
            assert shown[bright].min() > 160 and shown[dark].max() < 100
            if top.axis is None:
                continue
            # What lies outside the box changes nothing, what lies inside does.
            other = torch.zeros_like(images[:1])
            other[0, :, expected[0] : expected[2], expected[1] : expected[3]] = patch
            with torch.no_grad():
                value = float(model(other)[0, top.axis, row, column])
            assert abs(top.sign * value - context.activation) < 1e-5
    assert bp.results.Examples.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match="no box: only maps of image networks"):
        bp.results.Context((" a",), (1.0,), 0, 0, 0).crop(images)


def test_examples_that_cannot_be_had() -> None:
    with pytest.raises(ValueError, match="the site has axes 0 to 9"):
        bp.top_examples(Reader(), [_ids()], site="act", axes=[10])
    with pytest.raises(ValueError, match="size=0: give a whole number from 1"):
        bp.top_examples(Reader(), [_ids()], site="act", size=0)
    with pytest.raises(bp.SiteError, match="stands for"):
        bp.top_examples(Reader(), [_ids()], site="*")
    with pytest.raises(bp.DataError, match="no batch"):
        bp.top_examples(Reader(), [], site="act")


# --- explanations ---------------------------------------------------------------------------------


def _by_token(contexts: Sequence[bp.results.Context]) -> str:
    tokens = [context.tokens[context.at] for context in contexts]
    return max(set(tokens), key=lambda token: (tokens.count(token), token))


def _same_token(explanation: str, contexts: Sequence[bp.results.Context]) -> list[bool]:
    return [context.tokens[context.at].strip() == explanation for context in contexts]


QUICK = bp.concepts.Budget(retries=1, wait=0.0, shown=4)


def test_a_direction_of_one_token_is_explained_by_it() -> None:
    found = bp.explain(_examples(), _by_token, _same_token, budget=QUICK)
    assert found.axes[0].explanation == "5" and found.axes[0].score == 1.0
    assert found.failed == (0, 0) and found.calls == 2 * 5
    assert bp.concepts.Explanations.from_json(found.to_json()) == found
    assert "detection" in str(found)


def test_failures_are_kept_and_count_as_chance() -> None:
    def silent(contexts: Sequence[bp.results.Context]) -> str:
        return "  "

    def broken(explanation: str, contexts: Sequence[bp.results.Context]) -> list[bool]:
        raise TimeoutError("too slow")

    examples = _examples()
    nothing = bp.explain(examples, silent, _same_token, budget=QUICK)
    assert nothing.failed == (2, 3) and nothing.means == (0.5, 0.5)
    assert nothing.calls == 10 and len(nothing.axes[0].failures) == 2
    assert "in place of a sentence" in nothing.axes[0].failures[0]
    late = bp.explain(examples, _by_token, broken, budget=QUICK)
    assert late.failed == (2, 3) and "TimeoutError: too slow" in late.axes[0].failures
    wrong = bp.explain(examples, _by_token, lambda e, c: [True], budget=QUICK)
    assert any("gave 1 answers to 8 contexts" in f for f in wrong.axes[0].failures)
    none: Any = lambda e, c: None  # noqa: E731
    assert (
        "in place of 8 answers"
        in bp.explain(examples, _by_token, none, budget=QUICK).axes[0].failures[0]
    )
    short = bp.explain(
        examples, _by_token, _same_token, budget=bp.concepts.Budget(calls=3, wait=0.0)
    )
    assert short.calls == 3 and sum(short.failed) == 4
    spent = [f for one in (*short.axes, *short.rotated) for f in one.failures]
    assert "the budget of 3 calls is spent" in spent
    with pytest.raises(ValueError, match="calls=0: give a whole number above zero"):
        bp.explain(examples, _by_token, _same_token, budget=bp.concepts.Budget(calls=0))
    few = bp.explain(examples, _by_token, _same_token, budget=bp.concepts.Budget(shown=99))
    assert "no contexts to hold out" in few.axes[0].failures[0]


class _Stub(http.server.BaseHTTPRequestHandler):
    """A chat endpoint: explains by a fixed sentence, judges by what is between << and >>."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _Stub.asked.append({"path": self.path, "key": self.headers["Authorization"]} | body)
        text = body["messages"][0]["content"]
        if body["model"] == "broken":
            answer: Any = {"error": "no such model"}
        elif "Answer with a JSON list" in text:
            lines = text.split("\n\n")[-1].splitlines()
            judged = [int("<< 5>>" in line) for line in lines]
            answer = {"choices": [{"message": {"content": f"Sure: {judged}"}}]}
        else:
            answer = {"choices": [{"message": {"content": "the token 5"}}]}
        raw = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_explains_and_judges(url: str) -> None:
    endpoint = bp.concepts.Endpoint(
        url, "stub", key="secret", options={"temperature": 0}, timeout=10.0
    )
    found = bp.explain(_examples(), endpoint.explain, endpoint.judge, budget=QUICK)
    assert found.axes[0].explanation == "the token 5" and found.axes[0].score == 1.0
    last = _Stub.asked[-1]
    assert last["path"] == "/v1/chat/completions" and last["key"] == "Bearer secret"
    assert last["temperature"] == 0 and "secret" not in repr(endpoint)
    broken = bp.concepts.Endpoint(url, "broken", timeout=10.0)
    with pytest.raises(ValueError, match="the endpoint answered"):
        broken.chat("hello")
    with pytest.raises(ValueError, match="give an http address"):
        bp.concepts.Endpoint("file:///etc", "x").chat("hello")
    nobody = bp.concepts.Endpoint("http://127.0.0.1:9", "x", timeout=1.0)
    gone = bp.explain(_examples(), nobody.explain, nobody.judge, budget=QUICK)
    assert gone.failed == (2, 3) and "refused" in gone.axes[0].failures[0]


# --- export ---------------------------------------------------------------------------------------


def test_an_exported_basis_reconstructs_its_input(tmp_path: pathlib.Path) -> None:
    turn = haar(6, torch.Generator().manual_seed(0)).float()
    folder = bp.export_basis(
        turn, tmp_path / "sae", hook_name="blocks.0.hook_resid_pre", model_name="m", context_size=64
    )
    config = json.loads((folder / "cfg.json").read_text())
    weights = load_file(folder / "sae_weights.safetensors")
    assert config["d_in"] == 6 and config["d_sae"] == 12 and config["context_size"] == 64
    assert config["architecture"] == "standard" and config["hook_name"].endswith("resid_pre")
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    features = torch.relu(x @ weights["W_enc"] + weights["b_enc"])
    assert torch.allclose(features @ weights["W_dec"] + weights["b_dec"], x, atol=1e-5)
    with pytest.raises(ValueError, match="NaN or infinite"):
        bp.export_basis(turn * torch.nan, tmp_path, hook_name="", model_name="")


def test_exported_vectors_are_the_directions(tmp_path: pathlib.Path) -> None:
    turn = haar(6, torch.Generator().manual_seed(0)).float()
    site = {"hook_name": "blocks.3.hook_resid_pre", "model_name": "m"}
    folder = bp.export_basis(turn[:, :4], tmp_path, layout="vectors", dataset_path="d", **site)
    held = json.loads((folder / "vectors.json").read_text())
    assert torch.equal(torch.tensor(held["vectors"]), turn[:, :4].T)
    config = held["config"]
    assert (config["d_in"], config["d_vectors"], config["hook_layer"]) == (6, 4, 3)
    assert config["vector_names"] == ["0", "1", "2", "3"] and config["dataset_path"] == "d"
    wrong: Any = "onnx"
    with pytest.raises(ValueError, match="layout='onnx' is not known: give one of sae, vectors"):
        bp.export_basis(turn, tmp_path, layout=wrong, **site)


# --- causes ---------------------------------------------------------------------------------------


def test_ablating_an_axis_is_holding_it_at_its_mean() -> None:
    model, ids = Reader().eval(), _ids()
    found = bp.ablate(model, ids.split(11), site="act", axes=[4, 2], rotations=2)
    with torch.no_grad():
        hidden = model.act(model.up(model.embed(ids)))

    def loss(hidden: Tensor) -> float:
        with torch.no_grad():
            logits = model.down(hidden)[:, :-1].flatten(0, 1)
        return float(nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))

    assert abs(found.loss - loss(hidden)) < 1e-5
    for place, axis in enumerate((4, 2)):
        held = hidden.clone()
        held[..., axis] = hidden[..., axis].mean()
        assert abs(found.axes[place] - (loss(held) - loss(hidden))) < 1e-5
    v = haar(10, torch.Generator().manual_seed(0))[:, 4].float()
    held = hidden - ((hidden - hidden.flatten(0, 1).mean(0)) @ v)[..., None] * v
    assert abs(found.rotated[0, 0] - (loss(held) - loss(hidden))) < 1e-5
    assert not model.act._forward_hooks and "Gini" in str(found)


@pytest.mark.parametrize("masked", [False, True])
def test_what_replaces_a_direction_changes_a_quadratic_loss_by_its_own_law(masked: bool) -> None:
    # y = W x and loss |y - y_clean|^2: with c = v'x, E loss = E (c - c')^2 |W v|^2 for what comes
    # in the place of c: its variance for the mean, its second moment for zero, twice its variance
    # for an independent c' of the same mean and variance.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 50, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    x = x + torch.tensor([0.0, 3.0, -1.0, 0.5, 0.0, 100.0])
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 4, bias=False)).double()
    mask = torch.rand(80, 50, generator=generator) < (0.7 if masked else 2.0)
    x, weight = x.double(), model[1].weight.detach()

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.inner(x)

    def loss(output: Tensor, batch: Any) -> Tensor:
        apart = (output - batch["x"] @ weight.T).square().sum(-1)
        return apart[mask].mean()

    batch = {"x": x, "attention_mask": mask.long()}
    c = x[mask]
    variance, second = c.var(0, correction=0), c.square().mean(0)
    length = weight.square().sum(0)
    expected = {
        "mean": (variance * length, 1e-9),
        "zero": (second * length, 1e-9),
        "noise": (2 * variance * length, 0.15),
        "resampled": (2 * variance * length, 0.15),
    }
    for how, (analytic, tolerance) in expected.items():
        options: dict[str, Any] = {
            "site": "inner.0", "loss": loss, "rotations": 1, "how": how, "seed": 4,
        }  # fmt: skip
        found = bp.ablate(Masked(), [batch], **options)
        assert found.how == how
        assert np.allclose(found.axes, analytic.numpy(), rtol=tolerance), how
        again = bp.ablate(Masked(), [batch], **options)
        assert np.array_equal(found.axes, again.axes)
        v = haar(6, torch.Generator().manual_seed(4))
        turned = c @ v
        moment = turned.square().mean(0) if how == "zero" else turned.var(0, correction=0)
        moment = moment * (2 if how in ("noise", "resampled") else 1)
        by_law = (moment * (weight @ v).square().sum(0)).numpy()
        assert np.allclose(found.rotated[0], by_law, rtol=tolerance), how
    # Over several batches the noise has the variance of them all.
    if not masked:
        several = bp.ablate(
            model, [*x.split(20)], site="0", rotations=1, how=bp.concepts.Held.NOISE,
            loss=lambda output, one: (output - one @ weight.T).square().sum(-1).mean(),
        )  # fmt: skip
        assert np.allclose(several.axes, expected["noise"][0].numpy(), rtol=0.15)
    with pytest.raises(ValueError, match="how='median' is not known: give one of mean, zero"):
        bp.ablate(model, [x], site="0", how="median")


def test_concentration_is_known_where_it_is_known() -> None:
    flat, single = torch.ones(200).double(), torch.eye(200, dtype=torch.float64)[3]
    assert float(gini(flat)) == 0 and abs(float(gini(single)) - 199 / 200) < 1e-12
    assert abs(float(top_share(flat)) - 0.01) < 1e-12 and float(top_share(single)) == 1
    assert float(gini(0 * flat)) == 0 == float(top_share(0 * flat))


def test_effects_that_cannot_be_had() -> None:
    ids = _ids()
    with pytest.raises(ValueError, match="has axes 0 to 9"):
        bp.ablate(Reader(), [ids], site="act", axes=[99])
    with pytest.raises(ValueError, match="rotations=0: give a whole number above zero"):
        bp.ablate(Reader(), [ids], site="act", rotations=0)
    with pytest.raises(bp.SiteError, match="stands for"):
        bp.ablate(Reader(), [ids], site="*")
    with pytest.raises(bp.SiteError, match="not what a module returns"):
        bp.ablate(Reader(), [ids], site="act:in")
    with pytest.raises(bp.DataError, match="no next-token loss"):
        bp.ablate(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), [torch.randn(9, 4)], site="1")
    found = bp.ablate(
        nn.Sequential(nn.Linear(4, 5), nn.ReLU()), [torch.randn(9, 4)], site="1", axes=[0],
        rotations=1, loss=lambda output, batch: output.square().mean(),
    )  # fmt: skip
    assert found.axes.shape == (1,)


def test_logits_of_few_tokens_have_heavy_tails() -> None:
    generator = torch.Generator().manual_seed(0)
    unembed = torch.randn(12, 300, generator=generator)
    unembed[0] *= 0.01
    unembed[0, 7] = 9.0
    found = bp.logit_effects(torch.eye(12), unembed)
    values = unembed.double().numpy()
    centred = values - values.mean(1, keepdims=True)
    expected = (centred**4).mean(1) / (centred**2).mean(1) ** 2
    assert np.allclose(found.kurtosis, expected)
    assert found.raised[0, 0] == 7 and found.kurtosis[0] > 100
    assert found.mean_kurtosis.observed > found.mean_kurtosis.null_high
    with pytest.raises(ValueError, match="give"):
        bp.logit_effects(torch.eye(3), unembed)
    halved = bp.logit_effects(torch.eye(12), unembed, gain=torch.full((12,), 0.5))
    assert np.allclose(halved.kurtosis, expected)

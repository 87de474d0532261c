"""What was seen once at an address is caught there again, and nothing is left behind."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import small_models as small
import torch
import torch.nn.functional as F
from small_models import D
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from basis_probe.model.capture import catching
from basis_probe.model.network import recognise
from basis_probe.model.places import Address, Place, Site, module_sites
from basis_probe.model.trace import Follower, Trace, record, spelling, tensors_in


def watched(model: nn.Module, x: Tensor) -> Trace:
    return record(model, lambda: model(x), x, len(x))


def caught(model: nn.Module, x: Tensor, sites: dict[str, Site]) -> dict[str, Tensor]:
    """What is caught at each site in a further forward pass."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def catcher(tensor: Tensor) -> None:
            assert name not in found, f"{name} was caught twice"
            found[name] = tensor.clone()

        return catcher

    wanted: dict[Address, Callable[[Tensor], None]] = {}
    for name, site in sites.items():
        wanted[site.address] = keep(name)
    with torch.no_grad(), catching(model, wanted):
        model(x)
    return found


class Own(TorchFunctionMode):
    """Every result of every function, by name and in order: nothing of the package but names."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, list[Tensor]] = defaultdict(list)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = spelling(func)
        if name is not None and isinstance(out, Tensor):
            self.results[name].append(out.detach().clone())
        return out


def expected(
    model: nn.Module, x: Tensor, trace: Trace, sites: dict[str, Site]
) -> dict[str, Tensor]:
    """The same tensors by hooks of our own."""
    inputs: dict[str, list[list[Tensor]]] = defaultdict(list)
    outputs: dict[str, list[list[Tensor]]] = defaultdict(list)
    handles = []
    for path, module in model.named_modules():

        def before(_, args, kwargs, path=path):
            inputs[path].append([t.detach().clone() for t in tensors_in((args, kwargs))])

        def after(_, args, kwargs, out, path=path):
            outputs[path].append([t.detach().clone() for t in tensors_in(out)])

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    with torch.no_grad(), Own() as own:
        model(x)
    for handle in handles:
        handle.remove()
    found: dict[str, Tensor] = {}
    for name, site in sites.items():
        a = site.address
        if a.place is Place.OUTPUT:
            found[name] = outputs[a.path][a.call][a.index]
        elif a.place is Place.INPUT:
            found[name] = inputs[a.path][a.call][a.index]
        else:
            earlier = sum(node.op == a.op for node in trace.nodes[: site.node])
            found[name] = own.results[a.op][earlier]
    return found


@pytest.mark.parametrize("name", small.ZOO)
def test_every_named_place_is_caught_again(name: str) -> None:
    model, x = small.built(name)
    trace = watched(model, x)
    sites = module_sites(trace)
    assert len(sites) >= 4
    found, own = caught(model, x, sites), expected(model, x, trace, sites)
    assert found.keys() == own.keys() == sites.keys()
    for site, tensor in own.items():
        assert tuple(tensor.shape) == trace.node(sites[site].node).shape
        assert torch.equal(found[site], tensor), site


@pytest.mark.parametrize("name", ["relu in place", "gated", "stage", "twice", "lstm", "recurrent"])
def test_single_places_are_caught_like_all_together(name: str) -> None:
    model, x = small.built(name)
    sites = module_sites(watched(model, x))
    together = caught(model, x, sites)
    for site in list(sites)[:: max(1, len(sites) // 4)]:
        assert torch.equal(caught(model, x, {site: sites[site]})[site], together[site])


def test_a_watched_model_computes_what_it_computes_unwatched() -> None:
    for name in ("relu in place", "pre-norm LayerNorm", "stage", "lstm", "experts"):
        model, x = small.built(name)
        with torch.no_grad():
            plain = model(x)
        sites = module_sites(watched(model, x))
        seen: list[Tensor] = []
        with torch.no_grad(), catching(model, {s.address: seen.append for s in sites.values()}):
            assert torch.equal(model(x), plain)
        assert len(seen) == len(sites)


# --- names ----------------------------------------------------------------------------------------


class Many(nn.Module):
    """The same functions several times, some of them from inside catchers' reach."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = self.a(x.relu().tanh())
        return torch.relu(x) + F.relu(-x) + x.tanh()


def test_repeated_modules_and_functions_are_numbered_in_order() -> None:
    model, x = Many().double(), small.rows(4, D)
    sites = module_sites(watched(model, x))
    assert [*sites] == [
        "a:in", "a", "relu()", "relu():2", "a:2:in", "tanh()", "a:2",
        "relu():3", "relu():4", "tanh():2",
    ]  # fmt: skip
    found = caught(model, x, sites)
    with torch.no_grad():
        first = model.a(x)
        second = model.a(first.relu().tanh())
    assert torch.equal(found["a"], first)
    assert torch.equal(found["a:2"], second)
    assert torch.equal(found["relu():3"], second.relu())
    assert torch.equal(found["relu():4"], (-second).relu())
    assert torch.equal(found["tanh():2"], second.tanh())


def test_functions_of_catchers_do_not_count_as_the_models_own() -> None:
    model, x = Many().double(), small.rows(4, D)
    sites = module_sites(watched(model, x))
    quiet = caught(model, x, sites)
    noisy: dict[str, Tensor] = {}

    def busy(name: str) -> Callable[[Tensor], None]:
        def catcher(tensor: Tensor) -> None:
            noisy[name] = tensor.clone()
            for _ in range(3):
                F.relu(tensor).tanh().relu()

        return catcher

    with torch.no_grad(), catching(model, {s.address: busy(n) for n, s in sites.items()}):
        model(x)
    assert noisy.keys() == quiet.keys()
    assert all(torch.equal(noisy[name], quiet[name]) for name in quiet)


class Followed(nn.Module):
    """Enters a mode of its own around a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.own = Many(), Own()

    def forward(self, x: Tensor) -> Tensor:
        with self.own:
            return self.inner(x).relu()


@pytest.mark.parametrize(("make", "told"), [(Many, False), (Followed, True)])
def test_nobody_is_told_of_what_catchers_compute_unless_a_mode_lies_above(
    make: type[nn.Module], told: bool
) -> None:
    model, x = make().double(), small.rows(4, D)
    sites = module_sites(watched(model, x))
    quiet, noisy = caught(model, x, sites), dict[str, Tensor]()
    stacks: list[list[Any]] = []
    left: list[bool] = []

    def busy(name: str) -> Callable[[Tensor], None]:
        def catcher(tensor: Tensor) -> None:
            stacks.append(_get_current_function_mode_stack())
            noisy[name] = tensor.clone()
            tensor.relu().tanh()

        return catcher

    def after(*_: object) -> None:
        left.append(any(isinstance(mode, Follower) for mode in _get_current_function_mode_stack()))

    wanted = {s.address: busy(n) for n, s in sites.items()}
    with torch.no_grad(), catching(model, wanted):
        # Behind the hooks of catchers the model is followed on.
        handles = [module.register_forward_hook(after) for module in model.modules()]
        model(x)
    for handle in handles:
        handle.remove()
    assert noisy.keys() == quiet.keys()
    assert all(torch.equal(noisy[name], quiet[name]) for name in quiet)
    assert any(isinstance(m, Follower) for stack in stacks for m in stack) is told
    assert left and all(left)
    assert not _get_current_function_mode_stack()


def test_functions_inside_a_repeated_module_belong_to_its_calls() -> None:
    model, x = small.built("twice")
    sites = module_sites(watched(model, x))
    assert {"mlp.tanh()", "mlp.tanh():2", "mlp:2", "mlp.up:2:in"} <= sites.keys()
    assert sites["mlp.tanh():2"].address.call == 1
    found = caught(model, x, sites)
    assert torch.equal(found["mlp.tanh()"], found["mlp.up"].tanh())
    assert torch.equal(found["mlp.tanh():2"], found["mlp.up:2"].tanh())
    assert not torch.equal(found["mlp.tanh()"], found["mlp.tanh():2"])


# --- in place, edited, nested ---------------------------------------------------------------------


def test_what_is_overwritten_later_is_caught_before() -> None:
    model, x = small.built("relu in place")
    sites = module_sites(watched(model, x))
    found = caught(model, x, sites)
    assert torch.equal(found["up"], model.up(x))
    assert torch.equal(found["act:in"], model.up(x))
    assert torch.equal(found["act"], model.up(x).relu())


def test_edits_of_users_hooks_are_seen() -> None:
    model, x = small.built("functional relu")
    plain = caught(model, x, module_sites(watched(model, x)))
    handle = model.up.register_forward_hook(lambda _, __, out: -2 * out)
    changed = module_sites(watched(model, x))
    found = caught(model, x, changed)
    handle.remove()
    assert changed.keys() == module_sites(watched(model, x)).keys()
    assert torch.equal(found["up"], -2 * plain["up"])
    assert torch.equal(found["relu()"], (-2 * plain["up"]).relu())


@dataclasses.dataclass
class Answer:
    words: Tensor
    more: tuple[Tensor, dict[str, Tensor]]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Answer:
        h = self.inner(x)
        return Answer(torch.arange(3), (h, {"twice": 2 * h}))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nested, self.head = Nested(), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.nested(x=x).more[1]["twice"])


def test_the_first_floating_tensor_of_a_nested_output_is_the_site() -> None:
    model, x = Outer().double(), small.rows(4, D)
    sites = module_sites(watched(model, x))
    found = caught(model, x, sites)
    assert sites["nested"].address.index == 1
    assert torch.equal(found["nested"], model.nested.inner(x))
    assert torch.equal(found["nested:in"], x)
    assert torch.equal(found["head:in"], 2 * model.nested.inner(x))


# --- nothing is left ------------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def undisturbed() -> Iterator[None]:
    before = len(_get_current_function_mode_stack())
    yield
    assert len(_get_current_function_mode_stack()) == before == 0


class Failing(nn.Module):
    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.up, self.deep, self.error = nn.Linear(D, D), nn.Sequential(nn.Linear(D, D)), error

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deep(F.relu(self.up(x))))
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt(), SystemExit()])
@pytest.mark.usefixtures("undisturbed")
def test_no_hook_and_no_mode_is_left(error: BaseException | None) -> None:
    model, x = Failing(None), torch.randn(4, D)
    handle = model.up.register_forward_hook(lambda *_: None)
    sites = module_sites(watched(model, x))
    assert hooks(model) == 1
    model.error = error
    wanted = {site.address: lambda _: None for site in sites.values()}
    if error is None:
        with catching(model, wanted):
            model(x)
    else:
        with pytest.raises(type(error)), catching(model, wanted):
            model(x)
        with pytest.raises(type(error)):
            watched(model, x)
    assert hooks(model) == 1
    handle.remove()


@pytest.mark.usefixtures("undisturbed")
def test_a_failing_catcher_leaves_nothing_either() -> None:
    model, x = Failing(None), torch.randn(4, D)
    for name, site in module_sites(watched(model, x)).items():

        def broken(_: Tensor, name: str = name) -> None:
            raise ValueError(name)

        with (
            pytest.raises(ValueError, match=re.escape(name)),
            catching(model, {site.address: broken}),
        ):
            model(x)
        assert hooks(model) == 0
    sites = module_sites(watched(model, x))
    assert len(caught(model, x, sites)) == len(sites)


@pytest.mark.usefixtures("undisturbed")
def test_gradients_are_untouched_and_graphs_are_not_kept() -> None:
    model, x = Failing(None), torch.randn(4, D)
    sites = module_sites(watched(model, x))
    seen: list[Tensor] = []
    with catching(model, {s.address: seen.append for s in sites.values()}):
        model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# --- models of other libraries --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_hook_points_of_a_bridge_hold_what_its_own_cache_holds() -> None:
    from transformer_lens import TransformerBridge, TransformerBridgeConfig

    config = TransformerBridgeConfig(
        d_model=16, d_head=4, n_heads=4, n_layers=2, n_ctx=16, d_vocab=11, d_mlp=24, seed=0,
        act_fn="silu", normalization_type="RMS", gated_mlp=True, n_key_value_heads=2,
        positional_embedding_type="rotary", final_rms=True,
    )  # fmt: skip
    model, ids = TransformerBridge.boot_native(config).eval(), small.ids()
    # Its blocks hang hooks of their own on their parts when they first run.
    model(ids)
    before = hooks(model)
    subject = recognise(model)
    sites = subject.names(record(model, lambda: model(ids), ids, len(ids)))
    assert hooks(model) == before
    with torch.no_grad():
        _, cache = model.run_with_cache(ids)
    # Under the names that users know, which come before the canonical ones of the same places.
    first = {site.address: name for name, site in reversed(sites.items())}
    found = caught(model, ids, {name: sites[name] for name in first.values()})
    assert {
        "blocks.0.hook_resid_pre",
        "blocks.1.mlp.hook_post",
        "blocks.0.attn.hook_z",
    } <= found.keys()
    for name, tensor in found.items():
        # The bridge shows some of them to its users with their heads apart.
        torch.testing.assert_close(tensor, cache[name].reshape(tensor.shape))


@pytest.mark.filterwarnings("ignore")
def test_places_of_a_hugging_face_model_are_caught_again() -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.GPT2Config(
        vocab_size=11,
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    model, ids = hf.GPT2LMHeadModel(config).eval(), small.ids()
    trace = watched(model, ids)
    sites = module_sites(trace)
    found, own = caught(model, ids, sites), expected(model, ids, trace, sites)
    assert {
        "transformer.h.0",
        "transformer.h.1.mlp.act",
        "transformer.h.0.attn.c_proj:in",
    } <= found.keys()
    assert found.keys() == own.keys()
    for site in own:
        assert torch.equal(found[site], own[site]), site

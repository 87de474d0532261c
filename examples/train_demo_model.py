"""Trains the language model that `basis-probe demo` probes, and writes it as a Hugging Face folder.

Run as `python examples/train_demo_model.py --out FOLDER`. The same seed, number of steps and number
of threads give the same weights on the same machine; the documents are the same everywhere.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from demo_texts import grammar
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
BATCH_SIZE = 32
BATCHES_PER_POOL = 8
PEAK_RATE = 3e-3
WARM_UP = 100
HELD_OUT = 400


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word, mark or digit of the grammar, `<bos>` in front."""
    ids = {word: place for place, word in enumerate((*SPECIAL, *grammar.vocabulary()))}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=256,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """A Llama of 4 layers and 96 dimensions with weights drawn from `seed`."""
    torch.manual_seed(seed)
    ids = tokenizer.get_vocab()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            initializer_range=0.05,
            pad_token_id=ids["<pad>"],
            bos_token_id=ids["<bos>"],
            eos_token_id=ids["<eos>"],
        )
    )


def padded(rows: Sequence[list[int]], *, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens padded on the right to one length, and the mask of what is real."""
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), pad)
    for row, content in enumerate(rows):
        tokens[row, : len(content)] = torch.tensor(content)
    return tokens, tokens != pad


def encoded(
    documents: Sequence[grammar.Document], tokenizer: PreTrainedTokenizerFast
) -> list[list[int]]:
    """Each document as token ids between `<bos>` and `<eos>`."""
    ids: dict[str, int] = tokenizer.get_vocab()
    first, last = ids["<bos>"], ids["<eos>"]
    return [[first, *(ids[word] for word in each.tokens), last] for each in documents]


def batches(
    steps: int, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches of fresh documents; documents of like length share a batch."""
    stream = grammar.documents(steps * BATCH_SIZE, seed)
    pad = tokenizer.get_vocab()["<pad>"]
    left = steps
    shuffler = torch.Generator().manual_seed(seed)
    while left:
        taken = min(left, BATCHES_PER_POOL)
        pool = encoded([next(stream) for _ in range(taken * BATCH_SIZE)], tokenizer)
        pool.sort(key=len)
        for place in torch.randperm(taken, generator=shuffler).tolist():
            yield padded(pool[place * BATCH_SIZE : (place + 1) * BATCH_SIZE], pad=pad)
        left -= taken


def token_losses(
    model: LlamaForCausalLM, tokens: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """The sum of the losses in nats over the real tokens after the first, and their number."""
    logits = model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    targets = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
    )
    return total, int(mask[:, 1:].sum())


@torch.no_grad()
def mean_loss(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[grammar.Document],
) -> float:
    """The loss in nats a token over the documents, `<eos>` counted, `<bos>` not."""
    model.eval()
    device = next(model.parameters()).device
    rows = sorted(encoded(documents, tokenizer), key=len)
    pad = tokenizer.get_vocab()["<pad>"]
    total, count = 0.0, 0
    for start in range(0, len(rows), BATCH_SIZE):
        tokens, mask = padded(rows[start : start + BATCH_SIZE], pad=pad)
        losses, number = token_losses(model, tokens.to(device), mask.to(device))
        total, count = total + float(losses), count + number
    return total / count


def rate(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step: a linear rise, then a cosine to 0.02."""
    rise = min(WARM_UP, max(1, steps // 10))
    if step < rise:
        return (step + 1) / rise
    through = (step - rise) / max(1, steps - rise)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * through))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    seed: int,
    every: int = 50,
) -> float:
    """Trains the model in place; the mean training loss over the last steps, in nats a token."""
    model.train()
    device = next(model.parameters()).device
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    recent: list[float] = []
    began = time.perf_counter()
    for step, (tokens, mask) in enumerate(batches(steps, tokenizer, seed=seed), start=1):
        total, count = token_losses(model, tokens.to(device), mask.to(device))
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent = [*recent[-(every - 1) :], loss.item()]
        if step % every == 0 or step == steps:
            seconds = time.perf_counter() - began
            print(
                f"step {step:5d}/{steps}  loss {sum(recent) / len(recent):.4f} nats a token"
                f"  {seconds:6.0f} s",
                flush=True,
            )
    return sum(recent) / len(recent)


@torch.no_grad()
def samples(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, count: int, seed: int
) -> list[str]:
    """Documents sampled from the model at temperature 1, as space-separated tokens."""
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.get_vocab()
    words = {place: word for word, place in ids.items()}
    texts: list[str] = []
    for _ in range(count):
        tokens = [ids["<bos>"]]
        while len(tokens) < grammar.LONGEST and tokens[-1] != ids["<eos>"]:
            logits = model(input_ids=torch.tensor([tokens], device=device)).logits[0, -1]
            chances = logits.softmax(-1).cpu()
            tokens.append(int(torch.multinomial(chances, 1, generator=generator)))
        texts.append(" ".join(words[token] for token in tokens[1:] if token != ids["<eos>"]))
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures and writes the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000, help="number of batches of 32 documents")
    parser.add_argument("--seed", type=int, default=20, help="of the weights and the documents")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="documents to measure on")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=options.seed).to(options.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, vocabulary {len(tokenizer)}", flush=True)

    began = time.perf_counter()
    final = train(model, tokenizer, steps=options.steps, seed=options.seed)
    seconds = time.perf_counter() - began

    held_out = grammar.labelled(options.held_out, options.seed + 1)
    n_tokens = sum(len(document.tokens) + 1 for document in held_out)
    record: dict[str, Any] = {
        "seed": options.seed,
        "steps": options.steps,
        "documents_per_step": BATCH_SIZE,
        "parameters": parameters,
        "optimizer": {
            "name": "AdamW",
            "peak_learning_rate": PEAK_RATE,
            "betas": [0.9, 0.95],
            "weight_decay": 0.1,
            "gradient_norm": 1.0,
        },
        "train_loss_last_50_steps": final,
        "held_out_seed": options.seed + 1,
        "held_out_documents": len(held_out),
        "held_out_tokens": n_tokens,
        "held_out_loss": mean_loss(model, tokenizer, held_out),
        "grammar_choices_nats_per_token": sum(each.surprisal for each in held_out) / n_tokens,
        "uniform_loss": math.log(len(tokenizer)),
        "seconds": seconds,
        "threads": options.threads,
        "device": options.device,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
        "samples": samples(model, tokenizer, count=8, seed=options.seed),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    model.cpu().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

"""The count of continuous symmetries, against numbers that are known by hand."""

import pickle

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import basis_probe as bp


def generic(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that hide nothing by being zeros, ones, or equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            gain = parameter.ndim == 1 and float(parameter.mean()) > 0.5
            parameter.copy_(drawn * (0.5 if parameter.ndim > 1 else 0.3) + (1.0 if gain else 0.0))
    return model.double().eval()


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def layers(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts)


SIZES = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": 11,
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_inner": 6,
    "n_positions": 12,
    "attn_implementation": "eager",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENS = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(2))


def test_a_layered_network_has_the_symmetries_that_are_counted_by_hand() -> None:
    # Scales of 7 rectified units; 36 of a linear layer and 6 shifts, of which 3 do nothing, as the
    # next map has rank 3.
    model = generic(
        layers(
            nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 6), nn.Linear(6, 3)
        )
    )
    found = bp.symmetries(model, rows(40, 4)).completeness
    assert found.complete
    assert (found.nullity, found.claimed, found.of_groups, found.of_shifts) == (46, 46, 43, 3)
    assert (found.parameters, found.unreached, found.unseen, found.of_gains) == (132, 0, 0, 0)
    assert str(found) == "complete: 46 of 46 directions are claimed"


def test_what_a_layer_norm_does_not_let_through_is_counted() -> None:
    model = generic(layers(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 6), nn.Tanh(),
                           nn.Linear(6, 3)))  # fmt: skip
    found = bp.symmetries(model, rows(40, 7)).completeness
    assert found.complete, found
    # What is read along the ones, for each of six units.
    assert found.unseen + found.of_shifts + found.of_groups == found.nullity
    assert found.unseen >= 6


def test_batch_normalisation_hands_its_gains_on() -> None:
    model = generic(layers(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 6), nn.Tanh(),
                           nn.Linear(6, 3)))  # fmt: skip
    found = bp.symmetries(model, rows(40, 7)).completeness
    # GL(5), a gain for each of 5, and 5 + 5 shifts: of the first bias, and of the norm's.
    assert (found.complete, found.nullity) == (True, 25 + 5 + 5 + 5)


def test_the_row_of_a_table_that_stands_for_padding_counts_like_the_others() -> None:
    model = generic(layers(nn.Embedding(60, 5, padding_idx=0), nn.Linear(5, 6), nn.Tanh(),
                           nn.Linear(6, 7)))  # fmt: skip
    tokens = torch.arange(60)
    found = bp.symmetries(model, tokens).completeness
    assert found.complete, found
    # GL(5), and what the table and the bias can hand to each other.
    assert (found.nullity, found.unreached) == (25 + 5, 0)
    assert found.largest_stray < 1e-9


@pytest.mark.slow
def test_gpt2_is_complete() -> None:
    found = bp.symmetries(generic(tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2))), TOKENS).completeness
    assert found.complete, found
    assert found.largest_stray < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "config", "right"),
    [
        # Rotations of the stream, gains of five norms, values, planes of queries, linear branches.
        (tf.LlamaForCausalLM, tf.LlamaConfig, 28 + 5 * 8 + 2 * 2 * 16 + 2 * 2 * 2 * 2 + 2 * 6),
        # Queries and keys read by a norm keep their planes; a gain more for each of them.
        (tf.Qwen3ForCausalLM, tf.Qwen3Config, 28 + 5 * 8 + 2 * 2 * 16 + 2 * 2 + 2 * 6),
    ],
)
def test_decoders_are_complete(kind: type, config: type, right: int) -> None:
    model = generic(kind(config(**SIZES, rms_norm_eps=0.2)))
    found = bp.symmetries(model, TOKENS).completeness
    assert (found.complete, found.nullity) == (True, right), found


@pytest.mark.slow
class NormedTable(nn.Module):
    """A table of tokens behind a norm, which writes what the layers add to."""

    def __init__(self, bias: bool, direct: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 6)
        self.norms = nn.ModuleList([nn.LayerNorm(6, eps=0.0, bias=bias) for _ in range(4)])
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6)) for _ in range(3)]
        )
        self.direct, self.out = direct, nn.Linear(6, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        (first, second, third, last), (read, mix, add) = self.norms, self.layers
        h = first(self.table(tokens))
        if self.direct:
            h = h + read(h).mean(1, keepdim=True)
        h = h + mix(second(h)).mean(1, keepdim=True)
        h = h + add(third(h))
        return self.out(last(h))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_a_table_follows_a_turn_of_what_its_norm_writes(bias: bool, direct: bool) -> None:
    tokens = torch.randint(0, 60, (4, 9), generator=torch.Generator().manual_seed(2))
    found = bp.symmetries(generic(NormedTable(bias, direct)), tokens).completeness
    assert found.complete, found
    assert found.largest_stray < 1e-9


@pytest.mark.slow
def test_a_scale_that_only_an_epsilon_sees_is_near() -> None:
    sharp, blunt = (
        bp.symmetries(
            generic(tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, rms_norm_eps=eps))), TOKENS
        ).completeness
        for eps in (1e-5, 0.2)
    )
    assert min(sharp.near) < 1e-2 * min((*blunt.near, 1e-5))


class Flipped(nn.Module):
    """Features in another order, which is not followed."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)


def test_what_nobody_claims_is_named_by_its_weights() -> None:
    model = generic(layers(nn.Linear(7, 4), Flipped(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))
    found = bp.symmetries(model, rows(40, 7)).completeness
    assert not found.complete
    assert found.nullity - found.claimed == 16
    assert {name for name, _ in found.missing[:2]} == {"0.weight", "2.weight"}
    assert "16" not in str(found) and "0.weight" in str(found)


def test_numbers_that_no_output_reads_are_counted_apart() -> None:
    model = generic(layers(nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 3)))
    model[1].idle = nn.Parameter(torch.zeros(5).double())
    found = bp.symmetries(model, rows(40, 7)).completeness
    assert (found.complete, found.unreached, found.nullity) == (True, 5, 5)


def test_a_certificate_holds_the_count() -> None:
    model, x = generic(layers(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))), rows(40, 6)
    proof = bp.certify(model, "1", x, complete=True)
    assert proof.holds
    assert proof.completeness == bp.symmetries(model, x).completeness
    assert not hasattr(bp.certify(model, "1", x), "completeness")


def test_the_count_says_why_it_cannot_be_made() -> None:
    large = layers(nn.Linear(80, 90), nn.ReLU(), nn.Linear(90, 3))
    found = bp.symmetries(large, torch.randn(4, 80))
    with pytest.raises(ValueError, match=r"7,563 numbers.*give a small model"):
        _ = found.completeness
    small = layers(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    found = bp.symmetries(small, torch.randn(4, 3))
    again = pickle.loads(pickle.dumps(found))
    assert again.keys() == found.keys()
    with pytest.raises(ValueError, match="not known which model"):
        _ = again.completeness


def test_the_model_is_left_as_it_was() -> None:
    model, x = generic(layers(nn.Linear(6, 4), nn.RMSNorm(4), nn.Linear(4, 3))), rows(40, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _ = bp.symmetries(model, x).completeness
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())

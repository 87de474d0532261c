"""The loaders give the networks and the data that the measured figures are of."""

import assets
import pytest
import torch

CPU_BATCH = 500


def _accuracy(network: torch.nn.Module, images: torch.Tensor, classes: torch.Tensor) -> float:
    with torch.no_grad():
        guesses = torch.cat([network(batch).argmax(1) for batch in images.split(CPU_BATCH)])
    return (guesses == classes).double().mean().item()


@pytest.mark.parametrize(("nonlinearity", "accuracy"), [("relu", 0.7580), ("sigmoid", 0.6198)])
def test_small_cnns_reach_their_accuracy_on_all_images(nonlinearity: str, accuracy: float) -> None:
    images, classes = assets.cifar(4000, colours=assets.SMALL_CNN_COLOURS)
    assert _accuracy(assets.small_cnn(nonlinearity), images, classes) == pytest.approx(
        accuracy, abs=1e-3
    )


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("depth", [20, 32])
def test_resnets_reach_their_accuracy_on_a_few_images(depth: int) -> None:
    images, classes = assets.cifar(300, colours=assets.RESNET_COLOURS)
    # 300 images at 92 %: the standard error is 1.6 %.
    assert 0.88 < _accuracy(assets.resnet(depth), images, classes) < 0.96


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9200), (32, 0.92675)])
def test_resnets_reach_their_accuracy_on_all_images(depth: int, accuracy: float) -> None:
    images, classes = assets.cifar(4000, colours=assets.RESNET_COLOURS)
    assert _accuracy(assets.resnet(depth), images, classes) == pytest.approx(accuracy, abs=1e-3)


# Where a mask shows this much of a thing, one of these ImageNet classes is among the first five.
SEEN_AS = {"aeroplane": (404, 895, 908), "cow": (345, 346, 347)}


@pytest.mark.slow
def test_squeezenet_names_what_the_masks_show() -> None:
    network, (images, masks) = assets.squeezenet(), assets.msrc(150)
    assert images.shape == (150, 3, 227, 227)
    assert masks.shape == (150, 56, 56)
    number = assets.msrc_classes()
    for thing, expected in SEEN_AS.items():
        showing = (masks == number[thing]).double().mean((1, 2)) > 0.1
        assert showing.sum() >= 5
        with torch.no_grad():
            first_five = network(images[showing]).topk(5).indices
        named = torch.isin(first_five, torch.tensor(expected)).any(1)
        assert named.double().mean() > 0.8, thing


def _loss(count: int) -> tuple[float, int]:
    """Mean loss in nats, and over how many tokens, of whole stories cut at the model's context."""
    network, tokenizer = assets.llama(), assets.llama_tokenizer()
    total, tokens = 0.0, 0
    for story in assets.stories(count):
        ids = torch.tensor([tokenizer(story)["input_ids"][:512]])
        with torch.no_grad():
            loss = network(ids, labels=ids).loss.item()
        total += loss * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return total / tokens, tokens


@pytest.mark.slow
def test_the_llama_reads_its_stories_as_well_as_was_measured() -> None:
    loss, tokens = _loss(35)
    assert tokens > 12_000
    assert loss == pytest.approx(1.33, abs=0.02)


def test_the_llama_reads_its_stories() -> None:
    loss, tokens = _loss(6)
    assert tokens > 1_500
    assert loss == pytest.approx(1.33, abs=0.15)


def test_the_llama_writes_its_story() -> None:
    network, tokenizer = assets.llama(), assets.llama_tokenizer()
    start = torch.tensor([[tokenizer.bos_token_id]])
    written = network.generate(start, max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(written[0], skip_special_tokens=True)
    assert text.strip().startswith("Once upon a time, there was a little girl named Lily.")


def test_the_bridge_computes_what_the_llama_computes() -> None:
    tokens = assets.story_tokens(4, length=64)
    assert tokens.shape == (4, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            assets.llama_bridge()(tokens), assets.llama()(tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_minilm_knows_what_is_said_twice() -> None:
    tokenizer, encoder = assets.minilm_tokenizer(), assets.minilm()
    sentences = ["A man is eating food.", "A man eats something.", "The stars are far away."]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
        bridged = assets.minilm_bridge()(batch["input_ids"], attention_mask=batch["attention_mask"])
    torch.testing.assert_close(getattr(bridged, "last_hidden_state", bridged), hidden)
    weight = batch["attention_mask"][..., None]
    meaning = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)
    similarity = meaning @ meaning.T
    assert similarity[0, 1].item() == pytest.approx(0.875, abs=0.01)
    assert similarity[0, 2] < 0.3


@pytest.mark.slow
def test_a_fresh_network_is_the_seed_s_and_nothing_else_is_drawn() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (assets.small_cnn("relu", seed=seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    images, _ = assets.cifar(256, colours=assets.RESNET_COLOURS)
    network = assets.resnet(20, seed=1)
    with torch.no_grad():
        channels = network.bn1(network.conv1(images)).transpose(0, 1).flatten(1)
    # The BatchNorms of an untrained one fit the data.
    torch.testing.assert_close(channels.mean(1), torch.zeros(16), rtol=0, atol=1e-3)
    torch.testing.assert_close(channels.std(1), torch.ones(16), rtol=0, atol=1e-2)
    assert torch.equal(torch.random.get_rng_state(), before)
    fresh, trained = assets.llama(seed=0), assets.llama()
    assert fresh.config.hidden_size == trained.config.hidden_size == 64
    tokens = assets.story_tokens(4, length=64)
    with torch.no_grad():
        # An untrained model knows nothing: about ln 512 = 6.24 nats a token.
        assert fresh(tokens, labels=tokens).loss > 6


def test_there_is_text_to_read() -> None:
    assert len(assets.stories()) == 149
    assert assets.stories(3)[1].startswith("Once upon a time, there was a little car named Beep.")
    assert assets.shakespeare(14) == "First Citizen:"
    with pytest.raises(ValueError, match="not 10000 x 127"):
        assets.story_tokens(10_000)

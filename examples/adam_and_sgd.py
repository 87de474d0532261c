"""Privilege during training: Adam, SGD, and Adam in a turned basis. A minute on two cores.

The residual stream of this decoder may be turned without changing its function, so nothing but the
optimiser can tell its axes from other directions. Adam divides every coordinate by its own size;
SGD knows no coordinates. The third run lets Adam see the same gradients in a turned basis.

Network and trainings are those of the atlas, which follows more of them over several seeds:
docs/atlas.md, "Adam and SGD". One seed, as here, shows what to ask and proves nothing.
"""

# %% Sentences of the demo as tokens, and how networks are trained on them.
from atlas import optimisers

import basis_probe as bp

STEPS = 400
EVERY = 200
TEXTS = 3000

words = optimisers.text(TEXTS)
held_out = words[-optimisers.HELD_OUT :]
named = {training.name: training for training in optimisers.TRAININGS}
print(f"{words.numel():,} tokens, {int(words.max()) + 1} of them different")


# %% Train, and ask on the way whether the stream's axes stand out, in each order.
def run(name: str) -> dict[int, dict[str, float]]:
    """Step -> order -> z in front of the second block."""
    found: dict[int, dict[str, float]] = {}
    for step, model in optimisers.trained(named[name], 0, words, STEPS, EVERY):
        report = bp.probe(
            model, [held_out], sites=["blocks.1:in"], certificates=False, progress=False
        )
        orders = report["blocks.1:in"].orders
        found[step] = {order.order: order.effect for order in orders}
        shown = ", ".join(
            f"{one.order} {one.effect:+.1f}{' claimed' if one.claimed else ''}" for one in orders
        )
        print(f"{name:18s} step {step:4d}: {shown}", flush=True)
    return found


followed = {name: run(name) for name in ("Adam", "SGD with momentum", "Adam, turned")}

# %% The same as a figure.
from matplotlib.figure import Figure  # noqa: E402

figure = Figure(figsize=(9, 3), layout="constrained")
for order, axes in zip(
    ("offset", "scale", "form"), figure.subplots(1, 3, sharey=True), strict=True
):
    for name, found in followed.items():
        axes.plot([*found], [one[order] for one in found.values()], "o-", label=name)
    axes.axhspan(-2, 2, color="0.93", zorder=0)
    axes.set_title(order)
    axes.set_xlabel("step")
figure.axes[0].set_ylabel("z")
figure.axes[0].legend(frameon=False, fontsize=8)
figure.savefig("adam_and_sgd.png", dpi=100)

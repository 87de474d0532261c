"""A rotation that leaves the function as it is, and what the verdict does. About two minutes."""

# %% The residual stream of the demo model may be turned: the weights absorb it.
import torch

import basis_probe as bp
from basis_probe import demo

TEXTS = 64
SITE = "blocks.0.hook_resid_pre"

model = demo.load()
texts = demo.texts(TEXTS, seed=1)
data = [texts[start : start + 16] for start in range(0, len(texts), 16)]
proof = bp.certify(model, SITE, texts[:2])
print(f"certificate holds: {proof.holds}, moved by {proof.max_error:.1g}")

# %% A new model with the same function.
turn = bp.groups.Orthogonal(96).sample(torch.Generator().manual_seed(0))
turned = bp.reparametrize(model, SITE, turn, example_input=texts[:2])
with torch.no_grad():
    tokens = model.to_tokens(texts[0])
    before, after = model(tokens), turned(tokens)
print(f"outputs differ by {float((after - before).abs().max() / before.abs().max()):.1g}")

# %% The stream's axes stood out, a trace of training; turned, they do not. The neurons still do.
for name, net in (("as trained", model), ("turned", turned)):
    report = bp.probe(
        net, data, sites=[SITE, "blocks.0.mlp.hook_post"], certificates=False, progress=False
    )
    for site in report:
        lead = max(s.effect for s in site.scores.values() if s.decides)
        print(f"{name:10s} {site.site:24s} {site.verdict.outcome.name:10s} {lead:+.1f}")

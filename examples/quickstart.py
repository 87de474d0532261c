"""A model of TransformerLens, from the question to one neuron. About two minutes on two cores."""

# %% A TransformerBridge; any other will do. This one comes with the package.
import basis_probe as bp
from basis_probe import demo

TEXTS = 96

model = demo.load()
texts = demo.texts(TEXTS, seed=1)
data = [texts[start : start + 16] for start in range(0, len(texts), 16)]

# %% What the architecture allows, proved on this very model.
symmetries = bp.symmetries(model, texts[:2])
print(symmetries)

# %% What the data say, and what follows from both.
report = bp.probe(model, data, progress=False)
print(report)
report.save("quickstart.html")

# %% One site.
site = report["blocks.1.mlp.hook_post"]
print(site.verdict.sentence)
score = site.scores["kurtosis"]
print("neurons to look at first:", score.per_direction.argsort()[::-1][:5].tolist())
figure = site.plot("axes", score="kurtosis")

# %% Beside what is run anyway: here, generation.
with bp.attach(model, sites="blocks.*.hook_resid_pre", certificates=False) as probe:
    for text in texts[:8]:
        model.generate(" ".join(text.split()[:4]), max_new_tokens=12, verbose=False)
print(f"{probe.passes} forward passes seen")
print(probe.report())

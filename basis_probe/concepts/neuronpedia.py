"""What activates axes and rotated directions, in files that Neuronpedia imports."""

import gzip
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from basis_probe.arguments import instance, path, texts
from basis_probe.brief import described
from basis_probe.devices import on_own_device
from basis_probe.files import replacing, require_writable
from basis_probe.results.examples import Context, TopContexts
from basis_probe.results.report import SiteReport

CREATOR = "clkht01d40000jv08hvalcvly"
"""The user to whom Neuronpedia's own converter gives what it makes."""

Row = Mapping[str, object]


@on_own_device
def export_neuronpedia(
    site: SiteReport,
    folder: str | pathlib.Path,
    *,
    model_name: str,
    name: str = "basis-probe",
    creator_name: str = "basis_probe",
    creator_id: str = CREATOR,
) -> tuple[pathlib.Path, pathlib.Path]:
    """The folders of two sources, the axes of a site and directions of a random rotation of it.

    They stand below `folder` as `model_name/source` and hold what Neuronpedia's import reads:
    `release.jsonl`, `model.jsonl`, `sourceset.jsonl`, `source.jsonl`, and in batches
    `features/batch-0.jsonl.gz` and `activations/batch-0.jsonl.gz`. A feature of the axes bears the
    number of its axis; one that is read with the negative sign that number plus the axes of the
    site, as `export_basis` orders them. Rotated directions are numbered from 0. What is not known
    here (logits, densities, correlations) is left out, and the import fills in its defaults.

    Args:
        site: of a report, with examples (`probe(examples=5)` or `with_examples`).
        folder: is made if it is not there.
        model_name: the model, as Neuronpedia calls it: letters, digits, - and _.
        name: of the release, in letters, digits and -. The sets of sources are this name, that of
            the site without the number of its layer, and "axes" or "rotated".
        creator_name: who made it, to show.
        creator_id: of a user that the instance of Neuronpedia has.

    Raises:
        ValueError: for a site without examples, and names that Neuronpedia does not take.
        OSError: if the folder cannot be made or written in.

    Source: the schema of github.com/hijohnnylin/neuronpedia (apps/webapp/prisma/schema.prisma) and
    its import (apps/webapp/app/api/admin/import, lib/db/import.ts).

    Example:
        >>> import tempfile, torch
        >>> import basis_probe as bp
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> report = bp.probe(model, [torch.randn(300, 4)], examples=2, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = export_neuronpedia(report["1"], folder, model_name="mlp")
        ...     [one.name for one in made]
        ['0-basis-probe-1-axes', '0-basis-probe-1-rotated']
    """
    instance("site", site, SiteReport, 'a site of a report, such as report["blocks.0.mlp"]')
    for argument, value, letters in (
        ("model_name", model_name, r"[a-z0-9_-]+"),
        ("name", name, r"[A-Za-z0-9-]+"),
    ):
        [text] = texts(argument, (value,), "a name")
        if not re.fullmatch(letters, text) or len(text) > 100:
            raise ValueError(
                f"{argument}={described(value)}: Neuronpedia takes {letters.strip('+')}, at most "
                "100 of them"
            )
    for argument, value in (("creator_name", creator_name), ("creator_id", creator_id)):
        texts(argument, (value,), "a name")
    if site.examples is None:
        raise ValueError(
            f"the site {site.site!r} has no examples: probe(..., examples=5) shows them, or "
            "with_examples(report, model, data)"
        )
    base = pathlib.Path(path("folder", folder)) / model_name
    layer = 0 if site.layer is None else site.layer
    common = {"creatorId": creator_id, "visibility": "PUBLIC"}
    shown = {"creatorName": creator_name, "urls": []}
    release = {"name": name, "description": f"{model_name}, {site.kind}", **shown, **common}
    model = {
        "id": model_name, "displayName": model_name, "displayNameShort": model_name,
        "layers": 0, "neuronsPerLayer": 0, "owner": creator_name, **common,
    }  # fmt: skip
    made: list[pathlib.Path] = []
    for side, what, directions in (
        ("axes", f"axes of {site.site} {site.examples.chosen}".strip(), _axes(site)),
        (
            "rotated",
            f"directions of a random rotation of {site.site}",
            [(str(place), top) for place, top in enumerate(site.examples.rotated)],
        ),
    ):
        group = "-".join(filter(None, (name, _place(site), side)))
        source = f"{layer}-{group}"
        key = {"modelId": model_name, "layer": source, "creatorId": creator_id}
        where = base / source
        one: dict[str, Sequence[Row]] = {
            "release": [release],
            "model": [model],
            "sourceset": [
                {
                    "modelId": model_name, "name": group, "description": what,
                    "releaseName": name, **shown, **common,
                }
            ],
            "source": [
                {
                    "modelId": model_name, "id": source, "setName": group,
                    "notes": site.verdict.sentence, **common,
                }
            ],
            "features/batch-0": [
                {
                    **key, "index": index, "sourceSetName": group, "vectorLabel": top.label,
                    "maxActApprox": max((max(one.activations) for one in top.contexts), default=0),
                }
                for index, top in directions
            ],
            "activations/batch-0": [
                _activation(key, index, place, context)
                for index, top in directions
                for place, context in enumerate(top.contexts)
            ],
        }  # fmt: skip
        for stem, rows in one.items():
            _write(where, stem, rows)
        made.append(where)
    return made[0], made[1]


def _place(site: SiteReport) -> str:
    """The site without its layer, which the sites of all layers share, in letters, digits and -."""
    parts = re.findall(r"[A-Za-z0-9]+", site.site)
    if site.layer is not None and str(site.layer) in parts:
        parts.remove(str(site.layer))
    return "-".join(parts)[:60].strip("-")


def _axes(site: SiteReport) -> list[tuple[str, TopContexts]]:
    """The axes with the numbers of their features; axes of the same number come once."""
    tops = () if site.examples is None else site.examples.axes
    numbered = {
        str(top.axis + (site.dim if top.sign < 0 else 0)): top
        for top in tops
        if top.axis is not None
    }
    return list(numbered.items())


def _activation(key: Row, index: str, place: int, context: Context) -> Row:
    values = list(context.activations)
    top = values.index(max(values))
    said = json.dumps([key, index, place, context.example, context.position])
    return {
        "id": hashlib.sha256(said.encode()).hexdigest()[:25],
        **key,
        "index": index,
        "tokens": list(context.tokens),
        "values": values,
        "maxValue": values[top],
        "maxValueTokenIndex": top,
        "minValue": min(values),
        "qualifyingTokenIndex": context.at,
        "dataIndex": str(context.example),
    }


def _line(row: Row) -> str:
    r"""A row as one line of JSON in which the import finds nothing to replace.

    It puts a space for every `\u0000`, which Postgres does not take, and would break a text that
    holds these six characters: backslashes are written by their number, zero as what stands for
    what cannot be shown.
    """
    said = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return said.replace("\\\\", "\\u005c").replace("\\u0000", "\\ufffd")


def _write(folder: pathlib.Path, stem: str, rows: Iterable[Row]) -> None:
    """Writes rows as lines of JSON, packed where they are many; a file without rows is none."""
    lines = [_line(row) for row in rows]
    if not lines:
        return
    # Lone halves of a surrogate pair, which no database takes, become question marks.
    held = ("\n".join(lines) + "\n").encode("utf-8", "replace")
    packed = "/" in stem
    target = folder / f"{stem}.jsonl{'.gz' if packed else ''}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OSError(
            f"the folder {described(str(target.parent))} cannot be made: {error.args[-1]}"
        ) from error
    with replacing(require_writable(target)) as file:
        file.write(gzip.compress(held, mtime=0) if packed else held)

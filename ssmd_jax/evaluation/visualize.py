"""A generation as one HTML page that plays it pass by pass, and needs nothing but a browser.

The template beside this file holds layout and script; the data are JSON inside it. Everything shown comes from the
sampler's result: a pass's rounds and NFE are those of `trace.frames`, which sum to the row's own.
"""

import dataclasses
import html
import importlib.resources
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from ssmd_jax.data.tokenizers import Tokenizer
from ssmd_jax.diffusion.window import checked_table
from ssmd_jax.evaluation import generate, report, trace
from ssmd_jax.evaluation.settings import WINDOWED, Setting
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.sampling.canvas import ACCEPTED, GIVEN, REPLACED, UNVERIFIED, SampleResult
from ssmd_jax.sampling.config import FIXED_ORDERS, SpeculativeConfig
from ssmd_jax.training.loading import released

TEMPLATE = "visualize.html"
# Where the data go: inside a script element of a type that no browser runs.
PLACEHOLDER = "__DATA__"
NAMES = {GIVEN: "given", ACCEPTED: "accepted", REPLACED: "replaced", UNVERIFIED: "unverified"}
# What only the speculative sampler reads.
VERIFIER_FIELDS = (
    "verify_rounds",
    "draft_temperature",
    "tie_first",
    "confidence_stop",
    "divergence_stop",
    "shared_noise",
)
IFRAME_HEIGHT = 720


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of HTML, which a notebook shows in a frame of its own."""

    html: str = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="A generation, pass by pass" '
            f'style="width:100%;height:{IFRAME_HEIGHT}px;border:0"></iframe>'
        )


def page(
    result: SampleResult,
    tokenizer: Tokenizer,
    setting: Setting,
    trunk_cost: float,
    verify_cost: float,
    *,
    title: str = "",
) -> Page:
    """The page that plays samples.

    Args:
        result, tokenizer, setting, trunk_cost, verify_cost: as in `content`.
        title: shown above the samples, such as the name of the run.
    """
    data = {"title": title, **content(result, tokenizer, setting, trunk_cost, verify_cost)}
    template = importlib.resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return Page(template.replace(PLACEHOLDER, script_json(data), 1))


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element, or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def content(
    result: SampleResult, tokenizer: Tokenizer, setting: Setting, trunk_cost: float, verify_cost: float
) -> dict[str, Any]:
    """What the page shows.

    Args:
        result: samples.
        tokenizer: of the model.
        setting: that they were drawn with.
        trunk_cost: NFE of a trunk pass.
        verify_cost: NFE of a verify round.

    Returns:
        JSON values: "sampler", "settings" (name and value), "trunk_cost", "verify_cost", and "samples": to each its
        "text", its totals "nfe", "trunk_passes", "verify_rounds", "accepted", "rejected", "unverified", and "passes",
        see `_passes`.
    """
    result = jax.device_get(result)
    samples = [
        {
            "text": tokenizer.decode(trace.one_row(result, tokenizer, row).tokens[0]),
            "nfe": float(result.nfe[row]),
            **{
                name: int(getattr(result, name)[row])
                for name in ("trunk_passes", "verify_rounds", "accepted", "rejected", "unverified")
            },
            "passes": _passes(result, tokenizer, setting, trunk_cost, verify_cost, row),
        }
        for row in range(len(result.tokens))
    ]
    return {
        "sampler": setting.sampler,
        "settings": _described(setting),
        "trunk_cost": trunk_cost,
        "verify_cost": verify_cost,
        "samples": samples,
    }


def _passes(
    result: SampleResult, tokenizer: Tokenizer, setting: Setting, trunk_cost: float, verify_cost: float, row: int
) -> list[dict[str, Any]]:
    """The passes of a row, the first being pass 0: what was given, which may be nothing.

    Each has its "number", "rounds", "nfe" (spent so far), "revealed" and "dropped". "revealed" lists tokens in the
    order of their tracks: position, what happened (`NAMES`), text, the draft rejected there ("" where none), and the
    verify round that settled it, from 1 within the pass (0 where none did). "dropped" lists the positions that were
    drafted too but that verification did not reach, so that they are masked again; None where the result does not
    tell: under a budget, which merges windows, and in adaptive orders, which move the masked tracks at every pass.
    """
    one = trace.one_row(result, tokenizer, row)
    order_D, status_D = one.order[0], one.status[0]
    windows = _windows(setting.config, len(order_D))
    passes, end = [], 0
    frames = list(trace.frames(result, tokenizer, trunk_cost, verify_cost, row=row))
    if not frames or frames[0].number:
        frames.insert(0, trace.Frame(0, 0, 0.0, ()))
    for frame in frames:
        start, revealed = end, []
        end = int(np.sum(one.revealed_in[0] <= frame.number))
        for track in range(start, end):
            position, status = int(order_D[track]), int(status_D[track])
            cell = frame.cells[position]
            revealed.append([position, NAMES[status], cell.text, cell.rejected, int(one.settled_in[0, track])])
        drafted_end = None if windows is None else start + int(windows[start]) if frame.number else end
        passes.append(
            {
                "number": frame.number,
                "rounds": frame.rounds,
                "nfe": frame.nfe,
                "revealed": revealed,
                "dropped": None if drafted_end is None else [int(position) for position in order_D[end:drafted_end]],
            }
        )
    return passes


def _windows(config: SpeculativeConfig, length: int) -> np.ndarray | None:
    """Tracks drafted by tokens revealed, where that and the order alone say which positions were drafted."""
    if config.budget_nfe is not None or config.order not in FIXED_ORDERS or config.confidence_stop:
        return None
    return checked_table(config.window, length)


def _described(setting: Setting) -> dict[str, str]:
    fields = {field.name: getattr(setting.config, field.name) for field in dataclasses.fields(setting.config)}
    skipped = VERIFIER_FIELDS if setting.sampler == "plain" else ()
    return {
        name.replace("_", " "): str(getattr(value, "__name__", value))
        for name, value in fields.items()
        if value is not None and name not in skipped
    }


def visualize(workdir: os.PathLike | str | None, output: os.PathLike | str, **options) -> dict[str, Any]:
    """Draws samples from a trained run and writes the page that plays them: what `launch/visualize.py` does.

    Args:
        workdir: of a training run; None for the model that comes with the package.
        output: the page's file.
        **options: as in `generate.draw`.

    Returns:
        JSON values: "output", "samples" (texts), "sampler", and those of `Generated.figures`.

    Raises:
        ValueError: for bad input, and where the output cannot be written, in one sentence.
    """
    report.check_output(output)
    if options.get("sampler", "speculative") not in WINDOWED:
        raise ValueError(f"the page shows the samplers {', '.join(WINDOWED)}, not {options['sampler']!r}")
    generated = generate.draw(workdir, **options)
    model, result = generated.model, generated.drawn.result
    made = page(
        result,
        generated.tokenizer,
        generated.setting,
        model.trunk_cost,
        model.verify_cost,
        title=pathlib.Path(os.path.abspath(os.path.expanduser(released() if workdir is None else workdir))).name,
    )
    write(made, output)
    return to_json(
        {
            "output": str(output),
            "samples": generated.texts(),
            "sampler": generated.setting.sampler,
            **generated.figures(),
        }
    )


def write(made: Page, output: os.PathLike | str) -> None:
    """Writes a page.

    Raises:
        ValueError: where the file cannot be written.
    """
    try:
        pathlib.Path(os.path.expanduser(output)).write_text(made.html, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write the output {output}: {error.strerror}") from None

"""Shows stored rollouts in a terminal: prompt, completion, reward parts, images by size and hash, coloured by advantage.

Model text is untrusted: it is never parsed as rich markup, and control characters (terminal escapes, bidirectional
overrides) are shown as visible symbols instead of being sent to the terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from llmrl.report.stored import Sample, image_size, read_samples, rollout_files

STRONG_ADVANTAGE = 1.0


def show_samples(run: Path, *, step: int | None, n: int, console: Console) -> None:
    """Print up to `n` samples of `step` (None: the latest stored one), whole groups first.

    Raises FileNotFoundError if the run or the step has no stored rollouts, ValueError for an unreadable file or n < 1.
    """
    if n < 1:
        raise ValueError(f"n={n}; ask for at least 1 sample")
    files = rollout_files(run)
    if not files:
        raise FileNotFoundError(f"{run} has no stored rollouts (rollouts/step-*.parquet)")
    chosen = max(files) if step is None else step
    if chosen not in files:
        raise FileNotFoundError(f"{run} has no rollouts of step {chosen}; stored: {step_ranges(list(files))}")
    samples = read_samples(files[chosen], step=chosen)
    console.print(
        Rule(Text(f"{visible(run.resolve().name)} · step {chosen} · {min(n, len(samples))} of {len(samples)}"))
    )
    for _, group in groupby(samples[:n], key=lambda sample: sample.prompt_id):
        siblings = list(group)
        console.print(Text(visible(siblings[0].prompt_text).rstrip(), style="dim"))
        if siblings[0].answer:
            console.print(Text.assemble(("answer ", "dim"), (visible(siblings[0].answer), "bold")))
        for sample in siblings:
            console.print(Padding(sample_panel(sample), (0, 0, 0, 2)))
        console.print()
    if len(samples) > n:
        console.print(Text(f"{len(samples) - n} more in {files[chosen]}", style="dim"))


def sample_panel(sample: Sample) -> Panel:
    """One completion in a frame whose colour is the sign and size of its advantage."""
    style = advantage_style(sample.advantage)
    body: list[Text] = [Text(visible(sample.text) or "(empty)", style=style if sample.text else "dim italic")]
    body += [Text.assemble((f"{visible(name)}: ", "dim"), visible(text)) for name, text in sample.told.items()]
    facts = [f"{name} {number(value)}" for name, value in sample.parts.items()]
    facts += [f"{sample.sampled} tokens"]
    if sample.mean_logprob is not None:
        facts.append(f"mean log-prob {number(sample.mean_logprob)}")
    facts += [f"flag {flag}" for flag in sample.flags]
    body.append(Text(visible("  ".join(facts)), style="dim"))
    for label, text in (("reason", sample.score_reason), ("status", sample.status_reason)):
        if text:
            body.append(Text.assemble((f"{label}: ", "dim"), visible(text)))
    for image in sample.images:
        size = image_size(image)
        shown = f"{size[0]}×{size[1]}" if size else "missing"
        body.append(Text(f"image {shown} {image.stem[:12]}", style="dim"))
    if sample.score_error:
        body.append(Text.assemble(("reward failed: ", "bold red"), visible(sample.score_error)))
    return Panel(Group(*body), title=_title(sample), title_align="left", border_style=style or "dim", padding=(0, 1))


def advantage_style(advantage: float | None) -> str:
    """Green for a positive advantage, red for a negative, bold beyond 1; no colour for zero or none.

    >>> advantage_style(0.4), advantage_style(-1.7), advantage_style(None)
    ('green', 'bold red', '')
    """
    if advantage is None or abs(advantage) < 1e-6:
        return ""
    colour = "green" if advantage > 0 else "red"
    return f"bold {colour}" if abs(advantage) > STRONG_ADVANTAGE else colour


def visible(text: str) -> str:
    """`text` with every control and format character but newline and tab made visible.

    >>> visible("a\\x1b[31mb\\u202ec")
    'a␛[31mb\\\\u202ec'
    """
    return "".join(_visible_char(char) for char in text)


def number(value: float | None) -> str:
    """Four significant digits, `none` for None."""
    return "none" if value is None else f"{value:.4g}"


def step_ranges(steps: Sequence[int]) -> str:
    """Sorted steps in short form.

    >>> step_ranges([1, 2, 3, 7, 9, 10])
    '1-3, 7, 9-10'
    """
    spans: list[tuple[int, int]] = []
    for step in sorted(steps):
        if spans and step == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], step)
        else:
            spans.append((step, step))
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def _visible_char(char: str) -> str:
    if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if char in "\u200d\u200c":  # joiners: part of ordinary emoji and scripts
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _title(sample: Sample) -> Text:
    title = Text(f" #{sample.sample} ")
    title.append(f"reward {number(sample.score)}", style="bold")
    title.append(f" · advantage {number(sample.advantage)}")
    if sample.status != "done":
        title.append(f" · {visible(sample.status)}", style="bold yellow")
    return title.append(" ")

"""`llmrl eval`: run benchmarks, compare two evaluations, look for contamination. Each command imports what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmrl.errors import EvalError

if TYPE_CHECKING:
    from llmrl.eval.agents import AgentOptions
    from llmrl.eval.scorers import ScorerSpec

app = typer.Typer(no_args_is_help=True, help="Evaluate checkpoints on benchmarks, with honest intervals.")

Environments = Annotated[
    list[str] | None,
    typer.Option(help="play an environment instead: name, recipe, or '{name: ..., args: ...}'; may be repeated"),
]
Engine = Annotated[Literal["auto", "vllm", "hf", "native"], typer.Option(help="auto: vllm, or the faster with --env")]
DataDir = Annotated[Path | None, typer.Option(help="local copies of the benchmarks", envvar="LLMRL_DATA")]

# The exit codes of `llmrl train`.
EXIT_FAILED = 1  # the disk failed; what is finished is kept
EXIT_FOUND = 3  # contamination was found: a limit was passed
EXIT_STOPPED = 130  # Ctrl-C; what is finished is kept


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    model: Annotated[list[str] | None, typer.Option(help="folder, hub id, catalog name, run; may be repeated")] = None,
    tasks: Annotated[str, typer.Option(help="names or task files, joined by commas: gsm8k,math500,mine.yaml")] = "",
    out: Annotated[Path | None, typer.Option(help="folder for results (default: evals/<model>)")] = None,
    samples: Annotated[int | None, typer.Option(help="completions per question")] = None,
    limit: Annotated[int | None, typer.Option(help="ask this many questions of each task")] = None,
    first: Annotated[bool, typer.Option("--first", help="with --limit: the first ones, not a fixed subset")] = False,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy, the default for one sample")] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int, typer.Option()] = -1,
    min_p: Annotated[float, typer.Option()] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(help="longest completion")] = None,
    seed: Annotated[int, typer.Option(help="what is sampled depends on it alone")] = 0,
    mode: Annotated[Literal["chat", "plain"] | None, typer.Option(help="default: what the model can")] = None,
    shots: Annotated[int | None, typer.Option(help="worked examples before the question")] = None,
    system: Annotated[str | None, typer.Option(help="system message (chat mode)")] = None,
    template: Annotated[str | None, typer.Option(help="prompt template, such as '{problem} Answer:'")] = None,
    data_dir: DataDir = None,
    engine: Engine = "auto",
    engines: Annotated[int | None, typer.Option(help="engines side by side (default: one per GPU)", min=1)] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(help="URL of an OpenAI-compatible server to ask instead; may be repeated")
    ] = None,
    k: Annotated[list[int] | None, typer.Option(help="report pass@k at this k too; may be repeated")] = None,
    scorer: Annotated[
        list[str] | None, typer.Option(help="likelihood, or the import path of a reward; may be repeated")
    ] = None,
    scorer_args: Annotated[
        list[str] | None, typer.Option(help="its arguments, such as '{model: folder}'; one per --scorer, in order")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="best_of_n, weighted_vote, majority (default with a scorer: these), critique"),
    ] = None,
    strategy_args: Annotated[
        str, typer.Option(help="arguments of a strategy that asks again, such as '{rounds: 2}'")
    ] = "{}",
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"], typer.Option(help="auto: the faster here")
    ] = "auto",
    max_length: Annotated[int | None, typer.Option(help="prompt plus completion, in tokens")] = None,
    max_sequences: Annotated[int, typer.Option(help="requests that run at once")] = 128,
    checkpoints: Annotated[str | None, typer.Option(help="of a run: all, or steps: 50,100 (default: the last)")] = None,
    env: Environments = None,
    levels: Annotated[int, typer.Option(help="with --env: levels of each", min=1)] = 100,
    restart: Annotated[bool, typer.Option("--restart", help="throw earlier results of the same --out away")] = False,
) -> None:
    """Evaluate models: llmrl eval --model smollm2-135m --tasks gsm8k,math500 --samples 8. Stopped, it resumes."""
    if context.invoked_subcommand is not None:
        return
    with _errors():
        names = _checked(model or [], tasks, env or [], checkpoints)
        if env:
            from llmrl.eval.agents import AgentOptions

            played = AgentOptions(
                levels=levels, samples=samples or 1, seed=seed, temperature=temperature or 0.0,
                max_tokens=max_tokens or 128, max_length=max_length, engine=engine, dtype=dtype,
            )  # fmt: skip
            _agents(model or [], env, out or Path("evals") / "agents", played, checkpoints)
            return
        if engine == "native":
            raise EvalError("--engine native plays environments; give --env, or --engine vllm or hf")
        from llmrl.eval.evaluate import Options, evaluate_all

        options = Options(
            samples=samples, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_tokens=max_tokens,
            seed=seed, mode=mode, shots=shots, system=system, template=template, limit=limit, first=first,
            data_dir=data_dir, engine="vllm" if engine == "auto" else engine, engines=engines, dtype=dtype,
            max_length=max_length, max_sequences=max_sequences, restart=restart,
            endpoints=tuple(url for part in endpoint or () for url in part.split(",") if url),
            ks=tuple(k or ()), scorers=_scorers(scorer or [], scorer_args or []),
            strategies=tuple(strategy or ()), strategy_args=_arguments("--strategy-args", strategy_args),
        )  # fmt: skip
        with _progress() as progress:
            done = evaluate_all(
                model or [], names, out=out, options=options, checkpoints=checkpoints, progress=progress, say=_say
            )
        _show(done)


def _checked(model: list[str], tasks: str, env: list[str], checkpoints: str | None) -> list[str]:
    """The names of the tasks. Mistakes in names are told here, before torch is imported."""
    from llmrl.eval.environments import find_environment
    from llmrl.eval.models import find_models
    from llmrl.eval.tasks import find_task

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not model:
        raise EvalError("no model; give --model with a folder, a hub id, a catalog name or a run")
    for text in model:
        find_models(text, checkpoints=checkpoints)
    for name in names:
        find_task(name)
    for text in env:
        find_environment(text)
    if env and names:
        raise EvalError("--env and --tasks are two evaluations; run them one after the other")
    return names


def _agents(model: list[str], env: list[str], out: Path, options: AgentOptions, checkpoints: str | None) -> None:
    """Models in environments: a table, and filmstrips in the report."""
    from llmrl.eval.agents import agents_table, evaluate_agents

    typer.echo(agents_table(evaluate_agents(model, env, out=out, options=options, checkpoints=checkpoints, say=_say)))
    _say(f"wrote {out}/agents.json, report.md and report.html")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="--out folder of model A")],
    b: Annotated[Path, typer.Argument(help="--out folder of model B")],
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
) -> None:
    """Is A different from B? Paired on the questions that both asked."""
    with _errors():
        from llmrl.eval.compare import compare as compare_folders
        from llmrl.eval.tables import comparison_table

        found = compare_folders(a, b, seed=seed)
        typer.echo(comparison_table(found, a.name, b.name) + "\n")
        for item in found:
            typer.echo(item.sentence(a.name, b.name))
        if len(found) > 1:
            typer.echo(f"({len(found)} tests at 5 %: about {0.05 * len(found):.2g} would call equal models different)")
        for item in found:
            for warning in item.warnings:
                _say(f"{item.task}: {warning}")
            if item.only_a or item.only_b:
                _say(f"{item.task}: {item.only_a} questions only in A and {item.only_b} only in B are left out")


@app.command()
def contamination(
    tasks: Annotated[str, typer.Option(help="benchmarks, joined by commas")],
    training: Annotated[Path, typer.Option(help="training data: .jsonl, .json or .parquet")],
    column: Annotated[str | None, typer.Option(help="its column (default: prompt, problem or question)")] = None,
    data_dir: DataDir = None,
    n: Annotated[int, typer.Option(help="words of an n-gram")] = 13,
    threshold: Annotated[float, typer.Option(help="share of a question's n-grams that flags it")] = 0.5,
) -> None:
    """Which benchmark questions occur in the training data? Exits with 3 if any does."""
    with _errors():
        from llmrl.eval.contamination import check_tasks
        from llmrl.eval.tables import contamination_table

        names = [name.strip() for name in tasks.split(",") if name.strip()]
        found = check_tasks(names, str(training), column=column, data_dir=data_dir, n=n, threshold=threshold)
        typer.echo(contamination_table(found))
    if any(item.overlaps for item in found):
        raise typer.Exit(EXIT_FOUND)


@app.command()
def tasks(data_dir: DataDir = None) -> None:
    """List the benchmarks with their defaults, and whether --data-dir holds them."""
    with _errors():
        from llmrl.eval.tables import tasks_table

        typer.echo(tasks_table(data_dir))


@app.command()
def schema() -> None:
    """Print the JSON Schema of results.json."""
    import json

    from llmrl.eval.results import Results

    typer.echo(json.dumps(Results.model_json_schema(), indent=2))


@app.command()
def report(folders: Annotated[list[Path], typer.Argument(help="--out folders of one or more evaluations")]) -> None:
    """Write report.md and report.html into the first folder, over the results of all."""
    with _errors():
        from llmrl.eval.report import write_reports

        for path in write_reports(folders):
            _say(f"wrote {path}")


@contextmanager
def _errors() -> Iterator[None]:
    """Known problems become one message and an exit code; anything else is a bug and keeps its traceback."""
    from llmrl.errors import LlmrlError

    try:
        yield
    except LlmrlError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"{type(error).__name__}: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        _fail("stopped; finished questions are kept, the same command goes on from there", EXIT_STOPPED)


def _fail(message: str, code: int) -> None:
    typer.secho(f"error: {message}", err=True, fg=typer.colors.RED)
    raise typer.Exit(code) from None


def _say(message: str) -> None:
    typer.secho(message, err=True)


def _scorers(paths: list[str], arguments: list[str]) -> tuple[ScorerSpec, ...]:
    from llmrl.eval.scorers import ScorerSpec

    if len(arguments) > len(paths):
        raise EvalError(
            f"{len(arguments)} --scorer-args for {len(paths)} --scorer; give one per scorer, in their order"
        )
    return tuple(
        ScorerSpec(path=path, args=_arguments("--scorer-args", text))
        for path, text in zip_longest(paths, arguments, fillvalue="{}")
    )


def _arguments(option: str, text: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise EvalError(f"{option} {text!r} is not readable as YAML; write it like '{{model: folder}}'") from error
    if not isinstance(content, dict):
        raise EvalError(f"{option} {text!r} holds no names and values; write it like '{{model: folder}}'")
    return content


@contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[int, int, float | None], None]]]:
    """A bar per task with the running score."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def start(name: str) -> Callable[[int, int, float | None], None]:
            bar = bars.add_task(name, score="")

            def update(done: int, of: int, score: float | None) -> None:
                shown = "" if score is None else f"score {100 * score:.1f}"
                bars.update(bar, completed=done, total=of, score=shown)

            return update

        yield start


def _show(done: list[tuple[Path, Any]]) -> None:
    from llmrl.eval.tables import learning_table, strategies_table, summary_table, warnings

    many = [results for _, results in done]
    typer.echo(summary_table(many))
    if curve := learning_table(many):
        typer.echo("\n" + curve)
    for folder, results in done:
        for task in results.tasks:
            if task.strategies:
                typer.echo(f"\n{results.model} on {task.task}, choosing among samples:\n\n{strategies_table(task)}")
            for warning in warnings(task):
                _say(f"{results.model} on {task.task}: {warning}")
        _say(f"wrote {folder}/results.json, report.md and report.html")

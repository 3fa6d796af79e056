"""A recipe's data section -> rows: from generators, files or the hub, mapped, shuffled, limited, split, checked."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from llmrl.data import attempts
from llmrl.data.files import is_file_source, read_files, top_folder
from llmrl.data.generators import GENERATORS, RawRow, is_generator
from llmrl.data.gym import PREFIX, gym_rows
from llmrl.data.programming import is_programming, programming_rows
from llmrl.data.rows import Row, check_disjoint, is_held_out, make_row
from llmrl.errors import DataError
from llmrl.nearest import closest, nearest
from llmrl.seeding import generator
from llmrl.settings.data import DataConfig, EvalDataConfig, shares
from llmrl.settings.explain import plain_message

DEFAULT_GENERATED = 4096  # rows a generator makes when the recipe sets no limit, or fewer if there are fewer problems
Shape = Callable[[Mapping[str, str]], Callable[[Any, str], Any]]  # data.columns -> (record, its place) -> record
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MISSES = 20  # a generator counts as exhausted after so many draws a row without a new problem (at least 2,000)


def load_rows(config: DataConfig, *, seed: int, shape: Shape | None = None) -> list[Row]:
    """All rows that `config`, which has one source, asks for. The same config and seed give the same list.

    Rows are shuffled (if `config.shuffle`) before the limit is applied. `shape` changes a stored record, which comes
    with its place, before its columns are read. Raises DataError: unknown source, missing file,
    malformed row (file, line, reason), no rows at all, or fewer than `limit` problems in a generator.
    """
    if is_generator(config.source):
        return _generated(config, seed)
    if config.source.startswith(attempts.PREFIX):
        return _attempts(config, seed)
    if config.args and not is_programming(config.source) and (is_file_source(config.source) or "/" in config.source):
        raise DataError(
            f"data.args={config.args} are knobs of a generator, and {config.source!r} is none; set data.args={{}}"
        )
    rows = list(_stored(config, shape))
    if not rows:
        raise DataError(f"{config.source} holds no rows")
    _check_ids(rows)
    return _drawn(rows, config, seed)


def _attempts(config: DataConfig, seed: int) -> list[Row]:
    """Attempts with known correctness; see llmrl/data/attempts.py."""
    if unknown := set(config.args) - {"balance"}:
        raise DataError(f"data.args of {config.source}: {nearest(unknown.pop(), ['balance'])}")
    plain = config.model_copy(update={"source": config.source.removeprefix(attempts.PREFIX), "args": {}})
    whole = plain.model_copy(update={"limit": None, "shuffle": False})
    rows = load_rows(whole, seed=seed, shape=lambda _: attempts.attempt_record)
    return _drawn(attempts.balanced(rows, seed=seed) if config.args.get("balance") else rows, config, seed)


def each_source(train: DataConfig, held_out: EvalDataConfig) -> dict[str, tuple[DataConfig, EvalDataConfig]]:
    """Every source of `train` by name, and where its held-out problems come from: of `held_out.n` as many as its weight
    says, unless it says something else.
    """
    if not train.sources:
        return {"": (train, held_out)}
    counts = shares(held_out.n, list(train.weights.values())) if held_out.n else [None] * len(train.sources)
    drawn = [held_out.model_copy(update={"n": count and max(1, count)}) for count in counts]
    return {
        name: (own, source.eval or default)
        for (name, own), source, default in zip(train.each().items(), train.sources, drawn, strict=True)
    }


def held_out_config(held_out: EvalDataConfig, train: DataConfig) -> DataConfig:
    """The full configuration of the held-out data, given that of the training data, which has one source.

    A source of its own does not inherit split, subset, args and columns, which describe the other source.
    """
    own_source = held_out.source is not None and held_out.source != train.source
    describing = {"split", "subset", "args", "columns"}
    kept = {} if own_source else {name: getattr(train, name) for name in describing}
    if is_generator(held_out.source or train.source):
        kept["split"] = "held_out"
    elif own_source:
        kept["split"] = "test"
    kept |= {name: getattr(train, name) for name in ("source", "template", "system", "chat", "max_prompt_tokens")}
    said = {name: value for name, value in held_out if value is not None and name not in ("n", "seed")}
    return DataConfig(**(kept | said), limit=held_out.n, shuffle=True)


def load_train_eval(
    train: DataConfig, held_out: EvalDataConfig | None, *, seed: int, shape: Shape | None = None
) -> tuple[list[Row], list[Row]]:
    """(training rows, held-out rows), disjoint by problem identity, of every source; without `held_out` all rows train.

    If both come from one file or hub split, a tenth of its problems, chosen by a hash of the problem and of nothing
    else, is held out. Two different sources are loaded as they are. Either way disjointness is checked: DataError.
    """
    found: tuple[list[Row], list[Row]] = ([], [])
    for name, (own, its_held_out) in each_source(train, held_out or EvalDataConfig()).items():
        try:
            parts = _train_eval(own, its_held_out if held_out else None, seed=seed, shape=shape)
        except DataError as error:
            raise DataError(f"data source {name}: {error}" if name else str(error)) from error
        for whole, part in zip(found, parts, strict=True):
            whole += [replace(row, id=f"{name}/{row.id}", source=name) for row in part] if name else part
    check_disjoint(*found)
    return found


def _train_eval(
    train: DataConfig, held_out: EvalDataConfig | None, *, seed: int, shape: Shape | None
) -> tuple[list[Row], list[Row]]:
    if held_out is None:
        return load_rows(train, seed=seed, shape=shape), []
    evaluation = held_out_config(held_out, train)
    stored = not is_generator(train.source)
    if stored and (evaluation.source, evaluation.subset, evaluation.split) == (train.source, train.subset, train.split):
        rows = load_rows(train.model_copy(update={"limit": None, "shuffle": False}), seed=seed, shape=shape)
        train_rows = _drawn([row for row in rows if not is_held_out(row.identity)], train, seed)
        eval_rows = _drawn([row for row in rows if is_held_out(row.identity)], evaluation, held_out.seed)
        for part, name in ((train_rows, "to train on"), (eval_rows, "held out")):
            if not part:
                raise DataError(
                    f"a tenth of {train.source} is held out, and its {len(rows)} rows left none {name}; add rows, name "
                    "other ones in eval.data.source, or train without held-out problems (eval: off)"
                )
    else:
        train_rows = load_rows(train, seed=seed, shape=shape)
        eval_rows = load_rows(evaluation, seed=held_out.seed, shape=shape)
    return train_rows, eval_rows


def is_remote(train: DataConfig, held_out: EvalDataConfig | None = None) -> bool:
    """Whether some of the rows are fetched from a hub."""
    both = each_source(train, held_out or EvalDataConfig()).values()
    named = [config.source for own, its_held_out in both for config in (own, held_out_config(its_held_out, own))]
    return any("/" in source and not (is_generator(source) or is_file_source(source)) for source in named)


def _check_ids(rows: list[Row]) -> None:
    origins: dict[str, str] = {}
    for row in rows:
        if row.id in origins:
            raise DataError(f"{row.origin} has the id {row.id!r}, which {origins[row.id]} has too; ids must differ")
        origins[row.id] = row.origin


def _drawn(rows: list[Row], config: DataConfig, seed: int) -> list[Row]:
    rows = list(rows)
    if config.shuffle:
        generator(seed, "rows").shuffle(rows)
    return rows[: config.limit]


def _generated(config: DataConfig, seed: int) -> list[Row]:
    return list(_problems(config.model_dump_json(), seed))


@lru_cache(maxsize=8)  # a stage and the run after it often have the same problems
def _problems(config_json: str, seed: int) -> tuple[Row, ...]:
    """Distinct problems of the wanted part, in the order of their index."""
    config = DataConfig.model_validate_json(config_json)
    if config.split not in ("train", "held_out"):
        raise DataError(f"split={config.split!r} of generator {config.source}: use train or held_out")
    make = _row_maker(config, seed)
    wanted = config.limit or DEFAULT_GENERATED
    rows: list[Row] = []
    seen: set[tuple[str, object]] = set()
    misses = 0
    for index in count():
        if len(rows) == wanted or misses > max(2000, MISSES * len(rows)):
            break
        place = f"{config.source} #{index} (seed {seed})"
        record = make(index)
        identity = str(record["identity"])
        known = (identity, record.get("variant"))  # variants of a problem are kept side by side, in one part
        if known in seen or is_held_out(identity) != (config.split == "held_out"):
            misses += 1
            continue
        misses = 0
        seen.add(known)
        rows.append(
            make_row(
                record, columns=config.columns, origin=place, default_id=place, identity=identity,
                template=config.template,
            )
        )  # fmt: skip
    if not rows or (config.limit and len(rows) < config.limit):
        raise DataError(
            f"{config.source}({_shown(config.args)}) has only {len(rows)} different {config.split} problems, "
            f"{wanted} were asked for; make it harder or lower the number"
        )
    return tuple(rows)


def _row_maker(config: DataConfig, seed: int) -> Callable[[int], RawRow]:
    if config.source.startswith(PREFIX):
        return gym_rows(config.source, config.args, seed)
    make = GENERATORS[config.source]
    _check_knobs(config.source, make, config.args)
    return lambda index: make(seed, index, **config.args)


def _shown(args: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in args.items())


def _check_knobs(name: str, make: Callable[..., Any], args: dict[str, Any]) -> None:
    knobs = [item.name for item in inspect.signature(make).parameters.values() if item.kind is item.KEYWORD_ONLY]
    kinds = get_type_hints(make)
    for knob, value in args.items():
        if knob not in knobs:
            raise DataError(f"generator {name} has no knob {knob!r}; {nearest(knob, knobs)}")
        try:
            TypeAdapter(kinds[knob]).validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
        except ValidationError as error:
            what = plain_message(error.errors()[0])
            raise DataError(f"knob {knob} of generator {name} {what}") from error


def _stored(config: DataConfig, shape: Shape | None) -> Iterator[Row]:
    folder = None
    if is_programming(config.source):
        records = _programming(config)
    elif is_file_source(config.source):
        records, folder = read_files(config.source), top_folder(config.source)
    elif HUB_ID.fullmatch(config.source):
        records = _hub(config)
    elif Path(config.source).expanduser().is_dir():
        raise DataError(f"{config.source} is a folder; name its files, for example {config.source.rstrip('/')}/*.jsonl")
    else:
        close = closest(config.source, GENERATORS)
        guess = f" (did you mean {close!r}?)" if close else ""
        raise DataError(
            f"unknown data source {config.source!r}{guess}: it may be a generator ({', '.join(GENERATORS)}), "
            "a .jsonl, .json or .parquet file, attempts:file, or a hub id such as org/name"
        )
    shaped = shape(config.columns) if shape else None
    for place, default_id, record in records:
        record = shaped(record, place) if shaped else record
        yield make_row(
            record, columns=config.columns, origin=place, default_id=default_id, template=config.template, folder=folder
        )


def _programming(config: DataConfig) -> Iterator[tuple[str, str, Any]]:
    _check_knobs(config.source, programming_rows, config.args)
    path = config.source.partition(":")[2]
    hub = HUB_ID.fullmatch(path) and not Path(path).expanduser().exists()
    stored = _hub(config.model_copy(update={"source": path})) if hub else None
    return programming_rows(config.source, config.split, stored, **config.args)


def _hub(config: DataConfig) -> Iterator[tuple[str, str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(config.source, config.subset, split=config.split)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"{config.source} (subset {config.subset}, split {config.split})"
        raise DataError(f"could not load data set {where}: {type(error).__name__}: {error}") from error
    for number, record in enumerate(loaded):
        yield f"{config.source} [{config.split}] row {number}", f"{config.source}/{config.split}/{number}", record

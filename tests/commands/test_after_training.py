"""What comes after training: chat, export, serve, compare, sweep, watch, on runs of a tiny model."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from llmrl.cli import app
from llmrl.commands.chat import Conversation, run
from llmrl.commands.serve import server_command
from llmrl.commands.sweep import combinations, command, over_seeds
from llmrl.commands.watch import report_server
from llmrl.errors import ConfigError
from llmrl.report.compare import differences, paired
from llmrl.report.read import read_run
from llmrl.settings.model import ModelConfig
from llmrl.train.checkpoint import checkpoints
from tests.tiny import random_model, save_model
from tests.train.test_runs import recipe, trained

TOKENS = torch.tensor([[5, 77, 120, 9, 30, 200, 41]])


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A run with an adapter and one without, over the same held-out problems."""
    folder = tmp_path_factory.mktemp("after")
    model = save_model(folder / "model", random_model())
    found = []
    for name, lora in (("adapted", {"r": 4}), ("whole", None)):
        made = recipe(folder, model, steps=1, rollout={"engine": "native"}, name=name)
        config = ModelConfig(path=str(model), dtype="float32", max_length=128, lora=lora)
        made = made.model_copy(update={"model": config})
        trained(made)
        found.append(made.run_dir)
    return found


def invoke(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def policy(run_dir):
    return AutoModelForCausalLM.from_pretrained(checkpoints(run_dir)[-1] / "policy")


def test_an_exported_folder_is_the_policy_with_a_card_of_recipe_and_results(two_runs, tmp_path):
    invoke("export", two_runs[0], "--out", tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(policy(two_runs[0])))
    assert not (tmp_path / "out" / "adapter").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "held-out accuracy after | " in card and "%]" in card and "clip_low" not in card and "lr: 0.001" in card


def test_an_exported_adapter_fits_its_base_model(two_runs, tmp_path):
    from peft import PeftModel

    invoke("export", two_runs[0], "--adapter", "--out", tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(two_runs[0].parent / "model")
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    torch.testing.assert_close(logits(adapted), logits(policy(two_runs[0])), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter"], "holds no adapter"),
        (["--to", "hub"], "--repo org/name belong together"),
        (["--repo", "a/b"], "--repo org/name belong together"),
        (["--to", "gguf", "--adapter"], "leave --adapter out"),
        (["--step", "7"], "no checkpoint of step 7"),
    ],
)
def test_what_cannot_be_exported_says_why(two_runs, arguments, message):
    done = CliRunner().invoke(app, ["export", str(two_runs[1]), *arguments])
    assert message in str(done.exception)


def test_an_export_does_not_replace_somebody_elses_folder(two_runs, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("thesis.tex", "README.md"):
        (tmp_path / "mine" / name).write_text("...")
        done = CliRunner().invoke(app, ["export", str(two_runs[1]), "--out", str(tmp_path / "mine")])
        assert "is not empty" in str(done.exception) and (tmp_path / "mine" / "thesis.tex").exists()
    for _ in range(2):  # its own place in the run folder is written again
        assert invoke("export", two_runs[1]).strip() == str(two_runs[1] / "export" / "policy")


def test_a_hub_that_cannot_be_reached_is_a_message(two_runs):
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "llmrl", "export", str(two_runs[1]), "--to", "hub", "--repo", "me/mine"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "could not be uploaded to me/mine" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore")  # transformers' reader of GGUF files
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("precision", ["f32", "q8_0"])
def test_a_gguf_file_gives_the_models_logits_and_tokens_to_another_reader(kind, precision, two_runs, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(two_runs[1], run_dir)
    width = 128 if kind == "qwen3" else 32  # transformers reads no other width of a qwen3 file
    model = random_model(kind, num_attention_heads=4, num_key_value_heads=2, hidden_size=128, head_dim=width)
    save_model(checkpoints(run_dir)[-1] / "policy", model)
    invoke("export", run_dir, "--to", "gguf", "--precision", precision, "--out", tmp_path / "m.gguf")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    exact = {"f32": 1e-4, "q8_0": 0.5}[precision]
    torch.testing.assert_close(logits(again), logits(model), rtol=exact, atol=exact)
    stored = {name: field.contents() for name, field in GGUFReader(tmp_path / "m.gguf").fields.items()}
    tokenizer = AutoTokenizer.from_pretrained(two_runs[1].parent / "model")
    assert stored["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(261))
    assert stored["tokenizer.chat_template"] == tokenizer.chat_template
    assert stored["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id


def test_a_conversation_remembers_its_turns_and_answers_as_generate_does(two_runs):
    model, tokenizer = (
        policy(two_runs[1]).eval(),
        AutoTokenizer.from_pretrained(checkpoints(two_runs[1])[-1] / "policy"),
    )
    talk = Conversation(model, tokenizer, system="Be brief.", temperature=0.0, max_tokens=6)
    said = io.StringIO()
    run(talk, ["Hello", "And?", "/nonsense", "/quit", "never"], Console(file=said, width=300))
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2
    assert [turn["content"] for turn in talk.turns][::2] == ["Hello", "And?"]
    seen = [{"role": "system", "content": "Be brief."}, *talk.turns[:3]]
    tokens = tokenizer.apply_chat_template(seen, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        made = model.generate(**tokens, do_sample=False, max_new_tokens=6)[0, tokens["input_ids"].shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True) == talk.turns[3]["content"]
    assert talk.turns[3]["content"] in said.getvalue() and "/reset starts over" in said.getvalue()


def test_a_conversation_that_fills_the_models_context_says_so(two_runs):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints(two_runs[1])[-1] / "policy")
    talk = Conversation(policy(two_runs[1]).eval(), tokenizer, temperature=0.0, max_tokens=400, length=20)
    assert "".join(talk.answer("Hi")) and len(talk.turns) == 2
    assert "/reset starts over" in "".join(talk.answer("and once more")) and len(talk.turns) == 2


def test_a_conversation_starts_over_and_changes_its_system_prompt_and_temperature():
    talk = Conversation(None, None, turns=[{"role": "user", "content": "x"}])
    run(talk, ["/system Speak French.", "/temperature 0.2"], Console(file=io.StringIO()))
    assert (talk.turns, talk.system, talk.temperature) == ([], "Speak French.", 0.2)
    run(talk, ["/system"], Console(file=io.StringIO()))
    assert talk.system is None


def test_the_server_is_vllms_on_loopback_with_the_runs_length(two_runs):
    shown = invoke("serve", two_runs[0], "--show", "--port", "9000")
    for part in ("vllm.entrypoints.openai.api_server", "--host 127.0.0.1", "--port 9000", "--max-model-len 128",
                 "--served-model-name adapted", f"{checkpoints(two_runs[0])[-1]}/policy"):  # fmt: skip
        assert part in shown
    extra = server_command("m", name="m", host="127.0.0.1", port=1, length=None, extra=["--seed", "3"])
    assert extra[-2:] == ["--seed", "3"] and "--max-model-len" not in extra


def test_runs_are_compared_problem_by_problem(two_runs, tmp_path, monkeypatch):
    said = invoke("compare", *two_runs, "--plot", tmp_path / "c.png")
    assert "6 problems" in " ".join(said.split()) or "6" in said
    assert (tmp_path / "c.png").stat().st_size > 1000
    found = differences([read_run(one) for one in two_runs])
    assert "model.lora" in found or "model.lora.r" in found
    assert not any(key in found for key in ("name", "train.lr"))
    solved = [{"a": True, "b": True, "c": False}, {"a": True, "b": False, "d": True}]
    for number, one in enumerate(solved):
        (tmp_path / str(number) / "evals").mkdir(parents=True)
        lines = "".join(json.dumps({"id": name, "solved": done}) + "\n" for name, done in one.items())
        (tmp_path / str(number) / "evals" / "step-000001.jsonl").write_text(lines)
    count, sides = paired(tmp_path / "0", tmp_path / "1", lambda b, a: (list(b), list(a)))
    assert (count, sides) == (2, ([1.0, 0.0], [1.0, 1.0]))  # the second run's side comes first


def test_a_sweep_names_its_runs_and_knows_what_is_left(tmp_path):
    trials = list(combinations("x", ["train.lr=1e-5,2e-5", "rollout.stop=['a,b']"], 2))
    assert [trial.name for trial in trials] == ["x-lr1e-5-s0", "x-lr1e-5-s1", "x-lr2e-5-s0", "x-lr2e-5-s1"]
    assert trials[3].overrides == ["train.lr=2e-5", "rollout.stop=['a,b']", "seed=1", "name=x-lr2e-5-s1"]
    first, begun, unsaved, new = trials
    for trial in (first, begun, unsaved):
        (tmp_path / trial.name).mkdir()
        (tmp_path / trial.name / "recipe.yaml").write_text("")
    (tmp_path / first.name / "summary.json").write_text('{"status": "finished"}')
    (tmp_path / begun.name / "checkpoints" / "step-000001").mkdir(parents=True)
    made = [command(Path("r.yaml"), trial, tmp_path) for trial in (first, begun, unsaved, new)]
    assert made[0] is None
    assert [one[-1] for one in made[1:]] == ["--resume", "--fresh", "name=x-lr2e-5-s1"]


@pytest.mark.parametrize("wrong", ["train.lr", "seed=1,2", "name=a,b"])
def test_a_sweep_over_nothing_or_over_its_own_names_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"section\.key=value|sets .* itself"):
        list(combinations("x", [wrong], 1))


def test_an_interval_over_seeds_is_students_and_no_narrower_than_a_runs_own():
    assert over_seeds([]) == "–"
    assert over_seeds([(0.5, [0.4, 0.6])]) == "50.0%  [40.0%, 60.0%]"
    assert over_seeds([(0.5, [0.4, 0.6]), (0.5, [0.4, 0.6])]) == "50.0%  [40.0%, 60.0%]"
    # mean 0.5, deviation 0.1, three runs: 4.303 * 0.1 / sqrt(3) = 0.248
    assert over_seeds([(v, [v - 0.01, v + 0.01]) for v in (0.4, 0.5, 0.6)]) == "50.0%  [25.2%, 74.8%]"


def test_the_report_of_a_run_is_served_fresh_to_this_machine_only(two_runs):
    server = report_server(two_runs[0], port=0, every=7)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.headers["Refresh"] == "7" and answer.headers["Cache-Control"] == "no-store"
            assert "<title>adapted" in answer.read().decode()
        for path, host, code in (("/", "evil.example", 403), ("/recipe.yaml", "127.0.0.1", 404)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(urllib.request.Request(address + path, headers={"Host": host}), timeout=30)
            caught.value.close()  # it holds the connection
            assert caught.value.code == code
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""The search of critic sampling: which programs become which requests, what they cost, and where it stops."""

from dataclasses import dataclass, field

import pytest

from llmrl.rollout.critic_sampling import CriticSampling, Program, Verdict, plain, problem_of, repair_message
from llmrl.types import Completion, Prompt, Sampling, Status

END = 0
SAMPLING = Sampling(max_tokens=6, temperature=1.0)


def encoded(text):
    return tuple(text.encode())


@dataclass
class Desk:
    """Programs are texts, tokens their bytes. A program passes if it starts with "ok"; the critic likes "!" best."""

    says: str = "ok!bc"
    critic: bool = True
    ends: frozenset[int] = frozenset({END})
    asked: list = field(default_factory=list)
    tests: int = 0

    def ask(self, requests, *, repair):
        self.asked += [(request, repair) for request in requests]
        said = [self.says[: request.sampling.max_tokens] for request in requests]
        tokens = [(*encoded(text), END) for text in said]
        return [
            Completion(tokens=own, logprobs=(0.0,) * len(own), text=text, status=Status.done())
            for own, text in zip(tokens, said, strict=True)
        ]

    def test(self, programs):
        self.tests += len(programs)
        return [(text.startswith("ok"), f"wrong: {text}") for _, text in programs]

    def judge(self, programs):
        if not self.critic:
            return None
        liked = [[0.9 if token == ord("!") else 0.3 for token in own] for _, own in programs]
        return [Verdict(prefixes=row, whole=sum(row)) for row in liked]

    def decode(self, tokens):
        return bytes(token for token in tokens if token != END).decode()

    def render(self, prompt, message):
        return (*encoded(message), 1)


def prompt_of(name):
    return Prompt(id=name, tokens=(7, 8), text=f"problem {name}")


def pool(*texts):
    return [Program(tokens=encoded(text), text=text, spent=len(text)) for text in texts]


def test_a_passing_program_is_continued_from_its_best_prefix():
    desk = Desk(says="xy")
    (found,) = CriticSampling().search([prompt_of("a")], [pool("ok!bc", "no")], desk, sampling=SAMPLING, seed=0)
    assert [request.tokens for request, _ in desk.asked] == [(7, 8, *encoded("ok!"))] * 2  # the one seed, twice
    assert len({request.sampling.seed for request, _ in desk.asked}) == 2
    assert all(request.sampling.max_tokens == 3 and not repair for request, repair in desk.asked)
    assert [program.text for program in found] == ["ok!xy", "ok!xy"] and all(p.passed for p in found)
    assert [(program.kept, program.kind) for program in found] == [(3, "refined")] * 2
    assert [program.spent for program in found] == [5 + 3, 2 + 3]  # the end of sequence was generated too
    assert all(program.tokens == encoded("ok!xy") for program in found)  # and is no part of the program


def test_with_chop_a_seed_ends_where_failing_is_likelier():
    desk = Desk(says="xy")
    CriticSampling(chop=True).search([prompt_of("a")], [pool("ok!bc")], desk, sampling=SAMPLING, seed=0)
    assert desk.asked[0][0].tokens == (7, 8)  # "o" is likelier to fail


def test_where_nothing_passes_the_likeliest_failing_programs_are_repaired():
    desk, prompt = Desk(says="ok"), prompt_of("a")
    (found,) = CriticSampling(failing=2).search(
        [prompt], [pool("a", "b!", "c!!", "d")], desk, sampling=SAMPLING, seed=0
    )
    shown = [repair_message(problem_of(prompt), text, f"wrong: {text}") for text in ("c!!", "c!!", "b!", "b!")]
    assert [request.tokens for request, _ in desk.asked] == [(*encoded(text), 1) for text in shown]
    assert all(repair and request.sampling.max_tokens == 6 for request, repair in desk.asked)
    assert [program.kind for program in found] == ["repaired"] * 4 and all(program.passed for program in found)


def test_rounds_repair_and_then_refine():
    desk = Desk(says="ok!bc")
    (found,) = CriticSampling(rounds=2).search([prompt_of("a")], [pool("no", "na")], desk, sampling=SAMPLING, seed=0)
    assert [repair for _, repair in desk.asked] == [True, True, False, False]
    assert [program.text for program in found] == ["ok!ok!"] * 2  # what is left after the seed is 3 tokens
    assert [program.spent for program in found] == [2 + 6 + 4] * 2
    assert desk.tests == 6


@pytest.mark.parametrize("switch", ["refine", "repair"])
def test_what_is_switched_off_stays_as_it_is(switch):
    text = "ok!" if switch == "refine" else "no"
    desk, first = Desk(), [pool(text)]
    (found,) = CriticSampling(**{switch: False}).search([prompt_of("a")], first, desk, sampling=SAMPLING, seed=0)
    assert desk.asked == [] and found[0].text == text and found[0].passed is (text == "ok!")


def test_the_budget_counts_every_token_and_is_never_passed():
    for budget, made in ((24, 2), (23, 1), (12, 0)):
        desk = Desk(says="xyzxyzxyz")
        first = [pool("no", "na", "ne", "ni", "nu", "ny")]  # 12 tokens
        (found,) = CriticSampling(budget=budget, rounds=3).search(
            [prompt_of("a")], first, desk, sampling=SAMPLING, seed=0
        )
        # A repair may cost 6 tokens, and one more for the end, which the fake engine does not count against its limit.
        assert len(desk.asked) == made
        assert sum(program.spent for program in found) == 12 + 7 * made


def test_without_a_critic_a_seed_ends_with_a_line_and_the_first_failing_one_is_repaired():
    desk = Desk(says="x", critic=False)
    text = "ok\nab\ncd"
    seen = set()
    for seed in range(8):
        desk.asked.clear()
        CriticSampling().search([prompt_of("a")], [pool(text)], desk, sampling=Sampling(max_tokens=9), seed=seed)
        seen.add(desk.decode(desk.asked[0][0].tokens[2:]))
    assert seen == {"ok\n", "ok\nab\n"}
    desk.asked.clear()
    CriticSampling().search([prompt_of("a")], [pool("n1", "n2!")], desk, sampling=SAMPLING, seed=0)
    assert all(b"n1" in bytes(request.tokens) for request, _ in desk.asked)


def test_a_problem_is_searched_alike_whatever_is_beside_it():
    alone, both = Desk(), Desk()
    CriticSampling(rounds=2).search([prompt_of("b")], [pool("no", "ok!")], alone, sampling=SAMPLING, seed=3)
    CriticSampling(rounds=2).search(
        [prompt_of("a"), prompt_of("b")], [pool("ok"), pool("no", "ok!")], both, sampling=SAMPLING, seed=3
    )
    mine = [(request.tokens, request.sampling) for request, _ in alone.asked]
    assert set(mine) < {(request.tokens, request.sampling) for request, _ in both.asked}


def test_first_programs_are_counted_and_lose_their_end():
    desk = Desk(says="ab")
    first = plain([prompt_of("a"), prompt_of("b")], 2, desk, sampling=SAMPLING, seed=0)
    assert [[program.text for program in programs] for programs in first] == [["ab", "ab"]] * 2
    assert all(program.spent == 3 and program.tokens == encoded("ab") for programs in first for program in programs)


def test_the_repair_prompt_takes_braces_as_they_are():
    message = repair_message("sum {program}", "x = {error}", "{problem}")
    assert "sum {program}" in message and "x = {error}" in message and "{problem}" in message


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"failing": 0}, {"budget": 0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1 each"):
        CriticSampling(**wrong)

"""Handlers for worker processes that misbehave on purpose."""

import os
import time


def hang(payload: bytes) -> bytes:
    time.sleep(60)
    return b""


def spin(payload: bytes) -> bytes:
    """One long C call that no signal handler could interrupt."""
    return str((7 ** (10**8)).bit_length()).encode()


def missing(payload: bytes) -> bytes:
    import a_library_that_nobody_has  # noqa: F401

    return b""


def die(payload: bytes) -> bytes:
    os._exit(3)


def echo(payload: bytes) -> bytes:
    return payload


def noisy(payload: bytes) -> bytes:
    print("this must not reach the protocol", flush=True)
    os.write(1, b"nor this")
    return payload[::-1]


def pid(payload: bytes) -> bytes:
    return str(os.getpid()).encode()


_prepared: list[bytes] = []


def slow_start(payload: bytes) -> bytes:
    """Takes two seconds over "prepare"; says whether that came, and how often."""
    if payload == b"prepare":
        time.sleep(2)
        _prepared.append(payload)
    return b"prepared once" if len(_prepared) == 1 else b"prepared %d times" % len(_prepared)


def slow_reward(trajectory):
    """Sleeps as many seconds as the text says, hangs in one C call for "spin", dies for "die"."""
    from llmrl.types import Score

    if trajectory.text == "spin":
        spin(b"")
    if trajectory.text == "die":
        os._exit(9)
    if trajectory.text == "raise":
        raise RuntimeError("broken")
    if trajectory.text.startswith("once "):
        marker = trajectory.text[5:]
        if not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(9)
    time.sleep(float(trajectory.text) if trajectory.text.replace(".", "").isdigit() else 0)
    return Score(value=float(trajectory.prompt.answer or 0), flags=("seen",), parts={"pid": float(os.getpid())})


def lengths(completions, **kwargs):
    return [float(len(text)) for text in completions]


class Siblings:
    """How many rows of the same prompt, and how many rows in all, it was shown together with each row."""

    def __init__(self, whole_batch=False):
        self.whole_batch = whole_batch

    def __call__(self, trajectory):
        return self.score_batch([trajectory])[0]

    def score_batch(self, trajectories):
        from llmrl.types import Score

        ids = [t.prompt.id for t in trajectories]
        return [Score(value=float(ids.count(i)), parts={"all": float(len(ids))}) for i in ids]

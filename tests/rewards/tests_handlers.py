"""Handlers for worker processes that misbehave on purpose."""

import os
import time


def hang(payload: bytes) -> bytes:
    time.sleep(60)
    return b""


def spin(payload: bytes) -> bytes:
    """One long C call that no signal handler could interrupt."""
    return str((7 ** (10**8)).bit_length()).encode()


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

"""Runs a child process and reads what it prints."""

import json
import os
import re
import signal
import subprocess

import kernels

TIMEOUT = 1800
"""Seconds that a child may take."""


class Failure(Exception):
    """Why there is no measurement, in one line."""


def child(command: list, environment: dict[str, str] | None = None) -> str:
    """What a child prints.

    Raises Failure with the last line that it said to its user.
    """
    # What the caller's own shell limits would contradict what the table says of each row.
    inherited = {key: value for key, value in os.environ.items() if key not in kernels.VARIABLES}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            env={**inherited, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except OSError as error:
        raise Failure(f"not installed: {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"failed: not done after {TIMEOUT} s") from error
    if done.returncode < 0:
        raise Failure(f"failed: ended by {signal.Signals(-done.returncode).name}")
    if done.returncode > 0:
        raise Failure(f"failed: {reason(done.stderr)}")
    return done.stdout


def reason(said: str) -> str:
    """The line that says why: clap's and anyhow's first, Python's last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it says nothing"]
    errors = [line for line in lines if re.match(r"(moi: )?error:", line, re.IGNORECASE)]
    return (errors or lines[-1:])[0]


def rows(printed: str) -> list[dict]:
    """The JSON objects among the lines of an output."""
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    if not found:
        raise Failure("failed: it prints no result")
    return found


def last_row(command: list, environment: dict[str, str] | None = None) -> dict:
    """The last JSON object that a child prints."""
    return rows(child(command, environment))[-1]

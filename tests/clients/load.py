"""Throughput of `moi serve` beside llama-server on the same file, threads and client, in turns.

256 tokens in, 64 out, greedy, no prompt like another; 1, 4 and 16 clients at once, each of which asks again as soon as it is
answered. MOI_PEER_PYTHON is an interpreter with the package xllamacpp (this one where not given), MOI_FILE the GGUF file.
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

BINARY, FILE = os.environ["MOI_BINARY"], os.environ["MOI_FILE"]
THREADS, ROUNDS = os.environ.get("MOI_THREADS", str(os.cpu_count())), int(os.environ.get("MOI_ROUNDS", "3"))
INPUT, OUTPUT = 256, 64


def started(command, pattern, stream):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    other = process.stderr if stream == "stdout" else process.stdout
    threading.Thread(target=lambda: [None for _ in other], daemon=True).start()
    lines = getattr(process, stream)
    for line in lines:
        if found := re.search(pattern, line):
            threading.Thread(target=lambda: [None for _ in lines], daemon=True).start()
            return process, found[1]
    raise SystemExit(f"{command} has ended")


def moi(rule):
    command = [BINARY, "serve", "--port", "0", "--model", FILE, "--quantize", "file", "--rule", rule]
    return started(command, r"ready: (http\S+)", "stderr")


def llama():
    python = os.environ.get("MOI_PEER_PYTHON", sys.executable)
    script = Path(__file__).with_name("llama_server.py")
    return started([python, str(script), FILE, "18080", THREADS, "16"], r"ready: (\S+)", "stdout")


def stream(url, ids):
    """Times at which text came, since the request was sent."""
    body = {"prompt": ids, "max_tokens": OUTPUT, "n_predict": OUTPUT, "temperature": 0, "ignore_eos": True, "stream": True,
            "cache_prompt": False, "cache_salt": str(random.random()), "stream_options": {"include_usage": True}}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    begun, times, tokens = time.perf_counter(), [], 0
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            data = json.loads(line[6:])
            if usage := data.get("usage"):
                tokens = usage["completion_tokens"]
            if data.get("choices") and data["choices"][0].get("text"):
                times.append(time.perf_counter() - begun)
    assert tokens == OUTPUT, tokens
    return times


def measured(url, clients, seed):
    dice = random.Random(seed)
    prompts = [[[dice.randrange(1000, 40000) for _ in range(INPUT)] for _ in range(3)] for _ in range(clients)]
    found, lock = [], threading.Lock()

    def client(own):
        for prompt in own:
            times = stream(url, prompt)
            with lock:
                found.append(times)

    threads = [threading.Thread(target=client, args=(own,)) for own in prompts]
    begun = time.perf_counter()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    took = time.perf_counter() - begun
    first = sorted(times[0] for times in found)
    gap = max(b - a for times in found for a, b in zip(times, times[1:]))
    return {"tokens/s": len(found) * OUTPUT / took, "first token, median s": statistics.median(first),
            "first token, last s": first[-1], "largest gap s": gap}


# One server at a time: an idle one's threads would take part.
servers = {"moi serve, token": lambda: moi("token"), "moi serve, moi": lambda: moi("moi"), "llama-server": llama}
results = {}
for turn in range(ROUNDS):
    for name, start in servers.items():
        process, url = start()
        url = url if url.startswith("http") else "http://" + url
        try:
            measured(url, 1, 99)
            for clients in (1, 4, 16):
                results.setdefault((clients, name), []).append(measured(url, clients, 7 * turn + clients))
        finally:
            process.kill()
            process.wait()
columns = list(next(iter(results.values()))[0])
print("| clients | server | " + " | ".join(columns) + " |")
print("|---|---|" + "---|" * len(columns))
for (clients, name), runs in sorted(results.items(), key=lambda item: item[0][0]):
    row = [statistics.median(run[column] for run in runs) for column in columns]
    print(f"| {clients} | {name} | " + " | ".join(f"{value:.3g}" for value in row) + " |")

"""Very many requests, 64 at once: random rules, samplers, grammars, stops, streams, clients that leave and that read slowly.

No request is lost, no connection hangs, every answer that comes to its end is the one that the same request has alone,
memory is flat and all gauges are 0 in the end. MOI_SHORT has 160 in the place of 10,000.
"""

import concurrent.futures
import json
import os
import random
import re
import socket
import statistics
import time
import urllib.request

URL = os.environ["MOI_URL"]
HOST, PORT = URL.removeprefix("http://").split(":")
COUNT = 160 if "MOI_SHORT" in os.environ else 10_000
POOL = 40 if "MOI_SHORT" in os.environ else 400
SLOWEST = 300
dice = random.Random(1)
RULES = ["token", "moi", "moi:beta=0.5,support=50", "direct:support=20", "gate:gate=0.3", "soft-thinking", "k-sample", "selar"]


def drawn(at):
    """A request of the pool."""
    words = dice.sample("river stone cloud window garden letter winter engine mirror forest".split(), 3)
    body = {"max_tokens": dice.randrange(1, 33), "seed": dice.randrange(1000), "stream": dice.random() < 0.6,
            "moi": {"rule": dice.choice(RULES)}, "temperature": dice.choice([0, 0.7, 1.2])}
    if dice.random() < 0.3:
        body |= {"top_k": dice.randrange(1, 50), "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1}
    if dice.random() < 0.2:
        body["stop"] = dice.sample([" the", ".", ",", "e", "\n"], 2)
    if dice.random() < 0.2:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "n", "schema": {
            "type": "object", "properties": {"a": {"enum": words}, "b": {"type": "integer", "maximum": 99}},
            "required": ["a", "b"], "additionalProperties": False}}}
    if dice.random() < 0.2:
        body |= {"logprobs": True, "top_logprobs": 3}
    if dice.random() < 0.1:
        body["n"] = 2
    text = f"Number {at}: write of a {words[0]}, a {words[1]} and a {words[2]}. " * dice.choice([1, 1, 1, 8])
    return body | {"messages": [{"role": "user", "content": text}]}


def texts(body, data):
    """The texts of the choices, and how each ended."""
    if not body["stream"]:
        return [(c["message"]["content"], c["finish_reason"]) for c in json.loads(data)["choices"]]
    assert data.endswith(b"data: [DONE]\n\n"), data[-200:]
    found = {}
    for line in data.decode().split("\n\n"):
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            assert "error" not in event, event
            for choice in event["choices"]:
                text, end = found.get(choice["index"], ("", None))
                found[choice["index"]] = (text + (choice["delta"].get("content") or ""), choice["finish_reason"] or end)
    return [found[at] for at in sorted(found)]


def send(body):
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    connection = socket.create_connection((HOST, int(PORT)), timeout=SLOWEST)
    connection.sendall(head.encode() + data)
    return connection


def plain(raw):
    """The body of an answer that was read to its end."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" in head.lower():
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if length == 0:
                break
            body, rest = body + rest[:length], rest[length + 2:]
        rest = body
    return status, rest


def ask(body, pause=0.0):
    with send(body) as connection:
        raw = b""
        while piece := connection.recv(512 if pause else 65536):
            raw += piece
            time.sleep(pause)
    return plain(raw)


def leave(body, after):
    """Sends a request, reads a little, and goes."""
    with send(body) as connection:
        connection.settimeout(SLOWEST)
        if after:
            time.sleep(after)


def metric(name):
    text = urllib.request.urlopen(URL + "/metrics").read().decode()
    return sum(float(v) for v in re.findall(rf"^{re.escape(name)}(?:\{{.*?\}})? (\S+)$", text, re.M))


def memory():
    """Bytes of the server in memory."""
    status = open(f"/proc/{os.environ['MOI_PID']}/status").read()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])


pool = [drawn(at) for at in range(POOL)]
alone = []
for body in pool:
    status, data = ask(body)
    assert status == 200, data
    alone.append(texts(body, data))


def one(at):
    body = pool[at % POOL]
    kind = random.Random(at).random()
    if kind < 0.06:
        leave(body, random.Random(at).random() * 0.3)
        return "left"
    while True:
        status, data = ask(body, 0.02 if kind < 0.1 else 0.0)
        if status != 429:
            break
        # The queue is full: as it asks for, a little later.
        time.sleep(1)
    assert status == 200, (status, data[:300])
    found = texts(body, data)
    assert found == alone[at % POOL], (at, body, found, alone[at % POOL])
    return "slow" if kind < 0.1 else "answered"


counts, sizes = {}, []
order = list(range(COUNT))
random.Random(2).shuffle(order)
begun = time.time()
with concurrent.futures.ThreadPoolExecutor(64) as workers:
    for done, kind in enumerate(workers.map(one, order)):
        counts[kind] = counts.get(kind, 0) + 1
        if done % max(1, COUNT // 40) == 0:
            sizes.append(memory())
took = time.time() - begun
deadline = time.time() + 60
gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting", "moi_kv_bytes")
while any(metric(name) for name in gauges):
    assert time.time() < deadline, {name: metric(name) for name in gauges}
    time.sleep(0.1)
# The first quarter fills caches.
half = statistics.median(sizes[len(sizes) // 4:len(sizes) // 2])
last = statistics.median(sizes[3 * len(sizes) // 4:])
assert "MOI_SHORT" in os.environ or last <= 1.02 * half, (half, last)
print(f"{COUNT} requests, 64 at once, in {took:.0f} s: {counts}, all as alone; memory {half / 1e6:.0f} MB at a third, {last / 1e6:.0f} MB at the end")

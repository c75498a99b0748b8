"""Ray Serve with two replicas of moi serve: one is killed and comes back, one more is added, and shards of an evaluation run as
tasks, which make the report that one machine makes."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", MOI_ARGS="--rule token --max-rows 8 --drain-delay 1")
DEPLOY = Path(__file__).parent / "../../examples/deploy"
sys.path.insert(0, str(DEPLOY))

import ray
from ray import serve

PORT = 18000 + os.getpid() % 1000
URL = f"http://127.0.0.1:{PORT}"


def ask(at):
    body = {"messages": [{"role": "user", "content": f"Tell of the number {at % 4}."}], "max_tokens": 16, "temperature": 0,
            "stream": at % 2 == 0}
    request = urllib.request.Request(URL + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        data = answer.read().decode()
    if not body["stream"]:
        return json.loads(data)["choices"][0]["message"]["content"]
    assert data.endswith("data: [DONE]\n\n"), data[-200:]
    events = [json.loads(line[6:]) for line in data.split("\n\n") if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def replicas():
    """Processes that serve at sockets of replicas."""
    found = subprocess.run(["pgrep", "-f", r"serve --unix .*moi\.sock"], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


def until(what, is_so, seconds=120):
    deadline = time.time() + seconds
    while not is_so():
        assert time.time() < deadline, what
        time.sleep(0.2)


ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
from ray_serve import Moi

serve.start(http_options={"host": "127.0.0.1", "port": PORT})
deployed = {"max_ongoing_requests": 64, "health_check_period_s": 1, "autoscaling_config": None,
            "ray_actor_options": {"num_cpus": 0.1}}
serve.run(Moi.options(num_replicas=2, **deployed).bind())
until("two replicas do not answer", lambda: len(replicas()) == 2)
expected = [ask(at) for at in range(4)]

answered, failed, stop = [0], [], threading.Event()


def client(worker):
    at = worker
    while not stop.is_set():
        try:
            assert ask(at) == expected[at % 4]
            answered[0] += 1
        except Exception as error:  # noqa: BLE001: whatever a client sees counts
            failed.append((time.time(), repr(error)))
        at += 4


threads = [threading.Thread(target=client, args=(worker,)) for worker in range(4)]
[thread.start() for thread in threads]
time.sleep(3)
killed = replicas()[0]
os.kill(killed, 9)
until("the replica does not come back", lambda: len(replicas()) == 2 and killed not in replicas())
time.sleep(3)
came_back = time.time()
serve.run(Moi.options(num_replicas=3, **deployed).bind())
until("there is no third replica", lambda: len(replicas()) == 3)
time.sleep(3)
stop.set()
[thread.join() for thread in threads]
late = [error for at, error in failed if at > came_back]
assert not late, late[:3]
serve.shutdown()
until("replicas are left behind", lambda: not replicas())

with tempfile.TemporaryDirectory() as directory:
    common = ["countdown", "--problems", "6", "--max-tokens", "16", "--batch", "1", "--quantize", "file"]
    whole = Path(directory, "whole.jsonl")
    subprocess.run([os.environ["MOI_BINARY"], "eval", *common, "--output", whole], check=True, capture_output=True)
    merged = Path(directory, "merged.jsonl")
    os.environ["MOI_OUTPUT"] = str(merged)
    sys.argv = ["ray_eval.py", "3", *common]
    import ray_eval

    try:
        ray_eval.main()
    except SystemExit as end:
        assert end.code == 0, end.code
    assert sorted(merged.read_text().splitlines()) == sorted(whole.read_text().splitlines())
ray.shutdown()
print(f"Ray {ray.__version__}: {answered[0]} answers by two and three replicas, {len(failed)} lost with the one that was killed, "
      "three shards = one run")

"""What operators use: promtool over the metrics after traffic, slowhttptest beside live requests."""

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.request

URL = os.environ["MOI_URL"]


def post(path, body, timeout=120):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.status, answer.read()


def chat(**more):
    return post("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 8, "temperature": 0, **more})


def metrics():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: chat(stream=at % 2 == 0, moi={"rule": "moi"}), range(16)))
    text = urllib.request.urlopen(URL + "/metrics").read()
    found = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    said = (found.stdout + found.stderr).decode()
    # Names that others gave, which routers read as they are, are not to the taste of the linter.
    said = [line for line in said.splitlines() if not line.startswith(("vllm:", "process_"))]
    assert not said, said
    rules = os.path.join(os.path.dirname(__file__), "../../examples/deploy/prometheus-rules.yaml")
    subprocess.run(["promtool", "check", "rules", rules], check=True, capture_output=True)


def slow():
    alone = chat()[1]
    text = json.loads(alone)["choices"][0]["message"]["content"]
    answered, stop = [], threading.Event()

    def live():
        while not stop.is_set():
            answered.append(json.loads(chat()[1])["choices"][0]["message"]["content"])

    thread = threading.Thread(target=live)
    thread.start()
    kinds = {
        "headers": ["-H"],
        "bodies": ["-B", "-s", "8192"],
        # A reader that takes a byte now and then.
        "readers": ["-X", "-w", "1", "-y", "2", "-n", "5", "-z", "1"],
    }
    with tempfile.TemporaryDirectory() as directory:
        for name, arguments in kinds.items():
            before = len(answered)
            command = ["slowhttptest", *arguments, "-c", "200", "-r", "100", "-i", "5", "-l", "12", "-p", "3", "-u", URL + "/health"]
            out = subprocess.run(command, capture_output=True, text=True, cwd=directory)
            plain = re.sub(r"\x1b\[[0-9;]*m", "", out.stdout)
            assert "service available:   YES" in plain and "service available:   NO" not in plain, (name, plain[-2000:])
            assert len(answered) > before, f"nobody is answered beside slow {name}"
    stop.set()
    thread.join()
    assert set(answered) == {text}
    return len(answered)


metrics()
count = slow() if shutil.which("slowhttptest") else "no"
print(f"promtool, slowhttptest -H -B -X with 200 connections each, {count} answers beside them")

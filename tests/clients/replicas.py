"""Two replicas behind haproxy, then behind smg: each is restarted under load, and no request is lost."""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

BINARY, DEPLOY = os.environ["MOI_BINARY"], Path(__file__).parent / "../../examples/deploy"
MODEL = os.environ["MOI_MODEL"]


def free():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Replica:
    def __init__(self):
        self.port = free()
        self.start()

    def start(self):
        command = [BINARY, "serve", "--port", str(self.port), "--rule", "token", "--max-rows", "8",
                   "--drain-delay", "2"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until(f"http://127.0.0.1:{self.port}/readyz")

    def restart(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, "a replica did not end well"
        self.start()


def until(url):
    deadline = time.time() + 90
    while True:
        try:
            if urllib.request.urlopen(url, timeout=5).status == 200:
                return
        except OSError:
            pass
        assert time.time() < deadline, f"{url} does not answer"
        time.sleep(0.05)


def ask(url, at):
    """One request; its text."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"Tell of the number {at % 4}."}], "max_tokens": 24,
            "temperature": 0, "stream": at % 2 == 0}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        data = answer.read().decode()
    if not body["stream"]:
        return json.loads(data)["choices"][0]["message"]["content"]
    assert data.endswith("data: [DONE]\n\n"), data[-300:]
    events = [json.loads(line[6:]) for line in data.split("\n\n") if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def load(url, replicas):
    """Asks without end while each replica is restarted; how many were answered."""
    expected = {at: ask(url, at) for at in range(4)}
    stop, failed, answered = threading.Event(), [], 0

    def one(at):
        try:
            return ask(url, at) == expected[at % 4]
        except Exception as error:  # noqa: BLE001: whatever a client sees counts
            failed.append(repr(error))
            return False

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        def run(worker):
            count, at = 0, worker
            while not stop.is_set():
                if not one(at):
                    failed.append(f"request {at}")
                at += 8
                count += 1
            return count

        runs = [pool.submit(run, worker) for worker in range(8)]
        for replica in replicas:
            time.sleep(2)
            replica.restart()
            time.sleep(2)
        stop.set()
        answered = sum(future.result() for future in runs)
    assert not failed, (len(failed), answered, failed[:5])
    return answered


def behind_haproxy(replicas):
    port = free()
    one, two = (f"127.0.0.1:{replica.port}" for replica in replicas)
    environment = {**os.environ, "MOI_BIND": f"127.0.0.1:{port}", "MOI_ONE": one, "MOI_TWO": two}
    proxy = subprocess.Popen(["haproxy", "-db", "-f", str(DEPLOY / "haproxy.cfg")], env=environment,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(f"http://127.0.0.1:{port}/readyz")
        return load(f"http://127.0.0.1:{port}", replicas)
    finally:
        proxy.kill()


def behind_smg(replicas):
    port, directory = free(), tempfile.mkdtemp()
    workers = [f"http://127.0.0.1:{replica.port}" for replica in replicas]
    command = [str(Path(sys.executable).with_name("smg")), "launch", "--host", "127.0.0.1", "--port", str(port),
               "--worker-urls", *workers, "--policy", "cache_aware", "--prometheus-port", str(free()),
               "--health-check-interval-secs", "1", "--health-failure-threshold", "1", "--health-success-threshold", "1"]
    log = open(Path(directory, "log"), "w+")
    router = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=directory)
    try:
        until(f"http://127.0.0.1:{port}/readiness")
        return load(f"http://127.0.0.1:{port}", replicas)
    except BaseException:
        log.seek(0)
        print(log.read()[-4000:], file=sys.stderr)
        raise
    finally:
        router.kill()
        shutil.rmtree(directory)


replicas = [Replica(), Replica()]
try:
    told = []
    for name, behind in (("haproxy", behind_haproxy), ("smg", behind_smg)):
        told.append(f"{behind(replicas)} requests behind {name}")
finally:
    for replica in replicas:
        replica.process.kill()
said = subprocess.run(["haproxy", "-v"], capture_output=True, text=True).stdout
version = re.search(r"version (\d[\d.]*)", said)[1]
print(f"haproxy {version} and smg: each replica restarted under load, none lost of " + ", ".join(told))

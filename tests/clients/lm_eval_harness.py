"""lm-evaluation-harness over HTTP: a likelihood task and a generation task of local files. Every log-likelihood is the sum of
what `moi score` says of the same tokens, and every answer what `moi generate` gives. With MOI_HF_PYTHON, an interpreter that has
torch, transformers and lm_eval, it is also what the harness's own model of transformers says, to 1e-4 a token."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request

URL, BINARY = os.environ["MOI_URL"], os.environ["MOI_BINARY"]
TASKS = pathlib.Path(__file__).parent / "tasks"
MODEL = json.load(urllib.request.urlopen(URL + "/v1/models"))["data"][0]["id"]


def post(path, body):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def evaluate(directory, task, batch, concurrent, url=URL):
    args = f"base_url={url}/v1/completions,model={MODEL},tokenizer_backend=remote,num_concurrent={concurrent},max_retries=1"
    return harness(directory, task, batch, [sys.executable, "-m", "lm_eval", "--model", "local-completions"], args)


def harness(directory, task, batch, command, args):
    out = pathlib.Path(tempfile.mkdtemp(dir=directory))
    env = dict(os.environ, HF_HOME=str(directory / "hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    subprocess.run(
        [*command, "--model_args", args, "--tasks", task, "--include_path", str(directory), "--batch_size", str(batch),
         "--output_path", str(out), "--log_samples"], check=True, env=env, cwd=directory, stdout=subprocess.DEVNULL)
    samples, = out.rglob("samples_*.jsonl")
    return sorted((json.loads(line) for line in open(samples)), key=lambda sample: sample["doc_id"])


def score(context, continuation):
    """The sum of the continuation's log-probabilities, and whether each token of it is the likeliest."""
    text = context + continuation
    done = subprocess.run([BINARY, "score", "--format", "json", "--logprobs", "1", "-"], input=text.encode(),
                          capture_output=True, check=True)
    steps = json.loads(done.stdout)["steps"]
    first = post("/tokenize", {"prompt": context})["count"]
    own = steps[first:]
    return sum(s["logprob"] for s in own), all(s["logprobs"][0]["token"] == s["token"] for s in own), len(own)


def beside_transformers(directory, python):
    """The same weights in float32, here and by transformers: the largest difference of a token's log-probability."""
    model = directory / "float32"
    subprocess.run([BINARY, "convert", MODEL, "--output", str(model), "--dtype", "f32"], check=True, capture_output=True)
    command = [BINARY, "serve", "--port", "0", "--model", str(model), "--alias", MODEL]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = next(line.split("ready: ")[1].strip() for line in server.stderr if "ready: " in line)
        threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
        own = evaluate(directory, "moi_choice", 1, 4, url)
    finally:
        server.kill()
    command = [python, "-m", "lm_eval", "--model", "hf", "--device", "cpu"]
    theirs = harness(directory, "moi_choice", 1, command, f"pretrained={model},dtype=float32")
    worst = 0.0
    for ours, other in zip(own, theirs, strict=True):
        for argument, a, b in zip(ours["arguments"].values(), ours["filtered_resps"], other["filtered_resps"], strict=True):
            whole = post("/tokenize", {"prompt": argument["arg_0"] + argument["arg_1"]})["count"]
            worst = max(worst, abs(float(a[0]) - float(b[0])) / (whole - post("/tokenize", {"prompt": argument["arg_0"]})["count"]))
            assert str(a[1]) == str(b[1]), (a, b)
    assert worst < 1e-4, worst
    return f", within {worst:.1e} of transformers"


with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    for file in TASKS.iterdir():
        shutil.copy(file, directory)
    worst, tokens = 0.0, 0
    for batch, concurrent in ((4, 8), (1, 1))[:1 if "MOI_SHORT" in os.environ else 2]:
        samples = evaluate(directory, "moi_choice", batch, concurrent)
        assert len(samples) == 6
        for sample in samples:
            for argument, response in zip(sample["arguments"].values(), sample["filtered_resps"], strict=True):
                found, greedy = float(response[0]), response[1] in (True, "True")
                expected, is_greedy, count = score(argument["arg_0"], argument["arg_1"])
                worst = max(worst, abs(found - expected) / count)
                tokens += count
                assert greedy == is_greedy, (argument, response)
        accuracy = sum(sample["acc"] for sample in samples) / len(samples)
    assert worst < 1e-4, worst
    assert accuracy > 0.6, f"at chance: {accuracy}"
    samples = evaluate(directory, "moi_generate", 1, 4)
    for sample in samples:
        prompt = sample["arguments"]["gen_args_0"]["arg_0"]
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "stop": ["\n", ".", "!", "?", ",", ";"]}
        assert sample["filtered_resps"][0] == post("/v1/completions", body)["choices"][0]["text"], sample
    python = os.environ.get("MOI_HF_PYTHON")
    beside = beside_transformers(directory, python) if python else ""
    print(f"lm-evaluation-harness: {tokens} continuation tokens within {worst:.1e} of moi score{beside}, accuracy {accuracy:.2f}, "
          f"{len(samples)} answers")

"""lm-evaluation-harness over HTTP: a likelihood task and a generation task of local files. Every log-likelihood is the sum of
what `moi score` says of the same tokens, and every answer what `moi generate` gives."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request

URL, BINARY = os.environ["MOI_URL"], os.environ["MOI_BINARY"]
TASKS = pathlib.Path(__file__).parent / "tasks"
MODEL = json.load(urllib.request.urlopen(URL + "/v1/models"))["data"][0]["id"]


def post(path, body):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def evaluate(directory, task, batch, concurrent):
    out = directory / f"{task}-{batch}"
    args = f"base_url={URL}/v1/completions,model={MODEL},tokenizer_backend=remote,num_concurrent={concurrent},max_retries=1"
    env = dict(os.environ, HF_HOME=str(directory / "hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", args, "--tasks", task,
         "--include_path", str(directory), "--batch_size", str(batch), "--output_path", str(out), "--log_samples"],
        check=True, env=env, cwd=directory, stdout=subprocess.DEVNULL)
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
    print(f"lm-evaluation-harness: {tokens} continuation tokens within {worst:.1e} of moi score, accuracy {accuracy:.2f}, "
          f"{len(samples)} answers")

"""`moi eval` on the machines of a Ray cluster: a task for each shard, and their files put together here.

    python examples/deploy/ray_eval.py 8 countdown --problems 200 --rules token,moi

Each machine needs the binary (MOI_BINARY, else `moi`) and the model; the first argument is the number of shards, the others
are `moi eval`'s. A shard that a machine has lost is made again.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ray

MOI = os.environ.get("MOI_BINARY", "moi")


@ray.remote(num_cpus=1, max_retries=3)
def shard(arguments: list[str], index: int, count: int) -> str:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "shard.jsonl")
        own = ["--shard", f"{index}/{count}", "--output", str(file), "--format", "json"]
        subprocess.run([MOI, "eval", *arguments, *own], check=True, stdout=subprocess.DEVNULL)
        return file.read_text()


def main():
    count, arguments = int(sys.argv[1]), sys.argv[2:]
    output = os.environ.get("MOI_OUTPUT", "moi-eval.jsonl")
    ray.init(ignore_reinit_error=True)
    texts = ray.get([shard.remote(arguments, index, count) for index in range(1, count + 1)])
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory, f"{index}.jsonl") for index in range(1, count + 1)]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text)
        sys.exit(subprocess.run([MOI, "eval", "--merge", *map(str, files), "--output", output]).returncode)


if __name__ == "__main__":
    main()

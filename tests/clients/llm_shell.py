"""`llm`, a person's shell: a prompt, a stream, a conversation that goes on."""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as home:
    name = os.environ["MOI_MODEL"]
    Path(home, "extra-openai-models.yaml").write_text(
        f"- model_id: moi\n  model_name: {name}\n  api_base: {os.environ['MOI_URL']}/v1\n  api_key_name: moi\n"
        "  supports_schema: true\n")
    environment = {**os.environ, "LLM_USER_PATH": home, "LLM_MOI_KEY": "k"}

    def llm(*arguments):
        command = [Path(sys.executable).with_name("llm"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    llm("keys", "set", "moi", "--value", "k")
    options = ["-m", "moi", "-o", "temperature", "0", "-o", "max_tokens", "12"]
    streamed = llm(*options, "Count to five.")
    whole = llm(*options, "--no-stream", "Count to five.")
    assert streamed.strip() and streamed == whole, (streamed, whole)
    assert llm(*options, "-c", "Go on.").strip()
    schema = llm(*options[:5], "--schema", "size int", "How large is Paris?")
    assert '"size"' in schema, schema
print(f"llm {importlib.metadata.version('llm')}: prompts, streams, conversations, schemas")

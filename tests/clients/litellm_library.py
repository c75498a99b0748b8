"""LiteLLM as a library, by three of its providers: whole answers, its re-chunked streams with usage, tools."""

import importlib.metadata
import json
import os

# Else it fetches a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

URL, MODEL = os.environ["MOI_URL"], os.environ["MOI_MODEL"]
ASK = [{"role": "user", "content": "Count to five."}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": {
    "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}}}
litellm.suppress_debug_info = True

for provider, base in (("hosted_vllm", URL + "/v1"), ("openai", URL + "/v1"), ("anthropic", URL)):
    asked = dict(model=f"{provider}/{MODEL}", api_base=base, api_key="k", messages=ASK, max_tokens=12, temperature=0)
    whole = litellm.completion(**asked)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens == 12, whole
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text, provider
    built = litellm.stream_chunk_builder(chunks, messages=ASK)
    assert built.choices[0].message.content == text and built.choices[0].finish_reason == "length"
    assert built.usage.completion_tokens == 12 and built.usage.prompt_tokens == whole.usage.prompt_tokens, (
        provider, built.usage, whole.usage)
    called = litellm.completion(**{**asked, "max_tokens": 100}, tools=[TOOL], tool_choice="required",
                                parallel_tool_calls=False)
    call = called.choices[0].message.tool_calls[0]
    assert called.choices[0].finish_reason == "tool_calls" and call.function.name == "weather", (provider, called)
    parts = list(litellm.completion(**{**asked, "max_tokens": 100}, tools=[TOOL], tool_choice="required",
                                    parallel_tool_calls=False, stream=True))
    again = litellm.stream_chunk_builder(parts, messages=ASK).choices[0].message.tool_calls
    assert [c.function.name for c in again] == ["weather"]
    # Its streams drop line ends between the parts of arguments.
    assert json.loads(again[0].function.arguments) == json.loads(call.function.arguments), (again, call)
    try:
        litellm.completion(**{**asked, "messages": []})
    except litellm.BadRequestError:
        pass
    else:
        raise AssertionError("no messages were answered")
version = importlib.metadata.version("litellm")
print(f"litellm {version}: hosted_vllm, openai and anthropic: answers, streams with usage, tools, errors")

"""OpenAI's Python client: chat, streams with its accumulator, completions, structured output, tools, responses, errors,
many at once."""

import asyncio
import json
import os
import signal
import subprocess
import threading

from typing import Literal

import httpx
import openai
from pydantic import BaseModel

import parts

URL = os.environ["MOI_URL"] + "/v1"
client = openai.OpenAI(base_url=URL, api_key="k", max_retries=0)
MODEL = client.models.list().data[0].id
ASK = [{"role": "user", "content": "Count to five."}]


class City(BaseModel):
    name: str
    big: bool


def chat():
    whole = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=12, temperature=0, seed=1)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens == 12, whole
    chunks = list(client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=12, temperature=0, seed=1, stream=True,
        stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == 12 and not chunks[-1].choices


def accumulated():
    # Its accumulator takes an answer that is cut off by its length for an error.
    asked = dict(model=MODEL, messages=ASK, stop=[" ", ","], temperature=0.8, seed=1, n=3, logprobs=True, top_logprobs=2)
    with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds[-1] in ("content.done", "logprobs.content.done", "chunk"), kinds[-3:]
    whole = client.chat.completions.create(**asked)
    for streamed, choice in zip(final.choices, whole.choices, strict=True):
        assert streamed.message.content == choice.message.content
        assert streamed.finish_reason == choice.finish_reason == "stop"
        assert [t.token for t in streamed.logprobs.content] == [t.token for t in choice.logprobs.content]
        assert all(len(t.top_logprobs) == 2 for t in choice.logprobs.content)


def rules():
    if parts.PEER:
        return
    extra = {"moi": {"rules": ["token", "moi:beta=0.5"], "trace": 3}}
    answer = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=8, seed=1, extra_body=extra)
    assert [c.moi["rule"] for c in answer.choices] == ["token", "moi:beta=0.5"], answer
    assert len(answer.choices[1].moi["steps"]) == 8
    named = client.chat.completions.create(model=f"{MODEL}:moi:beta=0.5", messages=ASK, max_tokens=8, seed=1)
    assert named.choices[0].message.content == answer.choices[1].message.content


def completions():
    answer = client.completions.create(model=MODEL, prompt=["One", "Two"], max_tokens=4, echo=True, logprobs=2, n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert choice.logprobs.token_logprobs[0] is None
        assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == len(choice.logprobs.top_logprobs)
    text = "".join(c.choices[0].text for c in client.completions.create(
        model=MODEL, prompt="One", max_tokens=6, temperature=0, stream=True))
    assert text == client.completions.create(model=MODEL, prompt="One", max_tokens=6, temperature=0).choices[0].text


def structured():
    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "Name a city."}], response_format=City, max_tokens=60,
        temperature=0)
    assert isinstance(answer.choices[0].message.parsed, City)
    try:
        client.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": "Name a city."}], response_format=City, max_tokens=2)
    except openai.LengthFinishReasonError:
        return
    raise AssertionError("an answer that is cut off was parsed")


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2]


def tools():
    asked = dict(model=MODEL, messages=[{"role": "user", "content": "How is the weather in Paris and in Rome?"}],
                 tools=[openai.pydantic_function_tool(Weather)], tool_choice="required", max_tokens=300, seed=1)
    whole = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None, whole
    Weather.model_validate_json(whole.message.tool_calls[0].function.arguments)
    if parts.PEER:
        return
    # Two calls at once, put together by its accumulator, which doubles what is said twice.
    call = '<tool_call>\n{"name": "Weather", "arguments": {"city": "%s", "days": 1}}\n</tool_call>'
    text = call % "Paris" + "\n" + call % "Rome" + "<|im_end|>"
    tokens = httpx.post(os.environ["MOI_URL"] + "/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    asked["tool_choice"] = "auto"
    asked["extra_body"] = {"moi": {"rule": "token", "force": tokens["tokens"]}}
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [c.function.name for c in calls] == ["Weather", "Weather"], calls
    assert [json.loads(c.function.arguments)["city"] for c in calls] == ["Paris", "Rome"]
    assert len({c.id for c in calls}) == 2
    # What came of a call goes back.
    turns = asked["messages"] + [whole.message, {
        "role": "tool", "tool_call_id": whole.message.tool_calls[0].id, "content": "sunny"}]
    client.chat.completions.create(model=MODEL, messages=turns, tools=asked["tools"], max_tokens=4)


def responses():
    text = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=12, temperature=0, seed=1).choices[0].message.content
    asked = dict(model=MODEL, input=ASK[0]["content"], max_output_tokens=12, temperature=0)
    whole = client.responses.create(**asked)
    assert whole.output_text == text and whole.status == "incomplete", whole
    with client.responses.stream(**asked) as stream:
        deltas = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    assert deltas == text
    parsed = client.responses.parse(model=MODEL, input="How is the weather?", text_format=Weather, max_output_tokens=100,
                                     temperature=0)
    assert isinstance(parsed.output_parsed, Weather)
    function = {"type": "function", "name": "weather", "strict": True, "parameters": Weather.model_json_schema()}
    called = client.responses.create(
        model=MODEL, input="How is the weather?", tools=[function], tool_choice="required", parallel_tool_calls=False)
    assert called.output[0].type == "function_call", called
    Weather.model_validate_json(called.output[0].arguments)
    more = [{"role": "user", "content": "How is the weather?"}, called.output[0], {
        "type": "function_call_output", "call_id": called.output[0].call_id, "output": "sunny"}]
    client.responses.create(model=MODEL, input=more, max_output_tokens=4)


def errors():
    for kind, call in [
        (openai.NotFoundError, dict(model="nothing", messages=ASK)),
        (openai.BadRequestError, dict(model=MODEL, messages=[])),
        (openai.BadRequestError, dict(model=MODEL, messages=ASK, temperature=-1, stream=True)),
        (openai.BadRequestError, dict(model=MODEL, messages=ASK, response_format={"type": "nothing"})),
    ]:
        try:
            client.chat.completions.create(**call)
        except kind as error:
            assert error.body["message"] and error.type == "invalid_request_error", error
        else:
            raise AssertionError(call)


async def many():
    own = openai.AsyncOpenAI(base_url=URL, api_key="k", max_retries=0)
    alone = await own.chat.completions.create(model=MODEL, messages=ASK, max_tokens=6, temperature=0)
    answers = await asyncio.gather(*(
        own.chat.completions.create(model=MODEL, messages=ASK, max_tokens=6, temperature=0) for _ in range(64)))
    assert {a.choices[0].message.content for a in answers} == {alone.choices[0].message.content}
    stream = await own.chat.completions.create(model=MODEL, messages=ASK, max_tokens=4000, stream=True)
    async for _ in stream:
        break
    await stream.close()


def many_at_once():
    asyncio.run(many())


def keys_and_an_end():
    """A server that wants a key, and one that stops: what the client makes of either."""
    if parts.PEER:
        return
    command = [os.environ["MOI_BINARY"], "serve", "--port", "0", "--rule", "token", "--api-key", "k", "--drain-delay", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = next(line.split("ready: ")[1].strip() for line in process.stderr if "ready: " in line)
        threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
        own = openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)
        asked = dict(model=MODEL, messages=ASK, max_tokens=3, temperature=0)
        assert own.chat.completions.create(**asked).choices[0].message.content
        for key in ("wrong", "none"):
            try:
                own.with_options(api_key=key).models.list()
                raise AssertionError("a wrong key was taken")
            except openai.AuthenticationError as error:
                assert error.code == "invalid_api_key", error
        # While others find out that it stops, requests are taken still.
        process.send_signal(signal.SIGTERM)
        while httpx.get(url + "/readyz").status_code == 200:
            pass
        assert own.chat.completions.create(**asked).choices[0].message.content
    finally:
        process.kill()


parts.run(chat, accumulated, rules, completions, structured, tools, responses, errors, many_at_once,
          keys_and_an_end)
print(f"openai {openai.__version__}: chat, streams, accumulators, completions, parse, tools, responses, errors, 64 at once")

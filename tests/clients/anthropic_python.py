"""Anthropic's Python client: messages, streams with its accumulator, tools, counts, errors, many at once."""

import asyncio
import os

import anthropic

import parts

URL = os.environ["MOI_URL"]
client = anthropic.Anthropic(base_url=URL, api_key="k", max_retries=0)
MODEL = os.environ["MOI_MODEL"]
# Its newest models take no temperature, so its own field is gone.
GREEDY = {"temperature": 0}
ASK = [{"role": "user", "content": "Count to five."}]
WEATHER = {
    "name": "weather", "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}


def messages():
    asked = dict(model=MODEL, messages=ASK, max_tokens=12, extra_body=GREEDY, system="Be brief.")
    whole = client.messages.create(**asked)
    assert whole.content[0].text and whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 12, whole
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage.output_tokens == 12 and final.stop_reason == "max_tokens"
    total = final.usage.input_tokens + final.usage.cache_read_input_tokens
    counted = client.messages.count_tokens(model=MODEL, messages=ASK, system="Be brief.")
    assert counted.input_tokens == total, (counted, final.usage)
    stopped = client.messages.create(**{**asked, "max_tokens": 60, "stop_sequences": [" ", ","]})
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence in (" ", ","), stopped


def tools():
    asked = dict(model=MODEL, messages=[{"role": "user", "content": "How is the weather in Paris?"}], max_tokens=100,
                 tools=[WEATHER], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    call = final.content[0]
    assert final.stop_reason == "tool_use" and call.name == "weather" and call.input["city"] in ("Paris", "Rome"), final
    turns = asked["messages"] + [{"role": "assistant", "content": final.content}, {
        "role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]}]
    client.messages.create(model=MODEL, messages=turns, max_tokens=4, tools=[WEATHER])


def errors():
    for kind, call in [
        (anthropic.NotFoundError, dict(model="nothing", messages=ASK, max_tokens=1)),
        (anthropic.BadRequestError, dict(model=MODEL, messages=[], max_tokens=1)),
        (anthropic.BadRequestError, dict(model=MODEL, messages=ASK, max_tokens=1, extra_body={"temperature": -1}, stream=True)),
    ]:
        try:
            client.messages.create(**call)
        except kind as error:
            assert error.body["type"] == "error" and error.body["error"]["message"], error
        else:
            raise AssertionError(call)


async def many():
    own = anthropic.AsyncAnthropic(base_url=URL, api_key="k", max_retries=0)
    asked = dict(model=MODEL, messages=ASK, max_tokens=6, extra_body=GREEDY)
    answers = await asyncio.gather(*(own.messages.create(**asked) for _ in range(32)))
    assert len({a.content[0].text for a in answers}) == 1


def many_at_once():
    asyncio.run(many())


parts.run(messages, tools, errors, many_at_once)
print(f"anthropic {anthropic.__version__}: messages, streams, tools, counts, errors, 32 at once")

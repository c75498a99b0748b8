"""An agent of Pydantic AI: typed output, whole and streamed, and a tool that it must call."""

import asyncio
import importlib.metadata
import os
from typing import Literal

import httpx
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class City(BaseModel):
    name: Literal["Paris", "Rome", "Oslo"]
    size: Literal[1, 2, 3]


provider = OpenAIProvider(base_url=os.environ["MOI_URL"] + "/v1", api_key="k")
model = OpenAIChatModel(os.environ["MOI_MODEL"], provider=provider)
settings = {"max_tokens": 200, "temperature": 0.0, "parallel_tool_calls": False}

# The output is a call of a function that must be called, or follows a schema.
for output in (City, NativeOutput(City)):
    run = Agent(model, output_type=output, model_settings=settings).run_sync("Name a city.")
    assert isinstance(run.output, City), run


async def streamed():
    agent = Agent(model, output_type=City, model_settings=settings)
    async with agent.run_stream("Name a city.") as run:
        assert isinstance(await run.get_output(), City)
    plain = Agent(model, model_settings={"max_tokens": 12, "temperature": 0.0})
    async with plain.run_stream("Count to five.") as run:
        pieces = [piece async for piece in run.stream_text(delta=True)]
    assert "".join(pieces).strip()


asyncio.run(streamed())


async def parallel():
    """Two calls in one answer, whole and as a stream that its parts are put together from."""
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
    text = call % "Paris" + "\n" + call % "Rome" + "<|im_end|>"
    tokens = httpx.post(os.environ["MOI_URL"] + "/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    forced = {"max_tokens": 200, "extra_body": {"moi": {"rule": "token", "force": tokens["tokens"]}}}
    cities = []

    def weather(city: Literal["Paris", "Rome"]) -> str:
        cities.append(city)
        return f"sunny in {city}"

    agent = Agent(model, tools=[weather])
    for streams in (False, True):
        cities.clear()
        # The second turn, which would call again, is not needed: what counts is what was called.
        async with agent.iter("How is the weather in Paris and in Rome?", model_settings=forced) as run:
            async for node in run:
                if Agent.is_model_request_node(node) and streams:
                    async with node.stream(run.ctx) as stream:
                        async for _ in stream:
                            pass
                if Agent.is_call_tools_node(node):
                    calls = node.model_response.tool_calls
                    assert [(c.tool_name, c.args_as_dict()["city"]) for c in calls] == [("weather", "Paris"), ("weather", "Rome")]
                    assert len({c.tool_call_id for c in calls}) == 2
                    async with node.stream(run.ctx) as events:
                        async for _ in events:
                            pass
                    break
        assert sorted(cities) == ["Paris", "Rome"], cities


# Another server cannot be told which tokens to generate.
if "MOI_PEER" not in os.environ:
    asyncio.run(parallel())
version = importlib.metadata.version("pydantic-ai-slim")
print(f"pydantic-ai {version}: output by a function and by a schema, streams, two calls at once")

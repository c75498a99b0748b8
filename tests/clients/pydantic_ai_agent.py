"""An agent of Pydantic AI: typed output, whole and streamed, and a tool that it must call."""

import asyncio
import importlib.metadata
import os
from typing import Literal

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
version = importlib.metadata.version("pydantic-ai-slim")
print(f"pydantic-ai {version}: output by a function and by a schema, streams")

"""Instructor: objects by tools, by JSON and by a schema."""

import importlib.metadata
import os
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, ConfigDict


class City(BaseModel):
    # Else so small a model adds fields without end.
    model_config = ConfigDict(extra="forbid")
    name: Literal["Paris", "Rome", "Oslo"]
    size: Literal[1, 2, 3]


base = openai.OpenAI(base_url=os.environ["MOI_URL"] + "/v1", api_key="k", max_retries=0)
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(base, mode=mode)
    city = client.create(
        model=os.environ["MOI_MODEL"], response_model=City, max_retries=0, max_tokens=100, temperature=0,
        messages=[{"role": "user", "content": "Name a city."}])
    assert isinstance(city, City), (mode, city)
print(f"instructor {importlib.metadata.version('instructor')}: objects by tools and by a JSON schema")

"""What can be measured: models, the forms that their weights are held in, and the engines for each."""

import os
from dataclasses import dataclass
from pathlib import Path

import install

ENGINES = ["moi", "llama.cpp", "torch", "candle", "onnxruntime-genai", "openvino-genai", "ctranslate2"]
CACHE = Path(os.environ.get("MOI_CACHE") or install.user_cache() / "moi")

ROWS = {
    "int4": (
        ("moi", "file"),
        ("moi", "file/int8"),
        ("moi", "q4_0"),
        ("llama.cpp", "file"),
        ("llama.cpp", "q4_0"),
        ("candle", "file"),
        ("onnxruntime-genai", "int4"),
        ("openvino-genai", "int4"),
    ),
    "int8": (
        ("moi", "q8_0"),
        ("moi", "q8_0/int8"),
        ("llama.cpp", "q8_0"),
        ("onnxruntime-genai", "int8"),
        ("openvino-genai", "int8"),
        ("ctranslate2", "int8"),
    ),
    "f32": (
        ("moi", "f32"),
        ("torch", "f32"),
        ("onnxruntime-genai", "f32"),
        ("openvino-genai", "f32"),
        ("ctranslate2", "f32"),
    ),
    "bf16": (("moi", "bf16"), ("torch", "bf16")),
}
"""For each table its engines, and what they call the form; `file` is the blocks of the GGUF file, unchanged. Behind a
slash stands what moi rounds activations to, where it is not the default."""

FORMS = ["int4", "int8", "f32"]
"""The tables that are measured where none are named."""

TITLES = {"int4": "4 bits", "int8": "8 bits", "f32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Model:
    """A file of the catalogue."""

    title: str
    file: str
    stored: str
    """The type of most of its blocks."""

    def path(self) -> Path:
        """Where `moi` keeps the file."""
        return CACHE / "models" / self.file


MODELS = {
    "smollm2": Model("SmolLM2-135M", "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
    "gemma": Model("Gemma-3-270M", "gemma-3-270m/gemma-3-270m-q4_k_m.gguf", "Q4_K_M"),
}


@dataclass(frozen=True)
class Row:
    """One engine with one model in one form."""

    model: Model
    table: str
    engine: str
    form: str

    def title(self) -> str:
        """That of its table."""
        return f"{self.model.title}, {TITLES[self.table]}"

    def label(self) -> str:
        """Its form as the table names it."""
        form, _, activations = self.form.partition("/")
        form = f"{self.model.stored} (file)" if form == "file" else form
        return f"{form}, activations {activations}" if activations else form


def rows(engines: list[str], models: list[str], forms: list[str]) -> list[Row]:
    """All rows of these, table by table, moi first."""
    return [
        Row(MODELS[model], table, engine, form)
        for model in models
        for table in forms
        for engine, form in ROWS[table]
        if engine in engines
    ]

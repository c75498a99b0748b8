"""Writes a model in each engine's own form, once, into the cache.

All forms come from the values of the GGUF file: `moi convert` writes them as float32, and each engine's own converter
takes it from there.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import install
from children import Failure, child
from configurations import Model, Row

RECIPE = "peers-recipe.txt"
"""The file in a converted directory that says how it was made."""

ONNX_BUILDER = Path(__file__).resolve().parent / "engines" / "build_onnx.py"

OPENVINO_FORMATS = {
    "f32": ["--weight-format", "fp32"],
    "int8": ["--weight-format", "int8"],
    # The widest groups that divide the widths of both models.
    "int4": ["--weight-format", "int4", "--group-size", "64"],
}


def weights(row: Row, moi: Path) -> Path:
    """What a row's engine loads.

    Raises Failure if it cannot be written.
    """
    source = row.model.path()
    if not source.exists():
        raise Failure(f"failed: no {source}; `cargo xtask fetch {source.parent.name}` gets it")
    match row.engine:
        case "moi" | "candle":
            return source
        case "llama.cpp":
            return source if row.form == "file" else gguf(row, moi)
        case "torch":
            return floats(row.model, moi)
        case "onnxruntime-genai":
            return onnx(row, moi)
        case "openvino-genai":
            return openvino(row, moi)
        case "ctranslate2":
            return ctranslate2(row, moi)
    raise Failure(f"failed: no weights for {row.engine}")


def floats(model: Model, moi: Path) -> Path:
    """The file's values as float32 safetensors, in Hugging Face layout."""

    def convert(folder: Path) -> None:
        child([moi, "convert", model.path(), "--to", "safetensors", "--dtype", "f32", "--output", folder])

    return once(model, "f32", "moi convert --to safetensors --dtype f32", convert)


def gguf(row: Row, moi: Path) -> Path:
    """A GGUF file with all matrices in the row's form."""
    flags = ["--to", "gguf", "--quantize", row.form]

    def convert(folder: Path) -> None:
        child([moi, "convert", row.model.path(), *flags, "--output", folder])

    folder = once(row.model, row.form, f"moi convert {' '.join(flags)}", convert)
    return next(folder.glob("*.gguf"))


def onnx(row: Row, moi: Path) -> Path:
    """An ONNX model by ONNX Runtime GenAI's builder, with its defaults: 32 values to a scale, activations to 8 bits."""
    precision = {"f32": "fp32"}.get(row.form, row.form)
    # Of a prompt the logits of the last position only, as of all engines.
    flags = ["-p", precision, "-e", "cpu", "--extra_options", "prune_lm_head=true"]

    def convert(folder: Path) -> None:
        source = floats(row.model, moi)
        command = ["python", "-B", ONNX_BUILDER, "-i", source, "-o", folder, "-c", folder / "cache", *flags]
        converter(command, install.torch_environment(install.CONVERTERS_VENV))
        shutil.rmtree(folder / "cache", ignore_errors=True)

    requirements = install.ONNXRUNTIME_GENAI + install.CONVERTERS
    return once(row.model, f"onnx-{row.form}", " ".join(requirements + flags), convert)


def openvino(row: Row, moi: Path) -> Path:
    """An OpenVINO model by optimum-intel; beside layers in 4 bits the table of tokens has 8, as is its default."""
    flags = ["--task", "text-generation-with-past", *OPENVINO_FORMATS[row.form]]

    def convert(folder: Path) -> None:
        source = floats(row.model, moi)
        command = ["optimum-cli", "export", "openvino", "--model", source, *flags, folder]
        converter(command, install.optimum_environment())

    requirements = install.OPENVINO_GENAI + install.OPTIMUM + install.OPTIMUM_TRANSFORMERS
    return once(row.model, f"openvino-{row.form}", " ".join(requirements + flags), convert)


def ctranslate2(row: Row, moi: Path) -> Path:
    """A CTranslate2 model by its own converter."""
    flags = ["--quantization", {"f32": "float32"}.get(row.form, row.form)]

    def convert(folder: Path) -> None:
        source = floats(row.model, moi)
        command = ["ct2-transformers-converter", "--model", source, "--output_dir", folder, *flags]
        converter(command, install.torch_environment(install.CONVERTERS_VENV))

    requirements = install.CTRANSLATE2 + install.CONVERTERS
    return once(row.model, f"ctranslate2-{row.form}", " ".join(requirements + flags), convert)


def converter(command: list, environment: dict[str, str]) -> None:
    """A program of the converters' virtual environment, which must not look for anything outside this machine."""
    program, *arguments = command
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    folder = install.cache() / install.CONVERTERS_VENV / "bin"
    child([folder / program, *arguments], environment | offline)


def once(model: Model, form: str, made_by: str, convert: Callable[[Path], None]) -> Path:
    """The directory of a model's form; written unless it is there already, by the same recipe from the same file."""
    folder = install.cache() / "weights" / f"{model.path().stem}-{form}"
    source = model.path().stat()
    wanted = f"{made_by}\n{source.st_size} bytes, {int(source.st_mtime)}\n"
    if (folder / RECIPE).exists() and (folder / RECIPE).read_text() == wanted:
        return folder
    part = folder.with_name(f"{folder.name}.part")
    for old in (folder, part):
        shutil.rmtree(old, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        convert(part)
    except Failure as failure:
        raise Failure(f"not converted: {str(failure).removeprefix('failed: ')}") from failure
    (part / RECIPE).write_text(wanted)
    part.rename(folder)
    return folder

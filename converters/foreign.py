"""Formats that are not read: what they are, and what to give instead."""

from __future__ import annotations

from pathlib import Path

from converters.errors import ConversionError

_LOAD_AND_SAVE = "load it where it was made and save it with model.save('model.keras')"
_CHECKPOINT = (
    "a checkpoint holds weights without the model; build the model, load_weights() it and save it "
    "with model.save('model.keras')"
)
_TORCH = (
    "a torch file may hold code, which is never run; load it yourself and give the module: "
    "privserve.load_model(module, input_shape=...), or export it with torch.onnx.export"
)
_PICKLE = "a pickle may hold code, which is never run; export the model to ONNX (skl2onnx)"
_YAML = (
    "this is an architecture, as Keras up to 2.6 wrote it; load it with that Keras and give the "
    "JSON of model.to_json() with --architecture, beside the weights"
)
_SUFFIXES = {
    ".pb": f"a frozen TensorFlow graph has no layers left; {_LOAD_AND_SAVE}",
    ".pbtxt": f"a TensorFlow graph as text has no weights; {_LOAD_AND_SAVE}",
    ".tflite": f"TensorFlow Lite files are compiled for devices; {_LOAD_AND_SAVE} instead",
    ".ckpt": _CHECKPOINT,
    ".index": _CHECKPOINT,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".joblib": _PICKLE,
    ".safetensors": "it holds weights without the model; load them into the module, and give that",
    ".mlmodel": "Core ML files are compiled for devices; give the model that it was made from",
    ".yaml": _YAML,
    ".yml": _YAML,
    ".json": "this is an architecture; name the weights' file, and this one with --architecture",
}
_KERAS = (b"\x89HDF", b"PK\x03\x04")


def refuse_other_formats(path: Path) -> None:
    """Raise the ConversionError of a file or folder that some other program wrote."""
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            raise ConversionError(f"this is a TensorFlow SavedModel; {_LOAD_AND_SAVE}")
        return
    suffix = path.suffix.lower()
    why = _SUFFIXES.get(suffix)
    if why is None or not path.is_file():
        return
    with path.open("rb") as file:
        is_keras = file.read(4).startswith(_KERAS)
    if not is_keras or suffix in (".pt", ".pth"):  # torch's are zips too
        raise ConversionError(why)

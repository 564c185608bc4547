"""Opens what Keras wrote, of any generation, and gives a Network with its weights.

Three containers: HDF5 with the configuration in an attribute (`.h5`, and `.keras` of old
habit), HDF5 with weights alone, and the zip of Keras 3 (`.keras`) that holds config.json
and model.weights.h5. Nothing but JSON and arrays of numbers is read from any of them.
"""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

from converters.errors import ConversionError
from converters.hdf5 import DAMAGED, MAX_BYTES, MAX_TEXT, Hdf5, open_hdf5
from converters.keras1 import modernize_weights
from converters.keras_config import as_dict, read_network
from converters.keras_weights import assign_legacy, assign_live, assign_v3, check_supported
from converters.network import Config, Network

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
ZIP_SIGNATURE = b"PK\x03\x04"
_MAX_ZIP_RATIO = 200  # unpacked to packed; weights of trained models hardly compress

# What people most often have under a model's name, by its first bytes.
_LOOKALIKES = (
    (b"version https://git-lfs", "a git-LFS pointer, not the model; fetch it with `git lfs pull`"),
    (b"\xef\xbf\xbdHDF", "an HDF5 file that was re-encoded as text on its way; fetch it again "
                         "in binary mode"),
    (b"\x89HDF", "an HDF5 file whose line ends were changed on its way; fetch it again in "
                 "binary mode"),
    (b"{", "JSON (an architecture or a notebook?), not a saved model; give the .h5 or .keras file"),
    (b"<", "a web page, not a model; download the file itself"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (b"\x80", "a Python pickle, which is never opened; save the model with model.save('model.h5')"),
)  # fmt: skip


def read_file(
    path: Path, architecture: Config | None, backend: str | None = None
) -> tuple[Network, dict[str, str]]:
    """Return the network in a Keras file, and what is known about the file.

    architecture: the model's configuration, for files that hold weights alone.
    backend: what Keras 1 or 2 ran on, "theano" or another, for files that do not say it.

    Raises: ConversionError, without the file's name.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
        size = path.stat().st_size
    except IsADirectoryError:
        raise ConversionError(
            "this is a directory (a TensorFlow SavedModel?); "
            "save the model with model.save('model.h5') or as .keras"
        ) from None
    except FileNotFoundError:
        raise ConversionError("there is no such file; check the path") from None
    except OSError as error:
        raise ConversionError(f"it cannot be read: {error.strerror}") from None
    if head.startswith(ZIP_SIGNATURE):
        return _read_zip(path, architecture)
    if not head.startswith(HDF5_SIGNATURE):
        raise ConversionError(f"not a Keras model: {_looks_like(head)}")
    with open_hdf5(path, size) as file:
        return _read_hdf5(file, architecture, backend)


def parse_architecture(architecture: str | Path | Config) -> Config:
    """Return a model configuration from a dictionary, a JSON string or a JSON file.

    Raises: ConversionError.
    """
    if isinstance(architecture, dict):
        return architecture
    text = str(architecture)
    if not text.lstrip().startswith("{"):
        if "\n" in text.strip() or text.lower().endswith((".yaml", ".yml")):
            raise ConversionError(
                "the architecture is YAML, as Keras up to 2.6 wrote it; load it with that Keras "
                "(model_from_yaml) and give what model.to_json() writes"
            )
        path = Path(architecture)
        try:
            if path.stat().st_size > MAX_TEXT:
                raise ConversionError(f"architecture {path}: too large")
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConversionError(
                f"architecture {path}: it cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            raise ConversionError(
                f"architecture {path}: not JSON; give what model.to_json() wrote"
            ) from None
    if not text.lstrip().startswith("{") and re.match(r"\s*(backend|class_name)\s*:", text):
        raise ConversionError(
            f"architecture {architecture}: YAML, as Keras up to 2.6 wrote it, is not read since it "
            "may hold code; load it with that Keras and write model.to_json() instead"
        )
    return _parse_json(text, "the architecture")


def read_live(model: Any) -> tuple[Network, dict[str, str]]:
    """Return the network of a Keras model in memory, of tf.keras, Keras 2 or Keras 3."""
    try:
        text = model.to_json()
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ConversionError(
            f"the model does not describe itself ({error}); rebuild it as a Sequential or "
            "functional model"
        ) from None
    config = _parse_json(text, "the model's configuration")
    version = str(config.get("keras_version") or "3")
    network = read_network(config, _generation(version))
    check_supported(network)
    assign_live(network, model.get_layer)
    return network, _metadata("live model", version)


# --- HDF5 ------------------------------------------------------------------------------


def _read_hdf5(
    file: Hdf5, architecture: Config | None, backend: str | None
) -> tuple[Network, dict[str, str]]:
    root = file.root
    holder = file.group(root, "model_weights")
    text = file.text(root, "model_config")
    weights = root if holder is None else holder
    is_legacy = file.names(weights, "layer_names") is not None
    backend = file.text(weights, "backend") or file.text(root, "backend") or backend
    has_tree = file.group(root, "layers") or file.group(root, "_layer_checkpoint_dependencies")
    if text is None and not is_legacy and has_tree is None:
        raise ConversionError("this HDF5 file holds no Keras model")
    if architecture is None:
        if text is None:
            raise ConversionError(
                "this file holds weights only; give the architecture too, as written by "
                "model.to_json() (--architecture model.json)"
            )
        architecture = _parse_json(text, "the model's configuration")
    version = (
        file.text(root, "keras_version")
        or file.text(weights, "keras_version")
        or str(architecture.get("keras_version") or ("1" if is_legacy else "3"))
    )
    network = read_network(architecture, _generation(version))
    check_supported(network)
    if is_legacy:
        assign_legacy(network, file, weights)
        if network.keras[0] < 3:
            modernize_weights(network, backend)
    elif has_tree is not None:
        assign_v3(network, file, root)
    else:
        raise ConversionError("this file holds an architecture but no weights; use model.save()")
    metadata = _metadata("HDF5" if text is not None else "HDF5 weights", version)
    return network, metadata | ({"keras_backend": backend[:40]} if backend else {})


# --- the zip of Keras 3 ----------------------------------------------------------------


def _read_zip(path: Path, architecture: Config | None) -> tuple[Network, dict[str, str]]:
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryFile() as weights:
            names = set(archive.namelist())
            if "config.json" not in names:
                raise ConversionError(
                    "this zip holds no Keras model (config.json is missing); give a .keras file"
                )
            if "model.weights.h5" not in names:
                raise ConversionError(
                    "this .keras file has its weights in a form other than model.weights.h5; "
                    "save it with Keras' defaults"
                )
            if architecture is None:
                text = _unpacked(archive, "config.json").decode("utf-8")
                architecture = _parse_json(text, "config.json")
            version = "3"
            if "metadata.json" in names:
                about = _parse_json(_unpacked(archive, "metadata.json").decode(), "metadata.json")
                version = str(about.get("keras_version") or version)
            network = read_network(architecture, _generation(version))
            check_supported(network)
            size = _unpack_weights(archive, weights)
            with open_hdf5(weights, size) as file:
                assign_v3(network, file, file.root)
            return network, _metadata(".keras zip", version)
    except (zipfile.BadZipFile, EOFError, UnicodeDecodeError, RuntimeError) as error:
        raise ConversionError(f"{DAMAGED} ({error})") from None
    except NotImplementedError:
        raise ConversionError("this zip is packed in a way that Keras does not use") from None


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        data = file.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise ConversionError(f"{name} unpacks to more than {MAX_TEXT >> 20} MiB; it is not read")
    return data


def _unpack_weights(archive: zipfile.ZipFile, target: IO[bytes]) -> int:
    """Unpack model.weights.h5 into `target`, within bounds, and return its size."""
    info = archive.getinfo("model.weights.h5")
    bound = min(MAX_BYTES, (64 << 20) + _MAX_ZIP_RATIO * info.compress_size)
    size = 0
    with archive.open(info) as source:
        while chunk := source.read(1 << 20):
            size += len(chunk)
            if size > bound:
                raise ConversionError("model.weights.h5 unpacks to far too much; it is not read")
            target.write(chunk)
    target.seek(0)
    return size


# --- text ------------------------------------------------------------------------------


def _parse_json(text: str, what: str) -> Config:
    try:
        return as_dict(json.loads(text), what)
    except RecursionError:
        raise ConversionError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ConversionError(f"{what} is not valid JSON ({error})") from None


def _generation(version: str) -> tuple[int, int]:
    """'2.2.4-tf' -> (2, 2)."""
    match = re.match(r"(\d{1,3})(?:\.(\d{1,3}))?", version)
    if match is None or not 1 <= int(match[1]) <= 9:
        raise ConversionError(f"the Keras version {version[:40]!r} is unknown")
    return int(match[1]), int(match[2] or 0)


def _metadata(container: str, version: str) -> dict[str, str]:
    return {"source_format": f"Keras {container}", "keras_version": version[:40]}


def _looks_like(head: bytes) -> str:
    if not head:
        return "the file is empty"
    for start, meaning in _LOOKALIKES:
        if head.lstrip().startswith(start):
            return f"this is {meaning}"
    return "it is neither HDF5 nor a .keras zip; give the file that model.save() wrote"

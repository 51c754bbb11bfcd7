"""Unpacks a single file in original layout into a diffusers folder, once on each machine.

diffusers turns the keys into its own. The unpacked folder holds the settings of the file's layout, and not those that
diffusers writes, so its content depends on the file alone. Every number is kept as it is, in the file's own type or, where
it has several, in the widest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import nn

from safety.errors import ArtifactFormatError, ConfigError
from safety.families.model_config import ModelConfig
from safety.families.network import loaded
from safety.families.single_file import DENOISER, KNOWN, LAYOUTS, Header, layout_folder, predicted, read_header
from safety.families.weight_files import INDEX_FILE, broken, listed_parts, part_files, read_index, read_json
from safety.quiet import no_progress_bars

MERGES = LAYOUTS / "clip_merges.txt"
WHOLE = "name a whole model of this kind, or download it again"
SIDES = {"v_prediction": 96, "epsilon": 64}
"""Side of the latents of Stable Diffusion 2.x: those that predict velocity were made for 768 pixels, the others for 512."""
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FORMAT = 1
"""Of unpacked folders: another number makes them anew."""


def unpack(file: Path, config: ModelConfig) -> Path:
    """Return a single file's model as a diffusers folder, made once on this machine.

    Raises:
        ConfigError: No settings are known for its layout, or it does not say what it predicts.
        ArtifactFormatError: It is damaged, lacks weights of a network, or is no whole model.
    """
    layout = layout_folder(file, config)
    header = read_header(file)
    prediction = predicted(file, header, layout, config)
    return _made_once(
        config.cache_folder("unpacked"),
        [FORMAT, _stamp(file), _settings_stamp(layout), prediction],
        lambda folder: _write_model(file, header, layout, prediction, folder),
    )


def unpack_vae(file: Path, own: Path, config: ModelConfig) -> Path:
    """Return a VAE in a single file as a folder, with the settings that lie beside it, or else of the model's own VAE.

    Raises as ``unpack`` does.
    """
    header = read_header(file)
    settings = file.with_name("config.json")
    settings = settings if settings.is_file() else own / "config.json"
    read_json(settings)

    def write(folder: Path) -> None:
        # Slow to import, and only for single files.
        from diffusers import AutoencoderKL

        shutil.copyfile(settings, folder / "config.json")
        _save(_read(AutoencoderKL, file, header, folder), folder, "vae", file)
        shutil.copyfile(settings, folder / "config.json")

    return _made_once(config.cache_folder("unpacked"), [FORMAT, _stamp(file), _stamp(settings)], write)


def _write_model(file: Path, header: Header, layout: Path, prediction: str | None, folder: Path) -> None:
    """Write a single file's networks and its layout's settings into an empty folder."""
    # Slow to import, and only for single files.
    import diffusers

    index = read_index(layout)
    for name in listed_parts(index):
        (folder / name).mkdir()
        for path in part_files(layout / name).settings:
            shutil.copyfile(path, folder / name / path.name)
        if "tokenizer" in name and not any(
            (folder / name / each).is_file() for each in ("vocab.json", "tokenizer.json")
        ):
            _write_vocabulary(folder / name)
    shutil.copyfile(layout / INDEX_FILE, folder / INDEX_FILE)
    kind: Any = getattr(diffusers, str(index.get("_class_name")), None)
    if not hasattr(kind, "from_single_file"):
        raise broken(file, f"diffusers reads no {index.get('_class_name')} from a single file")
    kept = {path: path.read_bytes() for path in folder.rglob("*.json")}
    with no_progress_bars():
        pipeline = _read(kind, file, header, folder)
        _require_same_unet(pipeline, header, file)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                _save(part, folder / name, name, file)
    for path, data in kept.items():
        path.write_bytes(data)
    _set_prediction(folder, header, prediction)


def _read(kind: Any, file: Path, header: Header, settings: Path) -> Any:
    """Return a pipeline or a network of diffusers, read from a single file by the settings in a folder."""
    # Slow to import, and only for single files.
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        return loaded(
            lambda: kind.from_single_file(
                str(file), config=str(settings), local_files_only=True, torch_dtype=_widest(header)
            ),
            file,
        )
    except SingleFileComponentError as error:
        raise broken(file, f"it lacks a whole network ({' '.join(str(error).split())[:120]})", WHOLE) from error
    except ArtifactFormatError as error:
        if "meta tensor" not in error.message:
            raise
        # diffusers leaves what is missing without memory, and then fails to change its type.
        raise broken(file, "it lacks weights of one of its networks") from error


def _require_same_unet(pipeline: Any, header: Header, file: Path) -> None:
    """Refuse a UNet with more weights than its settings have, such as LCM's: diffusers would leave them out."""
    unet = pipeline.components.get("unet")
    held = [key for key in header.shapes if key.startswith(DENOISER)]
    if unet is not None and len(held) > len(unet.state_dict()):
        raise broken(
            file,
            f"its denoiser has {len(held)} weights, and one of its layout has {len(unet.state_dict())}: it is of another kind",
            "name the model's diffusers folder, which says of which",
        )


def _set_prediction(folder: Path, header: Header, prediction: str | None) -> None:
    """Write what the denoiser predicts, and what goes with it, into the settings of an unpacked folder."""
    scheduler, unet = folder / "scheduler" / "scheduler_config.json", folder / "unet" / "config.json"
    if prediction is not None:
        _change(scheduler, prediction_type=prediction)
    if "ztsnr" in header.shapes:
        _change(scheduler, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    shipped = read_json(LAYOUTS / KNOWN["v2"] / "unet" / "config.json")
    if prediction is not None and unet.is_file() and read_json(unet) == shipped:
        _change(unet, sample_size=SIDES[prediction])


def _change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**read_json(path), **settings}, indent=2) + "\n", encoding="utf-8")


def _save(network: nn.Module, folder: Path, name: str, file: Path) -> None:
    """Write a network's weights; refuse one whose file lacked some, which diffusers leaves without memory."""
    missing = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if missing:
        raise broken(file, f"it lacks {len(missing)} weights of the {name}, such as {missing[0]}", WHOLE)
    try:
        network.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{file} cannot be unpacked into {folder.parent} ({error})",
            field="model.cache",
            fix=f"free {file.stat().st_size / 2**30:.1f} GiB there, or name another folder",
        ) from error


def _write_vocabulary(folder: Path) -> None:
    """Write CLIP's vocabulary, which follows from its merges: bytes, bytes that end a word, merges, and two marks."""
    # Slow to import, and only for single files.
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = MERGES.read_text(encoding="utf-8").splitlines()[1:]
    signs = list(bytes_to_unicode().values())
    words = [*signs, *(f"{sign}</w>" for sign in signs), *("".join(line.split()) for line in lines)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    text = json.dumps({word: number for number, word in enumerate(words)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    shutil.copyfile(MERGES, folder / "merges.txt")


def _widest(header: Header) -> torch.dtype:
    """Return the type that holds every number of a file's networks exactly; what lies beside them is not read."""
    found = {kind for key, kind in header.types.items() if "." in key and not key.startswith("model_ema.")}
    types = [TYPES[kind] for kind in sorted(found) if kind in TYPES]
    return functools.reduce(torch.promote_types, types) if types else torch.float32


def _stamp(path: Path) -> list[Any]:
    """Return what changes when a file does, without reading it."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _settings_stamp(layout: Path) -> str:
    """Return a hash of a layout's settings."""
    files = [
        layout / INDEX_FILE,
        *(p for name in listed_parts(read_index(layout)) for p in part_files(layout / name).settings),
    ]
    digest = hashlib.sha256(MERGES.read_bytes())
    for path in files:
        digest.update(f"{path.relative_to(layout).as_posix()}\x1f".encode() + path.read_bytes())
    return digest.hexdigest()


def _made_once(cache: Path, key: list[Any], write: Callable[[Path], None]) -> Path:
    """Return the folder of a key, written once on this machine; a process that dies leaves none, or a hidden one."""
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    found = cache / name
    if found.is_dir():
        return found
    with FileLock(cache / f"{name}.lock"):
        if found.is_dir():
            return found
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
        try:
            write(fresh)
        except Exception:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        fresh.rename(found)
    return found

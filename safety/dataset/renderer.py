"""Rendering of a group of prompt rows with the base model, and encoding of images and texts for training.

A pair's two prompts start from the same noise. Images are re-encoded through the VAE from their stored pixels,
so that a row's latents are those of its images, whatever model rendered them. A row whose source has pictures is not
rendered: its pictures are read, brought to the model's size and encoded in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from safetensors.torch import save
from torch import Tensor

from safety.dataset.filter import RejectionReason, reject_prompt
from safety.dataset.record import Record
from safety.errors import ImageError
from safety.families import ModelFamily
from safety.images import decode_image, encode_png, fit, pixel_hash, to_float
from safety.prompts.rows import PromptPair
from safety.rendering import RenderConfig, render

PAIR_IMAGES = ("loser", "winner")
PAIR_TEXTS = ("unsafe", "safe")
BENIGN_NAMES = ("benign",)
ENCODERS = 4
"""Threads that compress images."""


class GroupRenderer:
    """Renders records with a base model and encodes their images and texts."""

    def __init__(self, model: ModelFamily, config: RenderConfig) -> None:
        self.model, self.config = model, config

    def render(self, records: Sequence[Record]) -> list[Record]:
        """Return the records with images and tensors; a row with a refused prompt, or an unreadable picture, gets a reason.

        Raises:
            ConfigError: A picture of a row's source cannot be read from here.
        """
        images: dict[tuple[str, int], Tensor] = {}
        checked = [self._with_pictures(self._checked(record), images) for record in records]
        wanted = [record for record in checked if record.kept]
        if not wanted:
            return checked
        # All first members, then all second ones: a batch depends on the group alone.
        depth = max(len(record.row.prompts) for record in wanted)
        tasks = [(r, member) for member in range(depth) for r in wanted if member < len(r.row.prompts)]
        self._render_missing(tasks, images)
        places = [(record.row.row_id, member) for record, member in tasks]
        prompts = [record.row.prompts[member] for record, member in tasks]
        with ThreadPoolExecutor(ENCODERS) as pool:
            # Compressed while the device encodes latents and texts, which would wait for it else.
            files = {
                place: pool.submit(encode_png, images[place], _metadata(record, member))
                for place, (record, member) in zip(places, tasks, strict=True)
            }
            latents, states = self._encode(torch.stack([images[place] for place in places]), prompts)
            pngs = {place: file.result() for place, file in files.items()}
        placed = {place: index for index, place in enumerate(places)}
        return [self._rendered(r, images, pngs, latents, states, placed) if r.kept else r for r in checked]

    def _with_pictures(self, record: Record, images: dict[tuple[str, int], Tensor]) -> Record:
        """Read a row's own pictures in the model's size into ``images``; return the row, with a reason where one is faulty."""
        if not record.kept or not record.pictures:
            return record
        height, width = (side or self.model.default_size for side in (self.config.height, self.config.width))
        try:
            found = [fit(decode_image(picture.read()), height, width) for picture in record.pictures]
        except ImageError as error:
            return record.model_copy(update={"reason": RejectionReason(error.fault.value)})
        images.update({(record.row.row_id, member): image for member, image in enumerate(found)})
        return record

    def _render_missing(self, tasks: Sequence[tuple[Record, int]], images: dict[tuple[str, int], Tensor]) -> None:
        """Render what has no picture yet."""
        missing = [(record, member) for record, member in tasks if (record.row.row_id, member) not in images]
        if missing:
            prompts = [record.row.prompts[member] for record, member in missing]
            drawn = render(self.model, prompts, [record.seed for record, _ in missing], self.config)
            places = [(record.row.row_id, member) for record, member in missing]
            images.update(zip(places, drawn, strict=True))

    def _checked(self, record: Record) -> Record:
        reason = reject_prompt(record.row.prompts, self.model)
        row = record.row.withheld() if reason is RejectionReason.REFUSED_PROMPT else record.row
        return record.model_copy(update={"reason": reason, "row": row})

    def _encode(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return latents [B, C, h, w] and text states {key: [B, ...]} on the CPU, as precise as the model gives them."""
        latents, states = [], []
        for start in range(0, len(prompts), self.config.batch):
            part = slice(start, start + self.config.batch)
            latents.append(self.model.encode_images(to_float(images[part])).cpu())
            states.append(self.model.encode_text(prompts[part]))
        return torch.cat(latents), {key: torch.cat([s[key] for s in states]).cpu() for key in states[0]}

    def _rendered(
        self,
        record: Record,
        images: Mapping[tuple[str, int], Tensor],
        pngs: Mapping[tuple[str, int], bytes],
        latents: Tensor,
        states: dict[str, Tensor],
        placed: dict[tuple[str, int], int],
    ) -> Record:
        is_pair = isinstance(record.row, PromptPair)
        image_names, text_names = (PAIR_IMAGES, PAIR_TEXTS) if is_pair else (BENIGN_NAMES, BENIGN_NAMES)
        tensors: dict[str, Tensor] = {}
        own = [(record.row.row_id, member) for member in range(len(record.row.prompts))]
        for member, place in enumerate(own):
            index = placed[place]
            tensors[image_names[member]] = latents[index].contiguous()
            for key, value in states.items():
                tensors[f"{text_names[member]}/{key}"] = value[index].contiguous()
        return record.model_copy(
            update={
                "images": tuple(pngs[place] for place in own),
                "pixel_hashes": tuple(pixel_hash(images[place]) for place in own),
                "tensors": save(tensors),
            }
        )


def _metadata(record: Record, member: int) -> dict[str, str]:
    """Return what a member's PNG says of itself."""
    origin = {"origin": "published"} if record.pictures else {"seed": str(record.seed)}
    return {"prompt": record.row.prompts[member], **origin}

"""Answers about images that were paid for once: on disk, by the image's pixels, its prompt and who was asked what."""

import base64
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor


def png(levels: Tensor) -> str:
    """(3, H, W), 8-bit -> a data URL."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class Answers:
    """One small file an answer, written whole or not at all, so that processes and threads may share the folder."""

    def __init__(self, folder: str | None, judge: Sequence[str]):
        self.folder = None if folder is None else Path(folder).expanduser()
        self.judge = list(judge)

    def get(self, levels: Tensor, prompt: str) -> float | None:
        """The score of an image (3, H, W), 8-bit, or None."""
        if self.folder is None:
            return None
        try:
            return float(json.loads(self._file(levels, prompt).read_text(encoding="utf-8"))["score"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or cut off by something else than us: it is asked for again

    def put(self, levels: Tensor, prompt: str, score: float) -> None:
        if self.folder is None:
            return
        path = self._file(levels, prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"score": score, "prompt": prompt, "judge": self.judge})
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)

    def _file(self, levels: Tensor, prompt: str) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(json.dumps([*self.judge, prompt, *levels.shape]).encode())
        digest.update(levels.contiguous().numpy().tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.json"

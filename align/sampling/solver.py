"""sampling.solver: a file of times and step coefficients that were learned for one model and number of steps."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from align.errors import UserError

if TYPE_CHECKING:
    from align.models._base import DiffusionModel
    from samplers import Grid

FILE_NAME = "solver.json"
FORMAT = "diffalign solver 1"


class Solver(NamedTuple):
    """What the file holds."""

    times: tuple[float, ...]
    """(N + 1,), falling, t in [0, 1]."""
    below: tuple[float, ...]
    """The coefficients below the diagonal of M, row by row: N (N - 1)/2 of them (samplers/learned.py)."""
    init_scale: float
    prediction: str
    model: str
    guidance: str
    """How it was guided when it was learned, for people."""

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1

    def text(self) -> str:
        """The file."""
        return json.dumps({"format": FORMAT, "num_steps": self.num_steps, **self._asdict()}, indent=1) + "\n"

    def write(self, folder: Path) -> None:
        """Writes the file into `folder`, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{FILE_NAME}.part"
        part.write_text(self.text(), encoding="utf-8")
        part.replace(folder / FILE_NAME)

    def grid(self, model: "DiffusionModel") -> "Grid":
        """Its times; a model that predicts something else than the one it was learned on is refused."""
        import torch

        from samplers import Grid

        if model.kind.name.lower() != self.prediction:
            raise UserError(
                f"sampling.solver: it was learned on a model that predicts {self.prediction} ({self.model}), and this "
                f"one predicts {model.kind.name.lower()}. Learn one for it: align train solver/shapes."
            )
        return Grid(torch.tensor(self.times, dtype=torch.float64), self.init_scale)

    def step(self) -> Any:
        """Its step rule."""
        import torch

        from samplers.learned import Learned, mixture

        return Learned.of(mixture(torch.tensor(self.below, dtype=torch.float64)))


def find(source: str) -> Path:
    """The file that a path means: itself, or in a run's folder or its adapter's."""
    path = Path(source).expanduser()
    return next((p for p in (path, path / FILE_NAME, path / "adapter" / FILE_NAME) if p.is_file()), path)


def read(source: str) -> Solver:
    """The solver of a file, of a run, or of a folder that holds one."""
    path = find(source)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        assert said["format"] == FORMAT
        solver = Solver(
            times=tuple(map(float, said["times"])),
            below=tuple(map(float, said["below"])),
            init_scale=float(said["init_scale"]),
            **{key: str(said[key]) for key in ("prediction", "model", "guidance")},
        )
        n, times = solver.num_steps, solver.times
        assert n >= 1 and len(solver.below) == n * (n - 1) // 2
        assert all(a > b for a, b in pairwise(times)) and 0 <= times[-1] and times[0] <= 1
        assert all(map(math.isfinite, (*solver.below, solver.init_scale)))
    except OSError as error:
        raise UserError(
            f"sampling.solver={source}: cannot be read ({error.strerror}). Name the {FILE_NAME} or the run of an "
            "align train solver/..."
        ) from None
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"sampling.solver={source}: is no whole {FILE_NAME} ({FORMAT}). Learn it again.") from None
    return solver

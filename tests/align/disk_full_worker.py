"""Run by test_disk_full.py in a mount namespace of its own: trains into disks that are too small, and then makes room.

usage: unshare -rm python disk_full_worker.py RECIPE FOLDER KIB...

Prints a line of JSON for each size: what was said, and whether going on gave the run that lies in FOLDER/whole.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from align.commands.app import app
from align.policy.lora import FILE_NAME
from align.run import Run


def train(recipe: str, output: Path) -> Any:
    return CliRunner().invoke(app, ["train", recipe, f"output={output}"])


def result(output: Path) -> tuple[bytes, list[dict[str, Any]]]:
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in Run(output).metrics]
    return (output / "adapter" / FILE_NAME).read_bytes(), records


def main(recipe: str, folder: Path, sizes: list[int]) -> None:
    assert train(recipe, folder / "whole").exit_code == 0
    for size in sizes:
        output = folder / f"disk-{size}"
        output.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", output], check=True)
        found = train(recipe, output)
        error = found.exception if not isinstance(found.exception, SystemExit) else None
        told = {"size": size, "code": found.exit_code, "said": found.stderr, "error": repr(error) if error else ""}
        subprocess.run(["mount", "-o", "remount,size=64m", output], check=True)
        went_on = train(recipe, output)
        same = went_on.exit_code == 0 and result(output) == result(folder / "whole")
        print(json.dumps(told | {"same": same}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(size) for size in sys.argv[3:]])

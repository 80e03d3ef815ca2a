"""docs/develop/samplers.md: its code runs, and its figure is what the samplers do today."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "develop" / "samplers.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/develop/samplers.md", "exec"), scope)


def test_the_figure_is_current():
    script = runpy.run_path(str(ROOT / "scripts" / "figures" / "grad_policy.py"))
    assert script["TARGET"].read_text() == script["render"]()

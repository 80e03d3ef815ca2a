"""The room itself: what importing it costs, and that what it offers is documented."""

import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import samplers


def test_importing_samplers_costs_nothing_beyond_torch():
    code = (
        "import sys, torch, torch.utils.checkpoint; before = set(sys.modules); import samplers; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    root = Path(samplers.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert set(run.stdout.split()) - set(sys.stdlib_module_names) == {"samplers"}


def test_every_public_name_is_documented():
    missing = [
        name
        for name in samplers.__all__
        if (inspect.isroutine(value := getattr(samplers, name)) or inspect.isclass(value)) and not value.__doc__
    ]
    assert missing == []
    assert set(samplers.__all__) <= set(dir(samplers))


def test_every_file_of_mathematics_opens_with_its_formula_and_source():
    for module in pkgutil.iter_modules(samplers.__path__):
        opening = inspect.getdoc(__import__(f"samplers.{module.name}", fromlist=["_"]))
        assert opening and len(opening) > 80, module.name
    cited = ["schedule", "prediction", "ddim", "euler", "heun", "dpmpp", "lcm", "guidance", "momentum"]
    for name in cited:
        assert "arXiv" in inspect.getdoc(__import__(f"samplers.{name}", fromlist=["_"])), name


def test_shapes_are_in_the_docstrings_of_what_takes_tensors():
    for name in (
        "split",
        "target",
        "add_noise",
        "ddim",
        "euler",
        "euler_ancestral",
        "lcm",
        "sample",
        "invert",
        "denoise",
    ):
        assert "(B" in inspect.getdoc(getattr(samplers, name)), name

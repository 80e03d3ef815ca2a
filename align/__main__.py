"""`align ...`, `python -m align ...`, and `accelerate launch -m align train RECIPE`."""

import gc
import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """The command; first of all whether something on the path hides the toolkit's own packages."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a prompt in letters that the terminal lacks ends no run
    for number, argument in enumerate(sys.argv[1:], 1):
        if not argument.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in argument):
            print(
                f"argument {number}: is not UTF-8 text: {argument!r}. Write it, or name the file, in UTF-8.",
                file=sys.stderr,
            )
            raise SystemExit(2)
    if hidden := shadowed():
        print("\n".join(f"{name}: {text}" for name, text in hidden.items()), file=sys.stderr)
        raise SystemExit(2)
    from align.commands.app import app

    try:
        app()
    except SystemExit as ended:
        if ended.code == 2 and "triton" not in sys.modules:  # whose bindings would complain
            gc.freeze()  # the refusal is said: no search of all that torch has made before the program ends
        raise


def shadowed() -> dict[str, str]:
    """{package: what hides it} for those of ours that are not the ones beside this package; `rewards` and `samplers`
    are names that other projects use too."""
    home = Path(__file__).resolve().parent.parent
    found = {}
    for name in ("rewards", "samplers"):
        spec = importlib.util.find_spec(name)
        where = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if where != home / name:
            found[name] = (
                f"the package of this name that Python finds is {where or 'none'}, not {home / name}. Run from another "
                "folder, rename the other package, or take its folder off PYTHONPATH."
            )
    return found


if __name__ == "__main__":
    main()

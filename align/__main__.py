"""`align ...`, `python -m align ...`, and `accelerate launch -m align train RECIPE`."""

import gc
import io
import sys

from align.shadow import shadowed


def main() -> None:
    """The command; Ctrl-C while it is still imported ends it as later, with a word and 130."""
    try:
        _main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _main() -> None:
    """First of all whether something on the path hides the toolkit's own packages."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
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
        if not ended.code and (sharding := sys.modules.get("align.sharding")):
            sharding.leave()
        if ended.code == 2 and "triton" not in sys.modules:  # whose bindings would complain
            gc.freeze()  # the refusal is said: no search of all that torch has made before the program ends
        raise


if __name__ == "__main__":
    main()

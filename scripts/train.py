"""For launchers that want a file: `accelerate launch scripts/train.py RECIPE ...` is `align train RECIPE ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from align.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()

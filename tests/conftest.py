"""For every test: the Hub is not asked (set HF_HUB_OFFLINE=0 to run the tests marked network)."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

"""Run as several processes by the tests that compare them with one: one short run of each recipe of a file.

usage: preference_worker.py RECIPES.json OUTPUT_FOLDER
"""

import json
import os
import sys
from pathlib import Path

import align

if __name__ == "__main__":
    for name, recipe in json.loads(Path(sys.argv[1]).read_text()).items():
        align.train(recipe, output=f"{sys.argv[2]}/{name}", **{"train.num_processes": int(os.environ["WORLD_SIZE"])})

"""Print the README for a package index: without pictures and links that lead into the clone."""

import re
import sys
from pathlib import Path

text = Path(__file__).parents[1].joinpath("README.md").read_text("utf-8")
text = re.sub(r"!\[[^]]*\]\((?!https:)[^)]*\)\n*", "", text)
sys.stdout.write(re.sub(r"\[([^]]+)\]\((?!https:|#)[^)]*\)", r"\1", text))

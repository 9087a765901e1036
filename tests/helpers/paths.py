"""Name the checkout and the folder of real data sets beside it."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SHARED = Path(os.environ.get("PEFT_SHARED", ROOT.parent / "shared"))  # not in the repository

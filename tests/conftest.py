"""Tests keep their object code in a folder of their own."""

import os
import tempfile

os.environ.setdefault("DIPTYCH_CACHE", os.path.join(tempfile.gettempdir(), "diptych-test-cache"))

"""`python -m speech.serve`."""

import sys

from speech.serve.cli import main

sys.exit(main())

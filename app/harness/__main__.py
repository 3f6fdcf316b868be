"""`python -m app.harness`: lm_eval's own command line, with `prefill` among its models."""

import sys

from app.harness.model import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m rsvp_backend`` is ``rsvp-backend``."""

from __future__ import annotations

import sys

from rsvp_backend.cli import main

if __name__ == "__main__":
    sys.exit(main())

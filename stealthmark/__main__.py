"""`python -m stealthmark`: in a fork of the warm process where there is one, else here."""

import sys

from stealthmark import warm

if __name__ == "__main__":
    status = warm.run(sys.argv[1:])
    if status is None:
        from stealthmark.cli import main

        status = main()
    sys.exit(status)

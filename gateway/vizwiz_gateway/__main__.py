"""``python -m vizwiz_gateway``: the command ``vizwiz-gateway``."""

import sys

from vizwiz_gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())

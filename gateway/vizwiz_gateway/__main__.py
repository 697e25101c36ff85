"""``python -m vizwiz_gateway``: the command ``vizwiz-gateway``."""

from __future__ import annotations

import sys


def main() -> int | str | None:
    """Run the command; its packages are an extra of the wheel, which may be missing."""
    try:
        from vizwiz_gateway import cli
    except ModuleNotFoundError as error:
        return f"gateway: error: {error.name} is not installed; in the checkout, pip install '.[gateway]'"
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())

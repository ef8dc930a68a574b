"""The app over a runs folder: python app.py [--runs runs] [--port 7860] ...; the same as `workbench app`."""

import sys

from workbench.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))

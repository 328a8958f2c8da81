"""What runs when a gateway starts a worker of its own? ``python -m engine`` is ``penstock worker`` without the rest."""

import argparse
import sys

from engine.options import add_arguments, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m engine")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))

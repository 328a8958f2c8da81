"""What does ``penstock key`` do? It makes a key, or the hash of one, for the configuration file."""

import argparse
import getpass
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put both commands on ``parser``."""
    commands = parser.add_subparsers(dest="what", metavar="COMMAND", required=True)
    new = commands.add_parser(
        "new",
        help="make a key",
        description="Make a key. It is printed once, with the entry for the configuration file, which has its hash "
        "only: the key itself is kept nowhere.",
    )
    new.add_argument("id", metavar="ID", help="whose key it is, as metrics and logs will call it")
    hash = commands.add_parser(
        "hash",
        help="print the hash of a key that was made elsewhere",
        description="Read a key from standard input (a terminal doesn't show it) and print its hash for the "
        "configuration file.",
    )
    hash.add_argument(
        "--salt",
        metavar="SALT",
        help="letters, digits, - and _; default: the one in the key if it was made here, else a new one. Of many keys "
        "made elsewhere, unknown ones are refused sooner if all have the same",
    )


def run(args: argparse.Namespace) -> int:
    """``penstock key`` with the command line in ``args``; returns the exit status."""
    from gateway.traffic.keys import hash_key, new_key, parse_hash

    if args.what == "new":
        key = new_key()
        print(key)
        print(f'- {{id: {args.id}, hash: "{hash_key(key.encode())}"}}')
        return 0
    key = (getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        print("penstock: error: this is no key: it has to be printable ASCII without spaces", file=sys.stderr)
        return 1
    hash = str(hash_key(key.encode(), args.salt))
    try:
        parse_hash(hash)
    except ValueError:
        print("penstock: error: --salt has up to 64 letters, digits, - and _", file=sys.stderr)
        return 1
    print(hash)
    return 0

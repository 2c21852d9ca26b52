"""`python -m overtone` is the `overtone` command."""

from overtone.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m accelerate_bnb``: the command line ``accelerate-bnb``."""

from accelerate_bnb.cli import main

if __name__ == "__main__":
    main()

"""``python -m torch_bnb``."""

from torch_bnb.cli import main

if __name__ == "__main__":
    main()

"""``python -m avalanche_peftcl``: the command ``peftcl``."""

from avalanche_peftcl.cli import main

if __name__ == "__main__":
    main()

"""``python -m sparewatt``, the same as the command ``sparewatt``."""

from sparewatt.cli import main

if __name__ == "__main__":
    main()

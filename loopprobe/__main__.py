"""``python -m loopprobe`` is the command line."""

from loopprobe.cli import main

if __name__ == "__main__":
    main()

"""Run maskaudit from a checkout: `python cli.py check model.pt`."""

from maskaudit.cli import main

if __name__ == "__main__":
    main()

"""`python -m sureclr.cli`."""

from sureclr.cli import main

if __name__ == "__main__":
    main()

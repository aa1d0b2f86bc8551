"""`python -m stepwell_cli` is `stepwell`."""

from stepwell_cli import main

if __name__ == "__main__":
    main()

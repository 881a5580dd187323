"""`python -m zoo.cli` and `accelerate launch -m zoo.cli` are the `zoo` command."""

from zoo.cli import main

if __name__ == "__main__":
    main()

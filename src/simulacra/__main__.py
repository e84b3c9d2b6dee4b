"""``python -m simulacra``, and what ``torchrun -m simulacra`` starts."""

from simulacra.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m tune`, and what `ray submit` takes: the same as `leebert-tune`."""

from tune.cli import main

if __name__ == "__main__":
    main()

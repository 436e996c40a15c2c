"""Rewrites every golden file: `python -m tests.golden.regenerate`. No test does this; the difference is for a reviewer to see."""

from tests.golden.frozen import FOLDER, files


def main() -> None:
    """Write what is computed now; take away what is no longer."""
    FOLDER.mkdir(exist_ok=True)
    wanted = files()
    for path in FOLDER.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()

"""Write the table of docs/doctor.md anew from the rules' docstrings; everything above its heading stays."""

from pathlib import Path

from coterie.doctor.registry import codes_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "doctor.md"
HEADING = "## All codes\n\n"


def main() -> None:
    """Replace what follows the heading."""
    before, _, _ = PAGE.read_text("utf-8").partition(HEADING)
    PAGE.write_text(f"{before}{HEADING}{codes_table()}\n", "utf-8")


if __name__ == "__main__":
    main()

"""The command line: thin faces over the library. Results go to standard output, everything else to standard error."""


def main() -> None:
    """Run `coterie`; the process ends with one of the exit codes of `coterie.cli.failures`."""
    # Imported here so that a Ctrl-C during start-up ends as quietly as a later one.
    try:
        from coterie.cli.app import app

        app(prog_name="coterie")
    except KeyboardInterrupt:
        raise SystemExit(130) from None

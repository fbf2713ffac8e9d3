"""`python -m upge` is the command `upge`: for launchers that start Python modules, `accelerate launch -m upge`."""

from upge.cli.main import main

if __name__ == "__main__":
    main()

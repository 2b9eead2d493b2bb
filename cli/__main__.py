"""`python -m picospec.cli`: the picospec command."""

from picospec.cli.main import app

if __name__ == "__main__":
    app(prog_name="picospec")

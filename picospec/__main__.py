"""`python -m picospec`: the picospec command."""

from picospec.main import app

if __name__ == "__main__":
    app(prog_name="picospec")

"""`python -m models` is `picospec models`."""

from models.cli import models_app

models_app(prog_name="picospec models")

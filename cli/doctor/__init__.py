"""`picospec doctor` checks what PicoSpec needs, and advises on what fails."""

"""``python -m i2c_fast``, as torchrun starts it."""

from .cli import main

main(prog_name="i2c-fast")

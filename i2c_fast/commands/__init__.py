"""What the commands of ``i2c-fast`` do, one a module; `train` is `training.start_run`, `report` is `report.page`."""

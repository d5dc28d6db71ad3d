"""The paper's experiments: what is run, the runs, and the tables and figures made of them (scripts/reproduce)."""

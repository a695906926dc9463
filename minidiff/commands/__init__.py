"""What `minidiff train`, `sample`, `evaluate` and `export` do; cli.py calls one of them."""

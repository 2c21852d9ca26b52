"""How fast it is: run as modules from the root of the project, such as `python -m benchmarks.step`."""

"""What the README claims, measured: ``python -m bench NAME`` writes CSV to bench/results/."""

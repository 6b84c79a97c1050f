"""The paper's claims and the project's own, each by one command: training, judging, table, figure and paragraph."""

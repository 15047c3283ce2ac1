"""What happened, on paper: recordings, their replay, reports and diagrams. Floor 15."""

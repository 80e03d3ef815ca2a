"""What a run leaves to read: report.html and summary.json."""

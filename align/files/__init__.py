"""What lies on disk: texts and tables read by one rule, and where output goes."""

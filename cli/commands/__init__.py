"""One module for each command of cdnctl; imported by cli/main.py when it is called."""

"""cdnctl, the operator's command."""

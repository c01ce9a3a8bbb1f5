"""The embedded daemon, and the warden inside supervisord."""

"""The warden: the plugin inside supervisord, and the only one who kills."""

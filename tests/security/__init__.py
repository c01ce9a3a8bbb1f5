"""Every door, tried by those who should not come in. docs/security.md has the list."""

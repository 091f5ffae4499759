"""The command line: one thin file per verb; nothing else imports it."""

"""The options of the commands that are one module each, apart from what carries them out.

Nothing else is loaded here: `--help` has to answer at once, and shells complete what is here.
Commands that are packages have theirs in a `command_line` of their own.
"""

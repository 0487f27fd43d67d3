"""Pages for people: templates, one style sheet and the figures in them; `osler.report` fills them in."""

"""The page and the summary that join what the stages left behind."""

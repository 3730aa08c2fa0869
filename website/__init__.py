"""The site: what mkdocs is told beyond mkdocs.yml."""

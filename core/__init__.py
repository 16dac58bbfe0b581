"""What every room needs and nothing else: strict configs, user errors, files, progress, pages."""

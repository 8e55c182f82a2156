"""HTML report about one or several training runs."""

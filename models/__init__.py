"""The catalogue of models and their licences, as data."""

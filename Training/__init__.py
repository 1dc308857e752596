"""The verbs that make a model from a cohort."""

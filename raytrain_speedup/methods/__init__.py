"""The accelerations themselves, in plain torch and NumPy: no Ray, no MLflow, no experiment file."""
